//! A layer whose sectors are moved: which of them it has, and where in its file.
use std::path::{Path, PathBuf};

use super::mask::Mask;
use super::medium::Medium;
use crate::bat::UNUSED;
use crate::batmap;
use crate::crypt::Cipher;
use crate::error::VhdError;
use crate::key;
use crate::open::Opened;
use crate::rescue::Lost;

/// A layer.
pub(super) struct Source {
    pub(super) name: PathBuf,
    pub(super) medium: Box<dyn Medium>,
    /// `None` for a raw image.
    opened: Option<Opened>,
    sectors: u64,
    /// Turns its data into what the disk shows, where that is wanted.
    cipher: Option<Cipher>,
    /// What cannot be read of it counts as zeros; [`missing`] names it.
    rescued: bool,
}

/// Sectors of a chunk that lie together in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First sector, counted from the chunk's start.
    pub(super) first: u32,
    pub(super) count: u32,
    /// Byte offset in the file; `None` for sectors that read as zeros here.
    pub(super) byte: Option<u64>,
}

impl Source {
    /// A VHD, opened for reading.
    pub(super) fn vhd(name: &Path, medium: Box<dyn Medium>, opened: Opened) -> Source {
        Source {
            name: name.into(),
            medium,
            sectors: opened.sectors,
            opened: Some(opened),
            cipher: None,
            rescued: false,
        }
    }

    /// The same, of which everything is taken that can be read.
    pub(super) fn rescued(mut self) -> Source {
        self.rescued = true;
        self
    }

    /// A raw image of that many bytes.
    pub(super) fn raw(name: &Path, medium: Box<dyn Medium>, bytes: u64) -> Source {
        Source {
            name: name.into(),
            medium,
            sectors: bytes.div_ceil(512),
            opened: None,
            cipher: None,
            rescued: false,
        }
    }

    /// Takes the key of its data, so that what is read is what the disk shows.
    ///
    /// # Errors
    /// Those of [`key::cipher`].
    pub(super) fn unlock(&mut self, key: Option<&[u8]>) -> Result<(), VhdError> {
        let Some(opened) = &self.opened else { return Ok(()) };
        self.cipher = key::cipher(&self.name, opened.key_hash.as_ref(), key)?;
        Ok(())
    }

    /// What decrypts its data.
    pub(super) fn cipher(&self) -> Option<&Cipher> {
        self.cipher.as_ref()
    }

    /// Whether it is a raw image.
    pub(super) fn is_raw(&self) -> bool {
        self.opened.is_none()
    }

    /// Size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether any sector of a range can be in this layer, as far as the table tells.
    pub(super) fn touches(&self, start: u64, count: u32) -> bool {
        let end = (start + u64::from(count)).min(self.sectors);
        match self.table() {
            Some((o, size)) if start < end => (start / size..end.div_ceil(size))
                .any(|b| o.bat.get(b as usize).is_some_and(|e| *e != UNUSED)),
            _ => start < end && self.medium.data(start * 512, end * 512).is_some(),
        }
    }

    /// What this layer has of a range, in order.
    ///
    /// # Errors
    /// EIO for a block whose table entry cannot be right, and those of the file.
    pub(super) fn extents(&self, start: u64, count: u32) -> Result<Vec<Extent>, VhdError> {
        let end = (start + u64::from(count)).min(self.sectors);
        let mut out = Vec::new();
        let Some((o, size)) = self.table() else {
            self.flat(start, end, &mut out);
            return Ok(out);
        };
        let mut at = start;
        while at < end {
            let upto = (at / size * size + size).min(end);
            self.block(o, (at / size) as u32, at, upto, start, &mut out)?;
            at = upto;
        }
        Ok(out)
    }

    /// The table of a dynamic image and its sectors a block.
    fn table(&self) -> Option<(&Opened, u64)> {
        let o = self.opened.as_ref()?;
        o.header.as_ref().map(|h| (o, u64::from(h.block_bytes / 512)))
    }

    /// A raw or fixed image: all but its holes.
    fn flat(&self, start: u64, end: u64, out: &mut Vec<Extent>) {
        let mut at = start;
        while let Some((from, to)) = self.medium.data(at * 512, end * 512) {
            let (from, to) = ((from / 512).max(at), to.div_ceil(512).min(end));
            out.push(Extent {
                first: (from - start) as u32,
                count: (to - from) as u32,
                byte: Some(from * 512),
            });
            at = to;
        }
    }

    fn block(
        &self,
        o: &Opened,
        block: u32,
        at: u64,
        upto: u64,
        start: u64,
        out: &mut Vec<Extent>,
    ) -> Result<(), VhdError> {
        let lba = o.bat.get(block as usize).copied().unwrap_or(UNUSED);
        if lba == UNUSED {
            return Ok(());
        }
        let bad = o.bad_blocks.binary_search(&block).is_ok();
        let data = u64::from(lba) * 512 + o.bitmap_bytes();
        let base = u64::from(block) * (o.block_bytes() / 512);
        let (within, count) = ((at - base) as u32, (upto - at) as u32);
        if !self.rescued && (bad || o.lost_in(block, within, count).is_some()) {
            let why =
                "cannot be right: blocks lie upon each other, upon metadata or beyond the end";
            return Err(VhdError::Block { name: self.name.clone(), block, sector: lba, why });
        }
        let mut push = |first: u32, count: u32| {
            for (first, count, there) in parts(o, block, first, count) {
                let byte = there.then(|| data + u64::from(first) * 512);
                out.push(Extent { first: (base + u64::from(first) - start) as u32, count, byte });
            }
        };
        if bad {
            push(within, count);
            return Ok(());
        }
        if batmap::is_full(&o.full, block) {
            push(within, count);
            return Ok(());
        }
        let bits = read_bitmap(&*self.medium, &self.name, lba)?;
        bits.runs(within, count).for_each(|(first, count)| push(first, count));
        Ok(())
    }
}

/// A run of sectors of a block in parts: first, count, and whether it can be read.
fn parts(o: &Opened, block: u32, first: u32, count: u32) -> Vec<(u32, u32, bool)> {
    let (mut at, end) = (first, first + count);
    let mut out = Vec::new();
    while let Some((lost, n)) = o.lost_in(block, at, end - at) {
        out.push((at, lost - at, true));
        out.push((lost, n, false));
        at = lost + n;
    }
    out.push((at, end - at, true));
    out.retain(|(_, count, _)| *count > 0);
    out
}

/// What cannot be read of a stack of layers, and is not hidden by a layer above: the layer, the
/// sectors and why.
///
/// # Errors
/// Those of the files.
pub(super) fn missing(sources: &[Source]) -> Result<Vec<(PathBuf, Lost)>, VhdError> {
    let mut out = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        for lost in source.opened.iter().flat_map(|o| &o.lost) {
            let mut left = Mask::first(lost.count);
            for above in sources.get(..i).unwrap_or_default() {
                for extent in above.extents(lost.sector, lost.count)? {
                    left.clear(extent.first, extent.count);
                }
            }
            let seen = left.runs(0, lost.count).map(|(skip, count)| Lost {
                first: lost.first + skip,
                sector: lost.sector + u64::from(skip),
                count,
                ..*lost
            });
            out.extend(seen.map(|lost| (source.name.clone(), lost)));
        }
    }
    Ok(out)
}

/// The bitmap of a block at this place.
pub(super) fn read_bitmap(medium: &dyn Medium, name: &Path, lba: u32) -> Result<Mask, VhdError> {
    let at = u64::from(lba) * 512;
    let mut bytes = [0; 512];
    medium
        .read_exact_at(at, &mut bytes)
        .map_err(|e| VhdError::io(name, "read a bitmap", at, &e))?;
    Ok(Mask::of_bitmap(&bytes))
}

/// What a stack of layers has of a range: for every sector the topmost layer that has it, with that
/// layer's number, in the order of the sectors. A layer that ends before the disk does hides what
/// is below (§9).
pub(super) fn topmost(
    sources: &[Source],
    start: u64,
    count: u32,
) -> Result<Vec<(usize, Extent)>, VhdError> {
    let mut left = Mask::first(count);
    let mut out = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        for extent in source.extents(start, count)? {
            for (first, count) in left.runs(extent.first, extent.count) {
                let skip = u64::from(first - extent.first) * 512;
                let byte = extent.byte.map(|byte| byte + skip);
                out.push((i, Extent { first, count, byte }));
            }
            left.clear(extent.first, extent.count);
        }
        let there = source.sectors().saturating_sub(start).min(u64::from(count)) as u32;
        if there < count && i + 1 < sources.len() && i > 0 {
            for (first, count) in left.runs(there, count - there) {
                out.push((i, Extent { first, count, byte: None }));
            }
            left.clear(there, count - there);
        }
    }
    out.sort_unstable_by_key(|(_, extent)| extent.first);
    Ok(out)
}
