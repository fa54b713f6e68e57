//! An image that was opened: its header, and its L1.
use std::path::Path;

use image::Storage;

use crate::error::{Error, errno::EINVAL};
use crate::header::{Header, READ_BYTES};

/// What an image turned out to be. Nothing was changed.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its header.
    pub header: Header,
    /// As far as the disk needs it.
    pub l1: Vec<u64>,
    /// Bytes of its file.
    pub bytes: u64,
}

impl Opened {
    /// Size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.header.size / 512
    }
}

/// Opens an image for reading.
///
/// # Errors
/// What is wrong with it, or not supported.
pub fn open(storage: &dyn Storage, name: &Path) -> Result<Opened, Error> {
    let failed = |what: &'static str| move |error| Error::io(name, what, &error);
    let bytes = storage.len().map_err(failed("its length"))?;
    let mut head = vec![0; READ_BYTES];
    let there = storage.read_at(0, &mut head).map_err(failed("its header"))?;
    head.truncate(there);
    let header = Header::read(name, &head)?;
    let needed = header.size.div_ceil(header.cluster()).div_ceil(header.entries());
    // `check` has seen that the table has so many, and no more than 32 MiB.
    let size = |n: u64| usize::try_from(n).expect("a table of 32 MiB at most");
    let mut table = vec![0; size(needed * 8)];
    // A file may end inside its last cluster; what lies behind its end reads as zeros.
    let there = size(bytes.saturating_sub(header.l1_at).min(needed * 8));
    storage.read_exact_at(header.l1_at, &mut table[..there]).map_err(failed("its L1 table"))?;
    let l1: Vec<u64> = table.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
    if header.size < 512 {
        let why = format!("has a size of {} bytes, less than a sector", header.size);
        return Err(Error::new(name, EINVAL, why));
    }
    Ok(Opened { header, l1, bytes })
}
