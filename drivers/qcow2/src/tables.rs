//! The tables that are held in memory, and where the pieces of the others are.
//!
//! | table | of | in memory | in pieces of |
//! |---|---|---|---|
//! | L1 | L2 tables | whole | 512 bytes, to be written |
//! | count table | count blocks | whole, of an image that is written | 512 bytes, to be written |
//! | L2 tables, count blocks | clusters | what is cached | 4096 bytes, a cluster if that is less |
use image::{MetaRef, Stop};

use crate::count::Width;
use crate::entry::{OFFSET, Shape, damaged};
use crate::header::Header;
use crate::num::{size, wide};
use crate::own::Own;

/// Bytes of a piece of a table at most.
pub const PIECE_BYTES: u16 = 4096;
/// Bytes of a piece of what is held in memory whole.
const SECTOR: u64 = 512;

/// Where the tables of an image are.
#[derive(Debug)]
pub struct Tables {
    shape: Shape,
    width: Width,
    piece: u16,
    l1_at: u64,
    table_at: u64,
    /// An entry for each L2 table, as on the disk.
    l1: Vec<u64>,
    /// Byte of each count block; of an image that is only read there are none.
    blocks: Vec<u64>,
    /// Clusters of the tables themselves.
    own: Own,
}

impl Tables {
    /// Of an image that is only read.
    pub fn new(header: &Header, l1: Vec<u64>) -> Tables {
        let piece = u16::try_from(header.cluster()).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        Tables {
            shape: Shape::of(header),
            width: Width::new(header.refcount_order),
            piece,
            l1_at: header.l1_at,
            table_at: header.table_at,
            l1,
            blocks: Vec::new(),
            own: Own::default(),
        }
    }

    /// The same with what is needed to write it.
    pub fn with_counts(self, blocks: Vec<u64>, own: Own) -> Tables {
        Tables { blocks, own, ..self }
    }

    fn piece_of(&self, table: u64, byte: u64) -> (MetaRef, usize) {
        let bytes = u64::from(self.piece);
        let r = MetaRef { at: table + byte / bytes * bytes, bytes: self.piece };
        (r, size(byte % bytes))
    }

    /// How many L2 tables the disk can have.
    pub fn l2_tables(&self) -> u64 {
        wide(self.l1.len())
    }

    /// Number of the L2 table of a cluster of the disk.
    pub fn l2_table_of(&self, cluster: u64) -> u64 {
        cluster / self.shape.entries
    }

    /// Whether there is an L2 table.
    pub fn has_l2_table(&self, table: u64) -> bool {
        self.l1[size(table)] & OFFSET != 0
    }

    /// There is one now.
    pub fn set_l2_table(&mut self, table: u64, word: u64) {
        self.l1[size(table)] = word;
    }

    /// The piece of the L2 table with the entry of a cluster, and the entry's byte in it; `None`:
    /// there is no table. It lies before byte `end` of the file.
    pub fn entry_piece(&self, cluster: u64, end: u64) -> Result<Option<(MetaRef, usize)>, Stop> {
        let table = self.l1[size(self.l2_table_of(cluster))] & OFFSET;
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(self.shape.bytes()) {
            return Err(damaged("an L1 entry is not on a cluster"));
        }
        let byte = cluster % self.shape.entries * wide(self.shape.entry_bytes());
        let (r, at) = self.piece_of(table, byte);
        if r.at + u64::from(r.bytes) > end {
            return Err(damaged("an L1 entry points outside the file"));
        }
        Ok(Some((r, at)))
    }

    /// The sector of the L1 with an entry, and the entry's byte in it.
    pub fn l1_sector(&self, table: u64) -> (MetaRef, usize) {
        sector_of(self.l1_at, table)
    }

    // ---- counts --------------------------------------------------------------------------------

    /// A count in a piece of a block.
    pub fn count(&self, piece: &[u8], at: usize) -> u64 {
        self.width.get(piece, at)
    }

    /// Changes one.
    pub fn set_count(&self, piece: &mut [u8], at: usize, count: u64) {
        self.width.set(piece, at, count);
    }

    /// Clusters of the file that a count block counts.
    pub fn block_counts(&self) -> u64 {
        self.width.counts_in(self.shape.bytes())
    }

    /// Clusters that a piece of one counts.
    pub fn piece_counts(&self) -> u64 {
        self.width.counts_in(self.piece.into())
    }

    /// Number of the count block of a cluster of the file.
    pub fn block_of(&self, host: u64) -> u64 {
        host / self.block_counts()
    }

    /// Whether there is a count block.
    pub fn has_block(&self, block: u64) -> bool {
        self.blocks.get(size(block)).is_some_and(|at| *at != 0)
    }

    /// There is a count block now, in this cluster of the file.
    pub fn set_block(&mut self, block: u64, host: u64) {
        self.blocks[size(block)] = host * self.shape.bytes();
        self.own.insert(host);
    }

    /// The piece with the count of a cluster, and the number of the count in it; `None`: it has no
    /// count block.
    pub fn count_piece(&self, host: u64) -> Option<(MetaRef, usize)> {
        let block = *self.blocks.get(size(self.block_of(host)))?;
        (block != 0).then(|| self.count_piece_in(block, host))
    }

    /// The same in a block at byte `block` of the file.
    pub fn count_piece_in(&self, block: u64, host: u64) -> (MetaRef, usize) {
        let (inside, counts) = (host % self.block_counts(), self.piece_counts());
        let at = block + inside / counts * u64::from(self.piece);
        (MetaRef { at, bytes: self.piece }, size(inside % counts))
    }

    /// The sector of the count table with an entry, and the entry's byte in it.
    pub fn block_sector(&self, block: u64) -> (MetaRef, usize) {
        sector_of(self.table_at, block)
    }

    // ---- what no guest's data may touch --------------------------------------------------------

    /// Whether a cluster of the file is one of the tables'.
    #[inline]
    pub fn owns(&self, host: u64) -> bool {
        self.own.has(host)
    }

    /// A cluster of the file is one of them now.
    pub fn own(&mut self, host: u64) {
        self.own.insert(host);
    }
}

fn sector_of(table: u64, entry: u64) -> (MetaRef, usize) {
    let byte = entry * 8;
    let at = table + byte / SECTOR * SECTOR;
    (MetaRef { at, bytes: 512 }, size(byte % SECTOR))
}
