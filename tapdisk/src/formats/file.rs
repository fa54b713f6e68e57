//! Opening the file or device of one image.
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{DirectFile, Kind, OpenError};
use crate::sys;

/// If this file is there, VHDs are written with O_DSYNC as well (spec/drivers.md §5.3).
const DSYNC_SWITCH: &str = "/etc/tapdisk_use_dsync";
/// `strict`: a leaf that somebody else has locked is refused rather than noted.
const LOCK_VARIABLE: &str = "TAPDISK_LOCK";
/// Longest chain file: `LAYERS_MAX` lines of 511 bytes.
const TEXT_MAX: u64 = 64 << 10;

/// An open file.
pub struct OpenFile {
    pub file: DirectFile,
    /// Device and inode, or the number of a block device: the same for every name of it.
    pub identity: (u64, u64),
    /// Logical sector size of a block device; 512 for files.
    pub sector_size: u32,
}

/// Opens an image. Only regular files and block devices are touched: opening something else may wait
/// for ever or have effects.
///
/// # Errors
/// Those of the file system; EISDIR, EINVAL for what is neither file nor block device.
pub fn open(
    path: &Path,
    kind: Kind,
    writable: bool,
    way: Way,
    notes: &mut Vec<String>,
) -> Result<OpenFile, OpenError> {
    let failed = |e: &io::Error| OpenError::io(path, "open", e);
    // The name is looked up once; what it leads to is looked at before it is really opened.
    let place = with(path, false, libc::O_PATH).map_err(|e| failed(&e))?;
    let meta = place.metadata().map_err(|e| failed(&e))?;
    let device = usable(path, &meta)?;
    let same = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
    let dsync = kind == Kind::Vhd && writable && Path::new(DSYNC_SWITCH).exists();
    let flags = if dsync { libc::O_DSYNC } else { 0 };
    let (file, how) = match way {
        Way::Cached if !device => (with(&same, writable, flags), How::Cached),
        Way::Synchronous => (with(&same, writable, flags | libc::O_DSYNC), How::Cached),
        Way::Cached | Way::Direct => match direct(&same, writable, flags) {
            Ok((file, how)) => (Ok(file), how),
            Err(error) => (Err(error), How::Direct),
        },
    };
    let file = file.map_err(|e| failed(&e))?;
    if how == How::Refused {
        notes.push(format!(
            "{}: its file system has no O_DIRECT, so it goes through the page cache (O_DSYNC)",
            path.display()
        ));
    }
    let sector_size = if device { sys::device_sector(&file).map_err(|e| failed(&e))? } else { 512 };
    if sector_size != 512 && sector_size != 4096 {
        let text = format!(
            "{} has sectors of {sector_size} bytes; 512 and 4096 are served",
            path.display()
        );
        return Err(OpenError::new(libc::EINVAL, text));
    }
    let identity = if device { (u64::MAX, meta.rdev()) } else { (meta.dev(), meta.ino()) };
    let file = DirectFile::new(file, how == How::Direct, device, sector_size as usize);
    Ok(OpenFile { file, identity, sector_size })
}

/// Whether it is a block device; an error for what is not even a file.
fn usable(path: &Path, meta: &Metadata) -> Result<bool, OpenError> {
    let kind = meta.file_type();
    match (kind.is_file(), kind.is_block_device()) {
        (true, _) => Ok(false),
        (_, true) => Ok(true),
        _ if kind.is_dir() => Err(OpenError::new(
            libc::EISDIR,
            format!("{} is a directory; name the image in it", path.display()),
        )),
        _ => Err(OpenError::new(
            libc::EINVAL,
            format!("{} is neither a file nor a block device", path.display()),
        )),
    }
}

fn with(path: &Path, writable: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(writable).custom_flags(flags | libc::O_NOCTTY).open(path)
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Past the page cache.
    Direct,
    /// Through it: `-D`, for what is only read. Devices never are.
    Cached,
    /// Through it, each write on the disk before it is acknowledged.
    Synchronous,
}

/// How a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Direct,
    Cached,
    /// Its file system has no O_DIRECT.
    Refused,
}

/// With O_DIRECT, or where the file system refuses that, with O_DSYNC, so that what is acknowledged is
/// on the disk all the same.
fn direct(path: &Path, writable: bool, flags: i32) -> io::Result<(File, How)> {
    match with(path, writable, flags | libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok((with(path, writable, flags | libc::O_DSYNC)?, How::Refused))
        }
        other => Ok((other?, How::Direct)),
    }
}

/// An advisory lock while the file is open: exclusive for what is written, shared for what is read. SM
/// keeps writers apart by other means and the original knows no lock, so a lock held by another is only
/// noted, unless `TAPDISK_LOCK=strict`.
///
/// # Errors
/// EBUSY in strict mode.
pub fn lock(
    file: &DirectFile,
    path: &Path,
    writable: bool,
    notes: &mut Vec<String>,
) -> Result<(), OpenError> {
    if image::try_lock(file.file(), writable).unwrap_or(true) {
        return Ok(());
    }
    let what =
        if writable { "in use by another process" } else { "being written by another process" };
    let text = format!("{} is {what}", path.display());
    if writable && std::env::var_os(LOCK_VARIABLE).is_some_and(|value| value == "strict") {
        return Err(OpenError::new(libc::EBUSY, format!("{text}; close it there first")));
    }
    notes.push(format!("{text}; two writers destroy an image"));
    Ok(())
}

/// A small text file.
///
/// # Errors
/// Those of the file system; EINVAL when it is too long.
pub fn text(path: &Path) -> Result<Vec<u8>, OpenError> {
    let failed = |e: &io::Error| OpenError::io(path, "read", e);
    let meta = std::fs::metadata(path).map_err(|e| failed(&e))?;
    usable(path, &meta)?;
    let file = File::open(path).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    file.take(TEXT_MAX + 1).read_to_end(&mut text).map_err(|e| failed(&e))?;
    if text.len() as u64 > TEXT_MAX {
        return Err(OpenError::new(
            libc::EINVAL,
            format!("{} is too long for a list of images", path.display()),
        ));
    }
    Ok(text)
}
