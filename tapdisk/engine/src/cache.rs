//! The local cache: what is read from below the leaf is kept in the leaf (`-r`, spec/drivers.md
//! §6.5).
//!
//! ```text
//!   read ─► answered ─► released by its frontend ─► written into the leaf ─► slot free
//! ```
//! The slot that was read into is written from, so this needs no memory of its own; at most a
//! quarter of the slots do so at once, and a read that finds no room is simply not kept. A change
//! by the guest wins: what overlaps one that was at work at the same time is not written, and a
//! change that comes while the sectors are being written waits for that. Nothing of it is mirrored
//! or marked: the disk's contents stay the same.
use image::Span;

use super::limits::SMALL_BYTES;
use super::slot::{Slot, State, sectors_mask};
use super::{Bug, Engine};
use request::disk::Disk;
use request::{Request, SlotId, Verb};

/// A slot's part in the local cache, or in a commit; bits count sectors of its request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local {
    /// Sectors that came from where they are taken from: from below the top for the local cache,
    /// from the top for a commit.
    pub found: u128,
    /// Sectors that a guest has changed, or may have, since they were read.
    pub stale: u128,
    /// The slot is being written into the leaf, or for a commit into base.
    pub writing: bool,
    /// The slot is a commit's.
    pub commits: bool,
}

impl Local {
    /// These sectors came from where they are taken from.
    pub fn note(&mut self, first: u32, count: u32) {
        self.found |= sectors_mask(first, count);
    }

    /// What is to be written.
    pub fn wanted(&self) -> u128 {
        self.found & !self.stale
    }
}

/// The local cache of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalCache {
    /// The leaf's file system has room for it.
    pub room: bool,
    /// Slots being written at once: now and at most.
    writing: u16,
    writing_max: u16,
    /// Sectors kept.
    pub kept: u64,
    careless: bool,
}

impl LocalCache {
    /// Off until room is found.
    pub fn new(slots: u16) -> LocalCache {
        LocalCache { writing_max: (slots / 4).max(1), ..LocalCache::default() }
    }
}

impl<D: Disk> Engine<D> {
    /// Whether the chain keeps what is read.
    pub fn keeps_reads(&self) -> bool {
        self.map.chain.as_ref().is_some_and(|chain| chain.keeps_reads())
            && !self.rules.policy.read_only
    }

    /// Tells whether the leaf's file system has room for what is read.
    pub fn set_room(&mut self, room: bool) {
        self.local_cache.room = room;
    }

    /// Plants a bug: what is read is written into the leaf even over a later change. The simulator
    /// has to find it.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn forget_overlaps(&mut self) {
        self.local_cache.careless = true;
    }

    /// A request starts: notes what its span makes stale, here or elsewhere.
    pub(super) fn note_overlaps(&mut self, id: SlotId) {
        let careless = cfg!(any(debug_assertions, feature = "canary")) && self.local_cache.careless;
        let over = self.rules.bug == Bug::PieceOverAChange;
        if careless || over || !(self.keeps_reads() || self.commit.has_pieces()) {
            return;
        }
        let request = self.slot(id).request;
        let change = request.verb.changes();
        let mut own = 0;
        for (at, other) in self.table.iter_mut() {
            if at == id || matches!(other.state, State::Free | State::Filling) {
                continue;
            }
            if change && (other.request.verb == Verb::Read || other.local.writing) {
                other.local.stale |= overlap(other.request.span, request.span);
            }
            if request.verb == Verb::Read && other.active() && other.request.verb.changes() {
                own |= overlap(request.span, other.request.span);
            }
        }
        self.table[id].local.stale = own;
    }

    /// Whether a change has to wait, because older data is being written where it goes.
    pub(super) fn overlaps_populate(&self, id: SlotId) -> bool {
        let slot = self.slot(id);
        self.local_cache.writing > 0
            && !slot.local.writing
            && slot.cursor == 0
            && self.table.iter().any(|(_, other)| {
                other.local.writing
                    && other.seq < slot.seq
                    && overlap(other.request.span, slot.request.span) != 0
            })
    }

    /// A read's slot comes back from its frontend: the read goes on as a write into the leaf if it
    /// is worth it.
    pub(super) fn populate(&mut self, id: SlotId) -> bool {
        let slot = self.slot(id);
        let worth = slot.state == State::Done
            && slot.request.verb == Verb::Read
            && slot.outcome.is_ok()
            && slot.local.wanted() != 0;
        let cache = &self.local_cache;
        if !worth || !cache.room || cache.writing >= cache.writing_max || !self.keeps_reads() {
            return false;
        }
        let top = self.map.top();
        let seq = self.table.next_seq();
        self.local_cache.writing += 1;
        let slot = &mut self.table[id];
        slot.request = Request { verb: Verb::Write { fua: false }, ..slot.request };
        slot.state = State::Dispatch;
        slot.cursor = 0;
        slot.seq = seq;
        slot.target = top;
        slot.taken_over = self.events.taken_over;
        slot.coded = 0;
        slot.local.writing = true;
        self.table.begin(id);
        true
    }

    /// The same, for a slot that its frontend does not give back: from a free slot, if there is
    /// one.
    pub(super) fn populate_copy(&mut self, id: SlotId) {
        if !self.keeps_reads() || self.slot(id).local.wanted() == 0 {
            return;
        }
        let bytes = self.slot(id).request.span.count * 512;
        let (small, large) = (self.rules.limits.small, self.table.large_free.last().copied());
        let free = if bytes <= SMALL_BYTES { self.table.small_free.last().copied() } else { None };
        let Some(to) = free.or(large) else { return };
        let copied = Slot { ..self.slot(id).clone() };
        let (from, buf) = (self.rules.limits.slot_buf(id.0), self.rules.limits.slot_buf(to));
        if copied.request.verb != Verb::Read || bytes > buf.bytes {
            return;
        }
        self.io.disk.arena().copy(from.part(0, bytes), buf.part(0, bytes));
        let taken =
            if to < small { self.table.small_free.pop() } else { self.table.large_free.pop() };
        assert!(taken == Some(to), "it was the last one");
        self.table[SlotId(to)] = copied;
        if !self.populate(SlotId(to)) {
            self.free_slot(SlotId(to));
        }
        self.table[id].local = Local::default();
    }

    /// Such a write is over, well or badly: the reader has its data anyway.
    pub(super) fn populated(&mut self, id: SlotId) {
        let slot = &mut self.table[id];
        match slot.error {
            None => self.local_cache.kept += u64::from(slot.local.wanted().count_ones()),
            // Until somebody finds that there is room again.
            Some(_) => self.local_cache.room = false,
        }
        slot.local = Local::default();
        self.local_cache.writing -= 1;
        self.free_slot(id);
    }

    /// Moves past what need not be written. False at the end of the request.
    pub(super) fn skip_unwanted(&mut self, id: SlotId) -> bool {
        let slot = &mut self.table[id];
        let count = slot.request.span.count;
        if !slot.local.writing {
            return slot.cursor < count;
        }
        loop {
            let left = slot.local.wanted().checked_shr(slot.cursor).unwrap_or(0);
            if left == 0 {
                slot.cursor = count;
                return false;
            }
            slot.cursor += left.trailing_zeros();
            let run = (left >> left.trailing_zeros()).trailing_ones();
            let buf = self.rules.limits.slot_buf(id.0).part(slot.cursor * 512, run * 512);
            if slot.local.commits
                || self.io.disk.arena_ref().slice(buf).iter().any(|byte| *byte != 0)
            {
                return true;
            }
            // Zeros are not worth space in the leaf.
            slot.local.stale |= sectors_mask(slot.cursor, run);
        }
    }

    /// The chain is taken away: nothing that was read from it is written anywhere.
    pub(super) fn forget_reads(&mut self) {
        self.table.iter_mut().for_each(|(_, slot)| slot.local = Local::default());
    }
}

/// The sectors of `span` that `other` covers, as bits.
fn overlap(span: Span, other: Span) -> u128 {
    let (start, end) = (span.start.max(other.start), span.end().min(other.end()));
    if start >= end {
        return 0;
    }
    // Only reads and what they became are asked about: they fit their slot's buffer.
    sectors_mask((start - span.start) as u32, (end - start) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_counted_from_the_first_span() {
        let span = Span { start: 100, count: 128 };
        for (other, want) in [
            ((0, 100), 0),
            ((228, 9), 0),
            ((0, 101), 1),
            ((227, 50), 1 << 127),
            ((0, 1000), u128::MAX),
            ((104, 2), 0b11_0000),
        ] {
            let other = Span { start: other.0, count: other.1 };
            assert_eq!(overlap(span, other), want, "{other:?}");
        }
    }
}
