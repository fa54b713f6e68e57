//! Files that are not here: operations on an NBD server, over a disk for the files that are.
//!
//! ```text
//!   push ─┬─ a file ───────────────────────────────────────────────────────────────► inner disk
//!         └─ a remote ─► table, line ── submit: one send ─► server
//!   reap ◄─ done ◄────── table ◄─────── submit: receive ◄───┘        (data straight from and to the arena)
//! ```
//! Requests in flight have their places in a table as large as the engine's depth; their handles
//! are place and generation. An error that the server reports fails its operation alone. A broken
//! protocol, a closed connection, or a request without an answer for the disk's time limit ends the
//! connection: whatever is in flight fails with EIO, whatever comes later with ETIMEDOUT, until the
//! files are set anew (a resume negotiates again). Nothing reconnects in between: what the server
//! had acknowledged may be lost with it.
//!
//! Answers to what a server does not offer: FLUSH and TRIM succeed, there is nothing to do;
//! WRITE_ZEROES and growth are EOPNOTSUPP. The same if a server offers one and then calls it
//! invalid.
//!
//! The sockets are in an epoll descriptor of its own, which the caller polls besides `wake_fd`.
//! Nothing here waits, and nothing allocates after `set_remotes`.
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::worker::{Done, EventFd};
use host::arena::Arena;
use nbd_proto::feature;
use request::disk::{Disk, FileId, Op, Tag};

mod conn;
mod sys;
mod table;

pub use conn::Why;
use conn::{Asked, Conn, Turn};
use sys::Epoll;
use table::Table;

/// Files that eight bits can name.
const FILES: usize = 256;
/// A file of the inner disk.
const LOCAL: u8 = u8::MAX;

/// What a server said of its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Size in bytes.
    pub bytes: u64,
    /// Transmission flags of the protocol.
    pub flags: u16,
    /// What offset and length must be multiples of, in bytes; 512 at least.
    pub unit: u32,
    /// Bytes of the longest read or write; a multiple of the unit.
    pub longest: u32,
}

impl Offer {
    /// Whether it is for reading only.
    pub fn is_read_only(&self) -> bool {
        self.has(feature::READ_ONLY)
    }

    /// Whether it has a FLUSH.
    pub fn can_flush(&self) -> bool {
        self.has(feature::SEND_FLUSH)
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & feature::HAS_FLAGS != 0 && self.flags & flag != 0
    }
}

/// Whether a connection has ended; shared with whoever closes it.
#[derive(Clone, Debug, Default)]
pub struct Ended(Arc<AtomicBool>);

impl Ended {
    /// Whether it has: it is of no more use, not even for a farewell.
    pub fn is(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// It has.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

/// A server that is ready for requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The connection.
    pub fd: Arc<OwnedFd>,
    /// What it offers.
    pub offer: Offer,
    /// Set when it ends.
    pub ended: Ended,
}

/// A disk some of whose files are elsewhere.
pub struct Remote<D: Disk> {
    inner: D,
    poll: Epoll,
    /// Stands among the inner disk's files for those that it does not have.
    stand_in: EventFd,
    /// By file: which connection.
    routes: Box<[u8; FILES]>,
    conns: Vec<Conn>,
    table: Table,
    done: VecDeque<Done>,
    depth: u32,
    patience: Duration,
}

impl<D: Disk> Remote<D> {
    /// Puts itself over `inner`, whose depth is `depth`. There are no remotes yet, and no memory
    /// for them.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn open(inner: D, depth: u32) -> io::Result<Remote<D>> {
        Ok(Remote {
            inner,
            poll: Epoll::new()?,
            stand_in: EventFd::new()?,
            routes: Box::new([LOCAL; FILES]),
            conns: Vec::new(),
            table: Table::default(),
            done: VecDeque::new(),
            depth,
            patience: Duration::MAX,
        })
    }

    /// Tells which of the files of the next `set_files` are elsewhere; its descriptors for these do
    /// not matter. A request without an answer for longer than `patience` ends its connection.
    /// Called while nothing is in flight.
    ///
    /// # Errors
    /// When a connection cannot be polled; there are no remotes then.
    pub fn set_remotes(
        &mut self,
        peers: Vec<(FileId, Peer)>,
        patience: Duration,
    ) -> io::Result<()> {
        let idle = self.conns.iter().all(Conn::is_idle);
        assert!(idle, "remotes change only while nothing is in flight");
        assert!(peers.len() < usize::from(LOCAL), "eight bits name a connection");
        self.forget();
        self.patience = patience;
        if peers.is_empty() {
            return Ok(());
        }
        self.table = Table::new(self.depth);
        self.done = VecDeque::with_capacity(self.depth as usize);
        for (file, peer) in peers {
            if let Err(error) = self.poll.add(peer.fd.as_raw_fd()) {
                self.forget();
                return Err(error);
            }
            let id = self.conns.len() as u8;
            self.routes[usize::from(file.0)] = id;
            self.conns.push(Conn::new(peer, id, file, self.depth as usize));
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.routes.fill(LOCAL);
        self.conns.drain(..).for_each(|conn| self.poll.remove(conn.fd()));
        (self.table, self.done) = (Table::default(), VecDeque::new());
    }

    /// A descriptor that is readable when a connection has something. Only its edges count: it is
    /// not emptied.
    pub fn poll_fd(&self) -> RawFd {
        self.poll.raw()
    }

    /// Once a second: ends connections that leave a request without an answer for too long, and
    /// notices those that ended while nothing was asked of them.
    pub fn tick(&mut self, now: Instant) {
        let patience = self.patience;
        self.each(|conn, turn| conn.tick(turn, now, patience));
    }

    /// The next connection that ended, and why; each once.
    pub fn take_ended(&mut self) -> Option<(FileId, Why)> {
        self.conns.iter_mut().find_map(Conn::take_ended)
    }

    /// The disk below.
    pub fn inner(&mut self) -> &mut D {
        &mut self.inner
    }

    /// The disk below, to look at.
    pub fn inner_ref(&self) -> &D {
        &self.inner
    }

    /// Lets each connection work.
    fn each(&mut self, mut work: impl FnMut(&mut Conn, &mut Turn<'_>)) {
        let Remote { inner, conns, table, done, poll, .. } = self;
        for conn in conns {
            work(conn, &mut Turn { arena: inner.arena(), table, done, poll });
        }
    }

    /// Sends what is to be sent and receives what is there.
    fn exchange(&mut self) {
        self.each(Conn::exchange);
    }

    fn conn_of(&mut self, file: FileId) -> Option<&mut Conn> {
        self.conns.get_mut(usize::from(self.routes[usize::from(file.0)]))
    }
}

impl<D: Disk> Disk for Remote<D> {
    fn push(&mut self, tag: Tag, op: Op) {
        let Some(conn) = self.conn_of(op.file) else { return self.inner.push(tag, op) };
        match conn.ask(&op) {
            Asked::Answered(result) => self.done.push_back((tag, result)),
            Asked::Request(head) => {
                let index = usize::from(self.routes[usize::from(op.file.0)]);
                let id = self.table.take(tag, op, head, index as u8);
                self.conns[index].queue(id);
            }
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.exchange();
        self.inner.submit()
    }

    fn reap(&mut self) -> Option<Done> {
        self.done.pop_front().or_else(|| self.inner.reap())
    }

    /// Also true when a connection has more than one `submit` takes.
    fn has_finished(&self) -> bool {
        !self.done.is_empty() || self.conns.iter().any(Conn::has_more) || self.inner.has_finished()
    }

    fn arena(&mut self) -> &mut Arena {
        self.inner.arena()
    }

    fn arena_ref(&self) -> &Arena {
        self.inner.arena_ref()
    }

    /// Without files there are no remotes either.
    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        if fds.is_empty() {
            self.forget();
        }
        let local = |file: usize| self.routes[file] == LOCAL;
        let stand_in = self.stand_in.raw();
        let fds: Vec<RawFd> =
            (0..).zip(fds).map(|(i, fd)| if local(i) { *fd } else { stand_in }).collect();
        self.inner.set_files(&fds)
    }

    fn wake_fd(&self) -> RawFd {
        self.inner.wake_fd()
    }

    fn submit_and_wait(&mut self, watch: RawFd, timeout: Duration) -> Option<io::Result<()>> {
        if self.conns.is_empty() {
            return self.inner.submit_and_wait(watch, timeout);
        }
        // All that is there is taken before the sleep: what comes later makes an edge in `watch`.
        self.exchange();
        if self.has_finished() {
            return Some(self.inner.submit());
        }
        let slept = self.inner.submit_and_wait(watch, timeout)?;
        self.each(Conn::receive_once);
        Some(slept)
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
