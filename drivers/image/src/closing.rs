//! How an image that was written is closed: its last writes, and how a file ends.
use crate::{SECTOR_BYTES, Storage};

/// The last writes of an image.
#[derive(Debug, Default)]
pub struct Closing {
    /// Metadata of which the disk may hold an older state, after a write that failed; written
    /// first.
    pub repairs: Vec<(u64, Vec<u8>)>,
    /// Writes in order.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Further writes, before each of which all that was written is on the disk.
    pub last: Vec<(u64, Vec<u8>)>,
    /// New length of a regular file, which ends with the first of `writes`, if there is one.
    pub truncate: Option<u64>,
}

impl Closing {
    /// Does all of it, and waits until it is on the disk.
    ///
    /// # Errors
    /// The first one of the file; nothing is done after it.
    pub fn apply(&self, storage: &dyn Storage) -> std::io::Result<()> {
        let writes = !(self.repairs.is_empty() && self.writes.is_empty() && self.last.is_empty());
        if !writes && self.truncate.is_none() {
            return Ok(());
        }
        for (at, bytes) in &self.repairs {
            storage.write_at(*at, bytes)?;
        }
        for (i, (at, bytes)) in self.writes.iter().enumerate() {
            match self.truncate.filter(|_| i == 0) {
                Some(_) => end_with(storage, *at, bytes)?,
                None => storage.write_at(*at, bytes)?,
            }
        }
        if let (Some(len), true) = (self.truncate, self.writes.is_empty()) {
            cut(storage, len)?;
        }
        for (at, bytes) in &self.last {
            storage.sync()?;
            storage.write_at(*at, bytes)?;
        }
        storage.sync()
    }
}

/// Makes a file end with these bytes, which go behind everything that is still wanted. On a full
/// disk they take the space of what is not.
///
/// # Errors
/// Those of the file; it ends as before then.
pub fn end_with(storage: &dyn Storage, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    let len = at.saturating_add(bytes.len() as u64);
    if let Err(e) = storage.write_at(at, bytes) {
        if e.kind() != std::io::ErrorKind::StorageFull || storage.is_device() {
            return Err(e);
        }
        storage.give_back(len, storage.len()?.saturating_sub(SECTOR_BYTES));
        storage.write_at(at, bytes)?;
    }
    cut(storage, len)
}

/// Cuts a file behind what was just written there: the old end goes when the new one is on the
/// disk.
///
/// # Errors
/// Those of the file.
pub fn cut(storage: &dyn Storage, len: u64) -> std::io::Result<()> {
    if !storage.is_device() && storage.len()? > len {
        storage.sync()?;
    }
    storage.set_len(len)
}
