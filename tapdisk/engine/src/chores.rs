//! The drivers' own plans: a slot that no request has carries them out, one after the other.
//!
//! Requests that cannot go on without one wait for the next that is over, and fail with it; so a
//! driver does first what is waited for.
use image::{Plan, Stop};

use crate::Engine;
use crate::sets::SlotSet;
use crate::slot::{Cause, State};
use request::SlotId;
use request::disk::{Disk, FileId};

/// Images whose drivers have chores: the leaf and a secondary at most.
#[derive(Debug, Default)]
pub struct Chores {
    wanted: [Option<FileId>; 2],
    waiting: [SlotSet; 2],
}

impl Chores {
    fn place(&self, file: FileId) -> Option<usize> {
        self.wanted.iter().position(|wanted| *wanted == Some(file))
    }
}

impl<D: Disk> Engine<D> {
    /// A request cannot go on without a chore.
    #[cold]
    pub(super) fn wait_for_chore(&mut self, id: SlotId, file: FileId) {
        let place = self.want_chore(file);
        self.chores.waiting[place].insert(id);
        self.table[id].pending += 1;
        // The driver's slot may wait for this very request to end: what is waited for comes first.
        self.table.progress = true;
    }

    /// The driver of an image has something to do.
    #[cold]
    pub(super) fn want_chore(&mut self, file: FileId) -> usize {
        let free = self.chores.wanted.iter().position(Option::is_none);
        let place = self.chores.place(file).or(free).expect("two images are written");
        self.chores.wanted[place] = Some(file);
        let id = self.rules.limits.chore_slot().expect("a chain with chores has a slot for them");
        if self.slot(id).state == State::Free {
            let slot = &mut self.table[id];
            (slot.state, slot.since, slot.error) = (State::Chore, self.io.now, None);
            self.table.begin(id);
        }
        place
    }

    /// The next one of those who have some.
    #[cold]
    pub(super) fn chore_on(&mut self, id: SlotId) {
        if self.slot(id).error.is_some() {
            // It could not even be planned.
            self.chore_over(id);
        }
        let Some(file) = self.chores.wanted.iter().flatten().next().copied() else {
            self.table[id].state = State::Free;
            return self.table.end(id);
        };
        // It reads nothing, so that nobody has to wait for it; and what it waits for may just have
        // ended.
        let (seq, oldest) = (self.table.next_seq(), self.oldest_active());
        (self.table[id].seq, self.table[id].target, self.table.oldest) = (seq, file, oldest);
        if self.commit.has_lost(file) {
            let why = "its commit was given up";
            self.table.fail(id, Cause { file, errno: libc::ECANCELED, why });
            return;
        }
        match self.with_image(id, file, |image, meta, _| image.chore(meta)) {
            Ok(Some(plan)) => self.carry_out(id, file, plan),
            Ok(None) => self.no_chores(file),
            Err(Stop::Chore | Stop::Copy) => unreachable!("a chore waits for no other"),
            Err(stop) => self.stop(id, file, stop),
        }
    }

    fn carry_out(&mut self, id: SlotId, file: FileId, plan: Plan) {
        assert!(plan.fill.is_none(), "a chore copies nothing");
        plan.pins.iter().for_each(|r| self.map.meta.pin(file, r.at));
        let slot = &mut self.table[id];
        slot.plans[0] = Some(plan);
        (slot.state, slot.live, slot.order) = (State::Writing { phase: 1 }, 1, plan.order);
        self.issue(id, 0, 0);
    }

    /// One is over. Those who wait look again, or fail as it did.
    pub(super) fn chore_over(&mut self, id: SlotId) {
        let (file, cause) = (self.slot(id).target, self.table.cause(id));
        self.table[id].error = None;
        self.table[id].state = State::Chore;
        let place = self.chores.place(file).expect("somebody wanted it");
        let mut waiting = self.chores.waiting[place].take();
        if cause.is_some() {
            // Not tried again before somebody wants it.
            self.chores.wanted[place] = None;
        }
        while let Some(id) = waiting.pop() {
            if let Some(cause) = cause {
                self.table.fail(id, cause);
            }
            self.wake_one(id, file, Ok(()));
        }
    }

    fn no_chores(&mut self, file: FileId) {
        let place = self.chores.place(file).expect("somebody wanted it");
        self.chores.wanted[place] = None;
        let waiting = self.chores.waiting[place].take();
        self.wake(waiting, file, Ok(()));
    }
}
