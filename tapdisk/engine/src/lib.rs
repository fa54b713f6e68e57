//! The one request state machine: it serves every format over every disk engine.
//!
//! ```text
//!   start ─► Ask ─► (Load, Grow, wait) ─► Ask ─► Landing 1 (data, unreachable metadata) ─► Landing 2 …
//!             │ reads: data operations                 │ barrier, if the policy asks           │
//!             ▼                                        ▼                                       ▼
//!           done ◄──────────── Syncing (FUA, flush) ◄──────────── Freeing ◄────────────── all landed
//! ```
//! One turn of the server calls [`Engine::step`]: it takes finished operations, steps the requests
//! they wake, and queues new operations. It never waits, allocates, logs or loops without a bound.
//! What is in flight is named by index. The crash order of every format is `landing` below, and
//! nothing else.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use image::{MetaRef, Stop};

use request::disk::{Disk, FileId, FileInfo, Kind, Op};
use request::{Outcome, Request, SlotId, Verb};

pub mod chain;
mod change;
pub mod files;
pub mod limits;
mod local;
pub mod meta;
pub mod ops;
mod owners;
mod read;
mod second;
pub mod sets;
mod shared;
pub mod slot;
mod slots;
pub mod stats;

use chain::Chain;
use files::{FileState, Flushing};
use limits::{Limits, PAGE_BYTES, SLOT_OPS_MAX};
use local::LocalCache;
use meta::{Loading, MetaCache};
use ops::{Ops, Owner};
use sets::SlotSet;
use slot::{Ahead, Cause, Slot, State};
use stats::Stats;

/// Pieces of one request at most before others have their turn, and rounds of all in one step.
const STEPS_MAX: u32 = 64;
/// Runs one Status request looks at in one step.
const STATUS_RUNS_MAX: u32 = 256;

/// How a disk is served.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Writes are refused.
    pub read_only: bool,
    /// Flush between data and the metadata that points at it: the lower disk has a volatile cache
    /// and its owner wants unflushed writes to be old or new, never torn, after a power cut.
    pub barriers: bool,
    /// Seconds an operation is tried again while the kernel answers EAGAIN, EBUSY, EINTR or ENOMEM.
    pub timeout_s: u16,
    /// Logical sector size shown to clients.
    pub sector_size: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { read_only: false, barriers: false, timeout_s: 120, sector_size: 512 }
    }
}

/// What has happened to the chain while it was served, for its owner to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// The secondary has taken over, because the top had no space left.
    pub taken_over: bool,
    /// The remote mirror that failed and was left behind.
    pub mirror_lost: Option<FileId>,
}

/// Bugs to be planted, which the simulator has to find.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// What has become the top counts as one that always was.
    AlwaysTheTop,
    /// Changes that overlap go to mirror and top in any order.
    MirrorInAnyOrder,
    /// What the local cache keeps is marked before it is on the medium.
    KeptWithoutBarrier,
    /// What a lower image is not sure of counts as zeros.
    DoubtIsZero,
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
    /// Why the last request of each slot failed, beside what is touched by all.
    causes: Box<[Option<Cause>]>,
    small_free: Vec<u16>,
    large_free: Vec<u16>,
    ready: SlotSet,
    /// Requests that a driver or a full cache told to wait: asked again when anything has landed.
    retry: SlotSet,
    landed: bool,
    flushing: Flushing,
    /// Files that requests have been written to since the chain was attached.
    written: [Option<FileId>; 2],
    local_cache: LocalCache,
    events: Events,
    /// Fewer than `STEPS_MAX` where the simulator looks for what may come between.
    steps_max: u32,
    bug: Bug,
    done: VecDeque<SlotId>,
    /// Slots that it works on.
    working: SlotSet,
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
            causes: vec![None; slots].into(),
            small_free: (0..limits.small).rev().collect(),
            large_free: (limits.small..limits.slots()).rev().collect(),
            ready: SlotSet::EMPTY,
            retry: SlotSet::EMPTY,
            landed: false,
            flushing: Flushing::default(),
            written: [None; 2],
            local_cache: LocalCache::new(limits.slots()),
            events: Events::default(),
            steps_max: STEPS_MAX,
            bug: Bug::None,
            done: VecDeque::with_capacity(slots),
            working: SlotSet::EMPTY,
            seq: 0,
            oldest: 0,
            now: 0,
            sectors: 0,
            stats: Stats::default(),
        }
    }

    /// Puts a chain under the engine. `files[i]` tells about the file of layer i; the disk was
    /// given the same files with `set_files`. Nothing may be in flight.
    pub fn attach(&mut self, chain: Chain, files: &[FileInfo], policy: Policy) {
        assert!(self.chain.is_none() && self.idle(), "a chain is attached to an idle engine");
        assert!(chain.layers.len() == files.len(), "each layer has a file");
        self.meta.clear();
        let (ahead, zeros) = (self.limits.ahead, self.limits.zeros().part(0, PAGE_BYTES));
        self.files = files.iter().map(|f| FileState::new(f, ahead, zeros)).collect();
        self.sectors = chain.sectors();
        self.policy = policy;
        self.ops.timeout_us = u64::from(policy.timeout_s) * 1_000_000;
        self.events = Events::default();
        self.set_ends(&chain);
        let mirror = chain.second.filter(|second| second.purpose == image::Purpose::Mirror);
        // After a takeover the former leaf is flushed too: a tapdisk that was killed may have
        // answered writes to it that are not on the medium.
        let other = mirror.map(|second| second.file).or(chain.former);
        self.written = [Some(chain.top()), other];
        self.local_cache = LocalCache::new(self.limits.slots());
        self.chain = Some(chain);
    }

    /// Takes the chain out again. Nothing may be in flight.
    pub fn detach(&mut self) -> Option<Chain> {
        assert!(self.idle(), "a chain is taken from an idle engine");
        self.files.clear();
        self.forget_reads();
        self.chain.take()
    }

    /// Whether no request is at work (finished ones may still wait for their frontend).
    pub fn idle(&self) -> bool {
        self.working.is_empty() && self.ops.in_flight() == 0
    }

    /// Requests at work.
    pub fn active(&self) -> u16 {
        self.working.len()
    }

    /// The chain, for statistics.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Counts on from what another program has counted.
    pub fn count_on(&mut self, stats: Stats) {
        self.stats = stats;
    }

    /// What has happened to the chain since it was attached.
    pub fn events(&self) -> Events {
        self.events
    }

    /// Sectors that the local cache has kept since the chain was attached.
    pub fn kept_sectors(&self) -> u64 {
        self.local_cache.kept
    }

    /// Whether a step has something to do at once.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
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

    /// Fewer steps than usual before others have their turn, for tests.
    #[doc(hidden)]
    pub fn set_steps_max(&mut self, steps: u32) {
        assert!(steps > 0, "a turn goes on");
        self.steps_max = steps;
    }

    /// Plants a bug.
    #[doc(hidden)]
    pub fn plant(&mut self, bug: Bug) {
        self.bug = bug;
    }

    /// A slot, for tests and the watchdog's report.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[usize::from(id.0)]
    }

    /// Why a request has failed that is done.
    pub fn cause(&self, id: SlotId) -> Option<Cause> {
        self.slot(id).error.and_then(|_| self.causes[usize::from(id.0)])
    }

    /// What went wrong first counts.
    #[cold]
    pub(crate) fn fail(&mut self, id: SlotId, cause: Cause) {
        let error = &mut self.slots[usize::from(id.0)].error;
        if error.is_none() {
            *error = Some(cause.errno);
            self.causes[usize::from(id.0)] = Some(cause);
        }
    }

    /// The next finished request. Its slot stays the frontend's until it is released.
    pub fn pop_done(&mut self) -> Option<(SlotId, Request, Outcome)> {
        let id = self.done.pop_front()?;
        let slot = self.slot(id);
        Some((id, slot.request, slot.outcome))
    }

    /// One turn: takes finished operations and steps what they wake. `now` is a monotonic clock in
    /// µs. True if there is more to do at once, without waiting for anything.
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
        for _ in 0..self.steps_max {
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
        let mut working = self.working;
        let seqs = std::iter::from_fn(|| working.pop()).map(|id| self.slot(id).seq);
        seqs.min().unwrap_or(self.seq + 1)
    }

    // ---- what wakes requests -------------------------------------------------------------------

    fn deliver(&mut self, owner: Owner, op: Op, outcome: Result<(), i32>) {
        self.landed = true;
        match owner {
            Owner::Slot(id) | Owner::Quick(id) => {
                match outcome {
                    Ok(()) if op.kind == Kind::Read => self.decode(id, &op),
                    Ok(()) => {}
                    Err(_) => self.count_failure(&op),
                }
                self.slots[usize::from(id.0)].ops -= 1;
                self.wake_one(id, op.file, outcome);
            }
            Owner::Free(id) => {
                self.slots[usize::from(id.0)].ops -= 1;
                self.discard_instead(id, op, outcome);
                self.wake_one(id, op.file, Ok(()));
            }
            Owner::Load(block) => {
                let waiters = self.meta.loaded(block, outcome.is_ok());
                self.wake(waiters, op.file, outcome);
            }
            Owner::Meta(block) => {
                let joined = self.meta.written(block, outcome.is_ok());
                self.wake(joined, op.file, outcome);
                self.write_meta(block);
                if let Some(next) = self.meta.waiting_for_stable() {
                    self.write_meta(next);
                }
            }
            Owner::Grow(file) => self.grew(file, outcome),
            Owner::Sync(file) => self.flushed(file, outcome),
        }
    }

    fn wake(&mut self, mut slots: SlotSet, file: FileId, outcome: Result<(), i32>) {
        while let Some(id) = slots.pop() {
            self.wake_one(id, file, outcome);
        }
    }

    /// One of the things this slot waits for is over.
    fn wake_one(&mut self, id: SlotId, file: FileId, outcome: Result<(), i32>) {
        if let Err(errno) = outcome {
            self.fail(id, Cause { file, errno, why: "" });
        }
        let slot = &mut self.slots[usize::from(id.0)];
        slot.pending = slot.pending.checked_sub(1).expect("a slot is woken as often as it waits");
        if slot.pending == 0 {
            self.ready.insert(id);
        }
    }

    // ---- stepping a request --------------------------------------------------------------------

    /// Others have their turn between the pieces of a request only: while it holds a plan it goes
    /// on, or
    /// waits for something of its own. A piece has few phases, so this ends.
    fn run(&mut self, id: SlotId) {
        let mut asked = 0;
        loop {
            if self.slot(id).pending > 0 || self.retry.contains(id) {
                return;
            }
            match self.slot(id).state {
                State::Free | State::Filling | State::Done => return,
                State::Ask if asked == self.steps_max => break,
                State::Ask => {
                    asked += 1;
                    self.ask(id);
                }
                State::Landing { phase } => self.landing(id, phase),
                State::Barrier => self.next_phase(id, 1),
                State::Freeing => self.plans_over(id, true),
                State::Syncing => self.complete(id),
            }
        }
        self.ready.insert(id);
    }

    fn ask(&mut self, id: SlotId) {
        let slot = &mut self.slots[usize::from(id.0)];
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
                let waits = self.behind_a_keeper(id) || self.behind_a_mirrored(id);
                if waits { self.ask_again(id) } else { self.plan_on(id) }
            }
            Verb::Status => self.status_on(id),
        }
    }

    fn complete(&mut self, id: SlotId) {
        let slot = &mut self.slots[usize::from(id.0)];
        assert!(
            slot.pending == 0 && slot.plans.iter().all(Option::is_none),
            "nothing is left behind"
        );
        self.working.remove(id);
        self.landed = true;
        if slot.local.writing {
            return self.kept(id);
        }
        slot.outcome = slot.error.map_or(Ok(slot.extents), Err);
        slot.state = State::Done;
        self.done.push_back(id);
        self.count(id);
    }

    /// Notes what has to happen before this slot can ask again.
    fn stop(&mut self, id: SlotId, file: FileId, stop: Stop) {
        match stop {
            Stop::Load(r) => self.load(id, file, r),
            Stop::Grow { end, step } => self.grow(id, file, end, step),
            Stop::Flush { after } => self.flush_after(id, file, after),
            Stop::Wait => self.ask_again(id),
            Stop::Fail { errno, why } => {
                self.fail(id, Cause { file, errno, why });
            }
        }
    }

    /// Without anything of its own in flight, the slot waits until something of another's has
    /// landed.
    fn ask_again(&mut self, id: SlotId) {
        if self.slot(id).pending == 0 {
            self.retry.insert(id);
        }
    }

    fn load(&mut self, id: SlotId, file: FileId, r: MetaRef) {
        if !self.try_load(id, file, r) {
            self.ask_again(id);
        }
    }

    /// False if it has to be asked for again.
    fn try_load(&mut self, id: SlotId, file: FileId, r: MetaRef) -> bool {
        let block = match self.meta.load(file, r) {
            Loading::AskAgain => return false,
            Loading::Joined(block) => block,
            Loading::Start(block) => {
                let buf = self.limits.meta_buf(block).part(0, u32::from(r.bytes));
                let op = Op { file, kind: Kind::Read, at: r.at, buf };
                self.ops.push(&mut self.disk, Owner::Load(block), op, self.now);
                block
            }
        };
        if self.meta.wait_for_load(block, id) {
            self.slots[usize::from(id.0)].pending += 1;
        }
        true
    }

    fn data_op(&mut self, id: SlotId, owner: Owner, op: Op) {
        let slot = &mut self.slots[usize::from(id.0)];
        slot.pending += 1;
        slot.ops += 1;
        assert!(slot.ops <= SLOT_OPS_MAX, "a slot keeps to its share of operations");
        self.ops.push(&mut self.disk, owner, op, self.now);
    }
}
