//! One chunk on its way from the layers into the target. Whoever moves it has it for himself.
//!
//! ```text
//!   what the layers have ─► read (short gaps along) ─► zeros found ─► long runs written, holes kept
//!                                                                   └► a new block's bitmap
//! ```
//! A new block's bitmap is written here, because nothing points at it yet. The bitmap of a block
//! that was there before is handed back: it may be written only when the data is on the disk.
use super::mask::Mask;
use super::medium::PAGE;
use super::memory::Pages;
use super::reads::{BRIDGE, reads};
use super::source::{Extent, Source, read_bitmap, topmost};
use super::target::{Moved, Place, Target};
use crate::error::VhdError;

/// Zeros within data are worth a hole from this many sectors on.
const HOLE: u32 = 128;
/// Shorter runs are not worth a call to have them copied by the file system.
const COPY: u32 = 128;

/// A chunk and where it goes.
pub(super) struct Chunk<'a> {
    pub(super) target: &'a Target,
    pub(super) sources: &'a [Source],
    /// First sector on the disk.
    pub(super) start: u64,
    pub(super) count: u32,
    pub(super) place: Place,
    /// Byte of the chunk's first sector in the file.
    pub(super) data: u64,
    /// A page, then the chunk's sectors.
    pub(super) pages: &'a mut Pages,
}

/// A run of sectors to be written, or made zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    first: u32,
    count: u32,
    zero: bool,
}

impl Part {
    fn end(self) -> u32 {
        self.first + self.count
    }
}

impl Chunk<'_> {
    /// Moves everything.
    pub(super) fn fill(mut self) -> Result<Moved, VhdError> {
        let extents = topmost(self.sources, self.start, self.count)?;
        let sectors = extents.iter().map(|(_, e)| e.count).sum();
        if sectors == 0 {
            return Ok(Moved::default());
        }
        let theirs = self.theirs()?;
        let (copied, rest) = self.copy(extents)?;
        self.read(&rest)?;
        let parts: Vec<Part> = rest.iter().flat_map(|(_, extent)| self.parts(*extent)).collect();
        let (data, zeros) = self.wanted(&parts, &theirs);
        let blocked = theirs.without(&zeros).or(&copied);
        let (runs, zeros) = self.runs(&data, &zeros, &blocked);
        let set = data.or(&zeros.0).or(&copied);
        let written = runs.iter().map(|run| u64::from(run.count) * 512).sum::<u64>();
        self.zero(&zeros.1)?;
        let mut moved = Moved {
            sectors,
            bytes: written + u64::from(copied.count()) * 512,
            used: set != Mask::NONE,
            ..Moved::default()
        };
        match self.place {
            Place::New { .. } if !moved.used => return Ok(moved),
            Place::New { lba, lead } => self.write_new(&runs, &set, lba, lead)?,
            Place::Flat | Place::There { .. } => self.write(&runs)?,
        }
        let bits = theirs.or(&set);
        moved.full = self.count == self.target.chunk && bits.has_all(0, self.count);
        let there = matches!(self.place, Place::There { .. });
        moved.bitmap = (there && bits != theirs).then_some(bits);
        Ok(moved)
    }

    /// The sectors that the target shows now.
    fn theirs(&self) -> Result<Mask, VhdError> {
        Ok(match self.place {
            Place::There { full: true, .. } => Mask::first(self.count),
            Place::There { lba, .. } => read_bitmap(&*self.target.medium, &self.target.name, lba)?,
            Place::Flat if !self.target.fresh => Mask::first(self.count),
            Place::Flat | Place::New { .. } => Mask::NONE,
        })
    }

    /// Has the file system copy what it can; the sectors that are done, and what is left.
    #[allow(clippy::type_complexity)]
    fn copy(
        &self,
        extents: Vec<(usize, Extent)>,
    ) -> Result<(Mask, Vec<(usize, Extent)>), VhdError> {
        let mut copied = Mask::NONE;
        let mut rest = Vec::new();
        for (i, extent) in extents {
            if self.copy_one(&self.sources[i], extent)? {
                copied.set(extent.first, extent.count);
            } else {
                rest.push((i, extent));
            }
        }
        Ok((copied, rest))
    }

    fn copy_one(&self, source: &Source, extent: Extent) -> Result<bool, VhdError> {
        let worth = extent.count >= COPY && source.cipher().is_none();
        let (Some(from), true) = (extent.byte, worth) else { return Ok(false) };
        let medium = &self.target.medium;
        if !medium.shares_with(&*source.medium) {
            return Ok(false);
        }
        let at = self.byte(extent.first);
        medium
            .copy(at, &*source.medium, from, u64::from(extent.count) * 512)
            .map_err(|e| VhdError::io(&self.target.name, "copy data", at, &e))
    }

    /// Reads into the sectors' places; gaps between them are zeros afterwards.
    fn read(&mut self, extents: &[(usize, Extent)]) -> Result<(), VhdError> {
        let reads = reads(extents);
        if reads.len() > 1 {
            // All at once: the disk's queue is deeper than there are threads.
            for read in &reads {
                self.sources[read.source].medium.soon(read.byte, u64::from(read.count) * 512);
            }
        }
        for (_, zeros) in extents.iter().filter(|(_, extent)| extent.byte.is_none()) {
            self.sectors(zeros.first, zeros.count).fill(0);
        }
        let sources = self.sources;
        for read in &reads {
            let source = &sources[read.source];
            let first = self.start + u64::from(read.first);
            let buf = self.sectors(read.first, read.count);
            read_all(source, read.byte, buf)?;
            if let Some(cipher) = source.cipher() {
                cipher.decrypt(first, buf);
            }
            read.gaps.iter().for_each(|(first, count)| self.sectors(*first, *count).fill(0));
        }
        Ok(())
    }

    /// Splits what was read where there are zeros enough for a hole.
    fn parts(&mut self, extent: Extent) -> Vec<Part> {
        let mut out: Vec<Part> = Vec::new();
        let find = self.target.find_zeros;
        let bytes = self.sectors(extent.first, extent.count);
        let zero = |s: u32| find && bytes[image::bytes_of(s)..][..512] == [0; 512];
        let mut at = 0;
        while at < extent.count {
            let kind = zero(at);
            let count = 1 + (at + 1..extent.count).take_while(|s| zero(*s) == kind).count() as u32;
            let kind = kind && (count >= HOLE || count == extent.count);
            match out.last_mut() {
                Some(last) if last.zero == kind => last.count += count,
                _ => out.push(Part { first: extent.first + at, count, zero: kind }),
            }
            at += count;
        }
        out
    }

    /// The sectors to be written, and those that must become zeros.
    fn wanted(&self, parts: &[Part], theirs: &Mask) -> (Mask, Mask) {
        let (mut data, mut zeros) = (Mask::NONE, Mask::NONE);
        for part in parts {
            let there_already = self.target.below_zero && theirs.has_none(part.first, part.count);
            match part.zero {
                false => data.set(part.first, part.count),
                true if there_already => {}
                true => zeros.set(part.first, part.count),
            }
        }
        (data, zeros)
    }

    /// The runs to write, across gaps that may become zeros, and the zeros to set: all of them, and
    /// those that no run covers.
    fn runs(&mut self, data: &Mask, zeros: &Mask, blocked: &Mask) -> (Vec<Part>, (Mask, Mask)) {
        let whole = matches!(self.place, Place::New { .. })
            && self.target.medium.is_device()
            && !self.target.sparse;
        let bridge = if whole { self.count } else { BRIDGE };
        let mut runs: Vec<Part> = Vec::new();
        let mut uncovered = zeros.clone();
        let mut next = |this: &mut Self, first: u32, count: u32| {
            let from = runs.last().map_or(0, |run| run.end());
            let gap = first - from;
            let joined = !runs.is_empty() && gap <= bridge && blocked.has_none(from, gap);
            if joined || (whole && runs.is_empty()) {
                this.sectors(from, gap).fill(0);
                uncovered.clear(from, gap);
            }
            match runs.last_mut() {
                Some(last) if joined => last.count += gap + count,
                None if whole => runs.push(Part { first: 0, count: gap + count, zero: false }),
                _ => runs.push(Part { first, count, zero: false }),
            }
        };
        for (first, count) in data.runs(0, self.count) {
            next(self, first, count);
        }
        if whole && *data != Mask::NONE {
            next(self, self.count, 0);
        } else if whole && *zeros != Mask::NONE {
            uncovered = Mask::first(self.count);
        }
        (runs, (zeros.clone(), uncovered))
    }

    /// Makes sectors zeros. A new block of a file is all holes until it is written.
    fn zero(&self, zeros: &Mask) -> Result<(), VhdError> {
        let medium = &self.target.medium;
        if matches!(self.place, Place::New { .. }) && !medium.is_device() {
            return Ok(());
        }
        for (first, count) in zeros.runs(0, self.count) {
            let at = self.byte(first);
            medium
                .zero_at(at, u64::from(count) * 512, !medium.is_device())
                .map_err(|e| VhdError::io(&self.target.name, "write zeros", at, &e))?;
        }
        Ok(())
    }

    /// Data and bitmap of a new block, in one piece if it begins with data.
    fn write_new(
        &mut self,
        runs: &[Part],
        set: &Mask,
        lba: u32,
        lead: bool,
    ) -> Result<(), VhdError> {
        let bitmap = set.bitmap();
        match runs.split_first() {
            Some((first, rest)) if lead && first.first == 0 => {
                let head = &mut self.pages.all()[..PAGE];
                head.fill(0);
                head[PAGE - 512..].copy_from_slice(&bitmap);
                let bytes = PAGE + image::bytes_of(first.count);
                self.put(self.data - PAGE as u64, 0, bytes)?;
                self.write(rest)
            }
            _ => {
                self.write(runs)?;
                let at = u64::from(lba) * 512;
                let failed = |e| VhdError::io(&self.target.name, "write a bitmap", at, &e);
                self.target.medium.write_at(at, &bitmap).map_err(failed)
            }
        }
    }

    fn write(&mut self, runs: &[Part]) -> Result<(), VhdError> {
        for run in runs {
            let skip = PAGE + image::bytes_of(run.first);
            self.put(self.byte(run.first), skip, image::bytes_of(run.count))?;
        }
        Ok(())
    }

    fn put(&mut self, at: u64, skip: usize, bytes: usize) -> Result<(), VhdError> {
        let buf = &self.pages.all()[skip..skip + bytes];
        let failed = |e| VhdError::io(&self.target.name, "write data", at, &e);
        self.target.medium.write_at(at, buf).map_err(failed)
    }

    fn byte(&self, first: u32) -> u64 {
        self.data + u64::from(first) * 512
    }

    fn sectors(&mut self, first: u32, count: u32) -> &mut [u8] {
        &mut self.pages.all()[PAGE + image::bytes_of(first)..][..image::bytes_of(count)]
    }
}

/// Reads bytes of a layer; a raw image may end within a sector, a VHD must have them all.
fn read_all(source: &Source, byte: u64, buf: &mut [u8]) -> Result<(), VhdError> {
    let failed = |e| VhdError::io(&source.name, "read data", byte, &e);
    let got = source.medium.read_at(byte, buf).map_err(failed)?;
    if got < buf.len() && !source.is_raw() {
        return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
    }
    buf[got..].fill(0);
    Ok(())
}
