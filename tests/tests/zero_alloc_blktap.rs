//! The proof of no allocation and no page fault on the path of a request of the blktap module:
//! 100,000 of all kinds, good and bad, through the ring, the daemon's engine and a real file; only
//! the kernel is in memory.
mod zero_alloc_support;

use std::fs::File;
use std::path::Path;

use disk::align::Aligned;
use disk::probe::{AnyDisk, EngineKind};
use engine::Engine;
use engine::limits::Limits;
use frontend::blktap::abi::{op, status};
use frontend::blktap::fake::{FakeSide, Kernel};
use frontend::blktap::{OWN_SLOTS, Tap};
use request::Slots;
use tapdisk::memory::Memory;
use tapdisk::sealed::{self, Sealable};
use tests::sim::rng::Rng;
use zero_alloc_support::{BYTES, engine, turn};

#[global_allocator]
static ALLOCATOR: Sealable = Sealable;

const WARM_UP: u64 = 20_000;
const REQUESTS: u64 = 100_000;

struct Machine {
    engine: Engine<Aligned<AnyDisk>>,
    tap: Tap<FakeSide>,
    kernel: Kernel,
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
        let limits = Limits { large: Limits::NORMAL.large + OWN_SLOTS, ..Limits::NORMAL };
        let (file, mut engine) = engine(path, format, kind, limits);
        let kernel = Kernel::default();
        let mut tap = Tap::new(kernel.side());
        assert!(tap.start(&mut engine), "slots");
        tap.set_events(true);
        let rng = Rng::new(43);
        let (clock, answered, refused, faults) = (1, 0, 0, (0, 0));
        Machine { engine, tap, kernel, rng, _file: file, clock, answered, refused, faults }
    }

    /// A request of any kind; some are more than the disk allows.
    fn ask(&mut self) {
        let rng = &mut self.rng;
        let sector = rng.below(BYTES / 512 - 2048);
        let (which, fua) = ([op::READ, op::WRITE][rng.below(2) as usize], rng.below(2) as u16);
        match rng.below(100) {
            0 => self.kernel.ask(op::FLUSH, 0, 0, 0),
            1 => self.kernel.ask(op::TRIM, 0, sector, 1 + rng.below(200) as u32),
            2 => self.kernel.ask(op::WRITE_ZEROES, fua << 1, sector, 1 + rng.below(200) as u32),
            3 => self.kernel.ask(99, 0, sector, 8),
            4 => self.kernel.ask(which, 0, u64::MAX - 3, 8),
            5 => self.kernel.ask(op::WRITE, fua, sector, 1 + rng.below(88) as u32),
            6..=19 => self.kernel.ask(which, 0, sector, 88),
            _ => self.kernel.ask(which, 0, sector / 8 * 8, 8),
        };
    }

    /// The kernel's part: takes answers, puts requests.
    fn drive(&mut self) {
        while let Some(answer) = self.kernel.answer() {
            self.answered += 1;
            self.refused += u64::from(answer.status != status::OKAY);
        }
        while self.kernel.has_room() && self.kernel.free_id().is_some() {
            self.ask();
        }
        self.kernel.show();
    }

    /// A turn as the server's, sealed; then what is left to wait for is waited for.
    fn turn(&mut self) {
        self.clock += 10;
        let clock = self.clock;
        let faults = turn(&mut self.engine, &mut self.tap, clock, |_| {});
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

/// All in one test: only one thread of a process may seal.
#[test]
fn the_path_of_a_request_of_the_module_neither_allocates_nor_faults() {
    sealed::abort_when_broken(false);
    let locked = Memory::lock() == Memory::Locked;
    if !locked {
        eprintln!("SKIPPED: page faults are not looked at, since memory may not be locked here");
    }
    let dir = tempfile::tempdir().unwrap();
    let kinds = [("io_uring", EngineKind::Uring), ("linux-aio", EngineKind::Aio)];
    for ((name, kind), format) in kinds.iter().flat_map(|k| ["raw", "vhd"].map(|f| (k, f))) {
        let path = dir.path().join(format!("{name}.{format}"));
        let mut machine = Machine::new(&path, format, *kind);
        machine.serve(WARM_UP);
        machine.faults = (0, 0);
        let allocations = sealed::broken();
        machine.serve(REQUESTS);
        assert_eq!(sealed::broken() - allocations, 0, "{name} {format}: allocations while sealed");
        let faults = machine.faults;
        assert!(!locked || faults == (0, 0), "{name} {format}: {faults:?} faults");
        assert!(machine.refused > REQUESTS / 100, "nonsense was refused");
        let (c, calls) = (machine.tap.counters(), machine.kernel.calls());
        assert!(c.requests.iter().all(|n| *n > 100), "{c:?}");
        println!("{name} {format}: {} answers, {} RESPOND", c.answers, calls.responds);
        while machine.engine.active() > 0 {
            machine.turn();
        }
        machine.turn();
        machine.tap.stop(&mut machine.engine);
        let slots = machine.engine.slots();
        assert_eq!((slots.small, slots.large), (slots.small_free, slots.large_free), "slots");
    }
    assert_eq!(sealed::broken(), 0, "allocations while sealed, warm-up included");
}
