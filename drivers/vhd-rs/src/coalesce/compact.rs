//! Giving space back: blocks without data leave the table, the last blocks move into the room
//! between the others, the file ends behind the last one, and zeros within blocks become holes.
//!
//! ```text
//!   look at every block ─► batmap without the empty ones ─► flush ─► table without them ─► flush
//!   copy last blocks into free room ─► flush ─► table ─► flush      (again, until nothing is free below)
//!   footers, end of file, batmap ─► holes
//! ```
//! Room is used again only after the table that gave it up is on the disk; so a cut at any moment
//! leaves the disk as it was.
use std::path::Path;
use std::time::Instant;

use super::Progress;
use super::machine::aligned;
use super::mask::Mask;
use super::medium::{FileMedium, Medium, PAGE};
use super::memory::Pages;
use super::source::read_bitmap;
use crate::bat::{self, UNUSED};
use crate::batmap;
use crate::chain;
use crate::error::{VhdError, errno::EINVAL};
use crate::header::Header;
use crate::lock::{Others, lock_alone};
use crate::open::{self, OpenOptions, Opened};

/// Blocks moved before the table follows.
const BATCH: usize = 32;
/// Table entries in a sector.
const PER_SECTOR: u32 = 128;
/// Sectors of a page.
const PER_PAGE: u32 = PAGE as u32 / 512;

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Blocks that left the table.
    pub freed: u32,
    /// Blocks that moved towards the beginning.
    pub moved: u32,
    /// Bytes up to the end of the footer, before and after.
    pub physical: (u64, u64),
}

/// Compacts a dynamic or differencing image. Blocks of zeros are freed if the image has no parent;
/// over a parent, and in encrypted images, only blocks without any sector are.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let disk = dir.path().join("disk.vhd");
/// vhd_rs::files::create(&disk, 16 << 20, None, false)?;
/// let given = vhd_rs::coalesce::compact::compact(&disk, Default::default(), &mut |_| {})?;
/// assert_eq!((given.freed, given.moved), (0, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EBUSY while anybody has the image open, EINVAL for a fixed one, and those of the file; the disk
/// is the same in any case.
pub fn compact(
    name: &Path,
    others: Others,
    report: &mut dyn FnMut(&Progress),
) -> Result<Compacted, VhdError> {
    let medium = FileMedium::open(name, true)?;
    lock_alone(medium.handle(), name, others)?;
    // Zeros that hide what another image shows are not told from zeros that hide nothing.
    chain::verify(name)?;
    on(name, &medium, report)
}

/// The same on an open medium.
pub(super) fn on(
    name: &Path,
    medium: &dyn Medium,
    report: &mut dyn FnMut(&Progress),
) -> Result<Compacted, VhdError> {
    let o = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut opened = open::open(medium, name, &o)?;
    if let Some(block) = opened.bad_blocks.first().copied() {
        let sector = opened.bat.get(block as usize).copied().unwrap_or_default();
        let why = "points outside the file; such an image is not compacted";
        return Err(VhdError::Block { name: name.into(), block, sector, why });
    }
    opened.refuse_cut(name)?;
    let Some(header) = opened.header.clone() else {
        return Err(VhdError::request(name, EINVAL, "is a fixed image, which has all its blocks"));
    };
    crate::heal(medium, name, &mut opened, 512)?;
    let (before, unmarked) = (opened.end_of_data + 512, opened.marks_are_off());
    let bat = std::mem::take(&mut opened.bat);
    let full = std::mem::take(&mut opened.full);
    let pages = memory(name, PAGE + header.block_bytes as usize)?;
    let mut work = Work { name, medium, opened, header, bat, full, pages, holes: Vec::new() };
    let freed = work.look(report)?;
    work.free(&freed)?;
    let moved = work.gather()?;
    let after = work.end(unmarked || !freed.is_empty() || moved > 0)?;
    Ok(Compacted { freed: freed.len() as u32, moved, physical: (before, after) })
}

struct Work<'a> {
    name: &'a Path,
    medium: &'a dyn Medium,
    opened: Opened,
    header: Header,
    bat: Vec<u32>,
    full: Vec<u8>,
    /// A page, then a block.
    pages: Pages,
    /// Zeros within blocks that are worth a hole: block, first sector, count.
    holes: Vec<(u32, u32, u32)>,
}

impl Work<'_> {
    /// Reads all blocks; those that hold nothing.
    fn look(&mut self, report: &mut dyn FnMut(&Progress)) -> Result<Vec<u32>, VhdError> {
        let started = Instant::now();
        let zeros_count = self.opened.parent.is_none();
        let mut freed = Vec::new();
        let used: Vec<u32> =
            (0..).zip(&self.bat).filter(|(_, e)| **e != UNUSED).map(|(b, _)| b).collect();
        for (i, block) in used.iter().copied().enumerate() {
            let bits = self.bits(block)?;
            let data = self.data_of(block, &bits)?;
            if bits == Mask::NONE || (zeros_count && data == Mask::NONE) {
                freed.push(block);
            } else {
                let sectors = self.header.block_bytes / 512;
                let zeros = Mask::first(sectors).without(&data);
                let runs = zeros.runs(0, sectors).filter_map(whole_pages);
                self.holes.extend(runs.map(|(first, count)| (block, first, count)));
            }
            let blocks = i as u32 + 1;
            report(&Progress {
                blocks,
                blocks_total: used.len() as u32,
                upto: block + 1,
                blocks_disk: self.bat.len() as u32,
                bytes: u64::from(blocks) * u64::from(self.header.block_bytes),
                elapsed: started.elapsed(),
            });
        }
        Ok(freed)
    }

    fn bits(&self, block: u32) -> Result<Mask, VhdError> {
        if batmap::is_full(&self.full, block) {
            return Ok(Mask::first(self.header.block_bytes / 512));
        }
        read_bitmap(self.medium, self.name, self.bat[block as usize])
    }

    /// The sectors that are there and are not zeros; of an encrypted image all that are there.
    fn data_of(&mut self, block: u32, bits: &Mask) -> Result<Mask, VhdError> {
        let mut data = bits.clone();
        if self.opened.key_hash.is_some() {
            return Ok(data);
        }
        let at = u64::from(self.bat[block as usize]) * 512 + self.header.bitmap_bytes();
        for (first, count) in bits.runs(0, self.header.block_bytes / 512) {
            let skip = PAGE + image::bytes_of(first);
            let buf = &mut self.pages.all()[skip..skip + image::bytes_of(count)];
            let from = at + u64::from(first) * 512;
            self.medium
                .read_exact_at(from, buf)
                .map_err(|e| VhdError::io(self.name, "read data", from, &e))?;
            for (sector, bytes) in (first..).zip(buf.chunks_exact(512)) {
                if bytes == [0; 512] {
                    data.clear(sector, 1);
                }
            }
        }
        Ok(data)
    }

    /// Takes blocks out of the table. Their marks went when the image was healed.
    fn free(&mut self, freed: &[u32]) -> Result<(), VhdError> {
        if freed.is_empty() {
            return Ok(());
        }
        for block in freed {
            batmap::clear_full(&mut self.full, *block);
        }
        for block in freed {
            self.bat[*block as usize] = UNUSED;
        }
        self.write_table(freed.iter().copied())
    }

    /// Moves the last blocks into free room before them, batch by batch.
    fn gather(&mut self) -> Result<u32, VhdError> {
        let mut moved = 0;
        loop {
            let batch = self.moves();
            if batch.is_empty() {
                return Ok(moved);
            }
            for (block, lba) in &batch {
                self.copy(*block, *lba)?;
            }
            self.flush()?;
            for (block, lba) in &batch {
                self.bat[*block as usize] = *lba;
            }
            self.write_table(batch.iter().map(|(block, _)| *block))?;
            moved += batch.len() as u32;
        }
    }

    /// The next blocks to move and where they go: the last ones into the first free places.
    fn moves(&self) -> Vec<(u32, u32)> {
        let mut used: Vec<(u64, u32)> = (self.bat.iter().map(|e| u64::from(*e)).zip(0..))
            .filter(|(e, _)| *e != u64::from(UNUSED))
            .collect();
        used.sort_unstable();
        let stride = (self.header.bitmap_bytes() + u64::from(self.header.block_bytes)) / 512;
        let mut free = Vec::new();
        let mut at = self.opened.end_of_headers.div_ceil(512);
        for (lba, _) in &used {
            while free.len() < BATCH && aligned(at) + stride <= *lba {
                free.push(aligned(at));
                at = aligned(at) + stride;
            }
            at = lba + stride;
        }
        let last = used.iter().rev().zip(free);
        last.take_while(|((lba, _), to)| to < lba).map(|((_, b), to)| (*b, to as u32)).collect()
    }

    /// Copies bitmap and data of a block; zeros become holes.
    fn copy(&mut self, block: u32, to: u32) -> Result<(), VhdError> {
        let bits = self.bits(block)?;
        let data = self.data_of(block, &bits)?;
        let from = u64::from(self.bat[block as usize]) * 512 + self.header.bitmap_bytes();
        let at = u64::from(to) * 512;
        let start = at + self.header.bitmap_bytes();
        let bytes = u64::from(self.header.block_bytes);
        self.medium
            .zero_at(start, bytes, !self.medium.is_device())
            .map_err(|e| VhdError::io(self.name, "write zeros", start, &e))?;
        for (first, count) in data.runs(0, self.header.block_bytes / 512) {
            let skip = u64::from(first) * 512;
            let mut buf = memory(self.name, image::bytes_of(count))?;
            self.read(from + skip, buf.all())?;
            self.write(start + skip, buf.all())?;
        }
        self.write(at, &bits.bitmap())
    }

    /// Footers, the end of the file, the batmap; then holes. The end of the footer.
    fn end(&mut self, changed: bool) -> Result<u64, VhdError> {
        let end = bat::blocks_end(&self.header, self.bat.iter().copied());
        if changed {
            crate::closing(&self.opened, &self.bat, &self.full)
                .apply(self.medium)
                .map_err(|e| VhdError::io(self.name, "close the image", 0, &e))?;
        }
        if !self.medium.is_device() {
            self.punch()?;
        }
        self.flush()?;
        Ok(self.opened.end_of_headers.max(end) + 512)
    }

    /// Gives back zeros within blocks, and the room between them.
    fn punch(&self) -> Result<(), VhdError> {
        for (block, first, count) in &self.holes {
            let lba = u64::from(self.bat[*block as usize]) * 512 + self.header.bitmap_bytes();
            let (at, bytes) = (lba + u64::from(*first) * 512, u64::from(*count) * 512);
            if self.medium.data(at, at + bytes).is_some() {
                self.medium
                    .zero_at(at, bytes, true)
                    .map_err(|e| VhdError::io(self.name, "punch a hole", at, &e))?;
            }
        }
        Ok(())
    }

    /// Writes the table sectors of these blocks, and waits until they are on the disk.
    fn write_table(&self, blocks: impl Iterator<Item = u32>) -> Result<(), VhdError> {
        let mut sectors: Vec<u32> = blocks.map(|b| b / PER_SECTOR).collect();
        sectors.sort_unstable();
        sectors.dedup();
        for sector in sectors {
            let entries = self.bat.iter().chain(&self.opened.bat_tail);
            let from = (sector * PER_SECTOR) as usize;
            let bytes = bat::encode(entries.skip(from).take(PER_SECTOR as usize).copied());
            self.write(self.header.table_offset + u64::from(sector) * 512, &bytes)?;
        }
        self.flush()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), VhdError> {
        let failed = |e| VhdError::io(self.name, "read the image", at, &e);
        self.medium.read_exact_at(at, buf).map_err(failed)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VhdError> {
        let failed = |e| VhdError::io(self.name, "write the image", at, &e);
        self.medium.write_at(at, bytes).map_err(failed)
    }

    fn flush(&self) -> Result<(), VhdError> {
        self.medium.sync().map_err(|e| VhdError::io(self.name, "flush the image", 0, &e))
    }
}

fn memory(name: &Path, bytes: usize) -> Result<Pages, VhdError> {
    Pages::new(bytes).map_err(|e| VhdError::io(name, "get memory for a block of it", 0, &e))
}

/// The whole pages of a run of sectors.
fn whole_pages((first, count): (u32, u32)) -> Option<(u32, u32)> {
    let (from, to) = (first.next_multiple_of(PER_PAGE), (first + count) / PER_PAGE * PER_PAGE);
    (from < to).then(|| (from, to - from))
}
