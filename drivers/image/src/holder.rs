//! Who has the lock on an image that was not to be had: a process that lives, one that is dead, or
//! another machine.
//!
//! ```text
//!   /proc/locks: locks on our inode ──► none ──────────────► elsewhere, or nobody any more
//!                  └──► in /proc/PID/fdinfo of one that lives ──► it writes, or only reads
//!                  └──► in nobody's ───────────────────────► dead: its requests still run
//! ```
//! A process that was killed with io_uring requests in flight is gone at once; its open file, and
//! with it the lock, lasts until the last of them is over. So a lock that no living process has is
//! the fence that a writer waits at, and it needs no help of anybody.
use crate::Storage;
use crate::lock::BYTE;
use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Who holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A process of this machine that may write the image, or wants it for itself.
    Writer(i32),
    /// Processes of this machine that only read it, and nobody else; the first of them.
    Reader(i32),
    /// A process that has ended, or is just ending, whose requests are not over.
    Dead,
    /// Nobody of this machine, on a file system that others may have too.
    Elsewhere,
}

/// A lock as `/proc/locks` and `/proc/PID/fdinfo` show it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lock {
    pid: i32,
    /// As it is written there: `major:minor:inode`.
    key: String,
    flock: bool,
    exclusive: bool,
    start: u64,
    end: u64,
}

/// File systems that several machines may have, by the numbers of `statfs(2)`.
const SHARED: [u64; 12] = [
    0x6969,      // NFS
    0xfe53_4d42, // SMB 2 and 3
    0xff53_4d42, // CIFS
    0x517b,      // SMB
    0x00c3_6400, // Ceph
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
    0x6573_5546, // FUSE
    0x0bd0_0bd0, // Lustre
    0x0102_1997, // 9P
    0x4750_4653, // GPFS
    0x5346_414f, // AFS
];

/// Who has a lock on this image, other than by this open file; nobody that can be seen from here:
/// `None`.
///
/// ```
/// use image::Holder;
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// let (mine, other) = (std::fs::File::create(&name)?, std::fs::File::open(&name)?);
/// assert!(image::try_lock(&mine, true)?);
/// assert_eq!(image::holder(&mine)?, None);
/// assert_eq!(image::holder(&other)?, Some(Holder::Writer(std::process::id() as i32)));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Without `/proc`, nobody can be told from anybody.
pub fn holder(file: &File) -> io::Result<Option<Holder>> {
    let key = key_of(file)?;
    let flock = !file.is_device();
    let ours = |lock: &Lock| {
        let byte = BYTE.unsigned_abs();
        let on_byte = lock.start <= byte && byte <= lock.end;
        lock.key == key && lock.flock == flock && (flock || on_byte)
    };
    let text = std::fs::read_to_string("/proc/locks")?;
    let mut held: Vec<Lock> = text.lines().filter_map(parse).filter(ours).collect();
    let living = Living::holding(file, &key, &ours)?;
    held.retain(|lock| !living.locks.contains(lock));
    // It may be one of those that we may not look into.
    let may_be = |pid: i32, lock: &Lock| match lock.flock {
        true => lock.pid == pid,
        false => is_ours(pid),
    };
    let hidden = living.hidden.iter().find(|pid| held.iter().any(|lock| may_be(**pid, lock)));
    Ok(match living {
        Living { writer: Some(pid), .. } => Some(Holder::Writer(pid)),
        _ if hidden.is_some() => hidden.map(|pid| Holder::Writer(*pid)),
        _ if !held.is_empty() => Some(Holder::Dead),
        Living { reader: Some(pid), .. } => Some(Holder::Reader(pid)),
        _ => None,
    })
}

/// Whether other machines may have the file system too.
pub fn is_shared(file: &File) -> bool {
    // The type of the number differs from processor to processor.
    #[allow(clippy::unnecessary_cast)]
    fstatfs(file).is_ok_and(|fs| SHARED.contains(&(fs.f_type as u64 & 0xffff_ffff)))
}

/// What the processes that live have of an image.
#[derive(Debug, Default)]
struct Living {
    writer: Option<i32>,
    reader: Option<i32>,
    /// The locks that they hold.
    locks: Vec<Lock>,
    /// Those that we may not look into.
    hidden: Vec<i32>,
}

impl Living {
    fn holding(file: &File, key: &str, ours: &dyn Fn(&Lock) -> bool) -> io::Result<Living> {
        let mut living = Living::default();
        let own = format!("/proc/{}/fdinfo/{}", std::process::id(), file.as_raw_fd());
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.parse::<i32>().ok());
            let Some(pid) = pid.filter(|_| !is_ending(&entry.path())) else { continue };
            match std::fs::read_dir(entry.path().join("fdinfo")) {
                Ok(files) => {
                    let files = files.flatten().map(|file| file.path());
                    files.for_each(|info| living.look(pid, &info, info == *own, (key, ours)));
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    living.hidden.push(pid);
                }
                Err(_) => {}
            }
        }
        Ok(living)
    }

    fn look(&mut self, pid: i32, info: &Path, own: bool, of: (&str, &dyn Fn(&Lock) -> bool)) {
        let (key, ours) = of;
        let text = std::fs::read_to_string(info).unwrap_or_default();
        if !text.contains(key) {
            return;
        }
        let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
        let locks: Vec<Lock> = locks.filter_map(parse).filter(ours).collect();
        match (own || locks.is_empty(), writes(&text) || locks.iter().any(|lock| lock.exclusive)) {
            (true, _) => {}
            (false, true) => self.writer = self.writer.or(Some(pid)),
            (false, false) => self.reader = self.reader.or(Some(pid)),
        }
        self.locks.extend(locks);
    }
}

/// Whether a process is one of the programs that lock images: its name everybody may read.
fn is_ours(pid: i32) -> bool {
    const NAMES: [&str; 5] = ["tapdisk", "vhd-util", "td-util", "qcow2-util", "qemu-img"];
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| NAMES.contains(&name.trim_end()))
}

/// `flags:` of fdinfo are those of `open(2)`, octal; the last two bits say how.
fn writes(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_none_or(|flags| flags & 3 != 0)
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF`. A line with `->` is of one who waits.
fn parse(line: &str) -> Option<Lock> {
    let mut words = line.split_whitespace().skip(1);
    let flock = match words.next()? {
        "FLOCK" => true,
        "OFDLCK" | "POSIX" => false,
        _ => return None,
    };
    let mut words = words.skip(1);
    let exclusive = words.next()? == "WRITE";
    let pid = words.next()?.parse().ok()?;
    let key = words.next()?.to_owned();
    let start = words.next()?.parse().ok()?;
    let end = words.next()?;
    let end = if end == "EOF" { u64::MAX } else { end.parse().ok()? };
    Some(Lock { pid, key, flock, exclusive, start, end })
}

/// What the kernel calls the inode in its lists. `st_dev` is not always its file system's number
/// (Btrfs, overlays), so that is looked up by the mount.
fn key_of(file: &File) -> io::Result<String> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let of = |name: &str| Some(fdinfo.lines().find_map(|line| line.strip_prefix(name))?.trim());
    let meta = file.metadata()?;
    let inode = of("ino:").map_or_else(|| meta.ino().to_string(), str::to_owned);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let device = of("mnt_id:").and_then(|id| device_of(&mounts, id));
    let stat = || (libc::major(meta.dev()), libc::minor(meta.dev()));
    let (major, minor) = device.unwrap_or_else(stat);
    Ok(format!("{major:02x}:{minor:02x}:{inode}"))
}

/// The third word of a mount's line, `major:minor`.
fn device_of(mounts: &str, id: &str) -> Option<(u32, u32)> {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether a process has ended but for its requests, or has been told to by the one signal that
/// nobody survives.
fn is_ending(process: &Path) -> bool {
    let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
    let stat = read("stat");
    // The name in brackets may hold anything.
    let mut words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    const PF_EXITING: u64 = 4;
    let state = words.next().unwrap_or("X");
    let flags = words.nth(5).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    matches!(state, "Z" | "X") || flags & PF_EXITING != 0 || is_killed(&read("status"))
}

fn is_killed(status: &str) -> bool {
    const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);
    let pending = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    let mut sets = pending.filter_map(|set| u64::from_str_radix(set.trim(), 16).ok());
    sets.any(|set| set & SIGKILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::try_lock;

    #[test]
    fn the_kernel_s_lines() {
        let lock = parse("1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF").unwrap();
        assert_eq!((lock.pid, lock.key.as_str(), lock.flock), (1234, "08:01:131", true));
        let lock = parse("\t6: OFDLCK ADVISORY  READ -1 fe:00:10168608 203 204").unwrap();
        assert_eq!((lock.pid, lock.flock, lock.start, lock.end), (-1, false, 203, 204));
        for other in [
            "2: -> FLOCK  ADVISORY  WRITE 9 08:01:131 0 EOF",
            "3: LEASE  ACTIVE    READ 9 08:01:131 0 EOF",
            "4: FLOCK  ADVISORY",
            "",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        assert!(writes("pos:\t0\nflags:\t02100002\n"));
        assert!(!writes("flags:\t0100000\n"));
        assert!(is_killed("Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"));
        assert!(!is_killed("ShdPnd:\t0000000000004000\n"));
        let mounts = "22 1 254:0 / / rw - ext4 /dev/root rw\n31 22 0:39 / /m rw - fuse x rw\n";
        assert_eq!(device_of(mounts, "31"), Some((0, 39)));
        assert_eq!(device_of(mounts, "3"), None);
    }

    #[test]
    fn readers_are_told_from_writers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let writer = File::create(&path).unwrap();
        let (reader, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        let me = std::process::id() as i32;
        assert_eq!(holder(&other).unwrap(), None);
        assert!(try_lock(&reader, false).unwrap() && !try_lock(&other, true).unwrap());
        assert_eq!(holder(&other).unwrap(), Some(Holder::Reader(me)));
        assert_eq!(holder(&reader).unwrap(), None, "one's own lock is nobody's");
        // A writer among readers has the shared lock only, and is one all the same.
        assert!(try_lock(&writer, false).unwrap());
        assert_eq!(holder(&other).unwrap(), Some(Holder::Writer(me)));
        assert_eq!(holder(&writer).unwrap(), Some(Holder::Reader(me)));
        drop(reader);
        assert!(try_lock(&writer, true).unwrap() && !try_lock(&other, false).unwrap());
        assert_eq!(holder(&other).unwrap(), Some(Holder::Writer(me)));
    }
}
