//! The receiver `nbdclient<pid>`: descriptors that a later `nbd:<name>` image will use
//! (spec/control-socket.md §7).
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde::{Deserialize, Serialize};
use slog::{Logger, info, warn};

use host::carry::{Carried, Carrier, Fetcher};
use host::entrance::{Guard, listen};
use host::sys;

/// Descriptors that are kept (spec).
const PLACES: usize = 10;
/// Bytes of a name that count.
const NAME_MAX: usize = 39;
/// Longest message in bytes.
const MESSAGE_BYTES: usize = 16384;

/// What keeping a descriptor came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there under its name.
    Yes,
    /// All places are taken: it was closed.
    Full,
}

type Places = Vec<(Vec<u8>, OwnedFd)>;

/// The descriptors that were passed, by name; shared with the workers that open and close images.
#[derive(Debug, Default)]
pub struct Stash(Mutex<Places>);

impl Stash {
    /// Takes a descriptor out, for an image that is opened.
    pub fn take(&self, name: &[u8]) -> Option<OwnedFd> {
        let mut places = self.places();
        let at = places.iter().position(|(other, _)| other == significant(name))?;
        Some(places.swap_remove(at).1)
    }

    /// Keeps one that came. A name that is there is replaced.
    fn put(&self, name: &[u8], fd: OwnedFd) -> Kept {
        let (mut places, name) = (self.places(), significant(name));
        if let Some((_, old)) = places.iter_mut().find(|(other, _)| other == name) {
            *old = fd;
        } else if places.len() < PLACES {
            places.push((name.to_vec(), fd));
        } else {
            return Kept::Full;
        }
        Kept::Yes
    }

    /// Puts one back after its image was closed, unless a newer one of its name has come.
    pub fn put_back(&self, name: &[u8], fd: OwnedFd) -> Kept {
        if self.places().iter().any(|(other, _)| other == significant(name)) {
            return Kept::Yes;
        }
        self.put(name, fd)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().expect("nothing panics under the lock: the program aborts on a panic")
    }
}

fn significant(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_MAX)]
}

/// A receiver, as one program leaves it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct ReceiverState {
    listener: Carried,
    /// Names and descriptors.
    stash: Vec<(Vec<u8>, Carried)>,
}

/// The socket, and where what comes in through it goes.
#[derive(Debug)]
pub struct Receiver {
    path: PathBuf,
    listener: UnixListener,
    guard: Guard,
    tokens: [Token; 2],
    sender: Option<UnixStream>,
    stash: Arc<Stash>,
}

impl Receiver {
    /// Binds the socket; a stale one of the same name goes.
    ///
    /// # Errors
    /// Those of bind.
    pub fn open(path: PathBuf, registry: &Registry, tokens: [Token; 2]) -> io::Result<Receiver> {
        let mut listener = UnixListener::from_std(listen(&path)?);
        registry.register(&mut listener, tokens[0], Interest::READABLE)?;
        let (guard, stash) = (Guard::default(), Arc::default());
        Ok(Receiver { path, listener, guard, tokens, sender: None, stash })
    }

    /// The receiver that another program has left.
    ///
    /// # Errors
    /// A descriptor that is not there.
    pub fn adopt(
        (path, registry, tokens): (PathBuf, &Registry, [Token; 2]),
        state: &ReceiverState,
        fetcher: &mut Fetcher,
    ) -> io::Result<Receiver> {
        let stash = Arc::<Stash>::default();
        for (name, fd) in &state.stash {
            stash.put(name, fetcher.fetch(*fd)?);
        }
        let listener = std::os::unix::net::UnixListener::from(fetcher.fetch(state.listener)?);
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, tokens[0], Interest::READABLE)?;
        Ok(Receiver { path, listener, guard: Guard::default(), tokens, sender: None, stash })
    }

    /// What the next program needs. Who is about to pass a descriptor has to come again.
    ///
    /// # Errors
    /// Those of the carrier.
    pub fn state(&self, carrier: &mut Carrier) -> io::Result<ReceiverState> {
        let mut state =
            ReceiverState { listener: carrier.carry(self.listener.as_fd())?, stash: Vec::new() };
        for (name, fd) in self.stash.places().iter() {
            state.stash.push((name.clone(), carrier.carry(fd.as_fd())?));
        }
        Ok(state)
    }

    /// Something happened on one of the two tokens.
    pub fn event(&mut self, registry: &Registry, log: &Logger) {
        self.receive(registry, log);
        while let Ok((mut stream, _)) = self.listener.accept() {
            if !self.guard.lets_in(&stream, &self.path, log) {
                continue;
            }
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

    /// With all places taken the descriptor is closed.
    fn keep(&mut self, text: &[u8], fd: OwnedFd, log: &Logger) {
        let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let shown = show::line(significant(name)).into_owned();
        match self.stash.put(name, fd) {
            Kept::Yes => info!(log, "received the descriptor \"{shown}\""),
            Kept::Full => {
                warn!(log, "no place for the descriptor \"{shown}\": {PLACES} are kept already");
            }
        }
    }

    /// What came in.
    pub fn stash(&self) -> Arc<Stash> {
        Arc::clone(&self.stash)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
