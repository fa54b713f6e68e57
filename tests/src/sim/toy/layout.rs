//! Where things are in such an image; making one, and checking one.
use std::collections::HashMap;

use super::super::model::{ZERO, fill};
use super::super::rng::Rng;

/// Sectors of a cluster.
pub const CLUSTER: u64 = 16;
/// Bytes of a cluster.
pub const CLUSTER_BYTES: u64 = CLUSTER * 512;
/// Entries of a table, and bytes from one to the next.
pub const ENTRIES: u64 = 16;
pub const STRIDE: u64 = 64;
/// Bytes of a piece of a table or of counts.
pub const PIECE: u16 = 1024;
/// Counts in a piece.
pub const COUNTS: u64 = PIECE as u64 / 2;
/// An entry of zeros.
pub const ZEROS: u64 = 1;
/// An entry of a packed unit; the byte offset is in the bits below.
pub const PACKED: u64 = 1 << 62;
/// Bytes of a packed unit: the pair that each of its sectors repeats.
pub const PACKED_BYTES: u32 = CLUSTER as u32 * 16;
const MAGIC: u64 = 0x746f_795f_696d_6167;

/// The numbers of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the disk.
    pub sectors: u64,
    /// Clusters that the counts have room for.
    pub clusters: u64,
}

impl Layout {
    /// Of a new image, with room to leak (on a device: hardly any).
    pub fn new(sectors: u64, device: bool, spare: u64) -> Layout {
        let data = sectors.div_ceil(CLUSTER);
        let tables = data.div_ceil(ENTRIES);
        let clusters = if device { data + tables + spare } else { 2 * (data + tables) + 512 };
        // Counts count themselves, too.
        let own = 2 + clusters.div_ceil(COUNTS).div_ceil(8) + 1;
        Layout { sectors, clusters: clusters + own }
    }

    /// Of an image that is there.
    pub fn read(bytes: &[u8]) -> Result<Layout, String> {
        if bytes.len() < CLUSTER_BYTES as usize || word(bytes, 0) != MAGIC {
            return Err("not an image of the toy format".into());
        }
        Ok(Layout { sectors: word(bytes, 8), clusters: word(bytes, 16) })
    }

    /// How many tables the L1 points at.
    pub fn tables(&self) -> u64 {
        self.sectors.div_ceil(CLUSTER * ENTRIES)
    }

    /// Where the sector of the L1 with a table's entry is.
    pub fn l1_sector(&self, table: u64) -> u64 {
        CLUSTER_BYTES + table * 8 / 512 * 512
    }

    /// Where the piece with a cluster's count is.
    pub fn count_piece(&self, cluster: u64) -> u64 {
        2 * CLUSTER_BYTES + cluster / COUNTS * u64::from(PIECE)
    }

    /// The first cluster behind the counts.
    pub fn first(&self) -> u64 {
        2 + self.clusters.div_ceil(COUNTS).div_ceil(8)
    }
}

/// The table and the entry in it of a cluster of the disk.
pub fn place(cluster: u64) -> (u64, u64) {
    (cluster / ENTRIES, cluster % ENTRIES)
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
}

fn count(bytes: &[u8], layout: &Layout, cluster: u64) -> u16 {
    let at = (layout.count_piece(cluster) + cluster % COUNTS * 2) as usize;
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn add(bytes: &mut [u8], layout: &Layout, cluster: u64) {
    let at = (layout.count_piece(cluster) + cluster % COUNTS * 2) as usize;
    let more = count(bytes, layout, cluster) + 1;
    bytes[at..at + 2].copy_from_slice(&more.to_le_bytes());
}

/// A new image. With `packed` some of its clusters hold packed units, whose sectors have values
/// that go into `values`.
pub fn make(layout: Layout, device: bool, packed: Option<&mut Rng>, values: &mut [u64]) -> Vec<u8> {
    let first = layout.first();
    let mut bytes = vec![0; (first * CLUSTER_BYTES) as usize];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 8, layout.sectors);
    put(&mut bytes, 16, layout.clusters);
    (0..first).for_each(|cluster| add(&mut bytes, &layout, cluster));
    if let Some(rng) = packed {
        pack(&mut bytes, &layout, rng, values);
    }
    if device {
        // Old bytes wherever nothing was written.
        bytes.resize((layout.clusters * CLUSTER_BYTES) as usize, 0xee);
    }
    bytes
}

/// One table, some of whose clusters are packed: up to three of them in a cluster of the file.
fn pack(bytes: &mut Vec<u8>, layout: &Layout, rng: &mut Rng, values: &mut [u64]) {
    let table = layout.first();
    let (l1, mut host, mut used) = (CLUSTER_BYTES, table, 3);
    bytes.resize(((table + 1) * CLUSTER_BYTES) as usize, 0);
    add(bytes, layout, table);
    put(bytes, l1, table * CLUSTER_BYTES);
    for entry in (0..ENTRIES).filter(|e| (e + 1) * CLUSTER <= layout.sectors) {
        if rng.one_in(2) {
            continue;
        }
        if used == 3 {
            (host, used) = (host + 1, 0);
            bytes.resize(((host + 1) * CLUSTER_BYTES) as usize, 0);
        }
        // Anywhere, and across sectors.
        let at = host * CLUSTER_BYTES + used * 1000 + 7;
        used += 1;
        add(bytes, layout, host);
        put(bytes, table * CLUSTER_BYTES + entry * STRIDE, PACKED | at);
        for i in 0..CLUSTER {
            let sector = entry * CLUSTER + i;
            let value = if rng.one_in(4) { ZERO } else { (1 << 20) + sector };
            let mut whole = [0; 512];
            fill(&mut whole, sector, value);
            bytes[(at + i * 16) as usize..][..16].copy_from_slice(&whole[..16]);
            values[sector as usize] = value;
        }
    }
}

/// Whether an image keeps its promises: leaks are allowed, nothing else.
///
/// # Errors
/// A sentence about what is broken.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let layout = Layout::read(bytes)?;
    // How often each is pointed at, and whether packed units alone do so.
    let mut used: HashMap<u64, (u16, bool)> = HashMap::new();
    let mut refer = |what: &str, byte: u64, packed: bool| {
        let cluster = byte / CLUSTER_BYTES;
        let inside = cluster >= layout.first() && cluster < layout.clusters;
        if !inside || !(packed || byte.is_multiple_of(CLUSTER_BYTES)) {
            return Err(format!("{what} points at byte {byte}"));
        }
        let (count, all_packed) = used.entry(cluster).or_insert((0, true));
        (*count, *all_packed) = (*count + 1, *all_packed && packed);
        if *count > 1 && !*all_packed {
            return Err(format!("{what} shares cluster {cluster}"));
        }
        Ok(())
    };
    for table in 0..layout.tables() {
        let at = word(bytes, CLUSTER_BYTES + table * 8);
        if at == 0 {
            continue;
        }
        refer("the L1", at, false)?;
        for entry in 0..ENTRIES {
            match word(bytes, at + entry * STRIDE) {
                0 | ZEROS => {}
                place => refer("a table", place & !PACKED, place & PACKED != 0)?,
            }
        }
    }
    for (cluster, (references, _)) in used {
        let counted = count(bytes, &layout, cluster);
        if counted < references {
            return Err(format!("cluster {cluster} counts {counted} of {references} references"));
        }
    }
    Ok(())
}
