//! The clusters of an image's own tables: nothing of the guest's is ever written there, whatever an
//! L2 table says (docs/spec/qcow2.md §3).
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// Spreads cluster numbers: nobody gains by numbers that meet, since the image's own tables are
/// all that is in the set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// Numbers of clusters of the file.
#[derive(Debug, Default)]
pub struct Own(HashSet<u64, BuildHasherDefault<Spread>>);

impl Own {
    /// With room for so many.
    pub fn with_room(clusters: usize) -> Own {
        Own(HashSet::with_capacity_and_hasher(clusters, BuildHasherDefault::default()))
    }

    /// Adds one; false if it was there already.
    pub fn insert(&mut self, host: u64) -> bool {
        self.0.insert(host)
    }

    /// Whether it is one of them.
    #[inline]
    pub fn has(&self, host: u64) -> bool {
        self.0.contains(&host)
    }
}
