//! The engine as frontends see it: slots to fill, to start, to read from and to give back.
use crate::Engine;
use crate::limits::{LARGE_BYTES, SMALL_BYTES};
use crate::slot::{Cause, Slot, State};
use request::disk::{Disk, FileId};
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
            state: State::Ask,
            request,
            seq,
            since: self.io.now,
            target,
            taken_over: self.events.taken_over,
            ..Slot::free()
        };
        self.table.begin(slot);
        match wrong {
            None => {
                self.note_overlaps(slot);
                self.note_change(&request);
            }
            Some(wrong) => {
                let file = self.map.top();
                self.table.fail(slot, wrong.cause(file));
            }
        }
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
        self.keep_copy(slot);
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
        if !self.keep(slot) {
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
    pub(super) fn free_slot(&mut self, slot: SlotId) {
        self.table[slot].state = State::Free;
        if slot.0 < self.rules.limits.small {
            self.table.small_free.push(slot.0);
        } else {
            self.table.large_free.push(slot.0);
        }
    }

    /// A change is about to be made: the changed-block log knows before any disk does.
    fn note_change(&mut self, request: &Request) {
        if !request.verb.changes() {
            return;
        }
        if self.events.taken_over {
            self.stats.redirected += u64::from(request.span.count);
        }
        if let Some(changes) = self.map.chain.as_mut().and_then(|chain| chain.changes.as_mut()) {
            changes.mark(request.span);
        }
    }

    /// Why a request must not reach a driver (spec/drivers.md §3).
    fn wrong(&self, slot: SlotId, request: &Request) -> Option<Wrong> {
        let span = request.span;
        if self.map.chain.is_none() {
            return Some(Wrong::Closed);
        }
        if request.verb == Verb::Flush {
            return None;
        }
        let end = span.start.checked_add(u64::from(span.count));
        if span.count == 0 || end.is_none_or(|end| end > self.map.sectors) {
            return Some(Wrong::Outside);
        }
        let unit = u64::from(self.rules.policy.sector_size / 512);
        if !span.start.is_multiple_of(unit) || !u64::from(span.count).is_multiple_of(unit) {
            return Some(Wrong::Parts);
        }
        let fits =
            u64::from(span.count) * 512 <= u64::from(self.rules.limits.slot_buf(slot.0).bytes);
        match request.verb {
            Verb::Read if !fits => Some(Wrong::Long),
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. }
                if self.rules.policy.read_only =>
            {
                Some(Wrong::ReadOnly)
            }
            Verb::Write { .. } if !fits => Some(Wrong::Long),
            _ => None,
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Closed,
    Outside,
    Parts,
    Long,
    ReadOnly,
}

impl Wrong {
    #[cold]
    fn cause(self, file: FileId) -> Cause {
        let (errno, why) = match self {
            Wrong::Closed => (libc::ESHUTDOWN, "the disk is closed"),
            Wrong::Outside => (libc::EINVAL, "the request ends after the disk, or has no sectors"),
            Wrong::Parts => (libc::EINVAL, "the request is not of whole sectors of the disk"),
            Wrong::Long => (libc::EINVAL, "the request is longer than its buffer"),
            Wrong::ReadOnly => (libc::EPERM, "the disk is read-only"),
        };
        Cause { file, errno, why }
    }
}
