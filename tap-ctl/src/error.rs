//! The crate's one error type: an errno for the exit code, and a sentence for people.

use crate::messages::{TextError, kind, type_name};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What went wrong. [`Error::errno`] is what a program reports, the text is for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A file or directory could not be used.
    File {
        /// What was tried, as in "cannot … path".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Errno of the call.
        errno: i32,
    },
    /// The run-time directory is not safe to use.
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection to a tapdisk's control socket.
    Connect {
        /// The socket.
        path: PathBuf,
        /// Errno of connect.
        errno: i32,
    },
    /// A message could not be sent, within its time limit if it has one.
    Send {
        /// Type of the message.
        kind: u16,
        /// The tapdisk.
        pid: i32,
    },
    /// The tapdisk closed the connection without a (whole) reply.
    NoReply {
        /// Type of the request.
        kind: u16,
        /// The tapdisk.
        pid: i32,
    },
    /// The reply did not come in time.
    TimedOut {
        /// Type of the request.
        kind: u16,
        /// The tapdisk.
        pid: i32,
    },
    /// The tapdisk answered with an error.
    Refused {
        /// Type of the request.
        kind: u16,
        /// The tapdisk.
        pid: i32,
        /// The minor (cookie) of the request.
        minor: u16,
        /// Errno that the tapdisk sent.
        errno: i32,
        /// Its sentence, from a tapdisk of ours; not made harmless.
        reason: Option<String>,
    },
    /// The reply is not one of this request.
    Unexpected {
        /// Type of the request.
        kind: u16,
        /// The tapdisk.
        pid: i32,
        /// Type of the reply.
        reply: u16,
    },
    /// The reply cannot be understood.
    BadReply {
        /// The tapdisk.
        pid: i32,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument cannot be sent.
    Argument {
        /// Errno.
        errno: i32,
        /// What is wrong with it.
        reason: String,
    },
    /// All minors are in use.
    RegistryFull {
        /// Directory of the marker files.
        path: PathBuf,
    },
    /// The minor is in use by a tapdisk.
    MinorInUse {
        /// Its marker file.
        path: PathBuf,
    },
    /// The kernel module blktap2 refuses.
    Module {
        /// Errno of the call.
        errno: i32,
        /// What is wrong, in a sentence.
        reason: String,
    },
    /// The daemon did not start.
    Spawn {
        /// The program.
        program: PathBuf,
        /// Errno.
        errno: i32,
        /// What happened.
        reason: String,
        /// What the daemon printed; may be empty.
        said: String,
    },
}

impl Error {
    /// The errno, positive: exit code of a program and argument of [`strerror`].
    pub fn errno(&self) -> i32 {
        match self {
            Error::File { errno, .. }
            | Error::Connect { errno, .. }
            | Error::Refused { errno, .. }
            | Error::Argument { errno, .. }
            | Error::Module { errno, .. }
            | Error::Spawn { errno, .. } => *errno,
            Error::RunDir { .. } => libc::EACCES,
            Error::Send { .. } | Error::NoReply { .. } => libc::EIO,
            Error::TimedOut { .. } => libc::ETIMEDOUT,
            Error::Unexpected { .. } => libc::EINVAL,
            Error::BadReply { .. } => libc::EPROTO,
            Error::RegistryFull { .. } => libc::ENOSPC,
            Error::MinorInUse { .. } => libc::EWOULDBLOCK,
        }
    }

    /// An error of a file operation.
    pub fn file(action: &'static str, path: &Path, error: &io::Error) -> Error {
        Error::File { action, path: path.to_owned(), errno: io_errno(error) }
    }
}

impl std::error::Error for Error {}

impl From<TextError> for Error {
    fn from(error: TextError) -> Error {
        Error::Argument { errno: error.errno(), reason: error.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { action, path, errno } => {
                write!(f, "cannot {action} {}: {}", show::path(path), strerror(*errno))
            }
            Error::RunDir { path, reason } => {
                write!(f, "the run-time directory {} {reason}", show::path(path))
            }
            Error::Connect { path, errno } => connect_text(f, path, *errno),
            Error::Send { kind, pid } => write!(
                f,
                "cannot send the {} message to tapdisk {pid}; is it still running and not stuck in another request?",
                type_name(*kind)
            ),
            Error::NoReply { kind, pid } => write!(
                f,
                "tapdisk {pid} closed the connection without a reply to {}; its log may say why",
                type_name(*kind)
            ),
            Error::TimedOut { kind, pid } => write!(
                f,
                "tapdisk {pid} did not answer {} in time and goes on with it; look again with tap-ctl list -p {pid}",
                type_name(*kind)
            ),
            // It is for all disks.
            Error::Refused { kind: kind::UPGRADE, pid, reason: Some(reason), .. } => {
                write!(f, "tapdisk {pid} is not upgraded: {}", show::line(reason.as_bytes()))
            }
            Error::Refused { kind, pid, minor, reason: Some(reason), .. } => write!(
                f,
                "tapdisk {pid} refused {} of minor {minor}: {}",
                type_name(*kind),
                show::line(reason.as_bytes())
            ),
            Error::Refused { kind, pid, minor, errno, reason: None } => write!(
                f,
                "tapdisk {pid} refused {} of minor {minor}: {} (errno {errno}); its log says why",
                type_name(*kind),
                strerror(*errno)
            ),
            Error::Unexpected { kind, pid, reply } => write!(
                f,
                "tapdisk {pid} answered {} with the unrelated message '{}' ({reply})",
                type_name(*kind),
                type_name(*reply)
            ),
            Error::BadReply { pid, reason } => {
                write!(f, "tapdisk {pid} sent a bad reply: {reason}")
            }
            Error::Argument { reason, .. } | Error::Module { reason, .. } => f.write_str(reason),
            Error::RegistryFull { path } => write!(
                f,
                "all minors are allocated in {}; free unused ones with tap-ctl free -m MINOR",
                show::path(path)
            ),
            Error::MinorInUse { path } => write!(
                f,
                "a tapdisk has {} locked; close and detach that minor first (tap-ctl list shows its pid)",
                show::path(path)
            ),
            Error::Spawn { program, reason, .. } => {
                write!(f, "{} did not start: {reason}", show::path(program))
            }
        }
    }
}

fn connect_text(f: &mut fmt::Formatter<'_>, path: &Path, errno: i32) -> fmt::Result {
    write!(f, "cannot connect to {}: {}", show::path(path), strerror(errno))?;
    match errno {
        libc::ENOENT => write!(f, "; no tapdisk of that pid runs here, see tap-ctl list"),
        libc::ECONNREFUSED => {
            write!(f, "; its tapdisk has died, remove the socket and free its minor")
        }
        _ => Ok(()),
    }
}

/// The errno of an I/O error; EIO where std made one up itself.
pub fn io_errno(error: &io::Error) -> i32 {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => errno,
        // std refuses a socket path that does not fit in sun_path before it calls the kernel.
        (None, io::ErrorKind::InvalidInput) => libc::ENAMETOOLONG,
        (None, _) => libc::EIO,
    }
}

/// C's `strerror`, such as `No such file or directory`.
pub fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rsplit_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strerror_is_c_s() {
        assert_eq!(strerror(2), "No such file or directory");
        assert_eq!(strerror(22), "Invalid argument");
        assert_eq!(strerror(124), "Wrong medium type");
    }

    #[test]
    fn errnos_of_transport_errors() {
        let (kind, pid) = (kind::CLOSE, 7);
        assert_eq!(Error::Send { kind, pid }.errno(), 5);
        assert_eq!(Error::NoReply { kind, pid }.errno(), 5);
        assert_eq!(Error::TimedOut { kind, pid }.errno(), 110);
        assert_eq!(Error::Unexpected { kind, pid, reply: 4 }.errno(), 22);
    }

    #[test]
    fn sentences_name_the_place_and_the_remedy() {
        let error = Error::Connect { path: "/run/x/ctl1".into(), errno: 2 };
        assert_eq!(
            error.to_string(),
            "cannot connect to /run/x/ctl1: No such file or directory; \
             no tapdisk of that pid runs here, see tap-ctl list"
        );
    }
}
