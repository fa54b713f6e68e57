//! The image that takes the sectors, chunk by chunk: a chunk is a block of it, or 2 MiB of a flat
//! one.
use std::path::PathBuf;

use super::chunk::Chunk;
use super::mask::Mask;
use super::medium::{Medium, PAGE};
use super::memory::Pages;
use super::source::Source;
use crate::error::VhdError;

/// Where a chunk lies in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At its own sectors: raw and fixed images.
    Flat,
    /// In a block that the table points at.
    There {
        /// Sector of its bitmap.
        lba: u32,
        /// Known to have every sector.
        full: bool,
    },
    /// In a new block.
    New {
        /// Sector of its bitmap.
        lba: u32,
        /// The page before the data belongs to this block alone.
        lead: bool,
    },
}

/// The image, as far as it does not change meanwhile.
pub(super) struct Target {
    pub(super) name: PathBuf,
    pub(super) medium: Box<dyn Medium>,
    /// Size in sectors.
    pub(super) sectors: u64,
    /// Sectors of a chunk.
    pub(super) chunk: u32,
    /// What is not in this image reads as zeros.
    pub(super) below_zero: bool,
    /// The file was empty: what was not written reads as zeros.
    pub(super) fresh: bool,
    /// Leave what lies under clear bits of new blocks as it is, on devices too.
    pub(super) sparse: bool,
    /// Sectors of zeros are not data (they are where data is encrypted).
    pub(super) find_zeros: bool,
}

/// What came of a chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Sectors that the layers had.
    pub(super) sectors: u32,
    /// Bytes that were written or copied.
    pub(super) bytes: u64,
    /// Bits to write when the data is on the disk: of a block that was there and gets more sectors.
    pub(super) bitmap: Option<Mask>,
    /// The new block holds something.
    pub(super) used: bool,
    /// Every sector is there.
    pub(super) full: bool,
}

impl Target {
    /// Memory for one chunk.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn memory(&self) -> Result<Pages, VhdError> {
        Pages::new(PAGE + image::bytes_of(self.chunk))
            .map_err(|e| VhdError::io(&self.name, "get memory for a block of it", 0, &e))
    }

    /// How many chunks there are.
    pub(super) fn chunks(&self) -> u32 {
        self.sectors.div_ceil(self.chunk.into()) as u32
    }

    /// Sectors of a chunk; the last may be shorter.
    pub(super) fn sectors_of(&self, chunk: u32) -> u32 {
        let start = u64::from(chunk) * u64::from(self.chunk);
        self.sectors.saturating_sub(start).min(self.chunk.into()) as u32
    }

    /// Moves what the layers have of a chunk into it.
    ///
    /// # Errors
    /// Those of the files. What was written then is not visible, or stands where the bits were set
    /// already.
    pub(super) fn fill(
        &self,
        sources: &[Source],
        chunk: u32,
        place: Place,
        pages: &mut Pages,
    ) -> Result<Moved, VhdError> {
        let start = u64::from(chunk) * u64::from(self.chunk);
        let data = match place {
            Place::Flat => start * 512,
            Place::There { lba, .. } | Place::New { lba, .. } => (u64::from(lba) + 1) * 512,
        };
        let count = self.sectors_of(chunk);
        Chunk { target: self, sources, start, count, place, data, pages }.fill()
    }

    /// Waits until what was written is on the disk.
    pub(super) fn flush(&self) -> Result<(), VhdError> {
        self.medium.sync().map_err(|e| VhdError::io(&self.name, "flush the image", 0, &e))
    }

    /// Writes metadata.
    pub(super) fn write(&self, pieces: &[(u64, Vec<u8>)]) -> Result<(), VhdError> {
        pieces.iter().try_for_each(|(at, bytes)| {
            let failed = |e| VhdError::io(&self.name, "write metadata", *at, &e);
            self.medium.write_at(*at, bytes).map_err(failed)
        })
    }
}
