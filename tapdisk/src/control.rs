//! The control socket: requests of `tap-ctl` and tapback to what they do (spec/control-socket.md
//! §2–5).
//!
//! ```text
//!   listener ─► conn (frame) ─► PID, LIST, STATS … answered at once
//!                           └─► queue ─► one exclusive operation at a time ─► Vbd … ─► reply
//! ```
//! No client can hold up another: nothing is waited for, whoever is silent is the first to go when
//! there are many, and replies of any length wait in memory for whoever reads slowly.
mod conn;
pub mod frame;
mod handover;
mod upgrade;
mod work;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use mio::event::Event;
use mio::net::UnixListener;
use mio::{Interest, Registry, Token};
use slog::info;
use tap_ctl::messages::{Request, type_name};

use crate::vbd::Extra;
use conn::{Conn, Input, Phase};
pub use handover::ControlState;
use host::entrance::{Guard, listen};
use host::slab::free_index;
pub use upgrade::Arriving;
pub use work::Daemon;

/// Clients at once. The original has 10.
pub const CLIENTS_MAX: usize = 32;
/// Who is let in in one turn.
const ACCEPTS_MAX: usize = 64;
/// After this time accepting is tried again, in µs.
const ACCEPT_RETRY_US: u64 = 1_000_000;
/// Tokens of the poll in use, from the base on: the listener and the clients.
pub const TOKENS: usize = 1 + CLIENTS_MAX;

/// A client by place and serial number, since places are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ClientId(usize, u64);

/// An exclusive request that waits for its turn.
struct Queued {
    client: ClientId,
    request: Box<(Request, Extra)>,
}

/// The exclusive request that is being worked on.
struct Running {
    /// `None`: it is gone.
    client: Option<ClientId>,
    request: Box<(Request, Extra)>,
    awaits: Awaits,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// Its disk, which tells when it is over.
    Disk,
    /// This time, in µs: it is begun again, as where another process holds a marker.
    Time(u64),
    /// The server, which goes on with another program.
    Server,
}

/// The control socket and its clients.
pub struct Control {
    path: PathBuf,
    /// `None` when the process is about to end.
    listener: Option<UnixListener>,
    guard: Guard,
    base: usize,
    clients: Vec<Option<Conn>>,
    serial: u64,
    /// Somebody may be waiting at the listener.
    knocked: bool,
    /// Accepting failed; it is tried again then, in µs.
    accept_at: Option<u64>,
    queue: VecDeque<Queued>,
    running: Option<Running>,
}

impl Control {
    /// Makes the socket; a stale one of the same name goes. Tokens from `base` on are its own.
    ///
    /// # Errors
    /// Those of bind.
    pub fn open(path: PathBuf, registry: &Registry, base: usize) -> io::Result<Control> {
        let mut listener = UnixListener::from_std(listen(&path)?);
        registry.register(&mut listener, Token(base), Interest::READABLE)?;
        Ok(Control {
            path,
            listener: Some(listener),
            guard: Guard::default(),
            base,
            clients: Vec::with_capacity(CLIENTS_MAX),
            serial: 0,
            knocked: false,
            accept_at: None,
            queue: VecDeque::new(),
            running: None,
        })
    }

    /// Whether a token of the poll is one of ours.
    pub fn owns(&self, token: Token) -> bool {
        (self.base..self.base + TOKENS).contains(&token.0)
    }

    /// Something happened on one of our sockets.
    pub fn event(&mut self, daemon: &mut Daemon, event: &Event, now: u64) {
        let Some(index) = event.token().0.checked_sub(self.base + 1) else {
            self.knocked = true;
            return self.accept(daemon, now);
        };
        let Some(client) = &mut self.clients[index] else { return };
        if event.is_writable() {
            client.write();
        }
        // Both directions closed: nobody is there to read a reply.
        let gone = event.is_write_closed() || event.is_error();
        self.receive(daemon, index, now);
        if gone || self.clients[index].as_ref().is_some_and(Conn::is_over) {
            self.drop_client(daemon, index);
        }
    }

    /// Lets in who waits. With all places taken, whoever has been silent for longest goes; if
    /// everybody waits for a reply, the next one waits in the listener.
    fn accept(&mut self, daemon: &mut Daemon, now: u64) {
        for _ in 0..ACCEPTS_MAX {
            if !self.knocked {
                return;
            }
            let Some(index) = self.index() else { return };
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok((stream, _)) if !self.guard.lets_in(&stream, &self.path, &daemon.env.log) => {}
                Ok((mut stream, _)) => {
                    self.drop_client(daemon, index);
                    let token = Token(self.base + 1 + index);
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if daemon.env.registry.register(&mut stream, token, both).is_err() {
                        continue;
                    }
                    self.serial += 1;
                    self.clients[index] = Some(Conn::new(stream, self.serial, now));
                    self.receive(daemon, index, now);
                    self.sweep(daemon, index);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Out of descriptors: tried again, since no event will tell.
                    self.knocked = error.kind() != io::ErrorKind::WouldBlock;
                    self.accept_at = self.knocked.then_some(now + ACCEPT_RETRY_US);
                    return;
                }
            }
        }
        // More may be waiting; others have their turn first.
        self.accept_at = Some(now);
    }

    /// A free place, or the one of whoever has been silent for longest.
    fn index(&mut self) -> Option<usize> {
        if let Some(index) = free_index(&mut self.clients, CLIENTS_MAX, |_| false) {
            return Some(index);
        }
        let since = |(i, client): (usize, &Option<Conn>)| {
            client.as_ref().and_then(Conn::silent_since).map(|since| (since, i))
        };
        self.clients.iter().enumerate().filter_map(since).min().map(|(_, index)| index)
    }

    /// Reads from a client and does what it asks for.
    fn receive(&mut self, daemon: &mut Daemon, index: usize, now: u64) {
        let Some(client) = &mut self.clients[index] else { return };
        let id = ClientId(index, client.serial);
        match client.read(now) {
            Input::Nothing => {}
            Input::Gone => self.drop_client(daemon, index),
            Input::Request(request) => match daemon.at_once(&request.0) {
                Some(reply) => self.answer(id, &reply, now),
                None => {
                    daemon.hurry(&request.0);
                    self.queue.push_back(Queued { client: id, request });
                }
            },
        }
    }

    /// Drops a client whose reply is out.
    fn sweep(&mut self, daemon: &Daemon, index: usize) {
        if self.clients[index].as_ref().is_some_and(Conn::is_over) {
            self.drop_client(daemon, index);
        }
    }

    fn answer(&mut self, ClientId(index, serial): ClientId, reply: &[u8], now: u64) {
        if let Some(client) = self.clients[index].as_mut().filter(|c| c.serial == serial) {
            client.answer(reply, now);
        }
    }

    /// Closes a connection. What it has asked for is done nevertheless (§2).
    fn drop_client(&mut self, daemon: &Daemon, index: usize) {
        let Some(mut client) = self.clients[index].take() else { return };
        let _ = daemon.env.registry.deregister(&mut client.stream);
        let id = ClientId(index, client.serial);
        if let Some(running) = self.running.as_mut().filter(|r| r.client == Some(id)) {
            running.client = None;
            self.release_abandoned(daemon);
        }
    }

    /// Exclusive work: goes on with what is running and begins what waits.
    pub fn work(&mut self, daemon: &mut Daemon, now: u64) {
        self.try_again(daemon, now);
        while self.running.is_none() && !daemon.over {
            let Some(Queued { client, request }) = self.queue.pop_front() else { break };
            let (what, extra) = &*request;
            info!(daemon.env.log, "{} for minor {}", type_name(what.kind()), what.cookie());
            match daemon.begin(what, extra, now) {
                work::Begun::Done(reply) => {
                    if daemon.over {
                        self.stop_listening();
                    }
                    self.answer(client, &reply, now);
                    self.sweep(daemon, client.0);
                }
                work::Begun::Later => self.run(daemon, client, request, Awaits::Disk),
                work::Begun::Again { at } => self.run(daemon, client, request, Awaits::Time(at)),
                work::Begun::Leave => self.run(daemon, client, request, Awaits::Server),
            }
        }
        if self.knocked {
            self.accept_at = None;
            self.accept(daemon, now);
        }
    }

    /// Nobody finds us any more; who is connected is still answered.
    pub fn stop_listening(&mut self) {
        if self.listener.take().is_some() {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn run(
        &mut self,
        daemon: &Daemon,
        client: ClientId,
        request: Box<(Request, Extra)>,
        awaits: Awaits,
    ) {
        let ClientId(index, serial) = client;
        let here = self.clients[index].as_ref().is_some_and(|c| c.serial == serial);
        self.running = Some(Running { client: here.then_some(client), request, awaits });
        if !here {
            self.release_abandoned(daemon);
        }
    }

    /// ATTACH to a marker that another process holds.
    fn try_again(&mut self, daemon: &mut Daemon, now: u64) {
        let Some(running) = &mut self.running else { return };
        match running.awaits {
            Awaits::Time(at) if at <= now => {}
            Awaits::Time(_) | Awaits::Disk | Awaits::Server => return,
        }
        match daemon.begin(&running.request.0, &running.request.1, now) {
            work::Begun::Done(reply) => self.end_running(daemon, &reply, now),
            work::Begun::Later => running.awaits = Awaits::Disk,
            work::Begun::Again { at } => running.awaits = Awaits::Time(at),
            work::Begun::Leave => running.awaits = Awaits::Server,
        }
    }

    /// A disk has finished what was under way.
    pub fn finished(
        &mut self,
        daemon: &mut Daemon,
        minor: u16,
        outcome: Result<(), i32>,
        now: u64,
    ) {
        let ours = |r: &&Running| r.awaits == Awaits::Disk && r.request.0.cookie() == minor;
        let Some(running) = self.running.as_ref().filter(ours) else { return };
        let reply = daemon.reply(&running.request.0, outcome);
        self.end_running(daemon, &reply, now);
    }

    /// What is being worked on is over: its client gets this reply.
    pub fn end_running(&mut self, daemon: &mut Daemon, reply: &[u8], now: u64) {
        let Some(running) = self.running.take() else { return };
        if let Some(client) = running.client {
            self.answer(client, reply, now);
            self.sweep(daemon, client.0);
        }
    }

    /// The client of the running operation is gone. A pause stays in force but nobody waits for it
    /// any more (§5.5); an attach is forgotten; everything else goes on to its end.
    fn release_abandoned(&mut self, daemon: &Daemon) {
        let Some(running) = &self.running else { return };
        let release = match running.request.0 {
            Request::Pause { minor } => daemon.is_draining(minor),
            Request::Attach { .. } => true,
            _ => false,
        };
        if release {
            self.running = None;
        }
    }

    /// Whether an operation on a disk is under way whose client is gone.
    pub fn is_alone(&self, minor: u16) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|r| r.client.is_none() && r.request.0.cookie() == minor)
    }

    /// When `work` or `expire` has something to do even if nothing happens, in µs.
    pub fn next_us(&self) -> Option<u64> {
        let clients = self.clients.iter().flatten().filter_map(Conn::deadline);
        let again = self.running.as_ref().and_then(|running| match running.awaits {
            Awaits::Time(at) => Some(at),
            Awaits::Disk | Awaits::Server => None,
        });
        clients.chain(again).chain(self.accept_at).min()
    }

    /// Drops whoever has taken too long.
    pub fn expire(&mut self, daemon: &mut Daemon, now: u64) {
        for index in 0..self.clients.len() {
            let Some(client) = &mut self.clients[index] else { continue };
            if client.deadline().is_some_and(|at| at <= now) && client.expire(now) {
                self.drop_client(daemon, index);
            } else {
                self.sweep(daemon, index);
            }
        }
    }

    /// Whether replies are still on their way.
    pub fn is_answering(&self) -> bool {
        self.clients.iter().flatten().any(|client| client.phase == Phase::Answered)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        self.stop_listening();
    }
}
