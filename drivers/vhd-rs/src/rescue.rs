//! What can still be read of an image whose blocks lie upon each other, upon its metadata, or
//! beyond its end.
//!
//! ```text
//!   │ header │ … │ locator │            file: │ … block 7 │ end
//!        └ block 0 ┘   sectors shared               └ block 8 … ┘ sectors gone
//!            └ block 1 ┘ bitmap shared
//! ```
//! Only reading: an image with blocks upon others is not opened for writing. One that is cut is,
//! and grows to its whole length: the sectors that become zeros are named. A sector is lost if its
//! bytes are another's as well, or not there. A bitmap that is another's as well counts where all
//! its bits are set, which is what writers without bitmaps put there; else its block is lost.
use crate::bat::{self, UNUSED};
use crate::batmap;
use crate::error::VhdError;
use crate::footer::{FOOTER_BYTES, Footer};
use crate::header::HEADER_BYTES;
use crate::header::Header;
use crate::open::{BatmapState, batmap_place};
use image::Storage;
use std::fmt;
use std::path::Path;

/// Bitmaps that are read for this; blocks beyond are lost as a whole.
const BITMAPS_MAX: usize = 4096;

/// Why sectors cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The file ends before them.
    Cut,
    /// Another block lies there too.
    Block,
    /// Metadata lies there too.
    Metadata,
    /// The table entry of their block points at nothing.
    Nowhere,
}

/// Sectors that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The block.
    pub block: u32,
    /// First sector, counted from the block's.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// First sector, counted from the disk's.
    pub sector: u64,
    /// Why.
    pub why: Why,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.sector + u64::from(self.count.max(1)) - 1;
        let why = match self.why {
            Why::Cut => "are gone with the end of the file",
            Why::Block => "lie where another block lies too",
            Why::Metadata => "lie where metadata lies too",
            Why::Nowhere => "belong to a table entry that points at nothing",
        };
        write!(f, "sectors {} to {last} of the disk {why}", self.sector)
    }
}

/// What [`look`] finds.
#[derive(Default)]
pub(crate) struct Rescue {
    /// Blocks that are lost as a whole, sorted.
    pub bad: Vec<u32>,
    /// Sectors that are lost, sorted, those of the blocks above included.
    pub lost: Vec<Lost>,
    /// Blocks all of whose bits are set.
    pub full: Vec<u32>,
}

/// The parts of an image that have been read.
pub(crate) struct Parts<'a> {
    pub storage: &'a dyn Storage,
    pub name: &'a Path,
    pub footer: &'a Footer,
    pub header: &'a Header,
    pub batmap: &'a BatmapState,
    pub used: &'a [u32],
    pub full: &'a [u8],
    pub file_bytes: u64,
}

/// Looks at every block that cannot be read in the ordinary way.
///
/// # Errors
/// Those of reading bitmaps.
pub(crate) fn look(p: &Parts<'_>) -> Result<Rescue, VhdError> {
    let mut out = Rescue::default();
    for (n, (block, entry, taken)) in p.shared().into_iter().enumerate() {
        let start = bat::extent(p.header, entry).0;
        let data = start + p.header.bitmap_bytes();
        let shared = taken.iter().find(|(from, to, _)| *from < data && *to > start);
        let shared = shared.map(|(_, _, why)| *why);
        match p.present(block, start, shared, n < BITMAPS_MAX)? {
            Ok(bits) => {
                if shared.is_some() {
                    out.full.push(block);
                }
                out.lost.extend(p.lost_runs(block, data, &taken, &bits));
            }
            Err(why) => {
                out.bad.push(block);
                out.lost.push(p.lost(block, 0, p.sectors_of(block), why));
            }
        }
    }
    out.bad.sort_unstable();
    out.lost.sort_unstable_by_key(|lost| (lost.block, lost.first));
    Ok(out)
}

/// A range of bytes that is another's.
type Taken = (u64, u64, Why);

impl Parts<'_> {
    /// Blocks with ranges that are others' as well: number, entry, ranges. A block upon metadata is
    /// surely in the wrong place; whom it reaches into is innocent. Of the others, sorted by place
    /// and of one length, whoever reaches into a block is its neighbour, or hides behind one.
    fn shared(&self) -> Vec<(u32, u32, Vec<Taken>)> {
        let there = (0_u32..).zip(self.used).filter(|(_, entry)| **entry != UNUSED);
        let mut sorted: Vec<(u32, u32)> = there.map(|(block, entry)| (*entry, block)).collect();
        sorted.sort_unstable();
        let metadata = self.metadata();
        let (wrong, right): (Vec<_>, Vec<_>) = sorted.iter().partition(|(entry, _)| {
            let (start, end) = bat::extent(self.header, *entry);
            metadata.iter().any(|(from, to)| *from < end && *to > start)
        });
        let mut out = Vec::new();
        let mut note = |entry: u32, block: u32, neighbours: &[(u32, u32)]| {
            let (start, end) = bat::extent(self.header, entry);
            let blocks = neighbours.iter().map(|(entry, _)| bat::extent(self.header, *entry));
            let blocks = blocks.map(|(from, to)| (from, to, Why::Block));
            let others = metadata.iter().map(|(from, to)| (*from, *to, Why::Metadata));
            let beyond = match bat::reachable(self.header, entry, self.file_bytes) {
                true => (self.file_bytes, u64::MAX, Why::Cut),
                false => (start, u64::MAX, Why::Nowhere),
            };
            let all = std::iter::once(beyond).chain(others).chain(blocks);
            let taken: Vec<Taken> =
                all.filter(|(from, to, _)| *from < end && *to > start).collect();
            if !taken.is_empty() {
                out.push((block, entry, taken));
            }
        };
        for (entry, block) in &wrong {
            let at = right.partition_point(|(other, _)| other < entry);
            note(
                *entry,
                *block,
                right.get(at.saturating_sub(1)..(at + 1).min(right.len())).unwrap_or_default(),
            );
        }
        for (i, (entry, block)) in right.iter().enumerate() {
            let before = right.get(i.saturating_sub(1)..i).unwrap_or_default();
            let after = right.get(i + 1..(i + 2).min(right.len())).unwrap_or_default();
            note(*entry, *block, &[before, after].concat());
        }
        out
    }

    /// Where metadata lies that is in use.
    fn metadata(&self) -> Vec<(u64, u64)> {
        let (header, at) = (self.header, self.footer.data_offset);
        let mut out = vec![
            (0, FOOTER_BYTES as u64),
            (at, at.saturating_add(HEADER_BYTES as u64)),
            (header.table_offset, header.table_offset.saturating_add(header.table_bytes())),
        ];
        if let BatmapState::Valid { .. } = self.batmap {
            out.push(batmap_place(header, self.batmap));
        }
        let used = header.locators.iter().filter(|l| l.code != crate::locator::NONE);
        out.extend(used.map(|l| (l.offset, l.end())).filter(|(_, end)| *end <= self.file_bytes));
        out
    }

    fn sectors_of(&self, block: u32) -> u32 {
        let size = u64::from(self.header.block_bytes / 512);
        let left = (self.footer.current_bytes / 512).saturating_sub(u64::from(block) * size);
        u32::try_from(left.min(size)).unwrap_or(0)
    }

    /// Which sectors a block has, or why that cannot be known. `shared`: something else lies where
    /// its bitmap does; `look`: the bitmap may be read.
    fn present(
        &self,
        block: u32,
        at: u64,
        shared: Option<Why>,
        look: bool,
    ) -> Result<Result<Vec<bool>, Why>, VhdError> {
        if let Some(why @ (Why::Cut | Why::Nowhere)) = shared {
            return Ok(Err(why));
        }
        let count = self.sectors_of(block);
        if batmap::is_full(self.full, block) {
            return Ok(Ok(vec![true; count as usize]));
        }
        if !look {
            return Ok(Err(Why::Block));
        }
        let mut bytes = vec![0; usize::try_from(self.header.bitmap_bytes()).unwrap_or(512)];
        let failed = |e| VhdError::io(self.name, "read a bitmap", at, &e);
        self.storage.read_at(at, &mut bytes).map_err(failed)?;
        let bits: Vec<bool> = (0..count).map(|sector| batmap::is_full(&bytes, sector)).collect();
        Ok(match shared {
            Some(why) if bits.contains(&false) => Err(why),
            _ => Ok(bits),
        })
    }

    /// The sectors of a block that it has and that others have too.
    fn lost_runs(&self, block: u32, data: u64, taken: &[Taken], bits: &[bool]) -> Vec<Lost> {
        let mut out: Vec<Lost> = Vec::new();
        for (sector, _) in (0_u32..).zip(bits).filter(|(_, set)| **set) {
            let (from, to) = (data + u64::from(sector) * 512, data + u64::from(sector) * 512 + 512);
            let Some((_, _, why)) = taken.iter().find(|(a, b, _)| *a < to && *b > from) else {
                continue;
            };
            match out.last_mut() {
                Some(last) if last.why == *why && last.first + last.count == sector => {
                    last.count += 1
                }
                _ => out.push(self.lost(block, sector, 1, *why)),
            }
        }
        out
    }

    fn lost(&self, block: u32, first: u32, count: u32, why: Why) -> Lost {
        let start = u64::from(block) * u64::from(self.header.block_bytes / 512);
        Lost { block, first, count, sector: start + u64::from(first), why }
    }
}
