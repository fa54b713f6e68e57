//! Who made an image over a parent elsewhere has vouched for that parent, and for no other.
//!
//! The word is kept in an extended attribute of the child that only root of this machine can set or
//! see: it comes along with no download and with no plain copy. A device node keeps nothing: it may
//! be another's tomorrow.
use crate::Node;
use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The attribute: the real path of the parent.
const ATTRIBUTE: &str = "trusted.tapdisk.parent";
/// Longest path.
const PATH_BYTES_MAX: usize = 4096;

/// Vouches for the parent of a new or changed image. The image is a file.
///
/// # Errors
/// EPERM for anybody but root, EOPNOTSUPP where a file system has no such attributes, and for
/// devices.
pub fn vouch(child: &File, parent: &Node) -> io::Result<()> {
    if !child.metadata()?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let real = super::real(parent.found())?;
    let path = super::itself(child);
    Ok(setxattr(&path, ATTRIBUTE, real.as_os_str().as_bytes(), XattrFlags::empty())?)
}

/// Takes the word back.
///
/// # Errors
/// Those of the file system, but none where there was no word.
pub fn forget(child: &File) -> io::Result<()> {
    match removexattr(super::itself(child), ATTRIBUTE) {
        Ok(())
        | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// The parent that somebody has vouched for.
pub(super) fn of(child: &File) -> Option<PathBuf> {
    let mut value = vec![0; PATH_BYTES_MAX];
    let bytes = getxattr(super::itself(child), ATTRIBUTE, &mut value).ok()?;
    value.truncate(bytes);
    Some(OsStr::from_bytes(&value).into())
}
