//! A set of slots, as bits: who waits for the same thing.
use request::SlotId;

/// Slots an engine may have at most.
pub const SLOTS_MAX: usize = 192;

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotSet {
    words: [u64; SLOTS_MAX / 64],
}

impl SlotSet {
    /// No slots.
    pub const EMPTY: SlotSet = SlotSet { words: [0; SLOTS_MAX / 64] };

    /// Adds a slot; false if it was in already.
    pub fn insert(&mut self, slot: SlotId) -> bool {
        let (word, bit) = (usize::from(slot.0) / 64, 1u64 << (slot.0 % 64));
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        fresh
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: SlotId) {
        self.words[usize::from(slot.0) / 64] &= !(1u64 << (slot.0 % 64));
    }

    /// Whether a slot is in.
    pub fn contains(&self, slot: SlotId) -> bool {
        self.words[usize::from(slot.0) / 64] & (1u64 << (slot.0 % 64)) != 0
    }

    /// How many are in.
    pub fn len(&self) -> u16 {
        self.words.iter().map(|word| word.count_ones() as u16).sum()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// Takes the lowest slot out.
    pub fn pop(&mut self) -> Option<SlotId> {
        let (i, word) = self.words.iter_mut().enumerate().find(|(_, w)| **w != 0)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        Some(SlotId((i * 64 + bit) as u16))
    }

    /// Everything, leaving nothing.
    pub fn take(&mut self) -> SlotSet {
        std::mem::take(self)
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: SlotSet) {
        for (a, b) in self.words.iter_mut().zip(other.words) {
            *a |= b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_in_order_and_once() {
        let mut set = SlotSet::default();
        for s in [190, 3, 64, 63] {
            assert!(set.insert(SlotId(s)));
            assert!(!set.insert(SlotId(s)));
        }
        set.remove(SlotId(64));
        assert_eq!(set.len(), 3);
        assert!(!set.contains(SlotId(64)) && set.contains(SlotId(63)));
        let order: Vec<u16> = std::iter::from_fn(|| set.pop()).map(|s| s.0).collect();
        assert_eq!(order, [3, 63, 190]);
        assert!(set.is_empty());
    }
}
