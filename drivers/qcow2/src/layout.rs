//! How large an image is, and what lies where in a new one (spec/qcow2.md §2.4).
//!
//! ```text
//!   header │ refcount table │ count blocks │ L1 │ (preallocated: L2 tables │ data)
//! ```
//! Logical volumes are sized by [`Shape::full_bytes`]: to the byte what qemu-img measures.
use crate::header::Header;
use crate::refcounts::per_block;

/// Largest L1 and refcount table in bytes.
const L1_BYTES_MAX: u64 = 32 << 20;
const TABLE_BYTES_MAX: u64 = 8 << 20;
/// Largest disk: its offsets have 63 bits, and everything is rounded up.
pub const SIZE_MAX: u64 = i64::MAX.unsigned_abs() / 512 * 512;

/// What sizes of an image depend on, beside the size of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// A cluster has so many bits: 9 to 21.
    pub cluster_bits: u32,
    /// A count has 1 << this many bits.
    pub refcount_order: u32,
    /// Clusters have subclusters.
    pub extended: bool,
}

impl Default for Shape {
    /// What the storage manager makes: 64 KiB, counts of 16 bits.
    fn default() -> Shape {
        Shape { cluster_bits: 16, refcount_order: 4, extended: false }
    }
}

impl Shape {
    /// That of an image.
    pub fn of(header: &Header) -> Shape {
        let Header { cluster_bits, refcount_order, extended, .. } = *header;
        Shape { cluster_bits, refcount_order, extended }
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn entries(&self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    /// Clusters of a disk of so many bytes.
    pub fn disk_clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }

    /// Entries that an L1 needs for a disk of so many bytes.
    pub fn l1_entries(&self, bytes: u64) -> u64 {
        self.disk_clusters(bytes).div_ceil(self.entries())
    }

    /// Whether an image may have a disk of so many bytes.
    pub fn holds(&self, bytes: u64) -> bool {
        bytes <= SIZE_MAX && self.l1_entries(bytes) * 8 <= L1_BYTES_MAX
    }

    /// Clusters of the refcount table and of the blocks that count so many other clusters and
    /// themselves.
    fn count_clusters(&self, others: u64) -> (u64, u64) {
        let (cluster, each) = (self.cluster(), per_block(self.cluster(), self.refcount_order));
        let (mut table, mut blocks) = (1, 1);
        loop {
            let all = others + table + blocks;
            let next_blocks = all.div_ceil(each);
            let next_table = (next_blocks * 8).div_ceil(cluster);
            if (next_table, next_blocks) == (table, blocks) {
                return (table, blocks);
            }
            // Neither becomes less: there is only more to count.
            (table, blocks) = (next_table.max(table), next_blocks.max(blocks));
        }
    }

    /// Bytes of an image whose disk is written all over; `None`: there is no such image.
    ///
    /// ```
    /// let shape = qcow2::layout::Shape::default();
    /// assert_eq!(shape.full_bytes(1 << 30), Some((1 << 30) + 393_216));
    /// ```
    pub fn full_bytes(&self, bytes: u64) -> Option<u64> {
        if !self.holds(bytes) {
            return None;
        }
        let cluster = self.cluster();
        let disk = self.disk_clusters(bytes);
        let l2 = disk.div_ceil(self.entries());
        let l1 = (l2 * 8).div_ceil(cluster);
        let others = 1 + l2 + l1 + disk;
        let (table, blocks) = self.count_clusters(others);
        (others + table + blocks).checked_mul(cluster)
    }
}

/// Where the parts of a new image are, in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the refcount table, which begins at 1: the header is one cluster.
    pub table: u64,
    /// Of the count blocks, which follow it.
    pub blocks: u64,
    /// Entries of the L1, which follows them.
    pub l1_entries: u64,
    /// Its clusters.
    pub l1: u64,
    /// L2 tables and clusters of data that are there from the start.
    pub l2: u64,
    /// The same of data.
    pub data: u64,
}

impl Layout {
    /// Of a new image for a disk of so many bytes, with all of the disk's clusters or none; `None`:
    /// there is no such image.
    pub fn new(shape: &Shape, bytes: u64, preallocated: bool) -> Option<Layout> {
        if !shape.holds(bytes) {
            return None;
        }
        let l1_entries = shape.l1_entries(bytes);
        let l1 = (l1_entries * 8).div_ceil(shape.cluster());
        let (l2, data) = match preallocated {
            true => (l1_entries, shape.disk_clusters(bytes)),
            false => (0, 0),
        };
        let (table, blocks) = shape.count_clusters(1 + l1 + l2 + data);
        let fits = table * shape.cluster() <= TABLE_BYTES_MAX;
        fits.then_some(Layout { table, blocks, l1_entries, l1, l2, data })
    }

    /// First cluster of the count blocks.
    pub fn blocks_at(&self) -> u64 {
        1 + self.table
    }

    /// First cluster of the L1.
    pub fn l1_at(&self) -> u64 {
        self.blocks_at() + self.blocks
    }

    /// First cluster of the L2 tables.
    pub fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1
    }

    /// First cluster of data.
    pub fn data_at(&self) -> u64 {
        self.l2_at() + self.l2
    }

    /// All clusters.
    pub fn clusters(&self) -> u64 {
        self.data_at() + self.data
    }
}

/// The bits of a cluster of so many bytes.
pub fn bits_of(cluster: u64) -> Option<u32> {
    let bits = cluster.trailing_zeros();
    (cluster.is_power_of_two() && (9..=21).contains(&bits)).then_some(bits)
}

/// The order of counts of so many bits.
pub fn order_of(bits: u64) -> Option<u32> {
    (bits.is_power_of_two() && bits <= 64).then(|| bits.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_spec() {
        const GIB: u64 = 1 << 30;
        let normal = Shape::default();
        for (bytes, more) in [
            (GIB, 393_216),
            (1024 * GIB, 168_034_304),
            (2040 * GIB, 334_495_744),
            (16_381 * GIB, 2_684_354_560),
            // What the storage manager allows at most.
            (17_589_500_641_280, 2_684_420_096),
        ] {
            assert_eq!(normal.full_bytes(bytes).map(|all| all - bytes), Some(more), "{bytes}");
        }
        let extended = Shape { cluster_bits: 14, extended: true, ..normal };
        assert_eq!(extended.full_bytes(1024 * GIB), Some(1024 * GIB + 1_208_745_984));
        let small = Shape { cluster_bits: 9, ..normal };
        assert!(small.holds(128 * GIB) && !small.holds(128 * GIB + 1));
        assert_eq!(normal.full_bytes(u64::MAX), None);
    }

    #[test]
    fn parts_follow_each_other() {
        let layout = Layout::new(&Shape::default(), 1 << 30, false).expect("it fits");
        let places = [layout.blocks_at(), layout.l1_at(), layout.l2_at(), layout.clusters()];
        assert_eq!(places, [2, 3, 4, 4]);
        let small = Shape { cluster_bits: 9, refcount_order: 6, extended: false };
        let layout = Layout::new(&small, 64 << 20, true).expect("it fits");
        assert!(layout.blocks * 64 >= layout.clusters(), "{layout:?}");
        assert!(layout.table * 64 >= layout.blocks);
    }
}
