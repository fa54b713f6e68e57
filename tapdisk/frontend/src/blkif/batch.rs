//! Data between slots and the guest's pages: everything of a turn in one grant copy call.
use xen::{COPIES_MAX, Copy, GrantTable};

use super::calls::Calls;
use super::memory::{CopyMemory, of_list, of_slot};
use super::notice::{Log, Notice};
use request::{SlotId, Slots};

/// A piece of a request whose data are copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub slot: SlotId,
    pub call: u16,
    /// First sector of the request, and how many.
    pub from: u32,
    pub sectors: u32,
    /// Its copies.
    first: usize,
    end: usize,
    /// Out: all of them were made.
    pub ok: bool,
}

/// Copies that are made together.
#[derive(Debug)]
pub(super) struct Batch {
    copies: Vec<Copy>,
    pub pieces: Vec<Piece>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        let pieces = Vec::with_capacity(COPIES_MAX);
        Batch { copies: Vec::with_capacity(COPIES_MAX), pieces }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Whether another piece of so many sectors surely fits. An empty batch takes any piece: a slot
    /// has fewer sectors than a batch has copies.
    pub(super) fn has_room(&self, sectors: u32) -> bool {
        self.copies.len() + sectors as usize <= COPIES_MAX && self.pieces.len() < COPIES_MAX
    }

    /// Adds the sectors `from` … of a call, from or to the buffer of a slot.
    pub(super) fn add(
        &mut self,
        calls: &Calls,
        domid: u16,
        (slot, call): (SlotId, u16),
        (from, sectors): (u32, u32),
        to_guest: bool,
    ) {
        assert!(self.has_room(sectors), "`has_room` was asked");
        let first = self.copies.len();
        for run in calls.runs(call, from, sectors) {
            self.copies.push(Copy {
                domid,
                gref: run.gref,
                offset: run.offset,
                bytes: run.bytes,
                piece: of_slot(slot),
                at: run.at,
                to_guest,
                ok: false,
            });
        }
        let end = self.copies.len();
        self.pieces.push(Piece { slot, call, from, sectors, first, end, ok: false });
    }

    /// Adds the page with the list of a call.
    pub(super) fn add_list(&mut self, domid: u16, call: u16, gref: u32, bytes: u16) {
        let (piece, first) = (of_list(call), self.copies.len());
        self.copies.push(Copy { domid, gref, bytes, piece, ..Copy::default() });
        let (slot, end) = (SlotId(u16::MAX), first + 1);
        self.pieces.push(Piece { slot, call, from: 0, sectors: 0, first, end, ok: false });
    }

    /// Makes all copies. `pieces` then tells which are whole; the caller empties it with `clear`.
    pub(super) fn run(
        &mut self,
        grants: &mut impl GrantTable,
        slots: &mut dyn Slots,
        calls: &mut Calls,
        log: &mut Log,
    ) {
        if self.copies.is_empty() {
            return;
        }
        log.counters.copy_calls += 1;
        log.counters.copies += self.copies.len() as u64;
        let made = grants.copy(&mut CopyMemory { slots, calls }, &mut self.copies);
        if let Err(error) = &made {
            log.notices.note(Notice::CopyFailed(error.raw_os_error().unwrap_or(libc::EIO)));
        }
        for piece in &mut self.pieces {
            let all = self.copies[piece.first..piece.end].iter().all(|copy| copy.ok);
            piece.ok = made.is_ok() && all;
        }
    }

    pub(super) fn clear(&mut self) {
        self.copies.clear();
        self.pieces.clear();
    }
}
