//! Making images (docs/spec/qcow2.md §2).
use miniz_oxide::deflate::compress_to_vec;

use super::super::model::{ZERO, fill};
use super::super::rng::Rng;

/// The numbers of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 2 or 3.
    pub version: u32,
    /// Bits of a cluster.
    pub bits: u32,
    /// Clusters have subclusters.
    pub extended: bool,
    /// A count has `1 << order` bits.
    pub order: u32,
    /// Sectors of the disk.
    pub sectors: u64,
    /// Clusters of the count table.
    pub table: u64,
    /// Clusters that a device has, 0: a file.
    pub device: u64,
}

impl Layout {
    /// By chance.
    pub fn new(rng: &mut Rng, sectors: u64, device: bool) -> Layout {
        let long = sectors > 4096;
        let bits = [if long { 12 } else { 9 }, 12, 13, 14, 16][rng.below(5) as usize];
        let version = if rng.one_in(6) { 2 } else { 3 };
        let extended = version == 3 && bits >= 14 && rng.one_in(2);
        let order = if version == 2 { 4 } else { rng.below(7) as u32 };
        let mut layout = Layout { version, bits, extended, order, sectors, table: 1, device: 0 };
        let (data, l2, l1) = (layout.data(), layout.tables(), layout.l1_clusters());
        // What is full, and what leaks.
        let full = 2 * (data + l2) + l1 + 64;
        layout.table = (full.div_ceil(layout.per_block()) + 8).div_ceil(layout.cluster() / 8);
        let blocks = |clusters: u64| clusters.div_ceil(layout.per_block()) + 1;
        let needed = 1 + layout.table + l1 + l2 + data;
        if device {
            layout.device = needed + blocks(needed) + rng.below(8);
        }
        layout
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.bits
    }

    /// Bytes of an entry of an L2 table.
    pub fn entry(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Clusters of the disk.
    pub fn data(&self) -> u64 {
        (self.sectors * 512).div_ceil(self.cluster())
    }

    /// Clusters that a count block counts.
    pub fn per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.order
    }

    /// L2 tables of the disk.
    pub fn tables(&self) -> u64 {
        self.data().div_ceil(self.cluster() / self.entry())
    }

    /// Clusters of the L1.
    pub fn l1_clusters(&self) -> u64 {
        (self.tables() * 8).div_ceil(self.cluster())
    }

    /// Byte of the L1.
    pub fn l1_at(&self) -> u64 {
        (1 + self.table) * self.cluster()
    }

    fn header(&self) -> Vec<u8> {
        let mut bytes = vec![0; 112];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"QFI\xfb");
        put(4, &self.version.to_be_bytes());
        put(20, &self.bits.to_be_bytes());
        put(24, &(self.sectors * 512).to_be_bytes());
        put(36, &(self.tables() as u32).to_be_bytes());
        put(40, &self.l1_at().to_be_bytes());
        put(48, &self.cluster().to_be_bytes());
        put(56, &(self.table as u32).to_be_bytes());
        if self.version == 3 {
            put(72, &u64::from(self.extended).wrapping_mul(16).to_be_bytes());
            put(96, &self.order.to_be_bytes());
            put(100, &104u32.to_be_bytes());
        }
        bytes
    }
}

/// A count in the block at byte `at`.
fn add(bytes: &mut [u8], at: usize, index: usize, order: u32) {
    let bit = index << order;
    if order < 3 {
        bytes[at + bit / 8] += 1 << (bit % 8);
    } else {
        // Big endian, and small.
        bytes[at + bit / 8 + (1usize << (order - 3)) - 1] += 1;
    }
}

/// A new image. With `packed` some of its clusters are packed, whose sectors have values that go
/// into `values`.
pub fn make(layout: Layout, packed: Option<&mut Rng>, values: &mut [u64]) -> Vec<u8> {
    let cluster = layout.cluster();
    let mut used = vec![1; (1 + layout.table + layout.l1_clusters()) as usize];
    let mut bytes = layout.header();
    bytes.resize(used.len() * cluster as usize, 0);
    // A count of one bit cannot be shared.
    if let Some(rng) = packed.filter(|_| layout.order >= 3) {
        pack(&mut bytes, &layout, rng, (&mut used, values));
    }
    // The blocks count themselves.
    let mut blocks: u64 = 0;
    while blocks * layout.per_block() < used.len() as u64 + blocks {
        blocks += 1;
    }
    let first = used.len() as u64;
    used.extend((0..blocks).map(|_| 1));
    bytes.resize(used.len() * cluster as usize, 0);
    for block in 0..blocks {
        let at = cluster + block * 8;
        let place = (first + block) * cluster;
        bytes[at as usize..][..8].copy_from_slice(&place.to_be_bytes());
    }
    for (host, count) in (0..).zip(&used) {
        let at = (first + host / layout.per_block()) * cluster;
        for _ in 0..*count {
            add(&mut bytes, at as usize, (host % layout.per_block()) as usize, layout.order);
        }
    }
    if layout.device > 0 {
        // Old bytes wherever nothing was written.
        let all = layout.device.max(used.len() as u64) * cluster;
        bytes.resize(all as usize, 0xee);
    }
    bytes
}

/// One table, some of whose clusters are packed, side by side in the file.
fn pack(
    bytes: &mut Vec<u8>,
    layout: &Layout,
    rng: &mut Rng,
    (used, values): (&mut Vec<u32>, &mut [u64]),
) {
    let cluster = layout.cluster();
    let table = used.len() as u64 * cluster;
    used.push(1);
    let mut data = Vec::new();
    let entries = (cluster / layout.entry()).min(layout.sectors * 512 / cluster).min(24);
    let base = table + cluster;
    bytes.resize(base as usize, 0);
    let copied = (table | 1 << 63).to_be_bytes();
    bytes[layout.l1_at() as usize..][..8].copy_from_slice(&copied);
    for entry in 0..entries {
        if rng.one_in(2) {
            continue;
        }
        let sectors = cluster / 512;
        let mut unit = vec![0; cluster as usize];
        let first = entry * sectors;
        for (sector, buf) in (first..).zip(unit.chunks_exact_mut(512)) {
            let value = if rng.one_in(4) { ZERO } else { (1 << 20) + sector };
            fill(buf, sector, value);
            values[sector as usize] = value;
        }
        let packed = compress_to_vec(&unit, 1);
        // Not where it is no shorter; a sector's pattern always is.
        assert!((packed.len() as u64) < cluster, "a pattern packs well");
        let at = base + data.len() as u64;
        let more = (at % 512 + packed.len() as u64 - 1) / 512;
        let word = 1 << 62 | more << (62 - (layout.bits - 8)) | at;
        let place = (table + entry * layout.entry()) as usize;
        bytes[place..place + 8].copy_from_slice(&word.to_be_bytes());
        // All clusters that its sectors lie in count it.
        let last = (at / 512 * 512 + (more + 1) * 512 - 1) / cluster;
        used.resize(used.len().max(last as usize + 1), 0);
        (at / cluster..=last).for_each(|host| used[host as usize] += 1);
        data.extend(packed);
    }
    bytes.extend(data);
}
