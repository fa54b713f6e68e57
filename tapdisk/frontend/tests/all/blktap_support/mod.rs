//! A ring of the blktap module over the fake engine of the NBD tests, and a kernel in memory.
#![allow(dead_code, reason = "each test program uses a part")]

pub use crate::nbd_support::engine;
use engine::Memory;
use frontend::Frontend;
use frontend::blktap::Tap;
use frontend::blktap::fake::{Answer, FakeSide, Kernel};
use frontend::nbd::Export;

/// A disk of 1 MiB.
pub const DISK: Export =
    Export { sectors: 2048, sector_size: 512, read_only: false, fast_zero: true };

pub struct Bench {
    pub memory: Memory,
    pub tap: Tap<FakeSide>,
    pub kernel: Kernel,
}

impl Bench {
    pub fn new(export: Export) -> Bench {
        Bench::over(Memory::new(export))
    }

    pub fn over(mut memory: Memory) -> Bench {
        let kernel = Kernel::default();
        let mut tap = Tap::new(kernel.side());
        assert!(tap.start(&mut memory), "slots");
        tap.set_events(true);
        Bench { memory, tap, kernel }
    }

    /// What the server does in a turn.
    pub fn turn(&mut self) {
        self.kernel.show();
        self.turn_as_it_is();
    }

    pub fn turn_as_it_is(&mut self) {
        self.tap.take(&mut self.memory);
        while let Some((slot, request, outcome)) = self.memory.finish() {
            self.tap.complete(&mut self.memory, slot, &request, outcome);
        }
        self.tap.kick(&mut self.memory);
    }

    /// Turns until nothing is left to do.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.turn_as_it_is();
            if !self.tap.pending(&self.memory) && self.memory.in_engine() == 0 {
                return;
            }
        }
        panic!("the ring never comes to rest");
    }

    pub fn answers(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.kernel.answer()).collect()
    }

    /// Id and status of the answers.
    pub fn statuses(&mut self) -> Vec<(u8, i16)> {
        self.answers().iter().map(|answer| (answer.id, answer.status)).collect()
    }

    /// Gives everything back, and the disk below.
    pub fn end(mut self) -> Memory {
        assert!(self.tap.idle(), "nothing is in the engine");
        self.tap.stop(&mut self.memory);
        assert_eq!(self.memory.reserved(), 0, "every slot comes back");
        self.memory
    }
}
