//! One connection to a server: the line of requests to send, the stream of replies.
//!
//! ```text
//!   line ─► head, data, head, data … ─► one send      16 bytes ─► reply of a read ─► data to its buffer
//!                                                        └──────► any other: over
//! ```
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::table::{State, Table};
use super::{Done, Epoll, Peer};
use host::arena::{Arena, Buffer};
use host::socket;
use nbd_proto::{RequestHead, SIMPLE_BYTES, SimpleReply, command, errno_of, feature, flag};
use request::disk::{FileId, Kind, Op};

/// Bytes received ahead: a batch of short replies with their data in one call.
const AHEAD_BYTES: usize = 32 << 10;
/// Calls of send or receive in one exchange, before the others have theirs.
const CALLS_MAX: u32 = 16;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The server closed it.
    Closed,
    /// A system call failed, with this errno.
    Socket(i32),
    /// What came is no reply.
    Magic,
    /// A reply to nothing that was asked.
    Handle,
    /// A request had no answer for too long.
    Silent,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Why::Closed => f.write_str("the server closed the connection"),
            Why::Socket(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
            Why::Magic => f.write_str("the server sends what is no NBD reply"),
            Why::Handle => f.write_str("the server answers what was not asked"),
            Why::Silent => f.write_str("the server leaves a request without an answer"),
        }
    }
}

/// What a connection works with.
pub(super) struct Turn<'a> {
    pub arena: &'a mut Arena,
    pub table: &'a mut Table,
    pub done: &'a mut VecDeque<Done>,
    pub poll: &'a Epoll,
}

/// What becomes of an operation.
pub(super) enum Asked {
    /// This is asked of the server, with a handle of the table's.
    Request(RequestHead),
    /// Nothing has to be asked.
    Answered(Result<u32, i32>),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn {
    peer: Peer,
    /// Its number in the table, and the file it is for.
    id: u8,
    file: FileId,
    /// Requests to send, in order; `sent` bytes of the first have gone.
    line: VecDeque<u32>,
    sent: usize,
    /// Received and not looked at: `ahead[from..to]`.
    ahead: Buffer,
    from: usize,
    to: usize,
    /// The read whose data come next, and how many of its bytes have come.
    filling: Option<(u32, u32)>,
    in_flight: u32,
    /// The socket takes no more just now, so room to send is polled for.
    blocked: bool,
    /// The last exchange stopped although there is more.
    more: bool,
    ended: Option<Why>,
    told: bool,
}

impl Conn {
    /// A connection without requests.
    pub fn new(peer: Peer, id: u8, file: FileId, depth: usize) -> Conn {
        Conn {
            peer,
            id,
            file,
            line: VecDeque::with_capacity(depth),
            sent: 0,
            ahead: Buffer::new(AHEAD_BYTES),
            from: 0,
            to: 0,
            filling: None,
            in_flight: 0,
            blocked: false,
            more: false,
            ended: None,
            told: false,
        }
    }

    pub fn fd(&self) -> RawFd {
        self.peer.fd.as_raw_fd()
    }

    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Why it ended, once.
    pub fn take_ended(&mut self) -> Option<(FileId, Why)> {
        let why = self.ended?;
        (!std::mem::replace(&mut self.told, true)).then_some((self.file, why))
    }

    // ---- asking --------------------------------------------------------------------------------

    /// An operation in the protocol's terms.
    pub fn ask(&self, op: &Op) -> Asked {
        if self.ended.is_some() {
            return Asked::Answered(Err(libc::ETIMEDOUT));
        }
        let offer = &self.peer.offer;
        let data = op.buf.bytes.min(offer.longest);
        let (command, flags, bytes) = match op.kind {
            Kind::Read => (command::READ, 0, data),
            Kind::Write => (command::WRITE, 0, data),
            Kind::Sync if !offer.can_flush() => return Asked::Answered(Ok(0)),
            Kind::Sync => (command::FLUSH, 0, 0),
            Kind::Discard { .. } if !offer.has(feature::SEND_TRIM) => {
                return Asked::Answered(Ok(0));
            }
            Kind::Discard { bytes } => (command::TRIM, 0, bytes_of(bytes)),
            Kind::Zero { bytes, punch } if offer.has(feature::SEND_WRITE_ZEROES) => {
                let flags = if punch { 0 } else { flag::NO_HOLE };
                (command::WRITE_ZEROES, flags, bytes_of(bytes))
            }
            Kind::Zero { .. } | Kind::Grow { .. } => return Asked::Answered(Err(libc::EOPNOTSUPP)),
        };
        let offset = if op.kind == Kind::Sync { 0 } else { op.at };
        Asked::Request(RequestHead { flags, command, cookie: 0, offset, bytes })
    }

    /// Puts a request in line.
    pub fn queue(&mut self, id: u32) {
        self.in_flight += 1;
        self.line.push_back(id);
    }

    // ---- working -------------------------------------------------------------------------------

    /// Sends what is in line and receives all that is there, as far as one turn goes.
    pub fn exchange(&mut self, turn: &mut Turn<'_>) {
        self.more = false;
        if self.in_flight == 0 {
            return;
        }
        let sent = self.send(turn);
        // What came before the connection broke still counts.
        let received = self.receive_all(turn);
        if let Err(why) = received.and(sent) {
            self.end(why, turn);
        }
    }

    /// Receives what one call gives.
    pub fn receive_once(&mut self, turn: &mut Turn<'_>) {
        if self.in_flight > 0
            && let Err(why) = self.receive(turn)
        {
            self.end(why, turn);
        }
    }

    /// Ends it if a request waits for too long, or if it ended by itself.
    pub fn tick(&mut self, turn: &mut Turn<'_>, now: Instant, patience: Duration) {
        if self.ended.is_some() {
            return;
        }
        if self.in_flight == 0 {
            // Nothing was asked, so nothing may come.
            if let Err(why) = self.receive(turn) {
                self.end(why, turn);
            }
            return;
        }
        let waited =
            |since: &mut Option<Instant>| now.saturating_duration_since(*since.get_or_insert(now));
        let longest = turn.table.of(self.id).map(|(_, call)| waited(&mut call.since)).max();
        if longest.is_some_and(|longest| longest >= patience) {
            self.end(Why::Silent, turn);
        }
    }

    fn send(&mut self, turn: &mut Turn<'_>) -> Result<(), Why> {
        for _ in 0..CALLS_MAX {
            if self.line.is_empty() {
                self.poll_send(false, turn);
                return Ok(());
            }
            let mut skip = self.sent;
            let parts = self.line.iter().flat_map(|id| turn.table[*id].parts(turn.arena));
            let rest = parts.map(|part| {
                let skipped = part.len().min(skip);
                skip -= skipped;
                &part[skipped..]
            });
            let rest = rest.filter(|part| !part.is_empty());
            let sent = socket::send(self.peer.fd.as_fd(), rest);
            match sent {
                Ok(n) => self.have_sent(n, turn.table),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.poll_send(true, turn);
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(why(&e)),
            }
        }
        self.more = true;
        Ok(())
    }

    fn have_sent(&mut self, bytes: usize, table: &mut Table) {
        self.sent += bytes;
        while let Some(&first) = self.line.front() {
            let call = &mut table[first];
            let all = call.sent_bytes();
            if self.sent < all {
                return;
            }
            self.sent -= all;
            call.state = State::Sent;
            self.line.pop_front();
        }
    }

    fn poll_send(&mut self, yes: bool, turn: &Turn<'_>) {
        if std::mem::replace(&mut self.blocked, yes) != yes {
            turn.poll.poll_send(self.fd(), yes);
        }
    }

    fn receive_all(&mut self, turn: &mut Turn<'_>) -> Result<(), Why> {
        for _ in 0..CALLS_MAX {
            if self.in_flight == 0 || !self.receive(turn)? {
                return Ok(());
            }
        }
        self.more = true;
        Ok(())
    }

    /// One call of receive, and what follows from it. False if there was nothing.
    fn receive(&mut self, turn: &mut Turn<'_>) -> Result<bool, Why> {
        let hole = match self.filling {
            Some((id, done)) => {
                let buf = turn.table[id].buf;
                turn.arena.slice_mut(buf.part(done, buf.bytes - done))
            }
            None => &mut [],
        };
        let room = hole.len();
        match socket::receive(self.peer.fd.as_fd(), hole, &mut self.ahead[self.to..]) {
            Ok(0) => Err(Why::Closed),
            Ok(n) => {
                let direct = n.min(room);
                self.to += n - direct;
                self.fill(direct as u32, turn);
                self.look(turn).map(|()| true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) => Err(why(&e)),
        }
    }

    /// So many bytes more of the data of a read have come.
    fn fill(&mut self, bytes: u32, turn: &mut Turn<'_>) {
        let Some((id, done)) = self.filling else { return };
        let all = turn.table[id].buf.bytes;
        self.filling = Some((id, done + bytes));
        if done + bytes == all {
            self.filling = None;
            self.finish(id, Ok(all), turn);
        }
    }

    /// Uses what was received ahead.
    fn look(&mut self, turn: &mut Turn<'_>) -> Result<(), Why> {
        loop {
            if let Some((id, done)) = self.filling {
                let buf = turn.table[id].buf;
                let n = (self.to - self.from).min((buf.bytes - done) as usize);
                let from = &self.ahead[self.from..self.from + n];
                turn.arena.slice_mut(buf.part(done, n as u32)).copy_from_slice(from);
                self.from += n;
                self.fill(n as u32, turn);
            }
            let rest = &self.ahead[self.from..self.to];
            let Some(raw) = rest.first_chunk::<SIMPLE_BYTES>().filter(|_| self.filling.is_none())
            else {
                break;
            };
            let reply = SimpleReply::parse(raw).ok_or(Why::Magic)?;
            self.from += SIMPLE_BYTES;
            self.answered(reply, turn)?;
        }
        self.ahead.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        Ok(())
    }

    fn answered(&mut self, reply: SimpleReply, turn: &mut Turn<'_>) -> Result<(), Why> {
        let id = turn.table.find(reply.cookie, self.id).ok_or(Why::Handle)?;
        let call = &turn.table[id];
        match (reply.error, call.kind) {
            (0, Kind::Read) if call.buf.bytes > 0 => self.filling = Some((id, 0)),
            (0, _) => self.finish(id, Ok(call.moved()), turn),
            (number, kind) => self.finish(id, refused(kind, errno_of(number)), turn),
        }
        Ok(())
    }

    fn finish(&mut self, id: u32, result: Result<u32, i32>, turn: &mut Turn<'_>) {
        turn.done.push_back((turn.table[id].tag, result));
        turn.table.release(id);
        self.in_flight -= 1;
    }

    /// The connection is over, and with it whatever is in flight.
    fn end(&mut self, why: Why, turn: &mut Turn<'_>) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(why);
        self.peer.ended.set();
        turn.poll.remove(self.fd());
        socket::shut_down(self.peer.fd.as_fd());
        (self.filling, self.sent, self.more) = (None, 0, false);
        self.line.clear();
        while self.in_flight > 0 {
            let (id, _) = turn.table.of(self.id).next().expect("what is in flight is in the table");
            self.finish(id, Err(libc::EIO), turn);
        }
    }
}

/// What an error is worth. A server may announce a command and then say that it is invalid (nbdkit
/// does in oldstyle); that is as good as not having it.
fn refused(kind: Kind, errno: i32) -> Result<u32, i32> {
    match (kind, errno) {
        (Kind::Sync | Kind::Discard { .. }, libc::EINVAL | libc::EOPNOTSUPP) => Ok(0),
        (Kind::Zero { .. }, libc::EINVAL) => Err(libc::EOPNOTSUPP),
        _ => Err(errno),
    }
}

fn bytes_of(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("an operation is shorter than 4 GiB")
}

fn why(error: &io::Error) -> Why {
    match error.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE) | None => Why::Closed,
        Some(errno) => Why::Socket(errno),
    }
}
