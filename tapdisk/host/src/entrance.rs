//! The sockets that we listen on, and who may come in through them (docs/security.md).
//!
//! Whoever speaks to one of them has every disk, and every file that root can open. Two locks,
//! since either alone has been opened by accident: the file's mode, and the credentials of whoever
//! connects.
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use slog::{Logger, warn};

use crate::socket;

/// Bytes that a path of a socket may have: `sun_path` of unix(7) less its end.
pub const PATH_BYTES_MAX: usize = 107;

/// Between two lines about strangers, so that they cannot fill the log.
const QUIET: Duration = Duration::from_secs(1);

/// A listener at `path`, in place of what a dead process left there. It does not block, and from
/// its first moment on it is for its owner alone, whatever the umask.
///
/// # Errors
/// Those of bind; ENAMETOOLONG for a path that no socket can have.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // Only a socket is removed: anything else in the way is somebody's file, and bind says so.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    socket::listen_privately(path)
}

/// Somebody who has no business here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// The user.
    pub uid: u32,
    /// The process; 0 if it is not one of ours to see.
    pub pid: i32,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stranger { uid, pid } = self;
        write!(f, "user {uid} (process {pid}) is turned away: root may come in, and user ")?;
        write!(f, "{}; others through a descriptor that root passes", euid())
    }
}

fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Who is at the other end, unless it is root or ourselves. Whom the kernel does not name is a
/// stranger.
pub fn stranger(stream: BorrowedFd<'_>) -> Option<Stranger> {
    let (uid, pid) = socket::peer(stream).unwrap_or((u32::MAX, 0));
    let peer = Stranger { uid, pid };
    (peer.uid != 0 && peer.uid != euid()).then_some(peer)
}

/// Stands at a socket whose requests are not a data path.
#[derive(Debug, Default)]
pub struct Guard {
    quiet_until: Option<Instant>,
}

impl Guard {
    /// Whether somebody who has connected may stay.
    pub fn lets_in(&mut self, stream: &impl AsFd, path: &Path, log: &Logger) -> bool {
        let Some(stranger) = stranger(stream.as_fd()) else { return true };
        let now = Instant::now();
        if self.quiet_until.is_none_or(|until| until <= now) {
            self.quiet_until = Some(now + QUIET);
            warn!(log, "{}: {stranger}", show::path(path));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_listener_is_for_its_owner_alone_and_replaces_a_stale_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let listener = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        assert_eq!(stranger(stream.as_fd()), None, "ourselves");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(listen(&path).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
    }

    #[test]
    fn a_path_that_no_socket_can_have() {
        let long = format!("/tmp/{}", "x".repeat(PATH_BYTES_MAX));
        let error = listen(Path::new(&long)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
        let nul = Path::new("/tmp/a\0b");
        assert_eq!(listen(nul).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn who_the_kernel_does_not_name_is_a_stranger() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(stranger(file.as_fd()), Some(Stranger { uid: u32::MAX, pid: 0 }));
    }
}
