//! A short tale that chance hardly ever tells: base and top hold different data, both are on the
//! medium; while the top is committed the guest zeroes whole blocks, and soon power goes.
//!
//! Over a volatile cache with barriers: without them nobody is promised what a sector holds that
//! was not flushed since it changed.
use image::Span;
use request::Verb;

use super::{Ran, World};

/// Times that power goes.
const CUTS: u32 = 12;
/// Sectors of a block.
const BLOCK: u32 = 128;
/// Blocks that are used.
const BLOCKS: u64 = 4;

impl World {
    /// Tells it so many times.
    pub(super) fn zeros_and_cuts(mut self) -> Result<Ran, String> {
        for _ in 0..CUTS {
            self = self.zeros_and_a_cut()?;
        }
        Ok(self.ran())
    }

    fn zeros_and_a_cut(mut self) -> Result<World, String> {
        let write = Verb::Write { fua: false };
        let zero = Verb::Zero { keep: false, fast: false, fua: false };
        loop {
            self.stack.base_next = Some(false);
            self.pause()?;
            (0..BLOCKS).try_for_each(|block| self.ask(write, block))?;
            if self.formats.len() > 1 {
                break;
            }
        }
        self.stack.base_next = Some(true);
        self.pause()?;
        let (first, blocks) = (self.rng.below(BLOCKS), 1 + self.rng.below(BLOCKS));
        for block in (first..first + blocks).map(|block| block % BLOCKS) {
            self.ask(zero, block)?;
            for _ in 0..self.rng.below(40) {
                self.engine.disk().inner().complete_one();
                self.turn()?;
            }
        }
        self.power_cut()
    }

    /// Begins a request about a whole block.
    fn ask(&mut self, verb: Verb, block: u64) -> Result<(), String> {
        let span = Span { start: block * u64::from(BLOCK), count: BLOCK };
        while !self.begin(verb, span) {
            self.engine.disk().inner().complete_one();
            self.turn()?;
        }
        Ok(())
    }
}
