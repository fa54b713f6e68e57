//! The bytes of an image as several threads move them: past the page cache where that is faster,
//! with holes, and copied by the file system where it can.
//!
//! A page of a file goes either past the cache (whole pages of long runs) or through it, and one
//! thread at a time changes it; so neither way overtakes the other.
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use image::Storage;
use rustix::fs::{Advice, OFlags, fadvise, fstatfs};
use rustix::io::Errno;

use crate::error::VhdError;

/// Shorter runs go through the page cache, which gathers them.
const DIRECT_BYTES_MIN: usize = 64 << 10;
/// Unit of memory and of writes past the cache; a device may ask for less, none for more.
pub(super) const PAGE: usize = 4096;

/// File systems that copy without moving bytes, or on the server: XFS, Btrfs, Bcachefs, OCFS2, ZFS,
/// NFS, SMB (linux/magic.h).
const SHARING: [u64; 8] = [
    0x5846_5342,
    0x9123_683e,
    0xca45_1a4e,
    0x7461_636f,
    0x2fc1_2fc1,
    0x6969,
    0xfe53_4d42,
    0xff53_4d42,
];

/// Bytes that several threads read and write at once.
pub(super) trait Medium: Storage + Send + Sync {
    /// Copies a range of another medium without bringing it to this process; false if that cannot
    /// be done and nothing has happened.
    fn copy(&self, at: u64, from: &dyn Medium, from_at: u64, bytes: u64) -> io::Result<bool>;

    /// Whether [`Medium::copy`] from there is worth trying.
    fn shares_with(&self, from: &dyn Medium) -> bool;

    /// The file itself.
    fn file(&self) -> Option<&File>;

    /// These bytes will be read soon; nothing waits for them here.
    fn soon(&self, _at: u64, _bytes: u64) {}

    /// The next range at or after `at` that may hold something else than zeros, up to `end`.
    fn data(&self, at: u64, end: u64) -> Option<(u64, u64)> {
        (at < end).then_some((at, end))
    }
}

/// A file or block device.
#[derive(Debug)]
pub(super) struct FileMedium {
    cached: File,
    direct: Option<File>,
    device: bool,
    sharing: bool,
    copies: AtomicBool,
}

impl FileMedium {
    /// Opens an existing file or device.
    pub(super) fn open(name: &Path, write: bool) -> Result<FileMedium, VhdError> {
        let cached = crate::chain::open_file(name, write)?;
        FileMedium::of(cached, write).map_err(|e| VhdError::io(name, "learn about the file", 0, &e))
    }

    /// Takes over an open file.
    pub(super) fn of(cached: File, write: bool) -> io::Result<FileMedium> {
        let meta = cached.metadata()?;
        let device = meta.file_type().is_block_device();
        // Bitmaps are read here and there; what lies around them is not wanted.
        let _ = fadvise(&cached, 0, None, Advice::Random);
        Ok(FileMedium {
            direct: reopened(&cached, write),
            sharing: !device
                && fstatfs(&cached).is_ok_and(|s| SHARING.contains(&(s.f_type as u64))),
            cached,
            device,
            copies: AtomicBool::new(true),
        })
    }

    /// The file itself.
    pub(super) fn handle(&self) -> &File {
        &self.cached
    }

    /// The second opening, if this piece goes past the cache.
    fn way(&self, at: u64, buf: &[u8]) -> Option<&File> {
        let whole = at.is_multiple_of(PAGE as u64)
            && buf.len().is_multiple_of(PAGE)
            && (buf.as_ptr() as usize).is_multiple_of(PAGE);
        self.direct.as_ref().filter(|_| whole && buf.len() >= DIRECT_BYTES_MIN)
    }
}

/// The same file past the page cache, where its file system has that.
fn reopened(file: &File, write: bool) -> Option<File> {
    use std::os::fd::AsRawFd;
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(write).custom_flags(flags).open(same).ok()
}

impl Storage for FileMedium {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(direct) = self.way(offset, buf) {
            match Storage::read_at(direct, offset, buf) {
                Ok(n) if n == buf.len() => return Ok(n),
                // The end of the file, or a device with larger sectors: the cache knows.
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                Err(e) => return Err(e),
            }
        }
        Storage::read_at(&self.cached, offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.way(offset, buf) {
            match direct.write_all_at(buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
                done => return done,
            }
        }
        self.cached.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        Storage::len(&self.cached)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        Storage::set_len(&self.cached, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.cached.sync_data()
    }
    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        self.cached.zero_at(offset, bytes, punch)
    }
    fn give_back(&self, from: u64, to: u64) {
        self.cached.give_back(from, to);
    }
    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.cached.attribute(name)
    }
    fn set_attribute(&self, name: &str, value: &[u8]) -> io::Result<()> {
        self.cached.set_attribute(name, value)
    }
    fn is_device(&self) -> bool {
        self.device
    }
}

impl Medium for FileMedium {
    fn copy(&self, at: u64, from: &dyn Medium, from_at: u64, bytes: u64) -> io::Result<bool> {
        let (Some(from), true) = (from.file(), self.copies.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        let mut done = 0;
        while done < bytes {
            let (mut source, mut target) = (from_at + done, at + done);
            let left = usize::try_from(bytes - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(
                from,
                Some(&mut source),
                &self.cached,
                Some(&mut target),
                left,
            ) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) if done == 0 => {
                    self.copies.store(false, Ordering::Relaxed);
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn shares_with(&self, from: &dyn Medium) -> bool {
        let same = |file: &File| match (file.metadata(), self.cached.metadata()) {
            (Ok(a), Ok(b)) => a.dev() == b.dev() && a.is_file(),
            _ => false,
        };
        self.sharing && from.file().is_some_and(same)
    }

    fn file(&self) -> Option<&File> {
        Some(&self.cached)
    }

    fn soon(&self, at: u64, bytes: u64) {
        if bytes < DIRECT_BYTES_MIN as u64 {
            // Only time is lost if it cannot be done.
            let _ = fadvise(&self.cached, at, NonZeroU64::new(bytes), Advice::WillNeed);
        }
    }

    fn data(&self, at: u64, end: u64) -> Option<(u64, u64)> {
        use rustix::fs::{SeekFrom, seek};
        if at >= end {
            return None;
        }
        // Only positions move, and nothing here uses the position.
        match seek(&self.cached, SeekFrom::Data(at)) {
            Ok(start) if start >= end => None,
            Ok(start) => {
                let hole = seek(&self.cached, SeekFrom::Hole(start)).unwrap_or(end);
                Some((start, hole.clamp(start + 1, end)))
            }
            Err(Errno::NXIO) => None,
            Err(_) => Some((at, end)),
        }
    }
}
