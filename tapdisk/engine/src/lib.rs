//! The one request state machine: it serves every format over every disk engine.
//!
//! ```text
//!   start ─► Dispatch ─► (Load, Grow, wait) ─► Dispatch ─► Copying, Writing 1 ─► Writing 2 …
//!               │ reads: data operations             (data, what nothing │       │ (what points
//!               ▼                                     points at yet)  Flushing,  ▼  at it)
//!             Done ◄──── Syncing (FUA, flush) ◄──── Freeing ◄──────── if a step asks for it
//! ```
//! One turn of the server calls [`Engine::step`]: it takes finished operations, steps the requests
//! they wake, and queues new operations. It never waits, allocates, logs or loops without a bound.
//! What is in flight is named by index. The crash order of every format is `phase_done` in
//! `change.rs`, and nothing else.
#![forbid(unsafe_code)]

use request::disk::{Disk, FileId, FileInfo};
use request::{Outcome, Request, SlotId};

mod admit;
pub mod bug;
mod cache;
pub mod chain;
mod change;
mod chores;
pub mod commit;
mod copy;
mod crypt;
pub mod files;
mod io;
pub mod limits;
mod machine;
mod map;
pub mod meta;
pub mod ops;
mod parent_cache;
mod read;
mod route;
pub mod sets;
mod shared;
pub mod slot;
mod slots;
pub mod stats;
mod table;
pub mod throttle;
mod unpack;

pub use bug::Bug;
use bug::Planted;
use cache::LocalCache;
use chain::Chain;
use chores::Chores;
use commit::Commit;
use copy::Copies;
use files::{FileState, Flushing};
use io::Io;
use limits::{Limits, PAGE_BYTES};
use map::Map;
use meta::MetaCache;
use ops::Ops;
use slot::{Cause, Slot};
use stats::Stats;
use table::Table;
use throttle::Throttle;
use unpack::Unpacker;

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
    /// Reserves that only some formats need.
    copies: Copies,
    unpacker: Unpacker,
    chores: Chores,
    /// Of the top, to its parent.
    commit: Commit,
    throttle: Throttle,
    /// There is something to look at for each request, or before each step: the local cache, a
    /// commit, rates.
    watches: bool,
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
            copies: Copies::new(limits.copies),
            unpacker: Unpacker::default(),
            chores: Chores::default(),
            commit: Commit::default(),
            throttle: Throttle::default(),
            watches: false,
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
        let served = |layer: &chain::Layer| self.serves(layer.image.needs());
        assert!(chain.layers.iter().all(served), "the reserves are those of the formats");
        self.map.meta.clear();
        self.unpacker.forget();
        let (ahead, zeros) =
            (self.rules.limits.ahead, self.rules.limits.zeros().part(0, PAGE_BYTES));
        self.map.files = files.iter().map(|f| FileState::new(f, ahead, zeros)).collect();
        self.map.sectors = chain.sectors();
        self.rules.policy = policy;
        self.io.ops.timeout_us = u64::from(policy.timeout_s) * 1_000_000;
        self.events = Events::default();
        self.set_ends(&chain);
        let mirror = chain.secondary().filter(|other| other.mirrors());
        // After a takeover the former leaf is flushed too: a tapdisk that was killed may have
        // answered writes to it that are not on the medium.
        let other = mirror.map(|secondary| secondary.file).or(chain.former);
        self.flushing.written = [Some(chain.top()), other];
        self.local_cache = LocalCache::new(self.rules.limits.slots());
        self.commit = Commit::of(&chain);
        self.map.chain = Some(chain);
        self.lift_rates(false);
        self.watch();
    }

    /// Takes the chain out again. Nothing may be in flight.
    pub fn detach(&mut self) -> Option<Chain> {
        assert!(self.idle(), "a chain is taken from an idle engine");
        self.map.files.clear();
        self.forget_reads();
        self.commit = Commit::default();
        self.map.chain.take()
    }

    /// From now on somebody else changes an image of the chain
    /// ([`image::Image::changed_by_others`]).
    pub fn changed_by_others(&mut self, file: FileId) {
        let chain = self.map.chain.as_mut();
        let layer = chain.and_then(|chain| chain.layers.get_mut(usize::from(file.0)));
        if let Some(layer) = layer {
            layer.image.changed_by_others();
        }
    }

    /// Whether the reserves are enough for a format; they stay what they were when it was made.
    pub fn serves(&self, needs: image::Needs) -> bool {
        self.rules.limits.serve(needs)
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
        !self.table.ready.is_empty() || (self.watches && self.can_begin_piece())
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
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn set_steps_max(&mut self, steps: u32) {
        assert!(steps > 0, "a turn goes on");
        self.rules.steps_max = steps;
    }

    /// Plants a bug.
    #[cfg(any(debug_assertions, feature = "canary"))]
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
        if self.watches {
            self.before_a_step();
        }
        self.table.oldest = self.oldest_active();
        for _ in 0..self.rules.steps_max {
            if std::mem::take(&mut self.table.progress) {
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
        let retry = self.io.ops.retry(&mut self.io.disk, now);
        retry.into_iter().chain(self.next_credit()).min()
    }

    /// Whether there is something to look at beside the requests themselves.
    fn watch(&mut self) {
        self.watches = self.keeps_reads() || self.commit.wants_care() || self.throttle.is_on();
    }

    #[cold]
    #[inline(never)]
    fn before_a_step(&mut self) {
        self.begin_pieces();
        self.let_waiting_go();
    }

    /// Nothing that nobody asked for begins, and nobody waits for a rate, so that the engine comes
    /// to rest; or that is over.
    pub fn come_to_rest(&mut self, rests: bool) {
        self.commit.hold(rests);
        self.lift_rates(rests);
    }

    fn oldest_active(&self) -> u64 {
        let mut working = self.table.working;
        let seqs = std::iter::from_fn(|| working.pop()).map(|id| self.slot(id).seq);
        seqs.min().unwrap_or(self.table.seq + 1)
    }
}
