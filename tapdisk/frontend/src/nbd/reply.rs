//! Finished pieces, from the engine into replies.
//!
//! With structured replies every piece of a read becomes a chunk at once, in the order in which
//! pieces finish. Simple replies cannot be taken apart: the pieces of a read go out in order, and
//! all other answers stand in line until it is over. A read may go first when all of its pieces
//! have slots, or when nothing else has any: so the one that is being sent never waits for slots
//! that those behind it hold.
use super::calls::{At, Kind, NO_PIECE, Piece};
use super::conn::{Conn, Phase, Turn};
use super::intake::Intake;
use super::notice::{Log, Why};
use nbd_proto::{Head, STATE_HOLE_ZERO, error_of, flag};
use request::{Outcome, SlotId, Slots};

impl Conn {
    /// The engine is done with a piece.
    pub(super) fn complete(&mut self, index: u16, outcome: Outcome, turn: &mut Turn<'_>) {
        let piece = self.pieces[index];
        assert!(piece.at == At::Engine, "a piece comes back once");
        self.in_engine -= 1;
        let call = &mut self.calls[piece.call];
        call.outstanding -= 1;
        if self.phase == Phase::Dying {
            self.give_back(index, piece.slot, turn.slots);
            self.bury(turn.slots, turn.log);
            return;
        }
        match call.kind {
            Kind::Read if self.features.structured => self.chunk(index, piece, outcome, turn),
            Kind::Read => self.ordered(index, piece, outcome, turn),
            Kind::Status => self.status(index, piece, outcome, turn),
            _ => {
                self.give_back(index, piece.slot, turn.slots);
                self.note_error(piece.call, outcome);
                if self.calls[piece.call].is_over() {
                    self.answer(piece.call, turn);
                }
            }
        }
    }

    /// Answers a call that has no data to send (any more).
    pub(super) fn answer(&mut self, id: u16, turn: &mut Turn<'_>) {
        if self.features.structured {
            self.end(id, turn);
        } else {
            self.stand_in_line(id);
            self.advance_line(turn);
        }
    }

    /// A chunk of a structured read.
    fn chunk(&mut self, index: u16, piece: Piece, outcome: Outcome, turn: &mut Turn<'_>) {
        let call = self.calls[piece.call];
        let (last, cookie) = (call.is_over(), call.cookie);
        let offset = call.offset + u64::from(piece.from);
        let bytes = piece.bytes;
        if outcome.is_ok() && !is_zero(&turn.slots.buffer(piece.slot)[..bytes as usize]) {
            let head = Head::data(cookie, last, offset, bytes);
            self.out.push(head, Some((piece.slot, bytes)));
            self.free_piece(index);
        } else {
            let head = match outcome {
                Ok(_) => Head::hole(cookie, last, offset, bytes),
                Err(errno) => Head::error_at(cookie, last, error_of(errno), offset),
            };
            let failed = u64::from(outcome.is_err());
            turn.log.counters.errors += failed;
            turn.log.traffic[usize::from(self.old)].errors += failed;
            self.out.push(head, None);
            self.give_back(index, piece.slot, turn.slots);
        }
        if last {
            self.free_call(piece.call, turn.log);
        }
    }

    fn status(&mut self, index: u16, piece: Piece, outcome: Outcome, turn: &mut Turn<'_>) {
        let call = self.calls[piece.call];
        let buffer = turn.slots.buffer_mut(piece.slot);
        let one = call.flags & flag::REQ_ONE != 0;
        match outcome.map(|n| extents(buffer, if one { 1 } else { n }, call.bytes)) {
            Ok(count) if count > 0 => {
                let head = Head::status(call.cookie, count);
                self.out.push(head, Some((piece.slot, count * 8)));
                self.free_piece(index);
                self.free_call(piece.call, turn.log);
            }
            other => {
                self.give_back(index, piece.slot, turn.slots);
                self.note_error(piece.call, other.and(Err(libc::EIO)));
                self.answer(piece.call, turn);
            }
        }
    }

    /// A piece of a read that is answered in order.
    fn ordered(&mut self, index: u16, piece: Piece, outcome: Outcome, turn: &mut Turn<'_>) {
        let id = piece.call;
        self.pieces[index].at = At::Parked;
        self.note_error(id, outcome);
        let call = &mut self.calls[id];
        if call.error != 0 && call.begun {
            self.drop_client(Why::ReadFailed, turn.log, turn.registry);
            return;
        }
        if call.error != 0 {
            // Nothing of it was sent: what is not under way yet need not begin.
            call.issued = call.bytes;
            if self.intake == Intake::Issue(id) {
                self.intake = Intake::Head;
            }
        }
        let call = &self.calls[id];
        let ready = match call.error {
            0 => self.pieces[call.first].at == At::Parked,
            _ => call.is_over(),
        };
        if ready && self.streaming != Some(id) {
            self.stand_in_line(id);
        }
        self.advance_line(turn);
    }

    fn stand_in_line(&mut self, id: u16) {
        let call = &mut self.calls[id];
        if !call.queued {
            call.queued = true;
            self.line.push_back(id);
        }
    }

    /// Simple replies: sends what may be sent now.
    pub(super) fn advance_line(&mut self, turn: &mut Turn<'_>) {
        while self.is_live() {
            if let Some(id) = self.streaming {
                if !self.stream(id, turn.log) {
                    return;
                }
            } else {
                let Some(at) = self.line.iter().position(|&id| self.may_go(id)) else { return };
                let id = self.line.remove(at).expect("a position in the line");
                let call = &self.calls[id];
                match call.kind == Kind::Read && call.error == 0 && call.bytes > 0 {
                    true => self.streaming = Some(id),
                    false => self.fail_or_end(id, turn),
                }
            }
        }
    }

    fn may_go(&self, id: u16) -> bool {
        let call = &self.calls[id];
        match (call.kind, call.error) {
            (Kind::Read, 0) => call.is_issued() || self.calls.used() == 1,
            (Kind::Read, _) => call.is_over(),
            _ => true,
        }
    }

    /// Sends the pieces of a read that are there; true if that was all of it.
    fn stream(&mut self, id: u16, log: &mut Log) -> bool {
        loop {
            let index = self.calls[id].first;
            if index == NO_PIECE || self.pieces[index].at != At::Parked {
                break;
            }
            let piece = self.pieces[index];
            let call = &mut self.calls[id];
            let head = if call.begun { Head::EMPTY } else { Head::simple(call.cookie, 0) };
            call.begun = true;
            call.first = piece.next;
            if call.first == NO_PIECE {
                call.last = NO_PIECE;
            }
            self.out.push(head, Some((piece.slot, piece.bytes)));
            self.free_piece(index);
        }
        let over = self.calls[id].is_over() && self.calls[id].first == NO_PIECE;
        if over {
            self.streaming = None;
            self.free_call(id, log);
        }
        over
    }

    /// An answer without data; gives back what pieces of a failed read brought.
    fn fail_or_end(&mut self, id: u16, turn: &mut Turn<'_>) {
        let mut index = self.calls[id].first;
        while index != NO_PIECE {
            let piece = self.pieces[index];
            self.give_back(index, piece.slot, turn.slots);
            index = piece.next;
        }
        self.end(id, turn);
    }

    fn end(&mut self, id: u16, turn: &mut Turn<'_>) {
        let call = &self.calls[id];
        turn.log.counters.errors += u64::from(call.error != 0);
        self.out.push(call.head(self.features.structured), None);
        self.free_call(id, turn.log);
    }

    fn note_error(&mut self, id: u16, outcome: Outcome) {
        let call = &mut self.calls[id];
        if let (Err(errno), 0) = (outcome, call.error) {
            call.error = error_of(errno);
        }
    }

    fn give_back(&mut self, index: u16, slot: SlotId, slots: &mut dyn Slots) {
        self.held.release(slots, slot);
        self.free_piece(index);
    }

    fn free_call(&mut self, id: u16, log: &mut Log) {
        let call = &self.calls[id];
        if let Some(way) = call.way() {
            let traffic = &mut log.traffic[usize::from(self.old)];
            let failed = call.error != 0;
            traffic.over[way] += 1;
            traffic.sectors[way] +=
                if failed { 0 } else { u64::from(call.bytes) / image::SECTOR_BYTES };
            traffic.ticks_us[way] += log.now.saturating_sub(call.since);
            traffic.errors += u64::from(failed);
            self.open[way] -= 1;
        }
        self.calls.free(id);
        self.freed = true;
    }
}

/// Turns the engine's extents into the wire's, in place; how many there are within `bytes`.
fn extents(buffer: &mut [u8], count: u32, bytes: u32) -> u32 {
    let mut left = bytes;
    let mut done = 0;
    for extent in buffer.chunks_exact_mut(8).take(count as usize) {
        let (sectors, hole) = extent.split_at_mut(4);
        let native = |raw: &[u8]| u32::from_ne_bytes(raw.try_into().expect("four bytes"));
        let length = native(sectors).saturating_mul(image::SECTOR_BYTES as u32).min(left);
        if length == 0 {
            break;
        }
        let state = if native(hole) == 0 { 0 } else { STATE_HOLE_ZERO };
        sectors.copy_from_slice(&length.to_be_bytes());
        hole.copy_from_slice(&state.to_be_bytes());
        left -= length;
        done += 1;
    }
    done
}

/// Whether a buffer holds only zeros. Data that matter show it in the first bytes, mostly.
fn is_zero(buffer: &[u8]) -> bool {
    let blocks = buffer.chunks_exact(64);
    blocks.remainder().iter().all(|&byte| byte == 0)
        && blocks.into_iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}
