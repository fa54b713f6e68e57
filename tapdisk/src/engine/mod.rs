//! The one request state machine: it serves every format over every disk engine.
//!
//! ```text
//!   start ─► Ask ─► (Load, Grow, wait) ─► Ask ─► Landing 1 (data, unreachable metadata) ─► Landing 2 …
//!             │ reads: data operations                 │ barrier, if the policy asks           │
//!             ▼                                        ▼                                       ▼
//!           done ◄──────────── Syncing (FUA, flush) ◄──────────── Freeing ◄────────────── all landed
//! ```
//! One turn of the server calls [`Engine::step`]: it takes finished operations, steps the requests they
//! wake, and queues new operations. It never waits, allocates, logs or loops without a bound. What is in
//! flight is named by index. The crash order of every format is `landing` below, and nothing else.
use std::collections::VecDeque;

use image::{Action, MetaRef, Plan, Span, Stop, Want};

use crate::disk::{Disk, FileId, Kind, Op};
use crate::pool::Buf;
use crate::transport::{Outcome, Request, SlotId, Verb};

pub mod chain;
pub mod files;
pub mod limits;
pub mod meta;
pub mod ops;
mod pool;
pub mod sets;
pub mod slot;
pub mod stats;

use chain::{Chain, Found};
use files::{FileState, Flushing, Growth, Views};
use limits::{Limits, SLOT_OPS_MAX};
use meta::{Loading, MetaCache};
use ops::{Ops, Owner};
use sets::SlotSet;
use slot::{Slot, State};
use stats::Stats;

pub use files::FileInfo;

/// Steps one request makes at most before others have their turn.
const STEPS_MAX: u32 = 64;
/// Runs one Status request looks at in one step.
const STATUS_RUNS_MAX: u32 = 256;

/// How a disk is served.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Writes are refused.
    pub read_only: bool,
    /// Flush between data and the metadata that points at it: the lower disk has a volatile cache and its
    /// owner wants unflushed writes to be old or new, never torn, after a power cut.
    pub barriers: bool,
    /// Seconds an operation is tried again while the kernel answers EAGAIN, EBUSY or EINTR.
    pub timeout_s: u16,
    /// Logical sector size shown to clients.
    pub sector_size: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { read_only: false, barriers: false, timeout_s: 120, sector_size: 512 }
    }
}

/// The engine of one disk.
pub struct Engine<D: Disk> {
    limits: Limits,
    policy: Policy,
    disk: D,
    chain: Option<Chain>,
    files: Vec<FileState>,
    meta: MetaCache,
    ops: Ops,
    slots: Box<[Slot]>,
    small_free: Vec<u16>,
    large_free: Vec<u16>,
    ready: SlotSet,
    /// Requests that a driver or a full cache told to wait: asked again when anything has landed.
    retry: SlotSet,
    landed: bool,
    flushing: Flushing,
    done: VecDeque<SlotId>,
    active: u16,
    seq: u64,
    oldest: u64,
    now: u64,
    sectors: u64,
    stats: Stats,
}

impl<D: Disk> Engine<D> {
    /// An engine over a disk whose arena has `limits.arena_bytes()`, without a chain yet.
    pub fn new(disk: D, limits: Limits) -> Engine<D> {
        limits.check();
        assert!(
            disk.arena_ref().bytes() >= limits.arena_bytes(),
            "the arena holds what the limits say"
        );
        let slots = usize::from(limits.slots());
        Engine {
            limits,
            policy: Policy::default(),
            disk,
            chain: None,
            files: Vec::new(),
            meta: MetaCache::new(&limits),
            ops: Ops::new(&limits),
            slots: (0..slots).map(|_| Slot::free()).collect(),
            small_free: (0..limits.small).rev().collect(),
            large_free: (limits.small..limits.slots()).rev().collect(),
            ready: SlotSet::EMPTY,
            retry: SlotSet::EMPTY,
            landed: false,
            flushing: Flushing::default(),
            done: VecDeque::with_capacity(slots),
            active: 0,
            seq: 0,
            oldest: 0,
            now: 0,
            sectors: 0,
            stats: Stats::default(),
        }
    }

    /// Puts a chain under the engine. `files[i]` tells about the file of layer i; the disk was given the
    /// same files with `set_files`. Nothing may be in flight.
    pub fn attach(&mut self, chain: Chain, files: &[FileInfo], policy: Policy) {
        assert!(self.chain.is_none() && self.idle(), "a chain is attached to an idle engine");
        assert!(chain.layers.len() == files.len(), "each layer has a file");
        self.meta.clear();
        self.files = files.iter().map(|f| FileState::new(f, self.limits.ahead)).collect();
        self.sectors = chain.sectors();
        self.policy = policy;
        self.ops.timeout_us = u64::from(policy.timeout_s) * 1_000_000;
        self.chain = Some(chain);
    }

    /// Takes the chain out again. Nothing may be in flight.
    pub fn detach(&mut self) -> Option<Chain> {
        assert!(self.idle(), "a chain is taken from an idle engine");
        self.files.clear();
        self.chain.take()
    }

    /// Whether no request is at work (finished ones may still wait for their transport).
    pub fn idle(&self) -> bool {
        self.active == 0 && self.ops.in_flight() == 0
    }

    /// Requests at work.
    pub fn active(&self) -> u16 {
        self.active
    }

    /// The chain, for statistics.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The disk engine below.
    pub fn disk(&mut self) -> &mut D {
        &mut self.disk
    }

    /// The disk engine below, to look at.
    pub fn disk_ref(&self) -> &D {
        &self.disk
    }

    /// Gives the disk engine back; for the simulator's power cuts.
    pub fn into_disk(self) -> D {
        self.disk
    }

    /// A slot, for tests and the watchdog's report.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }

    /// The next finished request. Its slot stays the transport's until it is released.
    pub fn pop_done(&mut self) -> Option<(SlotId, Request, Outcome)> {
        let id = self.done.pop_front()?;
        let slot = self.slot(id);
        Some((id, slot.request, slot.outcome))
    }

    /// One turn: takes finished operations and steps what they wake. `now` is a monotonic clock in µs.
    /// True if there is more to do at once, without waiting for anything.
    pub fn step(&mut self, now: u64) -> bool {
        self.now = now;
        self.stats.turns += 1;
        while let Some((tag, result)) = self.disk.reap() {
            if let Some((owner, op, outcome)) = self.ops.done(&mut self.disk, tag, result, now) {
                self.deliver(owner, op, outcome);
            }
        }
        self.ops.retry(&mut self.disk, now);
        self.oldest = self.oldest_active();
        for _ in 0..STEPS_MAX {
            if std::mem::take(&mut self.landed) {
                let again = self.retry.take();
                self.ready.extend(again);
            }
            let mut round = self.ready.take();
            if round.is_empty() {
                return false;
            }
            while let Some(id) = round.pop() {
                self.run(id);
            }
        }
        true
    }

    /// When `step` has to be called again even if nothing finishes, in µs; `None` if never.
    pub fn next_retry(&mut self) -> Option<u64> {
        let now = self.now;
        self.ops.retry(&mut self.disk, now)
    }

    fn oldest_active(&self) -> u64 {
        let active = self.slots.iter().filter(|s| s.active()).map(|s| s.seq);
        active.min().unwrap_or(self.seq + 1)
    }

    // ---- what wakes requests -----------------------------------------------------------------------

    fn deliver(&mut self, owner: Owner, op: Op, outcome: Result<(), i32>) {
        self.landed = true;
        match owner {
            Owner::Slot(id) | Owner::Quick(id) => {
                if outcome.is_err() {
                    self.count_failure(&op);
                }
                self.slots[usize::from(id.0)].ops -= 1;
                self.wake_one(id, outcome);
            }
            Owner::Free(id) => {
                self.slots[usize::from(id.0)].ops -= 1;
                self.wake_one(id, Ok(()));
            }
            Owner::Load(block) => {
                let waiters = self.meta.loaded(block, outcome.is_ok());
                self.wake(waiters, outcome);
            }
            Owner::Meta(block) => {
                let joined = self.meta.written(block, outcome.is_ok());
                self.wake(joined, outcome);
                self.write_meta(block);
                if let Some(next) = self.meta.waiting_for_stable() {
                    self.write_meta(next);
                }
            }
            Owner::Grow(file) => self.grew(file, outcome),
            Owner::Sync => {
                let joined = self.flushing.joined.take();
                self.flushing.busy = false;
                self.wake(joined, outcome);
                self.begin_flush();
            }
        }
    }

    fn wake(&mut self, mut slots: SlotSet, outcome: Result<(), i32>) {
        while let Some(id) = slots.pop() {
            self.wake_one(id, outcome);
        }
    }

    /// One of the things this slot waits for is over.
    fn wake_one(&mut self, id: SlotId, outcome: Result<(), i32>) {
        let slot = &mut self.slots[usize::from(id.0)];
        if let Err(errno) = outcome {
            slot.error.get_or_insert(errno);
        }
        slot.pending = slot.pending.checked_sub(1).expect("a slot is woken as often as it waits");
        if slot.pending == 0 {
            self.ready.insert(id);
        }
    }

    // ---- stepping a request ------------------------------------------------------------------------

    fn run(&mut self, id: SlotId) {
        for _ in 0..STEPS_MAX {
            if self.slot(id).pending > 0 || self.retry.contains(id) {
                return;
            }
            match self.slot(id).state {
                State::Free | State::Filling | State::Done => return,
                State::Ask => self.ask(id),
                State::Landing { phase } => self.landing(id, phase),
                State::Barrier => self.next_phase(id, 1),
                State::Freeing => self.plans_over(id, true),
                State::Syncing => self.complete(id),
            }
        }
        self.ready.insert(id);
    }

    fn ask(&mut self, id: SlotId) {
        let slot = self.slot(id);
        if slot.error.is_some() {
            return self.complete(id);
        }
        match slot.request.verb {
            Verb::Flush => self.sync(id),
            _ if slot.cursor == slot.request.span.count => {
                if slot.fua() {
                    self.sync(id)
                } else {
                    self.complete(id)
                }
            }
            Verb::Read => self.read_on(id),
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. } => self.plan_on(id),
            Verb::Status => self.status_on(id),
        }
    }

    fn complete(&mut self, id: SlotId) {
        let slot = &mut self.slots[usize::from(id.0)];
        assert!(
            slot.pending == 0 && slot.plans.iter().all(Option::is_none),
            "nothing is left behind"
        );
        slot.outcome = slot.error.map_or(Ok(slot.extents), Err);
        slot.state = State::Done;
        self.active -= 1;
        self.done.push_back(id);
        self.count(id);
        self.landed = true;
    }

    /// Notes what has to happen before this slot can ask again.
    fn stop(&mut self, id: SlotId, file: FileId, stop: Stop) {
        match stop {
            Stop::Load(r) => self.load(id, file, r),
            Stop::Grow { end } => self.grow(id, file, end),
            Stop::Wait => self.ask_again(id),
            Stop::Fail { errno, .. } => {
                self.slots[usize::from(id.0)].error.get_or_insert(errno);
            }
        }
    }

    /// Without anything of its own in flight, the slot waits until something of another's has landed.
    fn ask_again(&mut self, id: SlotId) {
        if self.slot(id).pending == 0 {
            self.retry.insert(id);
        }
    }

    fn load(&mut self, id: SlotId, file: FileId, r: MetaRef) {
        let block = match self.meta.load(file, r) {
            Loading::AskAgain => return self.ask_again(id),
            Loading::Joined(block) => block,
            Loading::Start(block) => {
                let buf = self.limits.meta_buf(block).part(0, u32::from(r.bytes));
                let op = Op { file, kind: Kind::Read, at: r.at, buf };
                self.ops.push(&mut self.disk, Owner::Load(block), op, self.now);
                block
            }
        };
        if self.meta.block_mut(block).loaders.insert(id) {
            self.slots[usize::from(id.0)].pending += 1;
        }
    }

    fn data_op(&mut self, id: SlotId, owner: Owner, op: Op) {
        let slot = &mut self.slots[usize::from(id.0)];
        slot.pending += 1;
        slot.ops += 1;
        assert!(slot.ops <= SLOT_OPS_MAX, "a slot keeps to its share of operations");
        self.ops.push(&mut self.disk, owner, op, self.now);
    }

    // ---- reads -------------------------------------------------------------------------------------

    fn map(&mut self, from: usize, span: Span) -> Result<(Found, u32), (FileId, Stop)> {
        let (mut views, chain) = self.views();
        chain.map(&mut views, from, span)
    }

    /// The chain, and the cache as its layers see it.
    fn views(&mut self) -> (Views<'_>, &mut Chain) {
        let views = Views {
            meta: &mut self.meta,
            arena: self.disk.arena(),
            files: &self.files,
            seq: self.seq,
            oldest: self.oldest,
        };
        (views, self.chain.as_mut().expect("a request runs on a chain"))
    }

    /// Issues the reads for as much of the request as the metadata at hand allows.
    fn read_on(&mut self, id: SlotId) {
        while self.slot(id).cursor < self.slot(id).request.span.count
            && self.slot(id).ops < SLOT_OPS_MAX
        {
            let (rest, done) = (self.slot(id).rest(), self.slot(id).cursor);
            let (found, count) = match self.map(0, rest) {
                Ok(run) => run,
                Err((file, stop)) => return self.stop(id, file, stop),
            };
            let buf = self.limits.slot_buf(id.0).part(done * 512, count * 512);
            match found {
                Found::Zero => self.disk.arena().slice_mut(buf).fill(0),
                Found::At { layer, byte } => {
                    self.hit(layer, 0, count);
                    let op = Op { file: layer, kind: Kind::Read, at: byte, buf };
                    self.data_op(id, Owner::Slot(id), op);
                }
            }
            self.slots[usize::from(id.0)].cursor += count;
        }
    }

    /// Collects extents, merging neighbours of one kind, until the span or the buffer ends.
    fn status_on(&mut self, id: SlotId) {
        let buf = self.limits.slot_buf(id.0);
        for _ in 0..STATUS_RUNS_MAX {
            let slot = self.slot(id);
            if slot.cursor == slot.request.span.count {
                return;
            }
            let (rest, n) = (slot.rest(), slot.extents);
            let (found, count) = match self.map(0, rest) {
                Ok(run) => run,
                Err((file, stop)) => return self.stop(id, file, stop),
            };
            let hole = u32::from(found == Found::Zero);
            let bytes = self.disk.arena().slice_mut(buf);
            let last = (n as usize).checked_sub(1).map(|i| i * 8);
            let merged =
                last.filter(|at| bytes[at + 4..at + 8] == hole.to_ne_bytes()).and_then(|at| {
                    let old = u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
                    old.checked_add(count).map(|sum| (at, sum))
                });
            if let Some((at, sum)) = merged {
                bytes[at..at + 4].copy_from_slice(&sum.to_ne_bytes());
            } else {
                let at = n as usize * 8;
                if at + 8 > bytes.len() {
                    // The answer may end before the span does.
                    let slot = &mut self.slots[usize::from(id.0)];
                    slot.cursor = slot.request.span.count;
                    return;
                }
                bytes[at..at + 4].copy_from_slice(&count.to_ne_bytes());
                bytes[at + 4..at + 8].copy_from_slice(&hole.to_ne_bytes());
                self.slots[usize::from(id.0)].extents += 1;
            }
            self.slots[usize::from(id.0)].cursor += count;
        }
    }

    // ---- changes -----------------------------------------------------------------------------------

    /// Plans as much as fits, then writes phase 1 of it.
    fn plan_on(&mut self, id: SlotId) {
        let plans_max =
            if matches!(self.slot(id).request.verb, Verb::Write { .. }) { 2 } else { 1 };
        let mut made = 0;
        let start = self.slot(id).cursor;
        let mut skips = [0; 2];
        while made < plans_max && self.slot(id).cursor < self.slot(id).request.span.count {
            let skip = self.slot(id).cursor;
            match self.plan_one(id) {
                Ok(plan) => {
                    skips[made] = skip;
                    made += 1;
                    self.slots[usize::from(id.0)].cursor += plan.count;
                }
                // What is planned goes on; the rest is asked for after it. Waiting while holding a plan
                // could wait for oneself.
                Err(_) if made > 0 => break,
                Err((file, stop)) => return self.stop(id, file, stop),
            }
        }
        assert!(self.slot(id).cursor > start, "a plan covers something");
        let slot = &mut self.slots[usize::from(id.0)];
        slot.state = State::Landing { phase: 1 };
        slot.live = (1 << made) - 1;
        for (i, skip) in skips.iter().enumerate().take(made) {
            let plan = self.slot(id).plans[i].expect("planned just above");
            self.issue(id, &plan, *skip);
        }
    }

    fn plan_one(&mut self, id: SlotId) -> Result<Plan, (FileId, Stop)> {
        let leaf = FileId(0);
        let (span, want) = self.wanted(id)?;
        let plan = self
            .with_leaf(|image, meta| image.plan(meta, span, want))
            .map_err(|stop| (leaf, stop))?;
        assert!(plan.count > 0 && plan.count <= span.count, "a plan covers part of its span");
        plan.pins.iter().for_each(|r| self.meta.pin(leaf, r.at));
        let plans = &mut self.slots[usize::from(id.0)].plans;
        let free = plans.iter_mut().find(|p| p.is_none()).expect("room for another plan");
        *free = Some(plan);
        Ok(plan)
    }

    /// The next part of the request and what it wants; a driver is told whether zeros lie below.
    fn wanted(&mut self, id: SlotId) -> Result<(Span, Want), (FileId, Stop)> {
        let (rest, verb) = (self.slot(id).rest(), self.slot(id).request.verb);
        let (Verb::Zero { .. } | Verb::Discard { .. }) = verb else {
            return Ok((rest, Want::Write));
        };
        let (below, count) = self.map(1, rest)?;
        let below_zero = below == Found::Zero;
        let want = match verb {
            Verb::Zero { keep, .. } => Want::Zero { below_zero, keep },
            _ => Want::Discard { below_zero },
        };
        Ok((rest.first(count), want))
    }

    /// Phase 1: the data, and the metadata that nothing points at yet.
    fn issue(&mut self, id: SlotId, plan: &Plan, skip: u32) {
        let bytes = u64::from(plan.count) * 512;
        let (file, at) = (FileId(0), plan.byte);
        match plan.action {
            Action::Write => {
                let buf = self.limits.slot_buf(id.0).part(skip * 512, plan.count * 512);
                self.hit(file, 1, plan.count);
                self.data_op(id, Owner::Slot(id), Op { file, kind: Kind::Write, at, buf });
            }
            Action::Zero { punch } => self.zero(id, at, bytes, punch),
            Action::Discard => {
                let op = Op { file, kind: Kind::Discard { bytes }, at, buf: Buf::NONE };
                self.data_op(id, Owner::Slot(id), op);
            }
            Action::Nothing => {}
        }
        plan.along.iter().for_each(|r| self.want_write(id, r));
    }

    /// Zeros a range: the part made of whole pages by the file system, its ends by hand, so that the
    /// kernel never has to do the ends through its page cache.
    fn zero(&mut self, id: SlotId, at: u64, bytes: u64, punch: bool) {
        const PAGE: u64 = 4096;
        let (file, end) = (FileId(0), at + bytes);
        let (from, to) = (at.next_multiple_of(PAGE).min(end), (end - end % PAGE).max(at));
        let zeros = self.limits.zeros();
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
    fn landing(&mut self, id: SlotId, phase: u8) {
        let slot = self.slot(id);
        if slot.error.is_some() {
            return self.plans_over(id, false);
        }
        let barrier = slot.plans.iter().flatten().any(|p| p.barrier);
        if phase == 1 && barrier && self.policy.barriers {
            self.want_flush(id);
            self.slots[usize::from(id.0)].state = State::Barrier;
            return;
        }
        self.next_phase(id, phase);
    }

    fn next_phase(&mut self, id: SlotId, phase: u8) {
        if self.slot(id).error.is_some() {
            return self.plans_over(id, false);
        }
        for i in 0..limits::PLANS_MAX {
            let Some(plan) = self.slot(id).plans[i].filter(|_| self.slot(id).live & 1 << i != 0)
            else {
                continue;
            };
            let list = self.with_leaf(|image, meta| image.landed(meta, &plan, phase));
            if list.is_empty() {
                self.slots[usize::from(id.0)].live &= !(1 << i);
            }
            list.iter().for_each(|r| self.want_write(id, r));
        }
        if self.slot(id).live != 0 {
            self.slots[usize::from(id.0)].state = State::Landing { phase: phase + 1 };
            return;
        }
        self.give_back(id);
    }

    /// Frees come last.
    fn give_back(&mut self, id: SlotId) {
        self.slots[usize::from(id.0)].state = State::Freeing;
        for i in 0..limits::PLANS_MAX {
            let Some((at, bytes)) = self.slot(id).plans[i].and_then(|p| p.free) else { continue };
            // Zeros rather than a discard, on devices too: a read that began before may still look there,
            // and may find old data or zeros but nothing else.
            let kind = Kind::Zero { bytes: u64::from(bytes), punch: true };
            let op = Op { file: FileId(0), kind, at, buf: Buf::NONE };
            self.data_op(id, Owner::Free(id), op);
        }
    }

    fn plans_over(&mut self, id: SlotId, ok: bool) {
        for i in 0..limits::PLANS_MAX {
            let Some(plan) = self.slots[usize::from(id.0)].plans[i].take() else { continue };
            self.with_leaf(|image, meta| image.finish(meta, &plan, ok));
            plan.pins.iter().for_each(|r| self.meta.unpin(FileId(0), r.at));
        }
        self.slots[usize::from(id.0)].state = State::Ask;
        self.landed = true;
    }

    fn with_leaf<R>(
        &mut self,
        f: impl FnOnce(&mut Box<dyn image::Image>, &mut dyn image::Meta) -> R,
    ) -> R {
        let (mut views, chain) = self.views();
        let image = &mut chain.layers[0].image;
        chain::Views::with(&mut views, FileId(0), |meta| f(image, meta))
    }

    // ---- metadata writes, flushes, growth ------------------------------------------------------------

    fn want_write(&mut self, id: SlotId, r: MetaRef) {
        let block = self.meta.find(FileId(0), r.at).expect("what is written is cached");
        if self.meta.block_mut(block).queued.insert(id) {
            self.slots[usize::from(id.0)].pending += 1;
        }
        self.write_meta(block);
    }

    /// Group commit: what is queued while a write is in flight goes out together in the next one.
    fn write_meta(&mut self, block: meta::BlockId) {
        let Ok(Some(stable)) = self.meta.begin_write(block, self.disk.arena()) else { return };
        let (file, r) = self.meta.block(block).what();
        let buf = self.limits.stable_buf(stable).part(0, u32::from(r.bytes));
        let op = Op { file, kind: Kind::Write, at: r.at, buf };
        self.ops.push(&mut self.disk, Owner::Meta(block), op, self.now);
    }

    fn sync(&mut self, id: SlotId) {
        self.slots[usize::from(id.0)].state = State::Syncing;
        self.want_flush(id);
    }

    fn want_flush(&mut self, id: SlotId) {
        self.flushing.queued.insert(id);
        self.slots[usize::from(id.0)].pending += 1;
        self.begin_flush();
    }

    /// One flush at a time; it covers what completed before it began, so later comers take the next one.
    fn begin_flush(&mut self) {
        if self.flushing.busy || self.flushing.queued.is_empty() {
            return;
        }
        self.flushing.busy = true;
        self.flushing.joined = self.flushing.queued.take();
        let op = Op { file: FileId(0), kind: Kind::Sync, at: 0, buf: Buf::NONE };
        self.ops.push(&mut self.disk, Owner::Sync, op, self.now);
    }

    fn grow(&mut self, id: SlotId, file: FileId, end: u64) {
        let state = &mut self.files[usize::from(file.0)];
        match state.want(end, id) {
            Growth::There => {
                self.landed = true;
                return self.ask_again(id);
            }
            Growth::NoSpace => {
                self.slots[usize::from(id.0)].error.get_or_insert(libc::ENOSPC);
                return;
            }
            Growth::Waiting => {}
            Growth::Start { at, bytes } => {
                let op = Op { file, kind: Kind::Grow { bytes }, at, buf: Buf::NONE };
                self.ops.push(&mut self.disk, Owner::Grow(file), op, self.now);
            }
        }
        self.slots[usize::from(id.0)].pending += 1;
    }

    fn grew(&mut self, file: FileId, outcome: Result<(), i32>) {
        match self.files[usize::from(file.0)].grew(outcome) {
            Err((at, bytes)) => {
                let op = Op { file, kind: Kind::Grow { bytes }, at, buf: Buf::NONE };
                self.ops.push(&mut self.disk, Owner::Grow(file), op, self.now);
            }
            Ok((waiters, outcome)) => self.wake(waiters, outcome),
        }
    }

    // ---- counting ------------------------------------------------------------------------------------

    fn hit(&mut self, layer: FileId, dir: usize, count: u32) {
        let chain = self.chain.as_mut().expect("a request runs on a chain");
        chain.layers[usize::from(layer.0)].hits[dir] += u64::from(count);
    }

    fn count_failure(&mut self, op: &Op) {
        let Some(chain) = &mut self.chain else { return };
        let dir = usize::from(op.kind != Kind::Read);
        chain.layers[usize::from(op.file.0)].fails[dir] += u64::from(op.buf.bytes / 512);
    }

    fn count(&mut self, id: SlotId) {
        let slot = &self.slots[usize::from(id.0)];
        let (sectors, us) =
            (u64::from(slot.request.span.count), self.now.saturating_sub(slot.since));
        let (op, dir) = match slot.request.verb {
            Verb::Read => (0, Some(0)),
            Verb::Write { .. } => (1, Some(1)),
            Verb::Flush => (2, None),
            Verb::Discard { .. } => (3, None),
            Verb::Zero { .. } => (4, None),
            Verb::Status => return,
        };
        let stats = &mut self.stats;
        stats.ops[op] += 1;
        stats.errors += u64::from(slot.error.is_some());
        if let Some(dir) = dir {
            stats.bytes[dir] += sectors * 512;
            stats.latency[dir][stats::bucket(us)] += 1;
        }
    }
}
