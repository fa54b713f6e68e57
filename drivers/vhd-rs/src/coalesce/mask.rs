//! Which sectors of a block: 4096 bits in the order of a VHD bitmap, most significant first.
use crate::bytes::take;

/// Sectors of the largest block.
pub(super) const SECTORS: u32 = 4096;
const WORDS: usize = SECTORS as usize / 64;

/// A set of sectors of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mask([u64; WORDS]);

impl Mask {
    /// No sector.
    pub(super) const NONE: Mask = Mask([0; WORDS]);

    /// The first `count` sectors.
    pub(super) fn first(count: u32) -> Mask {
        let mut out = Mask::NONE;
        out.set(0, count);
        out
    }

    /// From a bitmap as it is stored; what is missing counts as clear.
    pub(super) fn of_bitmap(bytes: &[u8]) -> Mask {
        Mask(std::array::from_fn(|i| u64::from_be_bytes(take(bytes, i * 8))))
    }

    /// As it is stored.
    pub(super) fn bitmap(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// Adds sectors.
    pub(super) fn set(&mut self, first: u32, count: u32) {
        self.words(first, count, |word, bits| *word |= bits);
    }

    /// Takes sectors away.
    pub(super) fn clear(&mut self, first: u32, count: u32) {
        self.words(first, count, |word, bits| *word &= !bits);
    }

    /// Both together.
    pub(super) fn or(&self, other: &Mask) -> Mask {
        Mask(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }

    /// What is in this set and not in the other.
    pub(super) fn without(&self, other: &Mask) -> Mask {
        Mask(std::array::from_fn(|i| self.0[i] & !other.0[i]))
    }

    /// Number of sectors.
    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether all of `count` sectors are in it.
    pub(super) fn has_all(&self, first: u32, count: u32) -> bool {
        count == 0 || self.run(first, count) == (true, count)
    }

    /// Whether none of `count` sectors is in it.
    pub(super) fn has_none(&self, first: u32, count: u32) -> bool {
        self.run(first, count) == (false, count)
    }

    /// The runs of sectors within a range: first sector and count.
    pub(super) fn runs(&self, first: u32, count: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let (mut at, end) = (first, first + count);
        std::iter::from_fn(move || {
            while at < end {
                let (set, length) = self.run(at, end - at);
                at += length;
                if set {
                    return Some((at - length, length));
                }
            }
            None
        })
    }

    /// Whether the first sector is in it, and how many from there on are alike, at most `count`.
    fn run(&self, first: u32, count: u32) -> (bool, u32) {
        let count = count.min(SECTORS.saturating_sub(first));
        if count == 0 {
            return (false, 0);
        }
        let set = self.0[first as usize / 64] << (first % 64) >> 63 == 1;
        let mut length = 0;
        while length < count {
            let at = first + length;
            let word = self.0[at as usize / 64];
            let unlike = if set { !word } else { word } << (at % 64);
            let room = 64 - at % 64;
            let same = unlike.leading_zeros().min(room);
            length += same;
            if same < room {
                break;
            }
        }
        (set, length.min(count))
    }

    fn words(&mut self, first: u32, count: u32, mut change: impl FnMut(&mut u64, u64)) {
        let (mut at, end) = (first, (first + count).min(SECTORS));
        while at < end {
            let n = (64 - at % 64).min(end - at);
            change(&mut self.0[at as usize / 64], (u64::MAX << (64 - n)) >> (at % 64));
            at += n;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sectors(mask: &Mask) -> Vec<u32> {
        mask.runs(0, SECTORS).flat_map(|(first, count)| first..first + count).collect()
    }

    #[test]
    fn runs_are_what_was_set() {
        let mut mask = Mask::NONE;
        for (first, count) in [(0, 1), (62, 5), (128, 64), (4090, 6)] {
            mask.set(first, count);
        }
        mask.clear(130, 2);
        let runs: Vec<_> = mask.runs(0, SECTORS).collect();
        assert_eq!(runs, [(0, 1), (62, 5), (128, 2), (132, 60), (4090, 6)]);
        assert_eq!(mask.runs(64, 70).collect::<Vec<_>>(), [(64, 3), (128, 2), (132, 2)]);
        assert_eq!(mask.count(), 74);
        assert!(mask.has_all(62, 5) && !mask.has_all(62, 6) && mask.has_none(1, 61));
    }

    #[test]
    fn a_bitmap_comes_back_as_it_was() {
        let mut mask = Mask::first(9);
        mask.set(4095, 1);
        let bytes = mask.bitmap();
        assert_eq!((bytes.len(), &bytes[..2], bytes[511]), (512, &[0xff, 0x80][..], 1));
        assert_eq!(Mask::of_bitmap(&bytes), mask);
        assert_eq!(sectors(&mask), [0, 1, 2, 3, 4, 5, 6, 7, 8, 4095]);
        assert_eq!(Mask::of_bitmap(&[0x80]).count(), 1, "what is missing is clear");
    }

    #[test]
    fn nothing_at_the_end_is_nothing() {
        let mask = Mask::first(SECTORS);
        assert!(mask.has_all(SECTORS, 0) && mask.has_none(SECTORS, 0));
        assert_eq!(mask.runs(SECTORS, 0).count(), 0);
    }

    #[test]
    fn the_whole_block_is_one_run() {
        let mask = Mask::first(SECTORS);
        assert_eq!(mask.runs(0, SECTORS).collect::<Vec<_>>(), [(0, SECTORS)]);
        assert!(mask.has_all(0, SECTORS));
    }
}
