//! What can be wrong with a VHD image, as sentences for the person who has to mend it.
use image::{NodeError, Odd};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Numbers of `errno.h` that this crate answers with.
pub mod errno {
    #![allow(missing_docs)]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EPIPE: i32 = 32;
    pub const ERANGE: i32 = 34;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
    pub const ELOOP: i32 = 40;
    pub const EOVERFLOW: i32 = 75;
    pub const EILSEQ: i32 = 84;
    pub const ENOKEY: i32 = 126;
}
use errno::{EFBIG, EINVAL, EIO, ELOOP, EPIPE};

/// Why an image cannot be opened, made or trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VhdError {
    /// The file system or device failed.
    Io {
        /// The file.
        name: PathBuf,
        /// What was being done, as in "read the footer".
        doing: &'static str,
        /// Byte offset in the file.
        offset: u64,
        /// Positive errno.
        errno: i32,
    },
    /// The path leads to neither a file nor a block device.
    Node {
        /// The path.
        name: PathBuf,
        /// What is there.
        odd: Odd,
    },
    /// An image of another format, or no image at all, under the name of a VHD.
    Foreign {
        /// The file.
        name: PathBuf,
        /// What it is, as in "a VHDX image".
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The file has no bytes.
    Empty {
        /// The file.
        name: PathBuf,
    },
    /// The file is too short for the smallest footer.
    Short {
        /// The file.
        name: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A field holds what it must not hold.
    Field {
        /// The file.
        name: PathBuf,
        /// The structure and field, as in "header checksum".
        field: &'static str,
        /// Byte offset of the field in the file.
        offset: u64,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A block allocation table entry damages other data if it is used.
    Block {
        /// The file.
        name: PathBuf,
        /// Block index.
        block: u32,
        /// Its table entry: a sector number in the file.
        sector: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The disk is larger than the format allows.
    TooLarge {
        /// The file.
        name: PathBuf,
        /// Size of the disk in bytes.
        bytes: u64,
    },
    /// No parent locator leads to a file.
    Parent {
        /// The child.
        name: PathBuf,
        /// The paths that were tried, in order.
        tried: Vec<PathBuf>,
        /// Positive errno of the last attempt.
        errno: i32,
    },
    /// The chain of parents comes back to an image that it has passed.
    Cycle {
        /// The image that is met twice.
        name: PathBuf,
    },
    /// The request itself makes no sense.
    Request {
        /// The file.
        name: PathBuf,
        /// Positive errno.
        errno: i32,
        /// What is wrong and what to do.
        why: String,
    },
}

impl VhdError {
    /// The positive errno that callers of the tools and of the daemon see.
    pub fn errno(&self) -> i32 {
        match self {
            VhdError::Io { errno, .. }
            | VhdError::Parent { errno, .. }
            | VhdError::Request { errno, .. } => *errno,
            VhdError::Node { odd, .. } => odd.errno(),
            VhdError::Empty { .. } => EPIPE,
            VhdError::Short { .. } => EIO,
            VhdError::Field { .. } | VhdError::Block { .. } | VhdError::Foreign { .. } => EINVAL,
            VhdError::TooLarge { .. } => EFBIG,
            VhdError::Cycle { .. } => ELOOP,
        }
    }

    /// An error of the file system; one that carries no number counts as EIO.
    pub fn io(name: &Path, doing: &'static str, offset: u64, e: &io::Error) -> VhdError {
        VhdError::Io { name: name.into(), doing, offset, errno: e.raw_os_error().unwrap_or(EIO) }
    }

    /// A name that could not be opened.
    pub fn node(name: &Path, doing: &'static str, e: &NodeError) -> VhdError {
        match e {
            NodeError::Io(e) => VhdError::io(name, doing, 0, e),
            NodeError::Odd(odd) => VhdError::Node { name: name.into(), odd: *odd },
        }
    }

    /// A request that is refused.
    pub fn request(name: &Path, errno: i32, why: impl Into<String>) -> VhdError {
        VhdError::Request { name: name.into(), errno, why: why.into() }
    }
}

impl fmt::Display for VhdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VhdError::Io { name, doing, offset, errno } => {
                let e = io::Error::from_raw_os_error(*errno);
                write!(f, "{}: could not {doing} at byte {offset}: {e}", name.display())
            }
            VhdError::Node { name, odd } => write!(
                f,
                "{} is {odd}, neither a file nor a block device; name one of these",
                name.display()
            ),
            VhdError::Foreign { name, what, remedy } => {
                write!(f, "{} is {what}, not a VHD; {remedy}", name.display())
            }
            VhdError::Empty { name } => {
                write!(f, "{} is empty: create the image first", name.display())
            }
            VhdError::Short { name, bytes } => {
                write!(f, "{} has {bytes} bytes, too few for a VHD footer", name.display())
            }
            VhdError::Field { name, field, offset, why, remedy } => {
                write!(f, "{}: {field} at byte {offset} {why}; {remedy}", name.display())
            }
            VhdError::Block { name, block, sector, why } => write!(
                f,
                "{}: block {block} (offset {sector:#x}) {why}; run vhd-util check",
                name.display()
            ),
            VhdError::TooLarge { name, bytes } => write!(
                f,
                "{}: a disk of {bytes} bytes is larger than the 2040 GiB a VHD can hold; \
                 copy it to another format",
                name.display()
            ),
            VhdError::Parent { name, tried, errno } => {
                let e = io::Error::from_raw_os_error(*errno);
                write!(f, "{}: no parent locator leads to a readable file ({e})", name.display())?;
                tried.iter().try_for_each(|p| write!(f, ", tried {}", p.display()))?;
                write!(f, "; set the parent with vhd-util modify -p")
            }
            VhdError::Cycle { name } => write!(
                f,
                "{} is its own ancestor; set the right parent with vhd-util modify -p",
                name.display()
            ),
            VhdError::Request { name, why, .. } => write!(f, "{}: {why}", name.display()),
        }
    }
}

impl std::error::Error for VhdError {}
