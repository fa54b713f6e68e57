//! Which sectors an image holds itself, and which of them no image below holds.
use std::collections::BTreeMap;

/// The sectors that are present in one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Sectors in allocated blocks.
    pub allocated: u64,
    /// Sectors whose bits are set.
    pub written: u64,
    /// Sectors of a block; a power of two, at least 128.
    block: u64,
    /// Bits of the blocks that are there, most significant first; none of a block that is full.
    bits: BTreeMap<u64, Box<[u8]>>,
}

impl Present {
    /// Of an image with blocks of that many sectors, as yet of none.
    pub(crate) fn new(block: u64) -> Present {
        Present { block, ..Present::default() }
    }

    /// Adds a block by its bitmap, which covers it at least.
    pub(crate) fn add(&mut self, block: u32, bitmap: &[u8]) {
        let bytes = usize::try_from(self.block / 8).unwrap_or(usize::MAX);
        let bits = bitmap.get(..bytes).unwrap_or(bitmap);
        let set: u64 = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        self.allocated += self.block;
        self.written += set;
        let kept = if set == self.block { Box::default() } else { bits.into() };
        self.bits.insert(block.into(), kept);
    }

    /// How many of its sectors none of the others holds.
    ///
    /// ```
    /// use vhd_rs::{CheckOptions, check, files};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let name = dir.path().join("disk.vhd");
    /// files::create(&name, 10 << 20, None, false)?;
    /// let file = std::fs::File::open(&name)?;
    /// let o = CheckOptions { stats: true, now: files::now(), ..CheckOptions::default() };
    /// let empty = check(&file, &name, &o)?.present;
    /// assert_eq!(empty.not_in(&[&empty]), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn not_in(&self, others: &[&Present]) -> u64 {
        let mut below = vec![0; usize::try_from(self.block / 8).unwrap_or(0)];
        let mut count = 0;
        for (block, bits) in &self.bits {
            below.fill(0);
            others.iter().for_each(|other| other.mark(block * self.block, &mut below));
            let mine = |at: usize| bits.get(at).copied().unwrap_or(0xff);
            let alone = below.iter().enumerate().map(|(at, theirs)| mine(at) & !theirs);
            count += alone.map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        }
        count
    }

    /// Sets the bits of what is present from a sector on, which begins a byte as all blocks do.
    fn mark(&self, from: u64, out: &mut [u8]) {
        if self.block == 0 {
            return;
        }
        for (byte, sector) in out.iter_mut().zip((from..).step_by(8)) {
            let Some(bits) = self.bits.get(&(sector / self.block)) else { continue };
            let at = usize::try_from(sector % self.block / 8).unwrap_or(usize::MAX);
            *byte |= if bits.is_empty() { 0xff } else { bits.get(at).copied().unwrap_or(0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(block: u64, blocks: &[(u32, &[u8])]) -> Present {
        let mut out = Present::new(block);
        blocks.iter().for_each(|(n, bits)| out.add(*n, bits));
        out
    }

    #[test]
    fn sectors_are_compared_across_block_sizes() {
        let full = [0xff; 16];
        let mut half = [0; 16];
        half[..8].fill(0xff);
        // Blocks of 128 sectors, and one of 256 that lies over the first two of them.
        let small = of(128, &[(0, &full), (1, &half), (7, &full)]);
        let mut wide = [0; 32];
        wide[15] = 0x81;
        wide[31] = 0x80;
        let large = of(256, &[(0, &wide)]);
        assert_eq!((small.allocated, small.written), (384, 320));
        assert_eq!((large.allocated, large.written), (256, 3));
        assert_eq!(large.not_in(&[]), 3);
        assert_eq!(large.not_in(&[&small]), 1, "sector 248 lies in the clear half");
        assert_eq!(small.not_in(&[&large]), 318);
        assert_eq!(small.not_in(&[&large, &small]), 0);
        assert_eq!(Present::default().not_in(&[&small]), 0);
        assert_eq!(small.not_in(&[&Present::default()]), 320);
    }
}
