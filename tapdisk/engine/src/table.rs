//! The slots of an engine: what each is at, which are free, which can go on.
use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use request::SlotId;

use crate::limits::Limits;
use crate::sets::SlotSet;
use crate::slot::{Cause, Slot};

/// All slots of one engine.
#[derive(Debug)]
pub struct Table {
    slots: Box<[Slot]>,
    /// Why the last request of each slot failed, beside what is touched by all.
    causes: Box<[Option<Cause>]>,
    /// Free slots of 4 KiB.
    pub small_free: Vec<u16>,
    /// Free slots of 64 KiB.
    pub large_free: Vec<u16>,
    /// Slots whose next step can be taken.
    pub ready: SlotSet,
    /// Requests that a driver or a full cache told to wait: asked again when anything has landed.
    pub retry: SlotSet,
    /// Something has landed since they were asked.
    pub progress: bool,
    /// Slots that the engine works on.
    pub working: SlotSet,
    /// Finished ones, in order.
    pub done: VecDeque<SlotId>,
    /// The last place in the order of requests that was given.
    pub seq: u64,
    /// The place of the oldest request that is worked on.
    pub oldest: u64,
}

impl Table {
    /// All of them free.
    pub fn new(limits: &Limits) -> Table {
        let slots = usize::from(limits.all_slots());
        Table {
            slots: (0..slots).map(|_| Slot::free()).collect(),
            causes: vec![None; slots].into(),
            small_free: (0..limits.small).rev().collect(),
            large_free: (limits.small..limits.slots()).rev().collect(),
            ready: SlotSet::EMPTY,
            retry: SlotSet::EMPTY,
            progress: false,
            working: SlotSet::EMPTY,
            done: VecDeque::with_capacity(slots),
            seq: 0,
            oldest: 0,
        }
    }

    /// All slots, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        (0..).map(SlotId).zip(&self.slots)
    }

    /// All slots, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Slot)> {
        (0..).map(SlotId).zip(&mut self.slots)
    }

    /// The oldest of some slots.
    pub fn oldest_of(&self, mut slots: SlotSet) -> Option<SlotId> {
        std::iter::from_fn(|| slots.pop()).min_by_key(|id| self[*id].seq)
    }

    /// The next place in the order of requests.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// A slot whose request begins, or begins anew, is worked on from its next step.
    pub fn begin(&mut self, id: SlotId) {
        self.working.insert(id);
        self.ready.insert(id);
    }

    /// A slot's work is over, and others may go on for it.
    pub fn end(&mut self, id: SlotId) {
        self.working.remove(id);
        self.progress = true;
    }

    /// Why a request has failed.
    pub fn cause(&self, id: SlotId) -> Option<Cause> {
        self[id].error.and_then(|_| self.causes[usize::from(id.0)])
    }

    /// A request has failed; what went wrong first counts.
    #[cold]
    pub fn fail(&mut self, id: SlotId, cause: Cause) {
        let error = &mut self[id].error;
        if error.is_none() {
            *error = Some(cause.errno);
            self.causes[usize::from(id.0)] = Some(cause);
        }
    }
}

impl Index<SlotId> for Table {
    type Output = Slot;
    fn index(&self, id: SlotId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }
}

impl IndexMut<SlotId> for Table {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.slots[usize::from(id.0)]
    }
}
