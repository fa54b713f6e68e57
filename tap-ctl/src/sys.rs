//! The system calls that std does not offer. The only module of the crate with unsafe code.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Effective user id of this process.
pub fn euid() -> u32 {
    // SAFETY: geteuid takes no arguments, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// What this process makes from now on is for nobody else to write, however its caller was set up:
/// some leave umask 0 behind. A caller who lets others do less keeps that; of what is its owner's
/// nothing is withheld. To be called before there is another thread.
pub fn settle_umask() {
    const OTHERS: libc::mode_t = 0o077;
    const NO_WRITING: libc::mode_t = 0o022;
    // SAFETY: umask takes a number, touches no memory of ours and cannot fail.
    unsafe {
        let inherited = libc::umask(NO_WRITING);
        libc::umask(inherited & OTHERS | NO_WRITING);
    }
}

/// The exit codes of children are to be had also where the caller ignores SIGCHLD, which takes them
/// away.
pub fn settle_children() {
    // SAFETY: the default action installs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// How to take a lock with [`flock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Exclusive; wait until it is free.
    Wait,
    /// Exclusive; fail with EWOULDBLOCK (11) if it is held.
    Try,
}

/// `flock(2)`: lock an open file exclusively, until it is closed.
///
/// # Errors
/// The errno of the call; EINTR is retried.
pub fn flock(file: &File, lock: Lock) -> io::Result<()> {
    let operation = match lock {
        Lock::Wait => libc::LOCK_EX,
        Lock::Try => libc::LOCK_EX | libc::LOCK_NB,
    };
    loop {
        // SAFETY: the descriptor is open, because `file` is borrowed for the call.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An ioctl that writes three words.
///
/// # Errors
/// The errno of the call.
pub fn ioctl_words(device: &File, number: u32) -> io::Result<[u32; 3]> {
    let mut words = [0u32; 3];
    // SAFETY: `words` are the twelve bytes that the calls of `module` write; the descriptor is
    // borrowed.
    match unsafe { libc::ioctl(device.as_raw_fd(), number.into(), words.as_mut_ptr()) } {
        0.. => Ok(words),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An ioctl whose argument is a number.
///
/// # Errors
/// The errno of the call.
pub fn ioctl_number(device: &File, number: u32, argument: u32) -> io::Result<()> {
    // SAFETY: the argument is a number and no address; the descriptor is borrowed.
    let done =
        unsafe { libc::ioctl(device.as_raw_fd(), number.into(), libc::c_ulong::from(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a node in /dev is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// `mknod(2)` with mode 0600.
///
/// # Errors
/// The errno of the call, EINVAL for a path with a NUL.
pub fn mknod(path: &Path, node: Node, (major, minor): (u32, u32)) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let kind = match node {
        Node::Char => libc::S_IFCHR,
        Node::Block => libc::S_IFBLK,
    };
    // SAFETY: the path ends with a NUL and lives through the call.
    match unsafe { libc::mknod(path.as_ptr(), kind | 0o600, libc::makedev(major, minor)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ask a tapdisk without disks to end, with SIGINT: it takes its sockets along. Only for a process
/// that the caller has started.
///
/// # Errors
/// As of [`terminate`].
pub fn interrupt(pid: i32) -> io::Result<()> {
    signal(pid, libc::SIGINT)
}

/// End a process, with SIGTERM: also a tapdisk that does not answer; its sockets stay. One that
/// does not look at signals any more is killed after a time, where the kernel can name it for
/// certain (Linux 5.3). Only for a process that the
/// caller has started.
///
/// # Errors
/// EINVAL for a number that is no single process, else the errno of `kill(2)`.
pub fn terminate(pid: i32) -> io::Result<()> {
    /// Longer than a tapdisk takes to obey with requests in flight.
    const LIMIT: Duration = Duration::from_secs(15);
    let process = if pid > 1 { pidfd(pid).ok() } else { None };
    signal(pid, libc::SIGTERM)?;
    match process {
        Some(process) if !readable(process.as_fd(), LIMIT) => signal(pid, libc::SIGKILL),
        _ => Ok(()),
    }
}

/// A descriptor that is readable when the process has ended.
fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(fd) {
        // SAFETY: the call gave a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn signal(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: kill takes numbers only; pid > 1, so it names one process and no group.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A pipe, (read end, write end), closed on exec.
///
/// # Errors
/// The errno of `pipe2(2)`, such as EMFILE.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` is an array of two ints, which is what pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2 succeeded, so both numbers are open descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Is there something to read, or end-of-file, within `limit`?
pub fn readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one pollfd and lives through the call; the descriptor is borrowed.
    unsafe { libc::poll(&mut poll, 1, millis) == 1 }
}

/// Says aloud that a test cannot run here.
#[cfg(test)]
pub(crate) fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(std::env::var_os("TAPDISK_TESTS_SKIP_NOTHING").is_none(), "{why}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_second_lock_would_block() {
        let path = std::env::temp_dir().join(format!("tap-ctl-flock-{}", std::process::id()));
        let first = File::create(&path).expect("create");
        let second = File::open(&path).expect("open");
        flock(&first, Lock::Wait).expect("free");
        let error = flock(&second, Lock::Try).expect_err("held");
        assert_eq!(error.raw_os_error(), Some(11));
        drop(first);
        flock(&second, Lock::Try).expect("free again");
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn terminate_never_names_a_group() {
        for pid in [-5, -1, 0, 1] {
            assert_eq!(terminate(pid).expect_err("refused").raw_os_error(), Some(22));
        }
    }

    #[test]
    fn a_pipe_is_readable_with_text_and_at_its_end() {
        let (read, write) = pipe().expect("pipe");
        assert!(!readable(read.as_fd(), Duration::ZERO));
        let mut write = File::from(write);
        write.write_all(b"x").expect("write");
        assert!(readable(read.as_fd(), Duration::ZERO));
        drop(write);
        assert!(readable(read.as_fd(), Duration::ZERO));
    }
}
