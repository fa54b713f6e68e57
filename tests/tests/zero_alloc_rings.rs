//! The proof of no allocation and no page fault on the path of a guest's requests: 100,000 of all
//! kinds, good and bad, through three rings, the daemon's engine and a real file; only the guest is
//! in memory.
mod zero_alloc_support;

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;

use disk::align::Aligned;
use disk::probe::{AnyDisk, EngineKind};
use engine::Engine;
use engine::limits::Limits;
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingParams, Rings};
use request::Slots;
use tapdisk::memory::Memory;
use tapdisk::sealed::{self, Sealable};
use tests::sim::rng::Rng;
use xen::fake::{Access, DOMID, Fake, FrontRing, Guest, entry, indirect_entry};
use xen::{Segment, op, status};
use zero_alloc_support::{BYTES, engine, turn};

#[global_allocator]
static ALLOCATOR: Sealable = Sealable;

const WARM_UP: u64 = 20_000;
const REQUESTS: u64 = 100_000;

struct Machine {
    engine: Engine<Aligned<AnyDisk>>,
    rings: Rings<Fake>,
    guest: Guest,
    fronts: Vec<FrontRing>,
    /// Data pages, and pages with lists of 256 of them.
    pages: Vec<Segment>,
    lists: Vec<u32>,
    rng: Rng,
    _file: File,
    clock: u64,
    answered: u64,
    refused: u64,
    /// Page faults in sealed parts: minor, major.
    faults: (u64, u64),
}

impl Machine {
    fn new(path: &Path, format: &str, kind: EngineKind) -> Machine {
        let (file, engine) = engine(path, format, kind, Limits::NORMAL);
        let guest = Guest::new();
        let whole = |gref| Segment { gref, first: 0, last: 7, pad: 0 };
        let pages: Vec<Segment> = (0..512).map(|_| whole(guest.grant(Access::Full))).collect();
        let lists = (0..8).map(|i| list(&guest, &pages[i * 32..])).collect();
        let rings = Rings::new(guest.back_end());
        let mut machine = Machine {
            engine,
            rings,
            guest,
            fronts: Vec::new(),
            pages,
            lists,
            rng: Rng::new(42),
            _file: file,
            clock: 1,
            answered: 0,
            refused: 0,
            faults: (0, 0),
        };
        for (queue, (order, protocol)) in [(3, 3), (0, 2), (1, 1)].into_iter().enumerate() {
            machine.connect(queue as u32, order, protocol);
        }
        machine
    }

    fn connect(&mut self, queue: u32, order: u32, protocol: u32) {
        let front = self.guest.ring(order, xen::Layout::of_protocol(protocol).unwrap());
        let mut refs = [0; 8];
        refs[..front.refs().len()].copy_from_slice(front.refs());
        let name = RingParams::name((DOMID.into(), 51712), (queue, 3)).unwrap();
        let poll = PollPolicy { duration_us: 100, idle_threshold: 10 };
        let params = RingParams::new(name, (order, &refs), front.port(), protocol, poll).unwrap();
        self.rings.connect(&params).unwrap();
        self.fronts.push(front);
    }

    /// A request of any kind; some are nonsense.
    fn request(&mut self, layout: xen::Layout) -> [u8; 112] {
        let rng = &mut self.rng;
        let sector = rng.below(BYTES / 512 - 2048);
        let segments = &self.pages[rng.below(400) as usize..];
        let which = if rng.one_in(2) { op::READ } else { op::WRITE };
        match rng.below(100) {
            0 => entry(layout, (op::FLUSH_DISKCACHE, 0), 1, 0, &[]),
            1 => entry(layout, (op::WRITE_BARRIER, rng.below(3) as u8), 1, sector, segments),
            2 => {
                let mut bytes = entry(layout, (op::DISCARD, 0), 1, sector, &[]);
                bytes[layout.discard_sectors] = 1 + rng.below(200) as u8;
                bytes
            }
            3 => entry(layout, (99, 1), 1, sector, segments),
            4 => entry(layout, (which, 12), 1, sector, segments),
            5 => entry(layout, (which, 1), 1, u64::MAX - 3, segments),
            6 => entry(layout, (which, 1), 1, sector, &[Segment { gref: 1 << 19, ..segments[0] }]),
            7..=9 => {
                let list = self.lists[rng.below(8) as usize];
                let count = 12 + rng.below(245) as u16;
                indirect_entry(layout, which, 1, sector, (count, list))
            }
            10..=19 => entry(layout, (which, 11), 1, sector, segments),
            _ => entry(layout, (which, 1), 1, sector / 8 * 8, segments),
        }
    }

    /// The guest's part: takes answers, puts requests, notifies if asked to.
    fn drive(&mut self) {
        for at in 0..self.fronts.len() {
            while let Some(answer) = self.fronts[at].answer() {
                self.answered += 1;
                self.refused += u64::from(answer.status != status::OKAY);
            }
            let layout = self.fronts[at].layout();
            for _ in 0..self.fronts[at].room().min(40) {
                let bytes = self.request(layout);
                self.fronts[at].put(&bytes);
            }
            if self.fronts[at].show() {
                self.guest.notify(self.fronts[at].port());
            }
        }
        if self.guest.wakes_back_end() {
            self.rings.event();
        }
    }

    /// A turn as the server's, sealed; then what is left to wait for is waited for.
    fn turn(&mut self) {
        self.clock += 10;
        // Now idle enough for polling, now not.
        self.rings.set_idle(if (self.clock / 2000).is_multiple_of(2) { 50.0 } else { 0.0 });
        let clock = self.clock;
        let faults = turn(&mut self.engine, &mut self.rings, clock, |rings| rings.clock(clock));
        self.faults.0 += faults.0;
        self.faults.1 += faults.1;
    }

    fn serve(&mut self, count: u64) {
        let until = self.answered + count;
        while self.answered < until {
            self.drive();
            self.turn();
        }
    }
}

fn list(guest: &Guest, pages: &[Segment]) -> u32 {
    let gref = guest.grant(Access::ReadOnly);
    guest.page(gref, |page| {
        for (raw, segment) in page.chunks_exact_mut(8).zip(pages.iter().take(256)) {
            raw.copy_from_slice(&segment.to_bytes());
        }
    });
    gref
}

/// All in one test: only one thread of a process may seal.
#[test]
fn the_path_of_a_guests_request_neither_allocates_nor_faults() {
    sealed::abort_when_broken(false);
    // As the daemon at its start: else every page of a table faults when it is first used.
    let locked = Memory::lock() == Memory::Locked;
    if !locked {
        eprintln!("SKIPPED: page faults are not looked at, since memory may not be locked here");
    }
    let dir = tempfile::tempdir().unwrap();
    let kinds = [("io_uring", EngineKind::Uring), ("linux-aio", EngineKind::Aio)];
    let cases: VecDeque<_> = kinds.iter().flat_map(|k| ["raw", "vhd"].map(|f| (k, f))).collect();
    for ((name, kind), format) in cases {
        let path = dir.path().join(format!("{name}.{format}"));
        let mut machine = Machine::new(&path, format, *kind);
        machine.serve(WARM_UP);
        machine.faults = (0, 0);
        let allocations = sealed::broken();
        machine.serve(REQUESTS);
        assert_eq!(sealed::broken() - allocations, 0, "{name} {format}: allocations while sealed");
        assert!(
            !locked || machine.faults == (0, 0),
            "{name} {format}: {:?} faults",
            machine.faults
        );
        assert!(machine.refused > REQUESTS / 50, "nonsense was refused");
        let (counters, calls) = (machine.rings.counters(), machine.guest.counts());
        assert!(counters.polls > 0 && counters.indirect > 1000, "{counters:?}");
        println!(
            "{name} {format}: {} answers, {} refused, {} copies in {} calls, {} notifications",
            machine.answered, machine.refused, calls.copies, calls.copy_calls, calls.notifications
        );
        // What is still in flight comes to its end, and nothing is left behind.
        machine.rings.disconnect_all();
        while machine.engine.active() > 0 {
            machine.turn();
        }
        machine.turn();
        let slots = machine.engine.slots();
        assert_eq!((slots.small, slots.large), (slots.small_free, slots.large_free), "slots");
        assert_eq!(machine.rings.in_flight(), 0);
    }
    assert_eq!(sealed::broken(), 0, "allocations while sealed, warm-up included");
}
