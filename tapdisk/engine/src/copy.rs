//! Copy on write: a change that makes a unit appear copies what it leaves of it.
//!
//! ```text
//!   plan says Copy ─► a buffer ─► plan ─► Copying: next chunk ─► others read ─► written ─┐
//!                     (before any plan         ▲      │ zeros: none, or an operation     │
//!                      is held)                └──────┴──────────────────────────────────┘
//!                                                  end ─► Writing 1
//! ```
//! What is copied is read from where the plan says: nothing points at the new unit yet, and the
//! driver keeps others from the unit meanwhile. The guest's sectors are laid in, so that a chunk is
//! one write; a chunk of nothing but these is written from where they are. Who holds a buffer waits
//! for metadata of the layers below and for operations only.
use image::{Action, Fill, Order, Place, Plan, Span, Stop};

use crate::chain::Found;
use crate::limits::{LARGE_BYTES, PLANS_MAX, SLOT_OPS_MAX};
use crate::ops::Owner;
use crate::sets::SlotSet;
use crate::slot::State;
use crate::{Bug, Engine};
use host::arena::Buf;
use request::SlotId;
use request::disk::{Disk, FileId, Kind, Op};

/// Sectors of a buffer, and of a chunk at most.
const CHUNK: u32 = LARGE_BYTES / 512;

/// A buffer, and what is copied through it.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// Which of the slot's plans.
    plan: usize,
    /// The first sector of its unit that is not written yet.
    next: u64,
    /// The sectors in the buffer.
    chunk: Span,
    /// How many of them are there or on their way.
    mapped: u32,
    /// Where the new data of each plan begins: its sector, and its bytes as they are written.
    new: [(u64, Buf); PLANS_MAX],
}

/// The buffers.
#[derive(Debug)]
pub struct Copies {
    work: Box<[Work]>,
    free: Vec<u8>,
    waiting: SlotSet,
}

impl Copies {
    /// So many.
    pub fn new(count: u8) -> Copies {
        Copies {
            work: vec![Work::default(); usize::from(count)].into(),
            free: (0..count).rev().collect(),
            waiting: SlotSet::EMPTY,
        }
    }
}

/// A unit that is being filled.
#[derive(Clone, Copy)]
struct Unit {
    plan: Plan,
    fill: Fill,
    /// The sectors that change.
    part: Span,
    data: Buf,
}

impl Unit {
    /// How many sectors from `at` on are the guest's, or how many are not, up to `end`.
    fn run(&self, at: u64, end: u64) -> (bool, u32) {
        let part = self.part;
        let (new, stop) = match () {
            () if at < part.start => (false, part.start),
            () if at < part.end() => (true, part.end()),
            () => (false, end),
        };
        (new, Span::between(at, stop.min(end)).count)
    }

    fn byte(&self, sector: u64) -> u64 {
        self.fill.byte + (sector - self.fill.span.start) * 512
    }
}

impl<D: Disk> Engine<D> {
    /// A slot needs a buffer. It holds no plan; who comes first is served first.
    #[cold]
    pub(super) fn want_copy(&mut self, id: SlotId) {
        assert!(self.rules.limits.copies > 0, "a chain that copies has buffers for it");
        assert!(self.slot(id).copy.is_none(), "a slot needs one buffer");
        match self.copies.free.pop() {
            Some(copy) => self.table[id].copy = Some(copy),
            None => {
                self.copies.waiting.insert(id);
                self.table[id].pending += 1;
            }
        }
    }

    /// It needs none any more.
    #[inline]
    pub(super) fn drop_copy(&mut self, id: SlotId) {
        if let Some(copy) = self.table[id].copy.take() {
            self.pass_on(copy);
        }
    }

    #[cold]
    fn pass_on(&mut self, copy: u8) {
        let Some(next) = self.table.oldest_of(self.copies.waiting) else {
            self.copies.free.push(copy);
            return;
        };
        self.copies.waiting.remove(next);
        self.table[next].copy = Some(copy);
        self.wake_one(next, FileId(0), Ok(()));
    }

    /// The plans are made, and some of them copy; or none, as somebody else has made the unit.
    #[cold]
    pub(super) fn begin_copying(&mut self, id: SlotId, skips: [u32; PLANS_MAX]) {
        if self.slot(id).plans.iter().flatten().all(|plan| plan.fill.is_none()) {
            return self.drop_copy(id);
        }
        let start = self.slot(id).request.span.start;
        let mut new = [(0, Buf::NONE); PLANS_MAX];
        for (i, skip) in skips.into_iter().enumerate() {
            let Some(plan) = self.slot(id).plans[i].filter(|plan| plan.fill.is_some()) else {
                continue;
            };
            let data = match plan.action {
                Action::Write => self.encoded(id, plan.count, skip),
                Action::Zero { .. } | Action::Discard | Action::Nothing => Buf::NONE,
            };
            self.hit(self.slot(id).target, 1, plan.count);
            new[i] = (start + u64::from(skip), data);
        }
        let first = self.slot(id).plans[0].and_then(|plan| plan.fill);
        let next = first.map_or(0, |fill| fill.span.start);
        *self.work(id) = Work { next, new, ..Work::default() };
        self.table[id].state = State::Copying;
    }

    fn work(&mut self, id: SlotId) -> &mut Work {
        let copy = self.slot(id).copy.expect("who copies has a buffer");
        &mut self.copies.work[usize::from(copy)]
    }

    fn copy_buf(&self, id: SlotId) -> Buf {
        self.rules.limits.copy_buf(self.slot(id).copy.expect("who copies has a buffer"))
    }

    /// Copies on, until there is something to wait for, or nothing to copy.
    #[cold]
    pub(super) fn copy_on(&mut self, id: SlotId) {
        if self.slot(id).error.is_some() {
            return self.plans_over(id, false);
        }
        while let Some(unit) = self.unit(id) {
            if self.work(id).chunk.count == 0 && !self.next_chunk(id, &unit) {
                // Something is waited for, or zeros are skipped or on their way.
                if self.slot(id).pending > 0 || self.table.retry.contains(id) {
                    return;
                }
                if self.slot(id).error.is_some() {
                    return self.plans_over(id, false);
                }
                continue;
            }
            if !self.fetch(id, &unit) {
                return;
            }
            return self.store(id, &unit);
        }
        self.drop_copy(id);
        self.let_go(id);
        self.table[id].state = State::Writing { phase: 1 };
    }

    /// The unit at work: that of the first plan which is not all written.
    fn unit(&mut self, id: SlotId) -> Option<Unit> {
        let plans = self.slot(id).plans;
        let work = self.work(id);
        while let Some(plan) = plans.get(work.plan).copied().flatten() {
            let (start, data) = work.new[work.plan];
            if let Some(fill) = plan.fill.filter(|fill| work.next < fill.span.end()) {
                let part = Span { start, count: plan.count };
                return Some(Unit { plan, fill, part, data });
            }
            work.plan += 1;
            let fill = plans.get(work.plan).copied().flatten().and_then(|plan| plan.fill);
            work.next = fill.map_or(0, |fill| fill.span.start);
        }
        None
    }

    /// Where sectors that are copied are.
    fn source(
        &mut self,
        id: SlotId,
        unit: &Unit,
        span: Span,
    ) -> Result<(Found, u32), (FileId, Stop)> {
        let layer = self.slot(id).target;
        let (place, count) = unit.fill.source(unit.part, span.start);
        let span = span.first(count);
        let found = match place {
            _ if self.rules.bug == Bug::CopiedFromBelow => None,
            Place::At { byte } => Some(Found::At { layer, byte }),
            Place::Packed(packed) => Some(Found::Packed { layer, packed }),
            Place::Zero => Some(Found::Zero),
            Place::Below => None,
        };
        if let Some(found) = found {
            return Ok((found, span.count));
        }
        let below = self.map.chain.as_ref().expect("a request runs on a chain").below(layer);
        self.map(below, span)
    }

    /// Decides what goes through the buffer next. False if it was zeros that need none, or if it
    /// cannot be said yet.
    fn next_chunk(&mut self, id: SlotId, unit: &Unit) -> bool {
        let (at, end) = (self.work(id).next, unit.fill.span.end());
        let (new, count) = unit.run(at, end);
        let plain = self.is_plain(self.slot(id).target);
        let zeros = match (new, unit.plan.action) {
            (true, Action::Zero { .. }) => Some(count),
            (true, _) => None,
            (false, _) => match self.zeros_at(id, unit, Span { start: at, count }) {
                Ok(zeros) => zeros,
                Err((file, stop)) => {
                    self.stop(id, file, stop);
                    return false;
                }
            },
        };
        let forgotten = self.rules.bug == Bug::FillForgotten && !new;
        let skips = |count: &u32| unit.fill.blank || forgotten || *count >= CHUNK;
        let zeros = zeros.filter(|_| plain).or(forgotten.then_some(count));
        if let Some(count) = zeros.filter(skips) {
            self.work(id).next += u64::from(count);
            if !unit.fill.blank && !forgotten {
                self.settle_copies(id);
                self.zero(id, unit.byte(at), u64::from(count) * 512, false);
            }
            return false;
        }
        // Chunks of all units begin at the same distances, so that whole ones are whole pages.
        let left = CHUNK - unit.fill.span.before(at) % CHUNK;
        let mut chunk = Span::between(at, end).first(left);
        if new && unit.fill.blank && self.ends_blank(id, unit, end) {
            chunk = chunk.first(count);
        }
        let work = self.work(id);
        (work.chunk, work.mapped) = (chunk, 0);
        true
    }

    /// How many of the first sectors of a span that is to be copied are zeros; `None` if they are
    /// data.
    fn zeros_at(
        &mut self,
        id: SlotId,
        unit: &Unit,
        span: Span,
    ) -> Result<Option<u32>, (FileId, Stop)> {
        let (found, count) = self.source(id, unit, span)?;
        Ok((found == Found::Zero).then_some(count))
    }

    /// Whether what follows the guest's sectors is known to be zeros.
    fn ends_blank(&mut self, id: SlotId, unit: &Unit, end: u64) -> bool {
        let start = unit.part.end();
        let rest = Span::between(start, end);
        rest.count == 0 || matches!(self.zeros_at(id, unit, rest), Ok(Some(_)))
    }

    /// Reads the sectors of the chunk that are not the guest's. True once all are there.
    fn fetch(&mut self, id: SlotId, unit: &Unit) -> bool {
        while self.slot(id).ops < SLOT_OPS_MAX {
            let Work { chunk, mapped, .. } = *self.work(id);
            if mapped == chunk.count {
                return self.slot(id).pending == 0;
            }
            let rest = chunk.skip(mapped);
            let (new, count) = unit.run(rest.start, rest.end());
            if new {
                self.work(id).mapped += count;
                continue;
            }
            let (found, count) = match self.source(id, unit, rest.first(count)) {
                Ok(run) => run,
                Err((file, stop)) => {
                    self.stop(id, file, stop);
                    return false;
                }
            };
            let buf = self.copy_buf(id).part(mapped * 512, count * 512);
            // Zeros of an encrypted image are noise, which no blank place holds.
            let there = unit.fill.blank && self.is_plain(self.slot(id).target);
            if found != Found::Zero || !there {
                self.settle_copies(id);
            }
            match found {
                Found::Zero => self.io.disk.arena().slice_mut(buf).fill(0),
                Found::At { layer, byte } => {
                    let op = Op { file: layer, kind: Kind::Read, at: byte, buf };
                    self.data_op(id, Owner::Copy(id), op);
                }
                Found::Packed { layer, packed } => {
                    if !self.unpack_into(id, layer, packed, buf) {
                        return false;
                    }
                }
            }
            self.work(id).mapped += count;
        }
        false
    }

    /// What is copied may have been flushed long ago where it is: it has to be on the medium before
    /// metadata hides the old place, whatever the policy is.
    fn settle_copies(&mut self, id: SlotId) {
        if self.rules.bug != Bug::CopiesLoose {
            self.table[id].order = Order::Flush;
        }
    }

    /// Something that is copied was read.
    #[cold]
    pub(super) fn copied(&mut self, id: SlotId, op: &Op, outcome: Result<(), i32>) {
        match outcome {
            Ok(()) => {
                let into = (op.buf.offset - self.copy_buf(id).offset) / 512;
                let sector = self.work(id).chunk.start + u64::from(into);
                self.decode(op.file, sector, op.buf);
            }
            Err(_) => self.count_failure(op),
        }
        self.table[id].ops -= 1;
        self.wake_one(id, op.file, outcome);
    }

    /// Writes the chunk, with the guest's sectors.
    fn store(&mut self, id: SlotId, unit: &Unit) {
        let (chunk, target) = (self.work(id).chunk, self.slot(id).target);
        let copy = self.copy_buf(id).part(0, chunk.count * 512);
        let data = |at: u64, count: u32| unit.data.part(unit.part.before(at) * 512, count * 512);
        let (new, count) = unit.run(chunk.start, chunk.end());
        let writes = unit.plan.action == Action::Write;
        let buf = match new && writes && count == chunk.count {
            true => data(chunk.start, count),
            false => {
                let mut at = chunk.start;
                while at < chunk.end() {
                    let (new, count) = unit.run(at, chunk.end());
                    let part = copy.part(chunk.before(at) * 512, count * 512);
                    match (new, writes) {
                        (true, true) => self.io.disk.arena().copy(data(at, count), part),
                        (true, false) => self.io.disk.arena().slice_mut(part).fill(0),
                        (false, _) => self.encode(target, at, part),
                    }
                    at += u64::from(count);
                }
                copy
            }
        };
        let work = self.work(id);
        (work.next, work.chunk.count) = (chunk.end(), 0);
        let op = Op { file: target, kind: Kind::Write, at: unit.byte(chunk.start), buf };
        self.data_op(id, Owner::Slot(id), op);
    }
}
