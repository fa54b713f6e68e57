//! The machine: what finished operations wake, and what a request does next. Nothing else names all
//! states; what is done in each is in the files that they lead to.
use image::Stop;

use super::slot::{Ahead, Cause, State};
use super::{Engine, limits::SLOT_OPS_MAX};
use crate::admit::Verdict;
use crate::meta::Loading;
use crate::ops::Owner;
use crate::sets::SlotSet;
use image::MetaRef;
use request::disk::{Disk, FileId, Kind, Op};
use request::{SlotId, Verb};

impl<D: Disk> Engine<D> {
    // ---- what wakes requests -------------------------------------------------------------------

    pub(super) fn deliver(&mut self, owner: Owner, op: Op, outcome: Result<(), i32>) {
        self.table.progress = true;
        match owner {
            Owner::Slot(id) | Owner::Quick(id) => {
                match outcome {
                    Ok(()) if op.kind == Kind::Read => self.decode_read(id, &op),
                    Ok(()) => {}
                    Err(_) => self.count_failure(&op),
                }
                self.table[id].ops -= 1;
                self.wake_one(id, op.file, outcome);
            }
            Owner::Copy(id) => self.copied(id, &op, outcome),
            Owner::Unpack(id) => self.fetched(id, &op, outcome),
            Owner::Free(id) => {
                self.table[id].ops -= 1;
                self.discard_instead(id, op, outcome);
                self.wake_one(id, op.file, Ok(()));
            }
            Owner::Load(block) => {
                let waiters = self.map.meta.loaded(block, outcome.is_ok());
                self.wake(waiters, op.file, outcome);
            }
            Owner::Meta(block) => {
                let joined = self.map.meta.written(block, outcome.is_ok());
                self.wake(joined, op.file, outcome);
                self.write_meta(block);
                if let Some(next) = self.map.meta.waiting_for_stable() {
                    self.write_meta(next);
                }
            }
            Owner::Grow(file) => self.grew(file, outcome),
            Owner::Sync(file) => self.flushed(file, outcome),
        }
    }

    pub(super) fn wake(&mut self, mut slots: SlotSet, file: FileId, outcome: Result<(), i32>) {
        while let Some(id) = slots.pop() {
            self.wake_one(id, file, outcome);
        }
    }

    /// One of the things this slot waits for is over.
    #[inline]
    pub(super) fn wake_one(&mut self, id: SlotId, file: FileId, outcome: Result<(), i32>) {
        if let Err(errno) = outcome {
            self.table.fail(id, Cause { file, errno, why: "" });
        }
        let slot = &mut self.table[id];
        slot.pending = slot.pending.checked_sub(1).expect("a slot is woken as often as it waits");
        if slot.pending == 0 {
            self.table.ready.insert(id);
        }
    }

    // ---- stepping a request --------------------------------------------------------------------

    /// Others have their turn between the pieces of a request only: while it holds a plan it goes
    /// on, or
    /// waits for something of its own. A piece has few phases, so this ends.
    pub(super) fn run(&mut self, id: SlotId) {
        let mut asked = 0;
        loop {
            if self.slot(id).pending > 0 || self.table.retry.contains(id) {
                return;
            }
            match self.slot(id).state {
                State::Free | State::Filling | State::Done => return,
                State::Dispatch if asked == self.rules.steps_max => break,
                State::Dispatch => {
                    asked += 1;
                    self.dispatch(id);
                }
                State::Chore | State::Piece if asked == self.rules.steps_max => break,
                State::Chore => {
                    asked += 1;
                    self.chore_on(id);
                }
                State::Piece => {
                    asked += 1;
                    self.piece_on(id);
                }
                State::Copying => self.copy_on(id),
                State::Writing { phase } => self.phase_done(id, phase),
                State::Flushing { phase } => self.next_phase(id, phase),
                State::Freeing => self.plans_over(id, true),
                State::Syncing => self.complete(id),
            }
        }
        self.table.ready.insert(id);
    }

    pub(super) fn dispatch(&mut self, id: SlotId) {
        let slot = &mut self.table[id];
        if slot.ahead == Ahead::Loading {
            let failed = slot.error.take().is_some();
            slot.ahead = if failed { Ahead::Failed } else { Ahead::No };
        }
        let slot = self.slot(id);
        if let Some(errno) = slot.error {
            if !self.recover(id, errno) {
                self.complete(id);
            }
            return;
        }
        match slot.request.verb {
            Verb::Flush => self.sync(id),
            _ if slot.cursor == slot.request.span.count => {
                if self.belongs_on_top(id) {
                    self.retarget(id)
                } else if self.slot(id).fua() {
                    self.sync(id)
                } else {
                    self.complete(id)
                }
            }
            Verb::Read => self.read_on(id),
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. } => {
                match self.may_change(id) {
                    Verdict::Go => self.plan_on(id),
                    Verdict::Wait => self.retry_later(id),
                    Verdict::Pass => self.pass_lost_base(id),
                }
            }
            Verb::Status => self.status_on(id),
        }
    }

    pub(super) fn complete(&mut self, id: SlotId) {
        self.table.end(id);
        let slot = &mut self.table[id];
        assert!(
            slot.pending == 0 && slot.plans.iter().all(Option::is_none),
            "nothing is left behind"
        );
        if slot.local.writing | slot.local.commits {
            return self.own_over(id);
        }
        slot.outcome = slot.error.map_or(Ok(slot.extents), Err);
        slot.state = State::Done;
        if slot.error.is_some() | slot.unpacks {
            self.give_back_reserves(id);
            self.a_change_failed(id);
        }
        self.table.done.push_back(id);
        self.count(id);
    }

    /// What nobody has asked for is over: a write into the local cache, or a piece of a commit.
    #[cold]
    #[inline(never)]
    fn own_over(&mut self, id: SlotId) {
        let commits = self.slot(id).local.commits;
        if !commits {
            self.populated(id);
        }
        self.give_back_reserves(id);
        if commits {
            self.table.working.insert(id);
            self.piece_done(id);
        }
    }

    /// A request that ends early may still hold what it took for a plan.
    #[cold]
    pub(super) fn give_back_reserves(&mut self, id: SlotId) {
        self.drop_copy(id);
        self.let_go(id);
    }

    /// Notes what has to happen before this slot can ask again.
    pub(super) fn stop(&mut self, id: SlotId, file: FileId, stop: Stop) {
        // Whoever holds what it stops for may need these.
        self.let_go(id);
        match stop {
            Stop::Load(r) => self.load(id, file, r),
            Stop::Grow { end, step } => self.grow(id, file, end, step),
            Stop::Flush { after } => self.flush_after(id, file, after),
            Stop::Wait => self.retry_later(id),
            Stop::Copy => self.want_copy(id),
            Stop::Chore => self.wait_for_chore(id, file),
            Stop::Fail { errno, why } => {
                self.table.fail(id, Cause { file, errno, why });
            }
        }
    }

    /// Without anything of its own in flight, the slot waits until something of another's has
    /// landed.
    pub(super) fn retry_later(&mut self, id: SlotId) {
        if self.slot(id).pending == 0 {
            self.table.retry.insert(id);
        }
    }

    pub(super) fn load(&mut self, id: SlotId, file: FileId, r: MetaRef) {
        if !self.try_load(id, file, r) {
            self.retry_later(id);
        }
    }

    /// False if it has to be asked for again.
    pub(super) fn try_load(&mut self, id: SlotId, file: FileId, r: MetaRef) -> bool {
        let block = match self.map.meta.load(file, r) {
            Loading::AskAgain => return false,
            Loading::Joined(block) => block,
            Loading::Start(block) => {
                let buf = self.rules.limits.meta_buf(block).part(0, u32::from(r.bytes));
                let op = Op { file, kind: Kind::Read, at: r.at, buf };
                self.io.push(Owner::Load(block), op);
                block
            }
        };
        if self.map.meta.wait_for_load(block, id) {
            self.table[id].pending += 1;
        }
        true
    }

    // Left to itself the compiler makes calls of it: 30 instructions a request (`make bench-cost`).
    #[inline(always)]
    pub(super) fn data_op(&mut self, id: SlotId, owner: Owner, op: Op) {
        let slot = &mut self.table[id];
        slot.pending += 1;
        slot.ops += 1;
        assert!(slot.ops <= SLOT_OPS_MAX, "a slot keeps to its share of operations");
        self.io.push(owner, op);
    }
}
