//! A log that a daemon marks.
//!
//! ```text
//!   write arrives ─► Log::mark (bits of every touched block) ─► write is forwarded ─► answered
//! ```
//!
//! Bits are in the page cache before the write is forwarded, so whatever reached the disk is
//! marked, even if the process dies right after. Against a crash of the host stands the header's
//! `consistent`, which the storage manager clears before the disk is opened and sets after it was
//! closed. A log never clears a bit and never touches the header.
use crate::CbtError;
use crate::bitmap::{self, BLOCK_SECTORS};
use crate::file::LogFile;
use crate::header::HEADER_BYTES;
use crate::map::Map;
use std::io;
use std::path::{Path, PathBuf};

/// A mapped log that covers a disk.
#[derive(Debug)]
pub struct Log {
    name: PathBuf,
    map: Map,
    sectors: u64,
}

impl Log {
    /// Opens an existing log for a disk of this many sectors of 512 bytes, reads its bitmap in and
    /// locks it in memory where the limit allows it.
    ///
    /// # Errors
    /// EINVAL when the log does not cover the disk, whether by its header or by its length; those
    /// of the file system.
    pub fn open(name: &Path, sectors: u64) -> Result<Log, CbtError> {
        let disk = sectors.saturating_mul(512);
        let uncovered = |covers| CbtError::Uncovered { name: name.into(), covers, disk };
        let log = match LogFile::open(name, true) {
            Err(CbtError::Short { .. }) => return Err(uncovered(0)),
            opened => opened?,
        };
        let room = log.file_bytes().saturating_sub(HEADER_BYTES as u64);
        let room = room.saturating_mul(8 * bitmap::BLOCK_BYTES);
        let header = log.header();
        if bitmap::blocks(header.disk_bytes.min(room)) < bitmap::blocks(disk) {
            return Err(uncovered(header.disk_bytes.min(room)));
        }
        let failed = |e| CbtError::io(name, "map the changed-block log", &e);
        let bytes = bitmap::bytes(disk) + HEADER_BYTES as u64;
        let bytes = usize::try_from(bytes).map_err(|_| uncovered(0))?;
        let map = Map::new(log.into_file(), bytes).map_err(failed)?;
        Ok(Log { name: name.into(), map, sectors })
    }

    /// Sets the bits of every block that `count` sectors from `start` touch. Allocates nothing and
    /// makes no system call.
    ///
    /// # Panics
    /// If the sectors do not lie on the disk: requests were checked before.
    pub fn mark(&self, start: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = start.checked_add(count).filter(|end| *end <= self.sectors);
        let end = end.expect("a write lies on the disk");
        let (first, last) = (start / BLOCK_SECTORS, (end - 1) / BLOCK_SECTORS);
        for byte in first / 8..=last / 8 {
            let from = if byte == first / 8 { 0xff << (first % 8) } else { 0xff_u8 };
            let to = if byte == last / 8 { 0xff >> (7 - last % 8) } else { 0xff_u8 };
            self.map.set(HEADER_BYTES + byte as usize, from & to);
        }
    }

    /// Whether a block is marked; blocks beyond the disk are not.
    pub fn is_marked(&self, block: u64) -> bool {
        let inside = block < bitmap::blocks(self.sectors.saturating_mul(512));
        inside && self.map.get(HEADER_BYTES + (block / 8) as usize) & 1 << (block % 8) != 0
    }

    /// Writes the marks to the disk and waits for them. Not for the data path.
    ///
    /// # Errors
    /// EIO where the storage of the log fails.
    pub fn sync(&self) -> Result<(), CbtError> {
        let failed = |e: io::Error| CbtError::io(&self.name, "write the changed-block log", &e);
        self.map.sync().map_err(failed)
    }

    /// Whether the bitmap is locked in memory.
    pub fn locked(&self) -> bool {
        self.map.locked()
    }

    /// The path it was opened by.
    pub fn name(&self) -> &Path {
        &self.name
    }
}
