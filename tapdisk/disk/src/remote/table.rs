//! Requests in flight on all connections of a disk, by place.
use std::time::Instant;

use host::arena::{Arena, Buf};
use nbd_proto::{REQUEST_BYTES, RequestHead};
use request::disk::Kind;
use request::disk::{Op, Tag};

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    Free,
    /// In line to be sent, or half sent.
    Queued,
    /// The server has all of it.
    Sent,
}

/// A request, or a place for one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub state: State,
    pub tag: Tag,
    /// Which connection.
    pub conn: u8,
    /// What the answer of a read fills, what a write sends.
    pub buf: Buf,
    pub kind: Kind,
    /// When it was first seen waiting for its answer.
    pub since: Option<Instant>,
    /// Makes a late answer to an earlier request in this place recognisable.
    generation: u32,
    head: [u8; REQUEST_BYTES],
}

impl Call {
    const FREE: Call = Call {
        state: State::Free,
        tag: 0,
        conn: 0,
        buf: Buf::NONE,
        kind: Kind::Sync,
        since: None,
        generation: 0,
        head: [0; REQUEST_BYTES],
    };

    /// Header and data of a request, as they are sent.
    pub fn parts<'a>(&'a self, arena: &'a Arena) -> [&'a [u8]; 2] {
        [&self.head, arena.slice(self.payload())]
    }

    /// Bytes of both.
    pub fn sent_bytes(&self) -> usize {
        REQUEST_BYTES + self.payload().bytes as usize
    }

    /// What success is worth to the engine.
    pub fn moved(&self) -> u32 {
        self.buf.bytes
    }

    fn payload(&self) -> Buf {
        if self.kind == Kind::Write { self.buf } else { Buf::NONE }
    }
}

/// The table. Empty until it is made for a depth.
#[derive(Debug, Default)]
pub(super) struct Table {
    calls: Box<[Call]>,
    free: Vec<u32>,
}

impl Table {
    /// Room for `depth` requests.
    pub fn new(depth: u32) -> Table {
        Table { calls: vec![Call::FREE; depth as usize].into(), free: (0..depth).rev().collect() }
    }

    /// Gives an operation a place; `head` becomes its request but for the handle. There is room for
    /// as many as the engine has in flight.
    pub fn take(&mut self, tag: Tag, op: Op, head: RequestHead, conn: u8) -> u32 {
        let id = self.free.pop().expect("no more in flight than the depth given at open");
        let call = &mut self.calls[id as usize];
        let generation = call.generation.wrapping_add(1);
        let cookie = u64::from(generation) << 32 | u64::from(id);
        let data = matches!(op.kind, Kind::Read | Kind::Write);
        *call = Call {
            state: State::Queued,
            tag,
            conn,
            buf: if data { op.buf.part(0, head.bytes) } else { Buf::NONE },
            kind: op.kind,
            since: None,
            generation,
            head: RequestHead { cookie, ..head }.bytes(),
        };
        id
    }

    /// The request of a connection that a handle names, if the server has it.
    pub fn find(&self, cookie: u64, conn: u8) -> Option<u32> {
        let (id, generation) = (cookie as u32, (cookie >> 32) as u32);
        let call = self.calls.get(id as usize)?;
        let it = call.state == State::Sent && call.conn == conn && call.generation == generation;
        it.then_some(id)
    }

    /// A place is free again.
    pub fn release(&mut self, id: u32) {
        self[id].state = State::Free;
        self.free.push(id);
    }

    /// The requests of a connection.
    pub fn of(&mut self, conn: u8) -> impl Iterator<Item = (u32, &mut Call)> {
        let mine =
            move |(_, call): &(u32, &mut Call)| call.state != State::Free && call.conn == conn;
        (0..).zip(&mut self.calls).filter(mine)
    }
}

impl std::ops::Index<u32> for Table {
    type Output = Call;
    fn index(&self, id: u32) -> &Call {
        &self.calls[id as usize]
    }
}

impl std::ops::IndexMut<u32> for Table {
    fn index_mut(&mut self, id: u32) -> &mut Call {
        &mut self.calls[id as usize]
    }
}
