//! Entries of L2 tables (docs/spec/qcow2.md §2.2): what they say of a cluster and of its parts.
//!
//! A *part* is what is there or not as a whole: a subcluster where an image has them, else the
//! cluster.
use image::Stop;

use crate::error::errno::EIO;
use crate::header::Header;

/// Bits of an offset in an entry of a table.
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an entry that have to be zero.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// What it points at counts exactly one, so that it may be changed where it is.
pub const COPIED: u64 = 1 << 63;
pub const PACKED: u64 = 1 << 62;
pub const ZERO: u64 = 1;
/// Subclusters of a cluster.
pub const PARTS: u64 = 32;

/// An image is damaged here: the error of this place.
pub fn damaged(why: &'static str) -> Stop {
    Stop::Fail { errno: EIO, why }
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The first word: where, and what.
    pub word: u64,
    /// Of an image with subclusters: which are there (low half), which read as zeros (high half).
    pub parts: u64,
}

/// What a part of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// In the file.
    Here,
    /// Zeros, whatever lies below.
    Zero,
    /// What lies below.
    Below,
}

/// What the header says of clusters and their entries.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Sectors of a cluster.
    pub sectors: u64,
    /// Clusters have subclusters.
    pub extended: bool,
    /// Entries of a table.
    pub entries: u64,
}

impl Shape {
    /// Of an image.
    pub fn of(header: &Header) -> Shape {
        let (sectors, entries) = (header.cluster() / 512, header.entries());
        Shape { sectors, extended: header.extended, entries }
    }

    /// Bytes of a cluster.
    pub fn bytes(self) -> u64 {
        self.sectors * 512
    }

    /// Bytes of an entry.
    pub fn entry_bytes(self) -> usize {
        if self.extended { 16 } else { 8 }
    }

    /// Parts of a cluster.
    pub fn parts(self) -> u64 {
        if self.extended { PARTS } else { 1 }
    }

    /// Sectors of a part.
    pub fn part_sectors(self) -> u64 {
        self.sectors / self.parts()
    }

    /// Reads an entry.
    pub fn get(self, piece: &[u8], at: usize) -> Entry {
        let word = |at: usize| {
            u64::from_be_bytes(piece[at..at + 8].try_into().expect("an entry lies in its piece"))
        };
        Entry { word: word(at), parts: if self.extended { word(at + 8) } else { 0 } }
    }

    /// Writes one.
    pub fn put(self, piece: &mut [u8], at: usize, entry: Entry) {
        piece[at..at + 8].copy_from_slice(&entry.word.to_be_bytes());
        if self.extended {
            piece[at + 8..at + 16].copy_from_slice(&entry.parts.to_be_bytes());
        }
    }

    /// What a part of a cluster that is not packed is.
    pub fn part(self, entry: Entry, number: u64) -> Result<Part, Stop> {
        let here = entry.host() != 0;
        if !self.extended {
            // Version 2 knows no zeros; qemu reads the bit there, too.
            return Ok(match entry.word & ZERO != 0 {
                true => Part::Zero,
                false if here => Part::Here,
                false => Part::Below,
            });
        }
        let (there, zero) = (entry.parts >> number & 1 == 1, entry.parts >> (number + 32) & 1 == 1);
        match (there, zero) {
            (true, true) => Err(damaged("a subcluster is there and zero at once")),
            (true, false) if !here => Err(damaged("a subcluster is there without a cluster")),
            (true, false) => Ok(Part::Here),
            (false, true) => Ok(Part::Zero),
            (false, false) => Ok(Part::Below),
        }
    }

    /// Checks an entry that is not packed.
    pub fn check(self, entry: Entry) -> Result<(), Stop> {
        let bad = match () {
            () if entry.word & RESERVED != 0 => "an L2 entry has unknown bits",
            () if !entry.host().is_multiple_of(self.bytes()) => "an L2 entry is not on a cluster",
            () if self.extended && entry.word & ZERO != 0 => "an L2 entry has unknown bits",
            () => return Ok(()),
        };
        Err(damaged(bad))
    }

    /// Marks of parts, one bit each, from one to before another.
    fn mask(from: u64, to: u64) -> u64 {
        let below = |n: u64| (1u64 << n) - 1;
        below(to) & !below(from)
    }

    /// The entry once parts of its cluster are in the file at `host`.
    pub fn with_data(self, old: Entry, host: u64, from: u64, to: u64) -> Entry {
        if !self.extended {
            return Entry { word: host | COPIED, parts: 0 };
        }
        let (mask, old) = (Shape::mask(from, to), if old.is_packed() { 0 } else { old.parts });
        Entry { word: host | COPIED, parts: (old | mask) & !(mask << 32) }
    }

    /// The entry once parts of its cluster read as zeros; a place that it has stays its own.
    pub fn with_zeros(self, old: Entry, from: u64, to: u64) -> Entry {
        if !self.extended {
            return Entry { word: old.word | ZERO, parts: 0 };
        }
        let mask = Shape::mask(from, to);
        Entry { word: old.word, parts: (old.parts & !mask) | mask << 32 }
    }

    /// The entry of a cluster of zeros that has no place.
    pub fn zeros(self) -> Entry {
        self.with_zeros(Entry::default(), 0, self.parts())
    }
}

impl Entry {
    /// Whether it points at packed data.
    pub fn is_packed(self) -> bool {
        self.word & PACKED != 0
    }

    /// Byte of its cluster in the file; 0: it has none. Not of what is packed.
    pub fn host(self) -> u64 {
        self.word & OFFSET
    }

    /// Whether its cluster may be changed where it is.
    pub fn is_copied(self) -> bool {
        self.word & COPIED != 0
    }
}
