//! Opening the file or device of one image.
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use image::{Node, NodeError, Odd, Storage, is_write_protected};
use vhd_rs::chain::{Identity, identity};

use super::probed::Probed;
use super::{DirectFile, Kind, OpenError};
use disk::align::alignment_of;
use host::sys;

/// If this file is there, VHDs are written with O_DSYNC as well (spec/drivers.md §5.3).
const DSYNC_SWITCH: &str = "/etc/tapdisk_use_dsync";
/// Longest chain file: `LAYERS_MAX` lines of 511 bytes.
const TEXT_MAX: u64 = 64 << 10;

/// An open file.
pub struct OpenFile {
    pub file: DirectFile,
    /// The same for every name of it.
    pub identity: Identity,
    /// Logical sector size of a block device; 512 for files.
    pub sector_size: u32,
}

/// Opens an image that was found under this name.
///
/// # Errors
/// Those of the file system.
pub fn open(
    path: &Path,
    node: &Node,
    kind: Kind,
    writable: bool,
    caching: Caching,
    notes: &mut Vec<String>,
) -> Result<OpenFile, OpenError> {
    let failed = |e: &io::Error| OpenError::io(path, "open", e);
    if writable && is_write_protected(node.meta()) {
        let text = format!(
            "{} is write-protected: open it read-only (-R), or lift it (blockdev --setrw)",
            show::path(path)
        );
        return Err(OpenError::new(libc::EROFS, text));
    }
    let device = node.is_device();
    let dsync = kind.format().dsync && writable && Path::new(DSYNC_SWITCH).exists();
    let flags = if dsync { libc::O_DSYNC } else { 0 };
    let (file, how) = match caching {
        Caching::Cached if !device => (with(node, writable, flags), How::Cached),
        Caching::Synchronous => (with(node, writable, flags | libc::O_DSYNC), How::Cached),
        Caching::Cached | Caching::Direct => match direct(node, writable, flags) {
            Ok((file, how)) => (Ok(file), how),
            Err(error) => (Err(error), How::Direct),
        },
    };
    let file = file.map_err(|e| failed(&e))?;
    if how == How::Refused {
        notes.push(format!(
            "{}: its file system has no O_DIRECT, so it goes through the page cache (O_DSYNC)",
            show::path(path)
        ));
    }
    let sector_size = if device { sys::device_sector(&file).map_err(|e| failed(&e))? } else { 512 };
    if sector_size != 512 && sector_size != 4096 {
        let text = format!(
            "{} has sectors of {sector_size} bytes; 512 and 4096 are served",
            show::path(path)
        );
        return Err(OpenError::new(libc::EINVAL, text));
    }
    let identity = identity(&file).map_err(|e| failed(&e))?;
    let file = DirectFile::new(file, how == How::Direct, device, sector_size as usize);
    Ok(OpenFile { file, identity, sector_size })
}

/// What a path leads to. Only regular files and block devices are touched: opening something else
/// may wait for ever or have effects.
///
/// # Errors
/// Those of the file system; EISDIR, EINVAL for what is neither file nor block device.
pub fn find(path: &Path, doing: &'static str) -> Result<Node, OpenError> {
    Node::find(path).map_err(|e| match e {
        NodeError::Io(e) => OpenError::io(path, doing, &e),
        NodeError::Odd(Odd::Directory) => OpenError::new(
            libc::EISDIR,
            format!("{} is a directory; name the image in it", show::path(path)),
        ),
        NodeError::Odd(odd) => OpenError::new(
            libc::EINVAL,
            format!("{} is {odd}, neither a file nor a block device", show::path(path)),
        ),
    })
}

fn with(node: &Node, writable: bool, flags: i32) -> io::Result<File> {
    let mut how = OpenOptions::new();
    node.open_with(how.read(true).write(writable).custom_flags(flags | libc::O_NOCTTY))
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
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

/// With O_DIRECT, or where the file system refuses that, with O_DSYNC, so that what is acknowledged
/// is on the disk all the same.
fn direct(node: &Node, writable: bool, flags: i32) -> io::Result<(File, How)> {
    match with(node, writable, flags | libc::O_DIRECT) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            Ok((with(node, writable, flags | libc::O_DSYNC)?, How::Refused))
        }
        other => Ok((other?, How::Direct)),
    }
}

/// A small text file.
///
/// # Errors
/// Those of the file system; EINVAL when it is too long.
pub fn text(path: &Path) -> Result<Vec<u8>, OpenError> {
    let failed = |e: &io::Error| OpenError::io(path, "read", e);
    let file = find(path, "read")?.open(false).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    file.take(TEXT_MAX + 1).read_to_end(&mut text).map_err(|e| failed(&e))?;
    if text.len() as u64 > TEXT_MAX {
        return Err(OpenError::new(
            libc::EINVAL,
            format!("{} is too long for a list of images", show::path(path)),
        ));
    }
    Ok(text)
}

/// Whether a write to the last unit of a file, which O_DIRECT cannot make shorter than 4096 bytes
/// here, would move its end: a raw disk would grow, the footer of a fixed one would not be the last
/// thing.
pub fn end_would_move(file: &DirectFile, probed: &dyn Probed) -> bool {
    let unit = u64::from(alignment_of(file.file()));
    let odd = unit > 512 && file.len().is_ok_and(|bytes| bytes % unit != 0);
    probed.end_is_fixed() && !file.is_device() && odd
}
