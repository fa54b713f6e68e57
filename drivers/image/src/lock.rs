//! The advisory lock on an image that the daemon and the offline tools share: exclusive for who writes it,
//! shared for who reads. It goes with the open file.
//!
//! Files have `flock`. On a block device udev takes that as "keep off", so devices are locked by a byte far behind
//! anything of theirs, with a lock that belongs to the open file as well (`F_OFD_SETLK`). That lock is on the
//! node: symbolic links to it count as one, two nodes of one device do not.
use crate::Storage;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;

/// The byte of devices. QEMU's locks are on bytes 100 to 300; this is behind every device's end.
const BYTE: i64 = i64::from_be_bytes(*b"\0\0tdlock");

/// Takes the lock, or turns the one that is held into this kind, unless another has it. Never waits. On a device that is open
/// for reading only, an exclusive lock is a shared one: `fcntl(2)` has no other, and it keeps writers off as well.
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

fn regular(file: &File, exclusive: bool) -> io::Result<()> {
    let how = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    Ok(flock(file, how)?)
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

    /// Both kinds of lock, on a file: what a device's does needs a device, and is tested with loop devices.
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
}
