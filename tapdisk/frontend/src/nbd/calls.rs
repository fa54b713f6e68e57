//! The requests of one connection that are not answered yet, and their pieces in the engine. Both
//! tables are made once; a place in them is named by its index.
use std::ops::{Index, IndexMut};

use nbd_proto::{self as proto, Head, flag};
use request::{SlotId, Verb};

/// Requests of one connection at once; more wait in the socket.
pub(super) const CALLS_MAX: usize = 128;
/// Pieces of one connection at once, in the engine or waiting for their turn to be sent.
pub(super) const PIECES_MAX: usize = 256;
/// No piece.
pub(super) const NO_PIECE: u16 = u16::MAX;

/// What a call asks for, as far as its answer depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Status,
    Flush,
    Trim,
    Zero,
    /// Answered without the engine.
    Other,
}

/// One request of the client's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub cookie: u64,
    pub kind: Kind,
    pub flags: u16,
    /// Where, in bytes.
    pub offset: u64,
    pub bytes: u32,
    /// Bytes that were given to the engine.
    pub issued: u32,
    /// Pieces that the engine has.
    pub outstanding: u16,
    /// When it was taken, in µs.
    pub since: u64,
    /// First error, as the wire has it; 0 is none.
    pub error: u32,
    /// Pieces of a read that is answered in order, oldest first.
    pub first: u16,
    pub last: u16,
    /// Its answer waits in the line behind another one.
    pub queued: bool,
    /// The head of its simple reply went out, data follow.
    pub begun: bool,
}

impl Call {
    const NONE: Call = Call {
        cookie: 0,
        kind: Kind::Other,
        flags: 0,
        offset: 0,
        bytes: 0,
        issued: 0,
        outstanding: 0,
        since: 0,
        error: 0,
        first: NO_PIECE,
        last: NO_PIECE,
        queued: false,
        begun: false,
    };

    /// A call for a request's header.
    pub(super) fn new(head: &proto::RequestHead, kind: Kind) -> Call {
        let proto::RequestHead { flags, cookie, offset, bytes, .. } = *head;
        Call { cookie, kind, flags, offset, bytes, ..Call::NONE }
    }

    /// Everything was given to the engine.
    pub(super) fn is_issued(&self) -> bool {
        self.issued == self.bytes
    }

    /// Everything was given to the engine and came back.
    pub(super) fn is_over(&self) -> bool {
        self.is_issued() && self.outstanding == 0
    }

    /// 0 for a read, 1 for a write.
    pub(super) fn way(&self) -> Option<usize> {
        match self.kind {
            Kind::Read => Some(0),
            Kind::Write => Some(1),
            Kind::Status | Kind::Flush | Kind::Trim | Kind::Zero | Kind::Other => None,
        }
    }

    /// The engine's word for it.
    pub(super) fn verb(&self) -> Verb {
        let has = |bit: u16| self.flags & bit != 0;
        let fua = has(flag::FUA);
        match self.kind {
            Kind::Read => Verb::Read,
            Kind::Write => Verb::Write { fua },
            Kind::Status => Verb::Status,
            Kind::Trim => Verb::Discard { fua },
            Kind::Zero => Verb::Zero { keep: has(flag::NO_HOLE), fast: has(flag::FAST_ZERO), fua },
            Kind::Flush | Kind::Other => Verb::Flush,
        }
    }

    /// The whole answer where no data belong to it.
    pub(super) fn head(&self, structured: bool) -> Head {
        let chunked = structured && matches!(self.kind, Kind::Read | Kind::Status);
        match (chunked, self.error) {
            (false, error) => Head::simple(self.cookie, error),
            (true, 0) => Head::none(self.cookie),
            (true, error) => Head::error(self.cookie, error),
        }
    }
}

/// Where a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Free,
    Engine,
    /// Done; its data wait until it is their turn.
    Parked,
}

/// One request to the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub call: u16,
    pub slot: SlotId,
    pub at: At,
    /// Bytes from the call's start.
    pub from: u32,
    pub bytes: u32,
    /// The next piece of a call that is answered in order.
    pub next: u16,
}

impl Piece {
    const NONE: Piece =
        Piece { call: 0, slot: SlotId(0), at: At::Free, from: 0, bytes: 0, next: NO_PIECE };
}

/// Places of equal kind, with a list of the free ones.
#[derive(Debug)]
pub(super) struct Table<T> {
    items: Box<[T]>,
    free: Vec<u16>,
}

impl<T: Copy> Table<T> {
    fn new(size: usize, empty: T) -> Table<T> {
        let free = (0..size as u16).rev().collect();
        Table { items: vec![empty; size].into(), free }
    }

    /// Puts `item` in a free place.
    pub(super) fn put(&mut self, item: T) -> Option<u16> {
        let index = self.free.pop()?;
        self.items[usize::from(index)] = item;
        Some(index)
    }

    /// Makes a place free again.
    pub(super) fn free(&mut self, index: u16) {
        assert!(self.free.len() < self.items.len(), "an index is freed once");
        self.free.push(index);
    }

    /// Makes every place free.
    pub(super) fn clear(&mut self) {
        self.free.clear();
        self.free.extend((0..self.items.len() as u16).rev());
    }

    /// How many places are taken.
    pub(super) fn used(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// Whether no place is free.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Every place, taken or not.
    pub(super) fn size(&self) -> usize {
        self.items.len()
    }
}

impl<T> Index<u16> for Table<T> {
    type Output = T;
    fn index(&self, index: u16) -> &T {
        &self.items[usize::from(index)]
    }
}

impl<T> IndexMut<u16> for Table<T> {
    fn index_mut(&mut self, index: u16) -> &mut T {
        &mut self.items[usize::from(index)]
    }
}

/// An empty table of calls.
pub(super) fn calls() -> Table<Call> {
    Table::new(CALLS_MAX, Call::NONE)
}

/// An empty table of pieces.
pub(super) fn pieces() -> Table<Piece> {
    Table::new(PIECES_MAX, Piece::NONE)
}
