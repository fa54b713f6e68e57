//! Requests, from the receive buffer into slots.
//!
//! ```text
//!   Head ─► Issue (read, flush, …: pieces as slots allow) ─► Head
//!     ├───► Fill (write: payload into one slot after the other) ─► Head
//!     └───► Discard (payload of a write that is refused) ─► Head
//! ```
//! A slot is reserved when its data have begun to arrive, never before; a client holds at most one
//! slot that is being filled.
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::fd::AsFd;

use image::Span;

use super::Export;
use super::calls::{At, Call, Kind, NO_PIECE, Piece};
use super::conn::{Conn, Phase, Turn};
use super::handshake::Features;
use super::notice::{Counters, Why};
use super::outq::REPLIES_MAX;
use crate::quota::{SMALL_BYTES, Stall};
use nbd_proto::{REQUEST_BYTES, REQUEST_DATA_MAX, RequestHead, command, error, flag};
use request::{Owner, Request, SlotId, Slots, Source};

/// A payload beyond this is not even discarded: the client is out of its mind.
const ABSURD_BYTES: u32 = 64 << 20;
const SECTOR: u64 = image::SECTOR_BYTES;

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intake {
    /// A request's header.
    Head,
    /// Not looked at before the pieces of this call are under way.
    Issue(u16),
    /// Payload of a write.
    Fill(Fill),
    /// Payload of a refused write, and how much of it is left.
    Discard(u16, u32),
}

/// The piece of a write that is being filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fill {
    call: u16,
    slot: Option<SlotId>,
    /// Bytes of the piece, and how many of them are there.
    bytes: u32,
    filled: u32,
    /// More pieces follow.
    goes_on: bool,
}

/// Why parsing stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Needs more bytes.
    Starved,
    /// Has bytes, lacks something else.
    Stalled(Stall),
}

impl Intake {
    /// The slot that is being filled.
    pub(super) fn slot(self) -> Option<SlotId> {
        match self {
            Intake::Fill(fill) => fill.slot,
            Intake::Head | Intake::Issue(_) | Intake::Discard(..) => None,
        }
    }

    /// Where in a slot the next bytes belong, and whether the request goes on behind that.
    pub(super) fn hole(self, slots: &mut dyn Slots) -> (&mut [u8], bool) {
        match self {
            Intake::Fill(Fill { slot: Some(slot), bytes, filled, goes_on, .. }) => {
                let hole = &mut slots.buffer_mut(slot)[filled as usize..bytes as usize];
                (hole, goes_on)
            }
            _ => (&mut [], false),
        }
    }

    /// So many bytes were received into the hole.
    pub(super) fn filled(&mut self, n: usize) {
        if let Intake::Fill(fill) = self {
            fill.filled += n as u32;
        }
    }
}

impl Conn {
    /// Uses up what was received, as far as slots allow.
    pub(super) fn intake(&mut self, turn: &mut Turn<'_>) -> Progress {
        while self.phase == Phase::Serving {
            let step = match self.intake {
                Intake::Head => self.head(turn),
                Intake::Issue(call) => self.issue(call, turn),
                Intake::Fill(fill) => self.fill(fill, turn),
                Intake::Discard(call, left) => self.discard(call, left, turn),
            };
            if let Break(progress) = step {
                return progress;
            }
        }
        Progress::Starved
    }

    fn head(&mut self, turn: &mut Turn<'_>) -> ControlFlow<Progress> {
        if turn.finishing {
            return Break(Progress::Stalled(Stall::Own));
        }
        let Some(raw) = self.rx.data().first_chunk::<REQUEST_BYTES>() else {
            return Break(Progress::Starved);
        };
        let head = RequestHead::parse(raw);
        self.room()?;
        let Some(head) = head else {
            self.drop_client(Why::BadRequest, turn.log, turn.registry);
            return Continue(());
        };
        self.rx.consume(REQUEST_BYTES);
        match head.command {
            command::DISC => self.phase = Phase::Ending,
            _ => self.begin(&head, turn),
        }
        Continue(())
    }

    fn begin(&mut self, head: &RequestHead, turn: &mut Turn<'_>) {
        let kind = kind_of(head.command);
        let verdict = check(head, kind, turn.export, self.features);
        count(&mut turn.log.counters, head, verdict.is_ok());
        let (error, since) = (verdict.err().unwrap_or(0), turn.log.now);
        let call = Call { error, since, ..Call::new(head, kind) };
        if let Some(way) = call.way() {
            turn.log.traffic[usize::from(self.old)].begun[way] += 1;
            self.open[way] += 1;
        }
        let id = self.calls.put(call).expect("`room` saw a free index");
        if kind == Kind::Write && head.bytes > ABSURD_BYTES {
            self.drop_client(Why::AbsurdLength, turn.log, turn.registry);
        } else if kind == Kind::Write && head.bytes > 0 {
            self.rx.expect(head.bytes);
            self.intake = match call.error {
                0 => self.next_fill(id, turn.slots),
                _ => Intake::Discard(id, head.bytes),
            };
        } else if call.error != 0 || kind == Kind::Other || (head.bytes == 0 && kind != Kind::Flush)
        {
            self.calls[id].issued = head.bytes;
            self.answer(id, turn);
        } else {
            self.intake = Intake::Issue(id);
        }
    }

    /// Gives the engine the pieces of a request that has no payload.
    fn issue(&mut self, id: u16, turn: &mut Turn<'_>) -> ControlFlow<Progress> {
        loop {
            let call = &self.calls[id];
            let left = call.bytes - call.issued;
            let (bytes, room) = match call.kind {
                Kind::Read => (left.min(turn.slots.slot_bytes_max()), left),
                Kind::Status => (left, SMALL_BYTES),
                _ => (left, 0),
            };
            let slot = self.reserve(room.min(turn.slots.slot_bytes_max()), turn)?;
            self.start(id, slot, bytes, turn.slots);
            if self.calls[id].is_issued() {
                self.intake = Intake::Head;
                self.advance_line(turn);
                return Continue(());
            }
        }
    }

    fn fill(&mut self, mut fill: Fill, turn: &mut Turn<'_>) -> ControlFlow<Progress> {
        let Some(slot) = fill.slot else {
            fill.slot = Some(self.reserve_fill(fill, turn)?);
            self.intake = Intake::Fill(fill);
            return Continue(());
        };
        let n = self.rx.len().min((fill.bytes - fill.filled) as usize);
        let from = fill.filled as usize;
        turn.slots.buffer_mut(slot)[from..from + n].copy_from_slice(&self.rx.data()[..n]);
        self.rx.consume(n);
        fill.filled += n as u32;
        if fill.filled < fill.bytes {
            self.intake = Intake::Fill(fill);
            return Break(Progress::Starved);
        }
        self.start(fill.call, slot, fill.bytes, turn.slots);
        self.intake = match self.calls[fill.call].is_issued() {
            true => Intake::Head,
            false => self.next_fill(fill.call, turn.slots),
        };
        Continue(())
    }

    fn next_fill(&self, id: u16, slots: &dyn Slots) -> Intake {
        let call = &self.calls[id];
        let left = call.bytes - call.issued;
        let bytes = left.min(slots.slot_bytes_max());
        Intake::Fill(Fill { call: id, slot: None, bytes, filled: 0, goes_on: bytes < left })
    }

    /// A slot for a piece whose data are here (small ones: all of them) or on their way.
    fn reserve_fill(&mut self, fill: Fill, turn: &mut Turn<'_>) -> ControlFlow<Progress, SlotId> {
        let arrived = match fill.bytes <= SMALL_BYTES {
            true => self.rx.len() >= fill.bytes as usize,
            false => self.rx.len() > 0 || (self.readable && self.calls[fill.call].issued > 0),
        };
        match arrived {
            true => self.reserve(fill.bytes, turn),
            false => Break(Progress::Starved),
        }
    }

    fn discard(&mut self, id: u16, left: u32, turn: &mut Turn<'_>) -> ControlFlow<Progress> {
        let n = self.rx.len().min(left as usize);
        self.rx.consume(n);
        let left = left - n as u32;
        self.intake = Intake::Discard(id, left);
        if left > 0 {
            return Break(Progress::Starved);
        }
        self.intake = Intake::Head;
        self.answer(id, turn);
        Continue(())
    }

    fn reserve(&mut self, bytes: u32, turn: &mut Turn<'_>) -> ControlFlow<Progress, SlotId> {
        self.room()?;
        match self.held.reserve(turn.slots, bytes) {
            Ok(slot) => Continue(slot),
            Err(stall) => Break(Progress::Stalled(stall)),
        }
    }

    /// Room for one more call, piece and reply.
    fn room(&self) -> ControlFlow<Progress> {
        let replies = self.out.replies() + self.pieces.used() + self.calls.used();
        let full = self.calls.is_full() && self.intake == Intake::Head;
        match full || self.pieces.is_full() || replies + 2 > REPLIES_MAX {
            true => Break(Progress::Stalled(Stall::Own)),
            false => Continue(()),
        }
    }

    /// Sets the next `bytes` bytes of a call going.
    fn start(&mut self, id: u16, slot: SlotId, bytes: u32, slots: &mut dyn Slots) {
        let call = self.calls[id];
        let piece =
            Piece { call: id, slot, at: At::Engine, from: call.issued, bytes, next: NO_PIECE };
        let index = self.pieces.put(piece).expect("`room` saw a free index");
        if call.kind == Kind::Read {
            let fd = self.fd.as_ref().map(AsFd::as_fd);
            self.pace.read(fd, call.bytes);
            if !self.features.structured {
                self.link(id, index);
            }
        }
        let call = &mut self.calls[id];
        let start = (call.offset + u64::from(call.issued)) / SECTOR;
        let span = Span { start, count: (u64::from(bytes) / SECTOR) as u32 };
        call.issued += bytes;
        call.outstanding += 1;
        self.in_engine += 1;
        let cookie = u32::from(self.id) << 16 | u32::from(index);
        let owner = Owner { source: Source::Nbd, cookie };
        slots.start(slot, Request { verb: call.verb(), span, owner });
    }

    /// Appends a piece to those that are sent in order.
    fn link(&mut self, id: u16, index: u16) {
        let call = &mut self.calls[id];
        match call.last {
            NO_PIECE => call.first = index,
            last => self.pieces[last].next = index,
        }
        call.last = index;
    }
}

fn kind_of(command: u16) -> Kind {
    match command {
        command::READ => Kind::Read,
        command::WRITE => Kind::Write,
        command::FLUSH => Kind::Flush,
        command::TRIM => Kind::Trim,
        command::WRITE_ZEROES => Kind::Zero,
        command::BLOCK_STATUS => Kind::Status,
        _ => Kind::Other,
    }
}

/// Whether a request may be started; otherwise the error that answers it.
fn check(head: &RequestHead, kind: Kind, export: &Export, agreed: Features) -> Result<(), u32> {
    if head.flags & !flags_of(head.command, export, agreed) != 0 {
        return Err(error::EINVAL);
    }
    let known = kind != Kind::Other || head.command == command::CACHE;
    let flush_with_range = kind == Kind::Flush && (head.offset != 0 || head.bytes != 0);
    if !known || flush_with_range || (kind == Kind::Status && !agreed.allocation) {
        return Err(error::EINVAL);
    }
    if export.read_only && matches!(kind, Kind::Write | Kind::Trim | Kind::Zero) {
        return Err(error::EPERM);
    }
    check_range(head, kind, export)
}

fn check_range(head: &RequestHead, kind: Kind, export: &Export) -> Result<(), u32> {
    let sector = u64::from(export.sector_size);
    let carries = matches!(kind, Kind::Read | Kind::Write);
    let unaligned = !head.offset.is_multiple_of(sector) || u64::from(head.bytes) % sector != 0;
    if unaligned || (carries && head.bytes > REQUEST_DATA_MAX) {
        return Err(error::EINVAL);
    }
    let end = head.offset.checked_add(u64::from(head.bytes));
    match (end.is_some_and(|end| end <= export.bytes()), kind) {
        (false, Kind::Write | Kind::Zero) => Err(error::ENOSPC),
        (false, _) => Err(error::EINVAL),
        (true, Kind::Status) if head.bytes == 0 => Err(error::EINVAL),
        (true, Kind::Read) if head.flags & flag::DF != 0 && head.bytes > DF_BYTES_MAX => {
            Err(error::EOVERFLOW)
        }
        (true, _) => Ok(()),
    }
}

/// Longest read that is answered in one chunk; the protocol asks for at least this.
const DF_BYTES_MAX: u32 = 64 << 10;

/// Flags that a command may have. FUA is accepted, by the protocol, on all of them.
fn flags_of(command: u16, export: &Export, agreed: Features) -> u16 {
    let own = match command {
        command::READ if agreed.structured => flag::DF,
        command::WRITE_ZEROES if export.fast_zero => flag::NO_HOLE | flag::FAST_ZERO,
        command::WRITE_ZEROES => flag::NO_HOLE,
        command::BLOCK_STATUS => flag::REQ_ONE,
        _ => 0,
    };
    flag::FUA | own
}

fn count(counters: &mut Counters, head: &RequestHead, valid: bool) {
    let (requests, bytes) = match head.command {
        command::READ => (&mut counters.reads, Some(&mut counters.bytes_read)),
        command::WRITE => (&mut counters.writes, Some(&mut counters.bytes_written)),
        command::FLUSH => (&mut counters.flushes, None),
        command::TRIM => (&mut counters.trims, None),
        command::WRITE_ZEROES => (&mut counters.zeroes, None),
        command::BLOCK_STATUS => (&mut counters.statuses, None),
        _ => (&mut counters.others, None),
    };
    *requests += 1;
    if let (Some(bytes), true) = (bytes, valid) {
        *bytes += u64::from(head.bytes);
    }
}
