//! The receiver `nbdclient<pid>`: descriptors that a later `nbd:<name>` image will use
//! (spec/control-socket.md §7).
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use slog::{Logger, info, warn};

use crate::sys;

/// Descriptors that are kept (spec).
const PLACES: usize = 10;
/// Bytes of a name that count.
const NAME_MAX: usize = 39;
/// Longest message in bytes.
const MESSAGE_BYTES: usize = 16384;

/// The socket and what came in through it.
#[derive(Debug)]
pub struct Receiver {
    path: PathBuf,
    listener: UnixListener,
    tokens: [Token; 2],
    sender: Option<UnixStream>,
    places: Vec<(Vec<u8>, OwnedFd)>,
}

impl Receiver {
    /// Binds the socket; a stale one of the same name goes.
    ///
    /// # Errors
    /// Those of bind.
    pub fn open(path: PathBuf, registry: &Registry, tokens: [Token; 2]) -> io::Result<Receiver> {
        let mut listener = bind(&path)?;
        registry.register(&mut listener, tokens[0], Interest::READABLE)?;
        Ok(Receiver { path, listener, tokens, sender: None, places: Vec::new() })
    }

    /// Something happened on one of the two tokens.
    pub fn event(&mut self, registry: &Registry, log: &Logger) {
        self.receive(registry, log);
        while let Ok((mut stream, _)) = self.listener.accept() {
            // One at a time: a second one is closed at once.
            let free = self.sender.is_none();
            if free && registry.register(&mut stream, self.tokens[1], Interest::READABLE).is_ok() {
                self.sender = Some(stream);
                self.receive(registry, log);
            }
        }
    }

    fn receive(&mut self, registry: &Registry, log: &Logger) {
        let Some(stream) = &mut self.sender else { return };
        let mut text = vec![0; MESSAGE_BYTES];
        match sys::receive_descriptor(stream.as_fd(), &mut text) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok((n, Some(fd))) if n > 0 => self.keep(&text[..n], fd, log),
            _ => {}
        }
        if let Some(mut stream) = self.sender.take() {
            let _ = registry.deregister(&mut stream);
        }
    }

    /// A name that is there is replaced; with all places taken the descriptor is closed.
    fn keep(&mut self, text: &[u8], fd: OwnedFd, log: &Logger) {
        let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = &name[..name.len().min(NAME_MAX)];
        let shown = String::from_utf8_lossy(name).into_owned();
        if let Some((_, old)) = self.places.iter_mut().find(|(other, _)| other == name) {
            *old = fd;
        } else if self.places.len() < PLACES {
            self.places.push((name.to_vec(), fd));
        } else {
            warn!(log, "no place for the descriptor \"{shown}\": {PLACES} are kept already");
            return;
        }
        info!(log, "received the descriptor \"{shown}\"");
    }

    /// Takes a descriptor out, for an image that is opened.
    pub fn take(&mut self, name: &[u8]) -> Option<OwnedFd> {
        let at = self.places.iter().position(|(other, _)| other == name)?;
        Some(self.places.swap_remove(at).1)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A listener at `path`, in place of what a dead process left there.
///
/// # Errors
/// Those of bind; ENAMETOOLONG for a path that no socket can have.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > tap_ctl::paths::SOCKET_PATH_LEN_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // Only a socket is removed: anything else in the way is somebody's file, and bind says so.
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}
