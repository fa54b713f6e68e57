//! The journal of a resize (§13): what the image held where the resize writes, so that a resize
//! that stopped half way can be taken back.
//!
//! ```text
//!   header │ entry, bytes │ entry, bytes │ …        metadata entries first, then moved blocks
//! ```
//! An entry counts only when the header says so, and the header is written after the entry is on
//! the disk. An empty journal means that there is nothing to take back: not yet, or not any more.
use crate::bytes::{checksum, put, take, u32_at, u64_at};
use crate::error::{
    VhdError,
    errno::{EINVAL, EPIPE},
};
use image::{Node, Storage};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const COOKIE: [u8; 8] = *b"vjournal";
const ENTRY_COOKIE: u64 = 0xAAAA_1234_4321_AAAA;
const HEADER_BYTES: u64 = 512;
const ENTRY_BYTES: usize = 32;
const ENTRY_CHECKSUM_AT: usize = 24;

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The footer behind the data.
    TrailingFooter,
    /// The footer at byte 0.
    LeadingFooter,
    /// The dynamic header.
    Header,
    /// The text of a parent locator.
    Locator,
    /// The block allocation table.
    Table,
    /// The header of the batmap.
    BatmapHeader,
    /// The batmap.
    Batmap,
    /// The bitmap or the data of a block that moves.
    Data,
}

/// Kinds in the order of their codes, from 1.
const KINDS: [Kind; 8] = [
    Kind::TrailingFooter,
    Kind::LeadingFooter,
    Kind::Header,
    Kind::Locator,
    Kind::Table,
    Kind::BatmapHeader,
    Kind::Batmap,
    Kind::Data,
];

impl Kind {
    fn code(self) -> u32 {
        KINDS.iter().position(|k| *k == self).map_or(0, |at| at as u32 + 1)
    }

    fn of(code: u32) -> Option<Kind> {
        KINDS.get(usize::try_from(code).ok()?.checked_sub(1)?).copied()
    }
}

/// One entry: these bytes were there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What they are.
    pub kind: Kind,
    /// Where they were in the image.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Entry {
    fn head(&self) -> [u8; ENTRY_BYTES] {
        let mut head = [0; ENTRY_BYTES];
        put(&mut head, 0, &ENTRY_COOKIE.to_be_bytes());
        put(&mut head, 8, &self.kind.code().to_be_bytes());
        put(&mut head, 12, &u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        put(&mut head, 16, &self.at.to_be_bytes());
        let sum = sum(&head, &self.bytes);
        put(&mut head, ENTRY_CHECKSUM_AT, &sum.to_be_bytes());
        head
    }
}

/// The checksum over head and bytes, with its own field as zero.
fn sum(head: &[u8], bytes: &[u8]) -> u32 {
    let parts = [checksum(head, Some(ENTRY_CHECKSUM_AT)), checksum(bytes, None)];
    !parts.iter().fold(0_u32, |all, part| all.wrapping_add(!part))
}

/// A journal in a file or on a device.
pub struct Journal<'a> {
    storage: &'a dyn Storage,
    name: PathBuf,
    /// The image it belongs to.
    pub uuid: [u8; 16],
    /// Where the image's trailing footer was.
    pub footer_at: u64,
    metadata: u32,
    data: u32,
    data_at: u64,
    end: u64,
}

impl<'a> Journal<'a> {
    /// Begins a journal: empty.
    ///
    /// # Errors
    /// Those of the file.
    pub fn begin(
        storage: &'a dyn Storage,
        name: &Path,
        uuid: [u8; 16],
        footer_at: u64,
    ) -> Result<Journal<'a>, VhdError> {
        let journal = Journal {
            storage,
            name: name.into(),
            uuid,
            footer_at,
            metadata: 0,
            data: 0,
            data_at: HEADER_BYTES,
            end: HEADER_BYTES,
        };
        journal.seal()?;
        Ok(journal)
    }

    /// Opens a journal.
    ///
    /// # Errors
    /// EPIPE for a file that is too short, EINVAL for what is no journal.
    pub fn open(storage: &'a dyn Storage, name: &Path) -> Result<Journal<'a>, VhdError> {
        let mut bytes = [0; HEADER_BYTES as usize];
        let failed = |e| VhdError::io(name, "read the journal", 0, &e);
        let got = storage.read_at(0, &mut bytes).map_err(failed)?;
        if got < bytes.len() {
            let why = format!("has {got} bytes, too few for a journal; name the right file");
            return Err(VhdError::request(name, EPIPE, why));
        }
        if take::<8>(&bytes, 0) != COOKIE {
            return Err(VhdError::request(name, EINVAL, "this is no journal; name the right file"));
        }
        Ok(Journal {
            storage,
            name: name.into(),
            uuid: take(&bytes, 8),
            footer_at: u64_at(&bytes, 24),
            data: u32_at(&bytes, 32),
            metadata: u32_at(&bytes, 36),
            data_at: u64_at(&bytes, 40),
            end: u64::from_le_bytes(take(&bytes, 56)),
        })
    }

    /// Appends an entry. It counts from the next [`Journal::seal`] on. Metadata comes before data.
    ///
    /// # Errors
    /// Those of the file.
    pub fn add(&mut self, entry: &Entry) -> Result<(), VhdError> {
        let at = self.end;
        let failed = |e| VhdError::io(&self.name, "write the journal", at, &e);
        let all = [&entry.head()[..], &entry.bytes].concat();
        self.storage.write_at(at, &all).map_err(failed)?;
        self.end += all.len() as u64;
        if entry.kind == Kind::Data {
            self.data += 1;
        } else {
            self.metadata += 1;
            self.data_at = self.end;
        }
        Ok(())
    }

    /// Waits for the entries, then makes them count.
    ///
    /// # Errors
    /// Those of the file.
    pub fn seal(&self) -> Result<(), VhdError> {
        let failed = |e| VhdError::io(&self.name, "write the journal", 0, &e);
        self.storage.sync().map_err(failed)?;
        let mut bytes = [0; HEADER_BYTES as usize];
        put(&mut bytes, 0, &COOKIE);
        put(&mut bytes, 8, &self.uuid);
        put(&mut bytes, 24, &self.footer_at.to_be_bytes());
        put(&mut bytes, 32, &self.data.to_be_bytes());
        put(&mut bytes, 36, &self.metadata.to_be_bytes());
        put(&mut bytes, 40, &self.data_at.to_be_bytes());
        put(&mut bytes, 48, &HEADER_BYTES.to_be_bytes());
        // The original writes this one in the order of the machine (§13).
        put(&mut bytes, 56, &self.end.to_le_bytes());
        self.storage.write_at(0, &bytes).map_err(failed)?;
        self.storage.sync().map_err(failed)
    }

    /// Makes the journal empty: there is nothing to take back any more.
    ///
    /// # Errors
    /// Those of the file.
    pub fn commit(&mut self) -> Result<(), VhdError> {
        (self.metadata, self.data) = (0, 0);
        (self.data_at, self.end) = (HEADER_BYTES, HEADER_BYTES);
        self.seal()?;
        let failed = |e| VhdError::io(&self.name, "cut the journal", HEADER_BYTES, &e);
        self.storage.set_len(HEADER_BYTES).map_err(failed)
    }

    /// Whether there is anything to take back.
    pub fn is_empty(&self) -> bool {
        self.metadata == 0 && self.data == 0
    }

    /// Hands out all entries in order, each only after its checksum was found right.
    ///
    /// # Errors
    /// EINVAL for a damaged journal, and what `each` returns.
    pub fn entries(
        &self,
        mut each: impl FnMut(Entry) -> Result<(), VhdError>,
    ) -> Result<(), VhdError> {
        let mut at = HEADER_BYTES;
        for n in 0..u64::from(self.metadata) + u64::from(self.data) {
            if n == u64::from(self.metadata) {
                at = self.data_at;
            }
            let (entry, next) = self.entry(at)?;
            at = next;
            each(entry)?;
        }
        Ok(())
    }

    fn entry(&self, at: u64) -> Result<(Entry, u64), VhdError> {
        let failed = |e| VhdError::io(&self.name, "read the journal", at, &e);
        let wrong = |field, why: String| VhdError::Field {
            name: self.name.clone(),
            field,
            offset: at,
            why,
            remedy: "this journal cannot be used; restore the image from a backup",
        };
        let mut head = [0; ENTRY_BYTES];
        self.storage.read_exact_at(at, &mut head).map_err(failed)?;
        let length = self.storage.len().map_err(failed)?;
        let size = u64::from(u32_at(&head, 12));
        let start = at.saturating_add(ENTRY_BYTES as u64);
        let kind = Kind::of(u32_at(&head, 8)).filter(|_| u64_at(&head, 0) == ENTRY_COOKIE);
        let Some(kind) = kind else {
            return Err(wrong("journal entry", "is not one".into()));
        };
        if size % 512 != 0 || start.saturating_add(size) > length {
            return Err(wrong(
                "journal entry size",
                format!("is {size} bytes, which are not there"),
            ));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.storage.read_exact_at(start, &mut bytes).map_err(failed)?;
        if sum(&head, &bytes) != u32_at(&head, ENTRY_CHECKSUM_AT) {
            return Err(wrong("journal entry checksum", "does not fit its bytes".into()));
        }
        Ok((Entry { kind, at: u64_at(&head, 16), bytes }, start + size))
    }
}

/// Opens the file of a new journal. A regular file must not exist yet; a block device is used as it
/// is.
///
/// # Errors
/// EEXIST, and those of the file system.
pub fn create_file(path: &Path) -> Result<File, VhdError> {
    let failed = |e| VhdError::io(path, "create the journal", 0, &e);
    let device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(!device).mode(0o600);
    let file = options.open(path).map_err(failed)?;
    sync_folder(path);
    Ok(file)
}

/// Opens the file of an existing journal.
///
/// # Errors
/// Those of the file system.
pub fn open_file(path: &Path) -> Result<File, VhdError> {
    let failed = |e| VhdError::node(path, "open the journal", &e);
    let node = Node::find(path).map_err(failed)?;
    node.open(true).map_err(|e| failed(e.into()))
}

/// Removes a journal that is not needed any more; a device stays.
///
/// # Errors
/// Those of the file system.
pub fn remove_file(path: &Path) -> Result<(), VhdError> {
    let failed = |e| VhdError::io(path, "remove the journal", 0, &e);
    if std::fs::metadata(path).map_err(failed)?.is_file() {
        std::fs::remove_file(path).map_err(failed)?;
        sync_folder(path);
    }
    Ok(())
}

/// Not every file system can; the names are there all the same.
fn sync_folder(path: &Path) {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::MemStorage;

    fn entry(kind: Kind, at: u64, byte: u8) -> Entry {
        Entry { kind, at, bytes: vec![byte; 512] }
    }

    fn all(storage: &MemStorage) -> Result<Vec<Entry>, VhdError> {
        let mut out = Vec::new();
        Journal::open(storage, Path::new("j"))?.entries(|e| {
            out.push(e);
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn entries_count_when_they_are_sealed_and_until_the_commit() {
        let storage = MemStorage::new(Vec::new(), false);
        let mut journal = Journal::begin(&storage, Path::new("j"), [3; 16], 4096).unwrap();
        let (one, two) = (entry(Kind::LeadingFooter, 0, 7), entry(Kind::Data, 8192, 9));
        journal.add(&one).unwrap();
        assert_eq!(all(&storage).unwrap(), []);
        journal.seal().unwrap();
        journal.add(&two).unwrap();
        journal.seal().unwrap();
        assert_eq!(all(&storage).unwrap(), [one, two]);
        let again = Journal::open(&storage, Path::new("j")).unwrap();
        assert_eq!((again.uuid, again.footer_at, again.is_empty()), ([3; 16], 4096, false));
        journal.commit().unwrap();
        assert_eq!(all(&storage).unwrap(), []);
        assert_eq!(storage.len().unwrap(), 512);
    }

    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let storage = MemStorage::new(Vec::new(), false);
        let mut journal = Journal::begin(&storage, Path::new("j"), [3; 16], 0x1234).unwrap();
        journal.add(&entry(Kind::TrailingFooter, 0x1234, 1)).unwrap();
        journal.seal().unwrap();
        let bytes = storage.into_inner();
        assert_eq!(&bytes[..8], b"vjournal");
        assert_eq!((u64_at(&bytes, 24), u32_at(&bytes, 32), u32_at(&bytes, 36)), (0x1234, 0, 1));
        assert_eq!((u64_at(&bytes, 40), u64_at(&bytes, 48)), (1056, 512));
        assert_eq!(bytes[56..64], 1056_u64.to_le_bytes());
        assert_eq!(
            bytes[512..528],
            [0xaa, 0xaa, 0x12, 0x34, 0x43, 0x21, 0xaa, 0xaa, 0, 0, 0, 1, 0, 0, 2, 0]
        );
        let plain: u32 = bytes[512..536].iter().chain(&bytes[544..]).map(|b| u32::from(*b)).sum();
        assert_eq!(u32_at(&bytes, 536), !plain);
    }

    #[test]
    fn damage_is_found_before_an_entry_is_handed_out() {
        let storage = MemStorage::new(Vec::new(), false);
        let mut journal = Journal::begin(&storage, Path::new("j"), [3; 16], 0).unwrap();
        journal.add(&entry(Kind::Table, 1536, 1)).unwrap();
        journal.seal().unwrap();
        let good = storage.into_inner();
        for at in [512, 520, 524, 530, 536, 600] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x40;
            let e = all(&MemStorage::new(bytes, false)).unwrap_err();
            assert_eq!(e.errno(), EINVAL, "byte {at}: {e}");
        }
        assert_eq!(all(&MemStorage::new(good[..700].to_vec(), false)).unwrap_err().errno(), EINVAL);
        assert_eq!(all(&MemStorage::new(b"junk\n".to_vec(), false)).unwrap_err().errno(), EPIPE);
    }
}
