//! Leaving the caller behind: fork, a session of one's own, and none of the caller's descriptors.
#![allow(unsafe_code)]
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use super::{Failure, errno_code, serve};
use crate::signals;

/// The caller's pipe and the parent's, of a daemon.
pub(super) struct Caller {
    pub stdout: File,
    pub stderr: File,
    /// One byte: the exit code of the parent.
    pub verdict: File,
}

/// Forks. The parent exits with the verdict of the child, or as the child did.
pub(super) fn daemonise() -> ExitCode {
    signals::hold_back();
    let Ok((read, write)) = tap_ctl::sys::pipe() else {
        return ExitCode::from(errno_code(libc::EMFILE));
    };
    // SAFETY: no other thread exists yet, so the child may go on as an ordinary process.
    match unsafe { libc::fork() } {
        0 => {
            drop(read);
            match detach(write) {
                Ok(caller) => serve(Some(caller)),
                Err(Failure(errno, text)) => {
                    eprintln!("tapdisk: {text}");
                    ExitCode::from(errno_code(errno))
                }
            }
        }
        child if child > 0 => {
            drop(write);
            wait_for_verdict(read, child)
        }
        _ => {
            let error = io::Error::last_os_error();
            eprintln!("tapdisk: cannot fork: {error}");
            ExitCode::from(errno_code(error.raw_os_error().unwrap_or(libc::EAGAIN)))
        }
    }
}

fn wait_for_verdict(read: OwnedFd, child: libc::pid_t) -> ExitCode {
    let mut verdict = [0];
    if matches!(File::from(read).read(&mut verdict), Ok(1)) {
        return ExitCode::from(verdict[0]);
    }
    // It ended without one.
    let mut status = 0;
    // SAFETY: waits for our own child; the status outlives the call.
    unsafe { libc::waitpid(child, &mut status, 0) };
    match libc::WIFEXITED(status) {
        true => ExitCode::from(errno_code(libc::WEXITSTATUS(status))),
        false => ExitCode::from(errno_code(libc::EINTR)),
    }
}

/// In the child: a session of its own, the root directory, and nothing of the caller's but two
/// pipes.
fn detach(verdict: OwnedFd) -> Result<Caller, Failure> {
    let failed = |doing: &'static str| move |error: io::Error| Failure::io(doing, &error);
    // SAFETY: takes nothing; fails only for a process group leader, which a fork is not.
    unsafe { libc::setsid() };
    std::env::set_current_dir("/").map_err(failed("go to /"))?;
    let (stdout, stderr) = (copy_of(1), copy_of(2));
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("open /dev/null"))?;
    let stdout = stdout.or_else(|_| null.try_clone()).map_err(failed("keep standard output"))?;
    let stderr = stderr.or_else(|_| null.try_clone()).map_err(failed("keep standard error"))?;
    for fd in 0..3 {
        // SAFETY: takes numbers; 0, 1 and 2 belong to nobody in this program but the standard
        // streams.
        if unsafe { libc::dup2(null.as_raw_fd(), fd) } < 0 {
            return Err(Failure::io("close the standard streams", &io::Error::last_os_error()));
        }
    }
    drop(null);
    let verdict = File::from(verdict);
    let keep = [stdout.as_raw_fd(), stderr.as_raw_fd(), verdict.as_raw_fd()];
    close_all_but(&keep);
    Ok(Caller { stdout, stderr, verdict })
}

fn copy_of(fd: RawFd) -> io::Result<File> {
    // SAFETY: takes numbers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    match copy < 0 {
        true => Err(io::Error::last_os_error()),
        // SAFETY: fcntl gave a new descriptor that nobody else owns.
        false => Ok(unsafe { File::from_raw_fd(copy) }),
    }
}

/// Closes every inherited descriptor above the standard streams but these.
fn close_all_but(keep: &[RawFd]) {
    let Ok(names) = std::fs::read_dir("/proc/self/fd") else { return };
    let open: Vec<RawFd> = names
        .flatten()
        .filter_map(|name| name.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= 3 && !keep.contains(fd))
        .collect();
    for fd in open {
        // SAFETY: of this program's own there are only those in `keep` and the one that listed the
        // folder, which is closed already; all the others were inherited and belong to nobody here.
        unsafe { libc::close(fd) };
    }
}
