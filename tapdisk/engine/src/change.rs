//! Writes, zeros and discards: planned by the driver of the image that is the slot's target, in
//! phases.
use image::{Action, FileRange, Image, MetaRef, Order, Plan, Span, Stop, Want};

use super::chain::{self, Found};
use super::files::Views;
use super::limits::PLANS_MAX;
use super::ops::Owner;
use super::slot::State;
use super::{Bug, Engine, meta};
use host::arena::Buf;
use request::disk::{Disk, FileId, Kind, Op};
use request::{SlotId, Verb};

/// What every file system and device can zero or give back.
const PAGE: u64 = 4096;

/// A plan that is for later ones.
fn prepares(plan: &Plan) -> bool {
    plan.count == 0 && plan.action == Action::Nothing
}

impl<D: Disk> Engine<D> {
    /// Plans as much as fits, then writes phase 1 of it.
    pub(super) fn plan_on(&mut self, id: SlotId) {
        let plans_max =
            if matches!(self.slot(id).request.verb, Verb::Write { .. }) { PLANS_MAX } else { 1 };
        let mut made = 0;
        let start = self.slot(id).cursor;
        let mut skips = [0; PLANS_MAX];
        while made < plans_max && self.skip_unwanted(id) {
            let skip = self.slot(id).cursor;
            match self.plan_one(id) {
                Ok(plan) => {
                    skips[made] = skip;
                    made += 1;
                    self.table[id].cursor += plan.count;
                }
                // What is planned goes on; the rest is asked for after it. Waiting while holding a
                // plan could wait for oneself.
                Err(_) if made > 0 => break,
                Err((file, stop)) => return self.stop(id, file, stop),
            }
        }
        if made == 0 {
            // All that was left of a write into the local cache is not wanted any more.
            return self.drop_copy(id);
        }
        assert!(
            self.slot(id).cursor > start || self.slot(id).plans.iter().flatten().all(prepares),
            "a plan covers something"
        );
        self.table[id].live = (1 << made) - 1;
        self.phase_one(id, skips);
    }

    /// The first phase of the plans of a slot, the data of each from so many sectors of the buffer
    /// on.
    fn phase_one(&mut self, id: SlotId, skips: [u32; PLANS_MAX]) {
        let slot = &mut self.table[id];
        slot.state = State::Writing { phase: 1 };
        slot.order = slot.plans.iter().flatten().map(|plan| plan.order).max().unwrap_or_default();
        for (i, skip) in skips.into_iter().enumerate() {
            if self.slot(id).plans[i].is_some() {
                self.issue(id, i, skip);
            }
        }
        if self.slot(id).copy.is_some() {
            self.begin_copying(id, skips);
        }
    }

    fn plan_one(&mut self, id: SlotId) -> Result<Plan, (FileId, Stop)> {
        let target = self.slot(id).target;
        let (span, want) = self.wanted(id)?;
        let plan = self
            .with_image(id, target, |image, meta, _| image.plan(meta, span, want))
            .map_err(|stop| (target, stop))?;
        let part = plan.count > 0 && plan.count <= span.count;
        assert!(part || prepares(&plan), "a plan covers part of its span");
        plan.pins.iter().for_each(|r| self.map.meta.pin(target, r.at));
        let plans = &mut self.table[id].plans;
        let free = plans.iter_mut().find(|p| p.is_none()).expect("room for another plan");
        *free = Some(plan);
        Ok(plan)
    }

    /// The next part of the request and what it wants; a driver is told whether zeros lie below.
    fn wanted(&mut self, id: SlotId) -> Result<(Span, Want), (FileId, Stop)> {
        let (rest, verb, target) =
            (self.slot(id).piece(), self.slot(id).request.verb, self.slot(id).target);
        let (Verb::Zero { .. } | Verb::Discard { .. }) = verb else {
            return Ok((rest, Want::Write));
        };
        if let Verb::Zero { fast, .. } = verb
            && !self.is_plain(target)
        {
            // A range that the file system calls zero would read as noise: zeros are written.
            if fast {
                let why = "zeros on an encrypted image are not fast";
                return Err((target, Stop::Fail { errno: libc::EOPNOTSUPP, why }));
            }
            return Ok((rest.first(self.rules.limits.slot_buf(id.0).bytes / 512), Want::Write));
        }
        let from = self.map.chain.as_ref().expect("a request runs on a chain").below(target);
        let (below, count) = self.map(from, rest)?;
        let certain =
            || self.rules.bug == Bug::DoubtIsZero || self.certain(from, rest.first(count));
        // Zeros that base has had in this session may not be on the medium when the top lets go of
        // what it holds: after a cut base would show what was there before.
        let base = self.commit.base().is_some() && target == self.map.top();
        let relies = !base || self.rules.bug == Bug::ReliesOnBase;
        let below_zero = below == Found::Zero && relies && certain();
        let want = match verb {
            Verb::Zero { keep, .. } => Want::Zero { below_zero, keep },
            _ => Want::Discard { below_zero },
        };
        Ok((rest.first(count), want))
    }

    /// Whether the layers from a place of the order down are on the disk as they say. Only one that
    /// was the top in this session, or is base to a commit, is ever not.
    pub(super) fn certain(&self, from: usize, span: Span) -> bool {
        let chain = self.map.chain.as_ref().expect("a request runs on a chain");
        let below = chain.order().get(from..).unwrap_or_default();
        below.iter().all(|file| self.map.layer(*file).image.certain(span))
    }

    /// Phase 1: the data, and the metadata that nothing points at yet. Where the rest of a unit is
    /// copied the data goes with that.
    #[inline]
    pub(super) fn issue(&mut self, id: SlotId, i: usize, skip: u32) {
        let slot = self.slot(id);
        let plan = slot.plans[i].as_ref().expect("a plan that is issued is there");
        let (file, at, count) = (slot.target, plan.byte, plan.count);
        let (bytes, along, fills) = (u64::from(count) * 512, plan.along, plan.fill.is_some());
        match plan.action {
            _ if fills => {}
            Action::Write => {
                let buf = self.encoded(id, count, skip);
                self.hit(file, 1, count);
                self.data_op(id, Owner::Slot(id), Op { file, kind: Kind::Write, at, buf });
            }
            Action::Zero { punch } => self.zero(id, at, bytes, punch),
            Action::Discard => {
                let op = Op { file, kind: Kind::Discard { bytes }, at, buf: Buf::NONE };
                self.data_op(id, Owner::Slot(id), op);
            }
            Action::Nothing => {}
        }
        along.iter().for_each(|r| self.want_write(id, r));
    }

    /// Zeros a range: the part made of whole pages by the file system, its ends by hand, so that
    /// the kernel never has to do the ends through its page cache.
    pub(super) fn zero(&mut self, id: SlotId, at: u64, bytes: u64, punch: bool) {
        let (file, end) = (self.slot(id).target, at + bytes);
        let (from, to) = (at.next_multiple_of(PAGE).min(end), (end - end % PAGE).max(at));
        let zeros = self.rules.limits.zeros();
        let owner = Owner::Slot(id);
        if from >= to {
            let op = Op { file, kind: Kind::Write, at, buf: zeros.part(0, bytes as u32) };
            return self.data_op(id, owner, op);
        }
        for (at, end) in [(at, from), (to, end)] {
            if at < end {
                let buf = zeros.part(0, (end - at) as u32);
                self.data_op(id, owner, Op { file, kind: Kind::Write, at, buf });
            }
        }
        let kind = Kind::Zero { bytes: to - from, punch };
        let quick = matches!(self.slot(id).request.verb, Verb::Zero { fast: true, .. });
        let owner = if quick { Owner::Quick(id) } else { owner };
        self.data_op(id, owner, Op { file, kind, at: from, buf: Buf::NONE });
    }

    /// A phase has landed: the drivers let metadata point at it, which is the next phase.
    pub(super) fn phase_done(&mut self, id: SlotId, phase: u8) {
        let slot = self.slot(id);
        if slot.error.is_some() {
            return self.plans_over(id, false);
        }
        // What the local cache keeps is the disk's contents already, perhaps flushed: bits that
        // reach the medium before their data would hide it. What is committed the top hides.
        let keeps =
            slot.local.writing && !slot.local.commits && self.rules.bug != Bug::KeptWithoutBarrier;
        let flush = match slot.order {
            Order::Any => false,
            Order::Policy => self.rules.policy.barriers || keeps,
            Order::Flush => self.rules.bug != Bug::OrderForgotten,
        };
        if flush {
            self.want_flush(id);
            self.table[id].state = State::Flushing { phase };
            return;
        }
        self.next_phase(id, phase);
    }

    pub(super) fn next_phase(&mut self, id: SlotId, phase: u8) {
        if self.slot(id).error.is_some() {
            return self.plans_over(id, false);
        }
        let target = self.slot(id).target;
        let mut order = Order::Any;
        for i in 0..PLANS_MAX {
            if self.slot(id).live & 1 << i == 0 {
                continue;
            }
            let step = self.with_image(id, target, |image, meta, plans| {
                image.landed(meta, plans[i].as_ref().expect("a live plan is there"), phase)
            });
            if step.writes.is_empty() {
                self.table[id].live &= !(1 << i);
            }
            order = order.max(step.order);
            step.writes.iter().for_each(|r| self.want_write(id, r));
        }
        self.table[id].order = order;
        if self.slot(id).live != 0 {
            self.table[id].state = State::Writing { phase: phase + 1 };
            return;
        }
        self.give_back(id);
    }

    /// Frees come last.
    fn give_back(&mut self, id: SlotId) {
        self.table[id].state = State::Freeing;
        let file = self.slot(id).target;
        for i in 0..PLANS_MAX {
            let Some(FileRange { at, bytes }) = self.slot(id).plans[i].and_then(|p| p.free) else {
                continue;
            };
            // Zeros rather than a discard, on devices too: a read that began before may still look
            // there, and may find old data or zeros but nothing else. Whole pages, for sectors of
            // any size.
            let from = at.next_multiple_of(PAGE);
            let bytes = (at + u64::from(bytes)).saturating_sub(from) / PAGE * PAGE;
            if bytes == 0 {
                continue;
            }
            let kind = Kind::Zero { bytes, punch: true };
            self.data_op(id, Owner::Free(id), Op { file, kind, at: from, buf: Buf::NONE });
        }
    }

    /// A thin volume knows no zeros without writing them. Its space goes back by a discard, after
    /// which it reads as zeros too; of other devices nobody knows what they show then.
    pub(super) fn discard_instead(&mut self, id: SlotId, op: Op, outcome: Result<(), i32>) {
        let unknown = matches!(outcome, Err(libc::EOPNOTSUPP | libc::ENOSYS));
        let thin = self.map.files[usize::from(op.file.0)].thin;
        if let (Kind::Zero { bytes, .. }, true) = (op.kind, unknown && thin) {
            self.data_op(id, Owner::Free(id), Op { kind: Kind::Discard { bytes }, ..op });
        }
    }

    pub(super) fn plans_over(&mut self, id: SlotId, ok: bool) {
        let target = self.slot(id).target;
        for i in 0..PLANS_MAX {
            if self.slot(id).plans[i].is_none() {
                continue;
            }
            let chores = self.with_image(id, target, |image, meta, plans| {
                image.finish(meta, plans[i].as_ref().expect("it is there"), ok)
            });
            let plan = self.table[id].plans[i].take();
            let pins = plan.iter().flat_map(|plan| plan.pins.iter());
            pins.for_each(|r| self.map.meta.unpin(target, r.at));
            if chores {
                let _ = self.want_chore(target);
            }
        }
        if !ok {
            self.give_back_reserves(id);
        }
        self.table[id].state = State::Dispatch;
        if self.rules.limits.chore_slot() == Some(id) {
            self.chore_over(id);
        }
        self.table.progress = true;
    }

    /// Asks the driver of an image that a slot changes; it may look at the slot's plans.
    #[inline]
    pub(super) fn with_image<R>(
        &mut self,
        id: SlotId,
        target: FileId,
        f: impl FnOnce(&mut dyn Image, &mut dyn image::Meta, &[Option<Plan>; PLANS_MAX]) -> R,
    ) -> R {
        let slot = &self.table[id];
        let mut views = Views {
            meta: &mut self.map.meta,
            arena: self.io.disk.arena(),
            files: &self.map.files,
            seq: self.table.seq,
            oldest: self.table.oldest,
            fills: slot.copy.is_some(),
        };
        let chain = self.map.chain.as_mut().expect("a request runs on a chain");
        let image = &mut *chain.layers[usize::from(target.0)].image;
        chain::Views::with(&mut views, target, |meta| f(image, meta, &slot.plans))
    }

    fn want_write(&mut self, id: SlotId, r: MetaRef) {
        let target = self.slot(id).target;
        let block = self.map.meta.find(target, r.at).expect("what is written is cached");
        if self.map.meta.block_mut(block).queued.insert(id) {
            self.table[id].pending += 1;
        }
        self.write_meta(block);
    }

    /// Group commit: what is queued while a write is in flight goes out together in the next one.
    pub(super) fn write_meta(&mut self, block: meta::BlockId) {
        let Ok(Some(stable)) = self.map.meta.begin_write(block, self.io.disk.arena()) else {
            return;
        };
        let (file, r) = self.map.meta.block(block).what();
        let buf = self.rules.limits.stable_buf(stable).part(0, u32::from(r.bytes));
        let op = Op { file, kind: Kind::Write, at: r.at, buf };
        self.io.push(Owner::Meta(block), op);
    }
}
