//! The advisory lock on an image that the daemon and the offline tools share: exclusive for who
//! writes it, shared for who reads. It goes with the open file.
//!
//! Files have `flock`. On a block device udev takes that as "keep off", so devices are locked by a
//! byte far behind anything of theirs, with a lock that belongs to the open file as well
//! (`F_OFD_SETLK`). That lock is on the node: symbolic links to it count as one, two nodes of one
//! device do not.
use crate::Storage;
use crate::holder::{Holder, holder, is_shared};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// The byte of devices. QEMU's locks are on bytes 100 to 300; this is behind every device's end.
pub(crate) const BYTE: i64 = i64::from_be_bytes(*b"\0\0tdlock");

/// Takes the lock, or turns the one that is held into this kind, unless another has it. Never
/// waits. On a device or NFS 4, of a file that is open for reading only, an exclusive lock is a
/// shared one: `fcntl(2)` has no other, and it keeps writers off as well.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// let (mine, other) = (std::fs::File::create(&name)?, std::fs::File::open(&name)?);
/// assert!(image::try_lock(&mine, true)?);
/// assert!(!image::try_lock(&other, false)?);
/// drop(mine);
/// assert!(image::try_lock(&other, false)?);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of `flock(2)` and `fcntl(2)`: ENOLCK, EOPNOTSUPP where there are no locks.
pub fn try_lock(file: &File, exclusive: bool) -> io::Result<bool> {
    let taken = if file.is_device() { device(file, exclusive) } else { regular(file, exclusive) };
    match taken {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        // What POSIX lets fcntl say in place of EAGAIN.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes the lock as [`try_lock`], or waits for it as long as `goes_on` says so, which is told who
/// holds it and how long that has lasted. Who it was if it said no.
///
/// ```
/// use image::Holder;
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// let (mine, other) = (std::fs::File::create(&name)?, std::fs::File::open(&name)?);
/// assert_eq!(image::acquire(&mine, true, &mut |_, _| false)?, None);
/// let me = std::process::id() as i32;
/// assert_eq!(image::acquire(&other, true, &mut |_, _| false)?, Some(Holder::Writer(me)));
///
/// let mut mine = Some(mine);
/// let got = image::acquire(&other, true, &mut |_, _| mine.take().is_some())?;
/// assert_eq!(got, None, "waited until it was dropped");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
/// Those of [`try_lock`]; of `/proc`, without which nobody can be told from anybody.
pub fn acquire(
    file: &File,
    exclusive: bool,
    goes_on: &mut dyn FnMut(Holder, Duration) -> bool,
) -> io::Result<Option<Holder>> {
    /// Between two tries: a lock can be asked for, but not with a limit. Who has waited for long
    /// does not mind to wait a little longer.
    const PAUSE_MIN: Duration = Duration::from_millis(10);
    const PAUSE_MAX: Duration = Duration::from_millis(100);
    /// Tries between two looks at who it is.
    const TRIES: usize = 50;
    let since = Instant::now();
    loop {
        if try_lock(file, exclusive)? {
            return Ok(None);
        }
        let who = match look(file, exclusive)? {
            Look::Had => return Ok(None),
            Look::Held(who) => who,
            Look::Unseen if is_shared(file) => Holder::Elsewhere,
            // A process's that cannot be seen from here, as good as dead.
            Look::Unseen => Holder::Dead,
        };
        for _ in 0..TRIES {
            if !goes_on(who, since.elapsed()) {
                return Ok(Some(who));
            }
            if try_lock(file, exclusive)? {
                return Ok(None);
            }
            std::thread::sleep((since.elapsed() / 100).clamp(PAUSE_MIN, PAUSE_MAX));
        }
    }
}

/// What came of a look at who has a lock that was not to be had.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// Somebody who can be seen.
    Held(Holder),
    /// Nobody of this machine.
    Unseen,
    /// Nobody any more: it was had.
    Had,
}

/// Looks for who has the lock. One that its holder lets go of between a try and the look is
/// nobody's either, and no other machine's: who is not seen is looked for again after another try.
fn look(file: &File, exclusive: bool) -> io::Result<Look> {
    look_by(file, exclusive, holder)
}

/// The same, by what finds a holder.
fn look_by(
    file: &File,
    exclusive: bool,
    mut find: impl FnMut(&File) -> io::Result<Option<Holder>>,
) -> io::Result<Look> {
    for _ in 0..2 {
        if let Some(who) = find(file)? {
            return Ok(Look::Held(who));
        }
        if try_lock(file, exclusive)? {
            return Ok(Look::Had);
        }
    }
    Ok(Look::Unseen)
}

fn regular(file: &File, exclusive: bool) -> io::Result<()> {
    if exclusive {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            // NFS 4, where it is a lock of fcntl(2).
            Err(rustix::io::Errno::BADF) => {}
            other => return Ok(other?),
        }
    }
    Ok(flock(file, FlockOperation::NonBlockingLockShared)?)
}

fn device(file: &File, exclusive: bool) -> io::Result<()> {
    if exclusive {
        match byte(file, libc::F_WRLCK) {
            Err(Errno::EBADF) => {}
            other => return Ok(other?),
        }
    }
    Ok(byte(file, libc::F_RDLCK)?)
}

fn byte(file: &File, kind: libc::c_int) -> nix::Result<()> {
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: BYTE,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both kinds of lock, on a file: what a device's does needs a device, and is tested with loop
    /// devices.
    #[test]
    fn readers_stand_beside_each_other_and_a_writer_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for take in [regular, device] {
            let open = || {
                File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)
                    .unwrap()
            };
            let (a, b) = (open(), open());
            let busy = |file: &File, exclusive| {
                take(file, exclusive).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
            };
            take(&a, false).unwrap();
            take(&b, false).unwrap();
            assert!(busy(&b, true));
            drop(a);
            take(&b, true).unwrap();
            let c = open();
            assert!(busy(&c, true) && busy(&c, false));
            let reader = File::open(&path).unwrap();
            assert!(busy(&reader, true) && busy(&reader, false));
            take(&b, false).unwrap();
            take(&c, false).unwrap();
            drop((b, c));
            take(&reader, true).unwrap();
            assert!(busy(&open(), true));
        }
    }

    /// Who lets go while they are looked for is not taken for one that cannot be seen.
    #[test]
    fn a_lock_that_is_let_go_of_is_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let other = File::create(&path).unwrap();
        let mut mine = Some(File::open(&path).unwrap());
        assert!(try_lock(mine.as_ref().unwrap(), true).unwrap());
        let gone = |_: &File| {
            mine = None;
            Ok(None)
        };
        assert_eq!(look_by(&other, true, gone).unwrap(), Look::Had);
        let again = File::open(&path).unwrap();
        assert_eq!(look_by(&again, true, |_| Ok(None)).unwrap(), Look::Unseen);
        drop(other);
        assert!(try_lock(&again, true).unwrap());
    }
}
