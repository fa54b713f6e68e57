//! The header as offline changes see it: its bytes, and what [`Header`] leaves out.
//!
//! It is read afresh before each change, and changed in its fields, because the storage manager
//! writes into it by itself (spec/qcow2.md §5.3).
use std::path::Path;

use image::Storage;

use crate::error::Error;
use crate::extension::{self, extensions};
use crate::header::{Header, READ_BYTES};
use crate::num::{size, word32, word64};
use crate::opened::{Opened, open};

/// Offset of the incompatible features.
const FEATURES: u64 = 72;
const DIRTY: u64 = 1;
const CORRUPT: u64 = 2;
/// Autoclear bit: the bitmaps are true.
const BITMAPS: u64 = 1;

/// Where persistent bitmaps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bitmaps {
    pub(crate) count: u32,
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

/// A header and its bytes.
#[derive(Clone, Debug)]
pub struct Head {
    /// What it says.
    pub header: Header,
    /// The first bytes of the file.
    pub bytes: Vec<u8>,
    /// Bytes of the file, or of the device.
    pub len: u64,
}

impl Head {
    /// Reads it.
    ///
    /// # Errors
    /// Those of the file; what is wrong with the header or not supported.
    pub fn read(storage: &dyn Storage, name: &Path) -> Result<Head, Error> {
        let failed = |what: &'static str| move |error| Error::io(name, what, &error);
        let len = storage.len().map_err(failed("its length"))?;
        let mut bytes = vec![0; READ_BYTES];
        let there = storage.read_at(0, &mut bytes).map_err(failed("its header"))?;
        bytes.truncate(there);
        let header = Header::read(name, &bytes)?;
        Ok(Head { header, bytes, len })
    }

    /// Clusters of the file, the last one perhaps in part.
    pub(crate) fn clusters(&self) -> u64 {
        self.len.div_ceil(self.header.cluster())
    }

    /// Where the fields end and extensions begin.
    pub(crate) fn fields_end(&self) -> usize {
        if self.header.version == 2 { 72 } else { size(word32(&self.bytes, 100).into()) }
    }

    fn features(&self, at: usize) -> u64 {
        if self.header.version == 2 { 0 } else { word64(&self.bytes, at) }
    }

    /// Whether counts may be written late.
    pub fn is_lazy(&self) -> bool {
        self.features(80) & 1 == 1
    }

    /// The clear-on-write features.
    pub(crate) fn autoclear(&self) -> u64 {
        self.features(88)
    }

    /// Where the snapshots are.
    pub(crate) fn snapshots_at(&self) -> u64 {
        word64(&self.bytes, 64)
    }

    /// The bytes with the extensions.
    pub(crate) fn extension_bytes(&self) -> &[u8] {
        let end = match word64(&self.bytes, 8) {
            0 => self.header.cluster(),
            at => at,
        };
        let end = usize::try_from(end).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.get(self.fields_end()..end).unwrap_or_default()
    }

    /// Persistent bitmaps, if they count: who writes without knowing them clears their bit.
    pub(crate) fn bitmaps(&self) -> Option<Bitmaps> {
        let mut all = extensions(self.extension_bytes());
        let (_, data) = all.find(|(kind, _)| *kind == extension::BITMAPS)?;
        let true_ones = self.autoclear() & BITMAPS != 0 && data.len() >= 24;
        let (count, bytes, at) = (word32(data, 0), word64(data, 8), word64(data, 16));
        true_ones.then_some(Bitmaps { count, at, bytes })
    }

    /// Clears the marks of an image whose counts are right again.
    ///
    /// # Errors
    /// Those of the file.
    pub(crate) fn mark_clean(storage: &dyn Storage, name: &Path) -> Result<(), Error> {
        let now = Head::read(storage, name)?;
        let old = now.features(size(FEATURES));
        let new = old & !(DIRTY | CORRUPT);
        if old == new {
            return Ok(());
        }
        let failed = |error| Error::not_written(name, "its header", &error);
        storage.write_at(FEATURES, &new.to_be_bytes()).map_err(failed)?;
        storage.sync().map_err(failed)
    }
}

/// Opens an image for work on it; also one whose disk has no sector, which nobody can serve.
///
/// # Errors
/// As of [`open`].
pub fn open_any(storage: &dyn Storage, name: &Path) -> Result<Opened, Error> {
    let Head { header, len, .. } = Head::read(storage, name)?;
    match header.size < 512 {
        true => Ok(Opened { header, l1: Vec::new(), bytes: len }),
        false => open(storage, name),
    }
}

/// Reads a table of words. Behind the end of a file are zeros.
///
/// # Errors
/// Those of the file.
pub(crate) fn words(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    count: u64,
    what: &str,
) -> Result<Vec<u64>, Error> {
    let mut bytes = vec![0; size(count * 8)];
    read_zeroed(storage, at, &mut bytes).map_err(|error| Error::io(name, what, &error))?;
    Ok(bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// Reads as a file that goes on with zeros.
pub(crate) fn read_zeroed(storage: &dyn Storage, at: u64, buf: &mut [u8]) -> std::io::Result<()> {
    let there = storage.read_at(at, buf)?;
    buf[there..].fill(0);
    Ok(())
}

/// Whether a range of `bytes` at `at` begins in a file of `len` bytes and ends in its last cluster.
pub(crate) fn lies_in(at: u64, bytes: u64, len: u64, cluster: u64) -> bool {
    at.checked_add(bytes).is_some_and(|end| end < len.saturating_add(cluster))
}
