//! The four sockets of a disk, and the descriptors that come through two of them.
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::conn::Style;
use super::sys::{self, Passed};
use host::entrance::{PATH_BYTES_MAX, Stranger, listen, stranger};

/// How long a connection to a receiver may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Where the sockets of one disk are (control-socket.md §1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Clients connect here: newstyle.
    pub nbd: PathBuf,
    /// Clients connect here, too: newstyle, and oldstyle after DISC.
    pub nbd_old: PathBuf,
    /// Receives descriptors that are served with the oldstyle greeting.
    pub server: PathBuf,
    /// Receives descriptors that are served with the newstyle greeting.
    pub server_new: PathBuf,
}

impl Paths {
    /// The original's names.
    pub fn in_folder(folder: &Path, pid: u32, minor: u32) -> Paths {
        let name = |stem: &str| folder.join(format!("{stem}{pid}.{minor}"));
        Paths {
            nbd: name("nbd"),
            nbd_old: name("nbd-old"),
            server: name("nbdserver"),
            server_new: name("nbdserver-new"),
        }
    }
}

/// A socket that could not be made.
#[derive(Debug)]
pub struct ListenError {
    /// Its path.
    pub path: PathBuf,
    /// What the kernel said.
    pub error: io::Error,
}

impl ListenError {
    /// A positive errno for the control protocol.
    pub fn errno(&self) -> i32 {
        self.error.raw_os_error().unwrap_or(libc::EIO)
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", show::path(&self.path), self.error)?;
        match self.error.raw_os_error() {
            Some(libc::ENAMETOOLONG) => {
                write!(f, ": it has at most {PATH_BYTES_MAX} bytes; use a shorter run directory")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// What a door is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Whoever connects is a client.
    Clients(Style),
    /// Whoever connects brings the descriptor of a client.
    Descriptors(Style),
}

/// Somebody who came in, or who was turned away.
pub(super) type Accepted = Result<UnixStream, Stranger>;

/// A listening socket. Its file goes when it does.
#[derive(Debug)]
pub(super) struct Door {
    pub purpose: Purpose,
    /// Somebody may be waiting.
    pub knocked: bool,
    socket: UnixListener,
    path: PathBuf,
    /// The connection that has not brought its descriptor yet, and since when it was seen silent.
    courier: Option<(UnixStream, Option<Instant>)>,
    courier_token: Token,
}

impl Door {
    /// Binds and listens. A stale socket of the same name goes first.
    pub(super) fn open(
        path: &Path,
        purpose: Purpose,
        registry: &Registry,
        (token, courier_token): (Token, Token),
    ) -> Result<Door, ListenError> {
        let fail = |error| ListenError { path: path.to_owned(), error };
        let socket = listen(path).map_err(fail)?;
        Door::over(socket, path, purpose, registry, (token, courier_token))
    }

    /// A door over a socket that listens already.
    pub(super) fn over(
        socket: UnixListener,
        path: &Path,
        purpose: Purpose,
        registry: &Registry,
        (token, courier_token): (Token, Token),
    ) -> Result<Door, ListenError> {
        // From here on its drop removes the file.
        let path = path.to_owned();
        let door = Door { purpose, knocked: false, socket, path, courier: None, courier_token };
        let fd = door.socket.as_raw_fd();
        let ready = registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
        match ready {
            Ok(()) => Ok(door),
            Err(error) => Err(ListenError { path: door.path.clone(), error }),
        }
    }

    /// The next one who waits. `Ok(None)`: nobody (any more).
    pub(super) fn accept(&mut self) -> io::Result<Option<Accepted>> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => {
                    let stranger = stranger(stream.as_fd());
                    return Ok(Some(stranger.map_or(Ok(stream), Err)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.knocked = false;
                    return Ok(None);
                }
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for a courier's descriptor. One at a time: another one is closed at once.
    pub(super) fn admit(&mut self, stream: UnixStream, registry: &Registry) -> io::Result<()> {
        if self.courier.is_some() {
            return Ok(());
        }
        let fd = stream.as_raw_fd();
        registry.register(&mut SourceFd(&fd), self.courier_token, Interest::READABLE)?;
        self.courier = Some((stream, None));
        Ok(())
    }

    /// What the courier brought: `None` if he has not yet, or if there is none.
    pub(super) fn collect(&mut self, registry: &Registry) -> Option<Option<OwnedFd>> {
        let (stream, _) = self.courier.as_ref()?;
        let brought = match sys::receive_descriptor(stream.as_fd()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return None,
            Ok(Passed::Descriptor(fd)) => Some(fd),
            Ok(Passed::Nothing) | Err(_) => None,
        };
        self.dismiss(registry);
        Some(brought)
    }

    /// Sends a courier away who stands there for too long.
    pub(super) fn tick(&mut self, now: Instant, registry: &Registry) {
        let Some((_, since)) = &mut self.courier else { return };
        if now.saturating_duration_since(*since.get_or_insert(now)) >= SILENCE_MAX {
            self.dismiss(registry);
        }
    }

    /// The listening socket, and the connection that has not brought its descriptor yet.
    pub(super) fn sockets(&self) -> (BorrowedFd<'_>, Option<BorrowedFd<'_>>) {
        (self.socket.as_fd(), self.courier.as_ref().map(|(stream, _)| stream.as_fd()))
    }

    fn dismiss(&mut self, registry: &Registry) {
        if let Some((stream, _)) = self.courier.take() {
            // He may hold a copy of his end only; leaving the poll cannot fail in a way that
            // matters.
            let _ = registry.deregister(&mut SourceFd(&stream.as_raw_fd()));
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}
