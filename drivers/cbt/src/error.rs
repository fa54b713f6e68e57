//! What can be wrong with a log, as sentences for the person who has to mend it.
use image::{NodeError, Odd};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why a log cannot be made, read, changed or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CbtError {
    /// The file system or device failed.
    Io {
        /// The file.
        name: PathBuf,
        /// What was being done, as in "read the header".
        doing: &'static str,
        /// Positive errno.
        errno: i32,
    },
    /// The file ends before its header or the bitmap that its header claims: EIO.
    Short {
        /// The file.
        name: PathBuf,
        /// Its length.
        has: u64,
        /// The length it should have at least.
        needs: u64,
    },
    /// The log cannot record every block of the disk that it shall be used for: EINVAL.
    Uncovered {
        /// The file.
        name: PathBuf,
        /// Bytes of the disk that the log was made for and that its file has room for.
        covers: u64,
        /// Bytes of the disk.
        disk: u64,
    },
    /// The path leads to neither a file nor a block device: EINVAL.
    Kind {
        /// The path.
        name: PathBuf,
    },
    /// A log may only grow: EINVAL.
    Shrink {
        /// The file.
        name: PathBuf,
        /// Bytes of the disk now.
        now: u64,
    },
    /// The disk is larger than any that this crate makes a log for: EFBIG.
    TooLarge {
        /// The file.
        name: PathBuf,
        /// Bytes of the disk.
        disk: u64,
    },
    /// A parent whose disk is larger than its child's cannot be merged into it: EINVAL.
    ParentLarger {
        /// The parent.
        parent: PathBuf,
        /// The child.
        child: PathBuf,
    },
}

impl CbtError {
    /// The positive errno that callers of the tools and of the daemon see.
    pub fn errno(&self) -> i32 {
        match self {
            CbtError::Io { errno, .. } => *errno,
            CbtError::Short { .. } => libc::EIO,
            CbtError::TooLarge { .. } => libc::EFBIG,
            CbtError::Uncovered { .. }
            | CbtError::Kind { .. }
            | CbtError::Shrink { .. }
            | CbtError::ParentLarger { .. } => libc::EINVAL,
        }
    }

    /// A name that could not be opened.
    pub(crate) fn node(name: &Path, doing: &'static str, e: &NodeError) -> CbtError {
        match e {
            NodeError::Io(e) => CbtError::io(name, doing, e),
            NodeError::Odd(Odd::Directory) => {
                CbtError::Io { name: name.into(), doing, errno: libc::EISDIR }
            }
            NodeError::Odd(_) => CbtError::Kind { name: name.into() },
        }
    }

    /// An error of the file system; one that carries no number counts as EIO.
    pub(crate) fn io(name: &Path, doing: &'static str, e: &io::Error) -> CbtError {
        CbtError::Io { name: name.into(), doing, errno: e.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl fmt::Display for CbtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CbtError::Io { name, doing, errno } => {
                let e = io::Error::from_raw_os_error(*errno);
                write!(f, "{}: could not {doing}: {e}", show::path(name))
            }
            CbtError::Short { name, has, needs } => write!(
                f,
                "{} is not a whole changed-block log ({has} bytes, header and bitmap need {needs}, \
                 and the disk's size is not 0); make a new one with cbt-util create",
                show::path(name)
            ),
            CbtError::Uncovered { name, covers, disk } => write!(
                f,
                "the changed-block log {} covers {covers} bytes, but the disk has {disk}; \
                 enlarge the log with cbt-util set -s, or make a new one",
                show::path(name)
            ),
            CbtError::Kind { name } => write!(
                f,
                "{} is neither a file nor a block device, so it holds no changed-block log",
                show::path(name)
            ),
            CbtError::Shrink { name, now } => write!(
                f,
                "{}: the log is for a disk of {now} bytes and cannot be made for a smaller one",
                show::path(name)
            ),
            CbtError::TooLarge { name, disk } => write!(
                f,
                "{}: a disk of {disk} bytes is larger than the 512 TiB that a log is made for",
                show::path(name)
            ),
            CbtError::ParentLarger { parent, child } => write!(
                f,
                "the parent {} is for a larger disk than the child {}; \
                 enlarge the child with cbt-util set -s",
                show::path(parent),
                show::path(child)
            ),
        }
    }
}

impl std::error::Error for CbtError {}
