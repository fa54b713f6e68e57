//! The engine as frontends see it: slots to fill, to start, to read from and to give back.
use crate::Engine;
use crate::limits::{LARGE_BYTES, SMALL_BYTES};
use crate::slot::{Slot, State};
use request::disk::Disk;
use request::{Request, SlotCounts, SlotId, Slots, Verb};

impl<D: Disk> Slots for Engine<D> {
    fn reserve(&mut self, bytes: u32) -> Option<SlotId> {
        assert!(
            bytes <= LARGE_BYTES,
            "requests are cut into pieces of at most {LARGE_BYTES} bytes"
        );
        let small = (bytes <= SMALL_BYTES).then(|| self.table.small_free.pop()).flatten();
        let id = small.or_else(|| self.table.large_free.pop())?;
        let slot = &mut self.table[SlotId(id)];
        assert!(slot.state == State::Free, "a free slot is free");
        slot.state = State::Filling;
        #[cfg(feature = "unprotected")]
        self.io.disk.arena().give_back(self.rules.limits.slot_buf(id));
        Some(SlotId(id))
    }

    fn slot_bytes_max(&self) -> u32 {
        LARGE_BYTES
    }

    fn buffer(&self, slot: SlotId) -> &[u8] {
        assert!(!self.slot(slot).active(), "a buffer is looked at while it is the frontend's");
        self.io.disk.arena_ref().slice(self.rules.limits.slot_buf(slot.0))
    }

    fn buffer_mut(&mut self, slot: SlotId) -> &mut [u8] {
        assert!(!self.slot(slot).active(), "a buffer is filled while it is the frontend's");
        let buf = self.rules.limits.slot_buf(slot.0);
        self.io.disk.arena().slice_mut(buf)
    }

    fn start(&mut self, slot: SlotId, request: Request) {
        let wrong = self.wrong(slot, &request);
        let target = self.first_target();
        let seq = self.table.next_seq();
        let s = &mut self.table[slot];
        assert!(s.state == State::Filling, "a request is started in a reserved slot");
        *s = Slot {
            state: State::Dispatch,
            request,
            seq,
            since: self.io.now,
            target,
            taken_over: self.events.taken_over,
            ..Slot::free()
        };
        self.table.begin(slot);
        self.admit(slot, &request, wrong);
        #[cfg(feature = "unprotected")]
        if request.verb == Verb::Read {
            self.io.disk.arena().give_back(self.rules.limits.slot_buf(slot.0));
        }
        let sectors = u64::from(request.span.count);
        match request.verb {
            Verb::Read => self.stats.begin(0, sectors),
            Verb::Write { .. } => self.stats.begin(1, sectors),
            Verb::Flush | Verb::Zero { .. } | Verb::Discard { .. } | Verb::Status => {}
        }
    }

    fn reuse(&mut self, slot: SlotId) {
        assert!(self.slot(slot).state == State::Done, "a slot is used again by its owner");
        self.populate_copy(slot);
        self.table[slot].state = State::Filling;
        #[cfg(feature = "unprotected")]
        if self.table[slot].request.verb != Verb::Read {
            self.io.disk.arena().give_back(self.rules.limits.slot_buf(slot.0));
        }
    }

    fn release(&mut self, slot: SlotId) {
        assert!(
            matches!(self.slot(slot).state, State::Filling | State::Done),
            "a slot is given back by its owner"
        );
        if !self.populate(slot) {
            self.free_slot(slot);
        }
    }

    fn slots(&self) -> SlotCounts {
        SlotCounts {
            small: self.rules.limits.small,
            large: self.rules.limits.large,
            small_free: self.table.small_free.len() as u16,
            large_free: self.table.large_free.len() as u16,
        }
    }

    fn sectors(&self) -> u64 {
        self.map.sectors
    }

    fn sector_size(&self) -> u32 {
        self.rules.policy.sector_size
    }

    fn read_only(&self) -> bool {
        self.rules.policy.read_only
    }
}

impl<D: Disk> Engine<D> {
    /// Puts a slot back where `reserve` finds it.
    // Left to itself the compiler makes calls of it: 30 instructions a request (`make bench-cost`).
    #[inline(always)]
    pub(super) fn free_slot(&mut self, slot: SlotId) {
        self.table[slot].state = State::Free;
        if slot.0 < self.rules.limits.small {
            self.table.small_free.push(slot.0);
        } else if !self.passes_to_piece(slot) {
            self.table.large_free.push(slot.0);
        }
    }
}
