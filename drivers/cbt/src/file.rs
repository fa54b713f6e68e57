//! Logs on the file system and on block devices, as the offline tool works on them.
//!
//! The header is written in one piece, so another process sees the old one or the new one. What a
//! new header says is on the disk before it: a grown bitmap before the larger size, all marks
//! before `consistent`. Every change is on the disk when its function returns, because a storage
//! manager deletes or trusts something else next.
use crate::bitmap;
use crate::header::{HEADER_BYTES, Header};
use crate::{CbtError, Uuid};
use image::unfinished::Unfinished;
use image::{Node, NodeError, Storage};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest disk that a log is made for: a bitmap of 1 GiB.
const DISK_BYTES_MAX: u64 = 512 << 40;

/// Bytes read or written at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// New values for the fields of a header; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The log of the snapshot before.
    pub parent: Option<Uuid>,
    /// The log of the snapshot after.
    pub child: Option<Uuid>,
    /// Whether the log is complete.
    pub consistent: Option<i32>,
    /// Size of the disk in bytes; not smaller than before.
    pub disk_bytes: Option<u64>,
}

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    name: PathBuf,
    file: File,
    header: Header,
    bytes: u64,
}

/// Makes an empty log for a disk, or empties an existing one: no links, not consistent, no block
/// marked. An existing file is overwritten where it lies and cut at the end, so that a process that
/// has it mapped goes on with it.
///
/// # Errors
/// EFBIG above 512 TiB; those of the file system. A new file that could not be completed is
/// removed.
pub fn create(name: &Path, disk_bytes: u64) -> Result<(), CbtError> {
    check_size(name, disk_bytes)?;
    let failed = |e: &NodeError| CbtError::node(name, "create the changed-block log", e);
    let mut options = OpenOptions::new();
    let made = options.read(true).write(true).create_new(true).mode(0o644).open(name);
    let new = made.is_ok();
    let file = match made {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Node::find(name).and_then(|node| Ok(node.open(true)?))
        }
        made => made.map_err(NodeError::Io),
    };
    let file = file.map_err(|e| failed(&e))?;
    let unfinished = new.then(|| Unfinished::begin(name));
    fill(&file, name, disk_bytes)?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(())
}

fn fill(file: &File, name: &Path, disk_bytes: u64) -> Result<(), CbtError> {
    let header = Header { disk_bytes, ..Header::default() };
    let failed = |e| CbtError::io(name, "write the changed-block log", &e);
    file.write_all_at(&header.encode(), 0).map_err(failed)?;
    zero(file, HEADER_BYTES as u64, header.file_bytes()).map_err(failed)?;
    Storage::set_len(file, header.file_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Marks in the child every block that the parent has marked. Headers stay as they are. A parent of
/// a smaller disk covers the beginning. No daemon may have the child open: its marks could be lost.
///
/// # Errors
/// EINVAL when the parent's disk is larger; EIO when a bitmap is shorter than its header says;
/// those of the file system.
pub fn coalesce(parent: &Path, child: &Path) -> Result<(), CbtError> {
    let parent = LogFile::open(parent, false)?;
    let child = LogFile::open(child, true)?;
    if bitmap::blocks(parent.header.disk_bytes) > bitmap::blocks(child.header.disk_bytes) {
        return Err(CbtError::ParentLarger { parent: parent.name, child: child.name });
    }
    child.complete()?;
    let end = parent.complete()?;
    let mut at = HEADER_BYTES as u64;
    while at < end {
        let length = CHUNK_BYTES.min(end - at);
        let (from, mut to) = (parent.read(at, length)?, child.read(at, length)?);
        let before = to.clone();
        to.iter_mut().zip(&from).for_each(|(to, from)| *to |= from);
        if to != before {
            child.write(at, &to)?;
        }
        at += length;
    }
    child.sync()
}

impl LogFile {
    /// Opens a log and reads its header.
    ///
    /// # Errors
    /// EIO when the file is shorter than a header; EINVAL for what is neither file nor block
    /// device; those of the file system.
    pub fn open(name: &Path, writable: bool) -> Result<LogFile, CbtError> {
        let failed = |e| CbtError::io(name, "open the changed-block log", &e);
        let node =
            Node::find(name).map_err(|e| CbtError::node(name, "open the changed-block log", &e))?;
        let file = node.open(writable).map_err(failed)?;
        let bytes = Storage::len(&file).map_err(failed)?;
        let needs = HEADER_BYTES as u64;
        if bytes < needs {
            return Err(CbtError::Short { name: name.into(), has: bytes, needs });
        }
        let mut raw = [0; HEADER_BYTES];
        FileExt::read_exact_at(&file, &mut raw, 0).map_err(failed)?;
        Ok(LogFile { name: name.into(), file, header: Header::decode(&raw), bytes })
    }

    /// The header as it was read or last written.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Length of the file or device.
    pub fn file_bytes(&self) -> u64 {
        self.bytes
    }

    /// The whole bitmap.
    ///
    /// # Errors
    /// EIO when the file is shorter than its header says; EFBIG above 512 TiB; those of the file
    /// system.
    pub fn bitmap(&self) -> Result<Vec<u8>, CbtError> {
        let end = self.complete()?;
        check_size(&self.name, self.header.disk_bytes)?;
        self.read(HEADER_BYTES as u64, end - HEADER_BYTES as u64)
    }

    /// Writes new values of the header's fields; a larger disk gets zeros at the end of its bitmap.
    ///
    /// # Errors
    /// EINVAL for a smaller disk; EIO when the bitmap is too short to be enlarged; EFBIG above 512
    /// TiB; those of the file system. The log is unchanged then, but may be longer.
    pub fn set(&mut self, change: &Change) -> Result<(), CbtError> {
        let mut header = self.header;
        if let Some(disk_bytes) = change.disk_bytes {
            self.grow(disk_bytes)?;
            header.disk_bytes = disk_bytes;
        }
        header.parent = change.parent.unwrap_or(header.parent);
        header.child = change.child.unwrap_or(header.child);
        header.consistent = change.consistent.unwrap_or(header.consistent);
        // The marks before the word that they are complete.
        self.sync()?;
        self.write(0, &header.encode())?;
        self.header = header;
        self.sync()
    }

    /// Room for the bitmap of a larger disk, before the header speaks of it.
    fn grow(&mut self, disk_bytes: u64) -> Result<(), CbtError> {
        let now = self.header.disk_bytes;
        if disk_bytes < now {
            return Err(CbtError::Shrink { name: self.name.clone(), now });
        }
        check_size(&self.name, disk_bytes)?;
        // A header of zeros may get its size here, though it is no whole log before.
        let from = if now == 0 { HEADER_BYTES as u64 } else { self.complete()? };
        let to = HEADER_BYTES as u64 + bitmap::bytes(disk_bytes);
        let failed = |e| CbtError::io(&self.name, "enlarge the changed-block log", &e);
        zero(&self.file, from, to).map_err(failed)?;
        self.bytes = self.bytes.max(to);
        Ok(())
    }

    /// The end of the bitmap, if the file reaches that far. A size of 0 is that of a file that was
    /// never filled, not of a disk, so it counts as too short.
    fn complete(&self) -> Result<u64, CbtError> {
        let needs = self.header.file_bytes().max(HEADER_BYTES as u64 + 1);
        if self.bytes < needs || self.header.disk_bytes == 0 {
            return Err(CbtError::Short { name: self.name.clone(), has: self.bytes, needs });
        }
        Ok(needs)
    }

    fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>, CbtError> {
        let failed = |e| CbtError::io(&self.name, "read the bitmap", &e);
        let too_large =
            || CbtError::TooLarge { name: self.name.clone(), disk: self.header.disk_bytes };
        let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
        let mut out = vec![0; bytes];
        FileExt::read_exact_at(&self.file, &mut out, at).map_err(failed)?;
        Ok(out)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), CbtError> {
        let failed = |e| CbtError::io(&self.name, "write the changed-block log", &e);
        self.file.write_all_at(bytes, at).map_err(failed)
    }

    fn sync(&self) -> Result<(), CbtError> {
        let failed = |e| CbtError::io(&self.name, "write the changed-block log to the disk", &e);
        self.file.sync_all().map_err(failed)
    }

    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

fn check_size(name: &Path, disk: u64) -> Result<(), CbtError> {
    if disk > DISK_BYTES_MAX {
        return Err(CbtError::TooLarge { name: name.into(), disk });
    }
    Ok(())
}

/// Writes zeros, not holes: a mapped hole on a full file system would kill whoever marks it.
fn zero(file: &File, mut at: u64, end: u64) -> std::io::Result<()> {
    let zeros = vec![0; CHUNK_BYTES.min(end.saturating_sub(at)) as usize];
    while at < end {
        let length = CHUNK_BYTES.min(end - at);
        file.write_all_at(&zeros[..length as usize], at)?;
        at += length;
    }
    Ok(())
}
