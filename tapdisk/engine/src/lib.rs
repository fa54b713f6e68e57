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

use image::{MetaRef, Stop};

use request::disk::{Disk, FileId, FileInfo, Kind, Op};
use request::{Outcome, Request, SlotId, Verb};

pub mod bug;
pub mod chain;
mod change;
pub mod files;
mod io;
pub mod limits;
mod local;
mod map;
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
mod table;

pub use bug::Bug;
use bug::Planted;
use chain::Chain;
use files::{FileState, Flushing};
use io::Io;
use limits::{Limits, PAGE_BYTES, SLOT_OPS_MAX};
use local::LocalCache;
use map::Map;
use meta::{Loading, MetaCache};
use ops::{Ops, Owner};
use sets::SlotSet;
use slot::{Ahead, Cause, Slot, State};
use stats::Stats;
use table::Table;

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

/// How this engine is to work.
#[derive(Debug)]
struct Rules {
    limits: Limits,
    policy: Policy,
    /// Fewer than `STEPS_MAX` where the simulator looks for what may come between.
    steps_max: u32,
    bug: Planted,
}

/// The engine of one disk.
pub struct Engine<D: Disk> {
    rules: Rules,
    /// The slots, and which of them can go on.
    table: Table,
    /// Where the disk's data is: images, their files, cached metadata.
    map: Map,
    /// Operations, and who does them.
    io: Io<D>,
    /// The flush in flight, and what has to be flushed.
    flushing: Flushing,
    local_cache: LocalCache,
    events: Events,
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
        let ops = Ops::new(&limits);
        let meta = MetaCache::new(&limits);
        Engine {
            table: Table::new(&limits),
            map: Map { chain: None, files: Vec::new(), meta, sectors: 0 },
            io: Io { disk, ops, now: 0 },
            flushing: Flushing::default(),
            local_cache: LocalCache::new(limits.slots()),
            events: Events::default(),
            stats: Stats::default(),
            rules: Rules {
                limits,
                policy: Policy::default(),
                steps_max: STEPS_MAX,
                bug: Planted::default(),
            },
        }
    }

    /// Puts a chain under the engine. `files[i]` tells about the file of layer i; the disk was
    /// given the same files with `set_files`. Nothing may be in flight.
    pub fn attach(&mut self, chain: Chain, files: &[FileInfo], policy: Policy) {
        assert!(self.map.chain.is_none() && self.idle(), "a chain is attached to an idle engine");
        assert!(chain.layers.len() == files.len(), "each layer has a file");
        self.map.meta.clear();
        let (ahead, zeros) =
            (self.rules.limits.ahead, self.rules.limits.zeros().part(0, PAGE_BYTES));
        self.map.files = files.iter().map(|f| FileState::new(f, ahead, zeros)).collect();
        self.map.sectors = chain.sectors();
        self.rules.policy = policy;
        self.io.ops.timeout_us = u64::from(policy.timeout_s) * 1_000_000;
        self.events = Events::default();
        self.set_ends(&chain);
        let mirror = chain.second.filter(|second| second.purpose == image::Purpose::Mirror);
        // After a takeover the former leaf is flushed too: a tapdisk that was killed may have
        // answered writes to it that are not on the medium.
        let other = mirror.map(|second| second.file).or(chain.former);
        self.flushing.written = [Some(chain.top()), other];
        self.local_cache = LocalCache::new(self.rules.limits.slots());
        self.map.chain = Some(chain);
    }

    /// Takes the chain out again. Nothing may be in flight.
    pub fn detach(&mut self) -> Option<Chain> {
        assert!(self.idle(), "a chain is taken from an idle engine");
        self.map.files.clear();
        self.forget_reads();
        self.map.chain.take()
    }

    /// Whether no request is at work (finished ones may still wait for their frontend).
    pub fn idle(&self) -> bool {
        self.table.working.is_empty() && self.io.ops.in_flight() == 0
    }

    /// Requests at work.
    pub fn active(&self) -> u16 {
        self.table.working.len()
    }

    /// The chain, for statistics.
    pub fn chain(&self) -> Option<&Chain> {
        self.map.chain.as_ref()
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
        !self.table.ready.is_empty()
    }

    /// The disk engine below.
    pub fn disk(&mut self) -> &mut D {
        &mut self.io.disk
    }

    /// The disk engine below, to look at.
    pub fn disk_ref(&self) -> &D {
        &self.io.disk
    }

    /// Gives the disk engine back; for the simulator's power cuts.
    pub fn into_disk(self) -> D {
        self.io.disk
    }

    /// Fewer steps than usual before others have their turn, for tests.
    #[cfg(feature = "canary")]
    pub fn set_steps_max(&mut self, steps: u32) {
        assert!(steps > 0, "a turn goes on");
        self.rules.steps_max = steps;
    }

    /// Plants a bug.
    #[cfg(feature = "canary")]
    pub fn plant(&mut self, bug: Bug) {
        self.rules.bug.plant(bug);
    }

    /// A slot, for tests and the watchdog's report.
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.table[id]
    }

    /// Why a request has failed that is done.
    pub fn cause(&self, id: SlotId) -> Option<Cause> {
        self.table.cause(id)
    }

    /// The next finished request. Its slot stays the frontend's until it is released.
    pub fn pop_done(&mut self) -> Option<(SlotId, Request, Outcome)> {
        let id = self.table.done.pop_front()?;
        let slot = self.slot(id);
        Some((id, slot.request, slot.outcome))
    }

    /// One turn: takes finished operations and steps what they wake. `now` is a monotonic clock in
    /// µs. True if there is more to do at once, without waiting for anything.
    pub fn step(&mut self, now: u64) -> bool {
        self.io.now = now;
        self.stats.turns += 1;
        while let Some((tag, result)) = self.io.disk.reap() {
            if let Some((owner, op, outcome)) =
                self.io.ops.done(&mut self.io.disk, tag, result, now)
            {
                self.deliver(owner, op, outcome);
            }
        }
        self.io.ops.retry(&mut self.io.disk, now);
        self.table.oldest = self.oldest_active();
        for _ in 0..self.rules.steps_max {
            if std::mem::take(&mut self.table.landed) {
                let again = self.table.retry.take();
                self.table.ready.extend(again);
            }
            let mut round = self.table.ready.take();
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
        let now = self.io.now;
        self.io.ops.retry(&mut self.io.disk, now)
    }

    fn oldest_active(&self) -> u64 {
        let mut working = self.table.working;
        let seqs = std::iter::from_fn(|| working.pop()).map(|id| self.slot(id).seq);
        seqs.min().unwrap_or(self.table.seq + 1)
    }

    // ---- what wakes requests -------------------------------------------------------------------

    fn deliver(&mut self, owner: Owner, op: Op, outcome: Result<(), i32>) {
        self.table.landed = true;
        match owner {
            Owner::Slot(id) | Owner::Quick(id) => {
                match outcome {
                    Ok(()) if op.kind == Kind::Read => self.decode(id, &op),
                    Ok(()) => {}
                    Err(_) => self.count_failure(&op),
                }
                self.table[id].ops -= 1;
                self.wake_one(id, op.file, outcome);
            }
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

    fn wake(&mut self, mut slots: SlotSet, file: FileId, outcome: Result<(), i32>) {
        while let Some(id) = slots.pop() {
            self.wake_one(id, file, outcome);
        }
    }

    /// One of the things this slot waits for is over.
    #[inline]
    fn wake_one(&mut self, id: SlotId, file: FileId, outcome: Result<(), i32>) {
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
    fn run(&mut self, id: SlotId) {
        let mut asked = 0;
        loop {
            if self.slot(id).pending > 0 || self.table.retry.contains(id) {
                return;
            }
            match self.slot(id).state {
                State::Free | State::Filling | State::Done => return,
                State::Ask if asked == self.rules.steps_max => break,
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
        self.table.ready.insert(id);
    }

    fn ask(&mut self, id: SlotId) {
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
                let waits = self.behind_a_keeper(id) || self.behind_a_mirrored(id);
                if waits { self.ask_again(id) } else { self.plan_on(id) }
            }
            Verb::Status => self.status_on(id),
        }
    }

    fn complete(&mut self, id: SlotId) {
        self.table.end(id);
        let slot = &mut self.table[id];
        assert!(
            slot.pending == 0 && slot.plans.iter().all(Option::is_none),
            "nothing is left behind"
        );
        if slot.local.writing {
            return self.kept(id);
        }
        slot.outcome = slot.error.map_or(Ok(slot.extents), Err);
        slot.state = State::Done;
        self.table.done.push_back(id);
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
                self.table.fail(id, Cause { file, errno, why });
            }
        }
    }

    /// Without anything of its own in flight, the slot waits until something of another's has
    /// landed.
    fn ask_again(&mut self, id: SlotId) {
        if self.slot(id).pending == 0 {
            self.table.retry.insert(id);
        }
    }

    fn load(&mut self, id: SlotId, file: FileId, r: MetaRef) {
        if !self.try_load(id, file, r) {
            self.ask_again(id);
        }
    }

    /// False if it has to be asked for again.
    fn try_load(&mut self, id: SlotId, file: FileId, r: MetaRef) -> bool {
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

    fn data_op(&mut self, id: SlotId, owner: Owner, op: Op) {
        let slot = &mut self.table[id];
        slot.pending += 1;
        slot.ops += 1;
        assert!(slot.ops <= SLOT_OPS_MAX, "a slot keeps to its share of operations");
        self.io.push(owner, op);
    }
}
