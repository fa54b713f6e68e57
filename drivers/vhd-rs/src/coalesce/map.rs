//! The map of a disk: which layer holds which range, and where.
//!
//! ```
//! let dir = tempfile::tempdir()?;
//! let disk = dir.path().join("disk.vhd");
//! vhd_rs::files::create(&disk, 16 << 20, None, false)?;
//! let mut ranges = Vec::new();
//! vhd_rs::coalesce::map::map(&disk, false, &mut |range| ranges.push(*range))?;
//! assert_eq!((ranges.len(), ranges[0].sectors, ranges[0].layer), (1, 32768, None)); // all zeros
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
use std::path::{Path, PathBuf};

use super::convert::layers;
use super::source::{Source, topmost};
use crate::error::VhdError;

/// Sectors looked at together.
const CHUNK: u32 = super::mask::SECTORS;

/// A run of sectors that lie in one place, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector of the disk.
    pub start: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// The layer that has them, 0 for the image itself; `None` for zeros that no layer has.
    pub layer: Option<usize>,
    /// Byte offset in that layer's file.
    pub byte: Option<u64>,
}

impl Range {
    /// Whether another one goes on where this one ends, on the disk and in the file.
    fn goes_on_with(&self, next: &Range) -> bool {
        let byte = self.byte.map(|byte| byte + self.sectors * 512);
        self.layer == next.layer && byte == next.byte && self.start + self.sectors == next.start
    }
}

/// Visits all ranges of a disk in order; the paths of the layers, the image itself first.
///
/// # Errors
/// Those of the images.
pub fn map(
    name: &Path,
    raw: bool,
    visit: &mut dyn FnMut(&Range),
) -> Result<Vec<PathBuf>, VhdError> {
    let sources = layers(name, raw, None)?;
    let all = sources.first().map_or(0, Source::sectors);
    let mut last: Option<Range> = None;
    let mut push = |range: Range| match &mut last {
        Some(last) if last.goes_on_with(&range) => last.sectors += range.sectors,
        last => {
            if let Some(done) = last.replace(range) {
                visit(&done);
            }
        }
    };
    let mut start = 0;
    while start < all {
        let count = (all - start).min(CHUNK.into()) as u32;
        chunk(&sources, start, count, &mut push)?;
        start += u64::from(count);
    }
    if let Some(done) = last {
        visit(&done);
    }
    Ok(sources.into_iter().map(|s| s.name).collect())
}

fn chunk(
    sources: &[Source],
    start: u64,
    count: u32,
    push: &mut dyn FnMut(Range),
) -> Result<(), VhdError> {
    let mut at = 0;
    let mut range = |first: u32, count: u32, layer, byte| {
        if count > 0 {
            push(Range { start: start + u64::from(first), sectors: count.into(), layer, byte });
        }
    };
    for (layer, extent) in topmost(sources, start, count)? {
        range(at, extent.first - at, None, None);
        range(extent.first, extent.count, extent.byte.map(|_| layer), extent.byte);
        at = extent.first + extent.count;
    }
    range(at, count - at, None, None);
    Ok(())
}
