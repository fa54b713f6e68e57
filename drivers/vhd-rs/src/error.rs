//! What can be wrong with a VHD image, as sentences for the person who has to mend it.
use image::{NodeError, Odd};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Numbers of `errno.h` that this crate answers with.
pub mod errno {
    #![allow(missing_docs, reason = "errno.h's names")]
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EACCES: i32 = 13;
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
use errno::{EACCES, EFBIG, EINVAL, EIO, ELOOP, EPIPE};
pub(crate) use show::path as shown;

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
        /// The image that is met twice, or whose id is.
        name: PathBuf,
        /// Where it was met before.
        other: PathBuf,
    },
    /// What an image names as its parent is no file of a file system for data, and no block device.
    NoStorage {
        /// The child.
        name: PathBuf,
        /// What it names.
        parent: PathBuf,
    },
    /// What an image names as its parent lies where no parents are.
    Elsewhere {
        /// The child.
        name: PathBuf,
        /// What it names.
        parent: PathBuf,
        /// It is a raw image.
        raw: bool,
        /// What in the owner's list counts for nothing.
        fault: Option<String>,
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
            VhdError::NoStorage { .. } | VhdError::Elsewhere { .. } => EACCES,
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
                write!(f, "{}: could not {doing} at byte {offset}: {e}", shown(name))
            }
            VhdError::Node { name, odd } => write!(
                f,
                "{} is {odd}, neither a file nor a block device; name one of these",
                shown(name)
            ),
            VhdError::Foreign { name, what, remedy } => {
                write!(f, "{} is {what}, not a VHD; {remedy}", shown(name))
            }
            VhdError::Empty { name } => {
                write!(f, "{} is empty: create the image first", shown(name))
            }
            VhdError::Short { name, bytes } => {
                write!(f, "{} has {bytes} bytes, too few for a VHD footer", shown(name))
            }
            VhdError::Field { name, field, offset, why, remedy } => {
                write!(f, "{}: {field} at byte {offset} {why}; {remedy}", shown(name))
            }
            VhdError::Block { name, block, sector, why } => write!(
                f,
                "{}: block {block} (offset {sector:#x}) {why}; run vhd-util check",
                shown(name)
            ),
            VhdError::TooLarge { name, bytes } => write!(
                f,
                "{}: a disk of {bytes} bytes is larger than the 2040 GiB a VHD can hold; \
                 copy it to another format",
                shown(name)
            ),
            VhdError::Parent { name, tried, errno } => {
                let e = io::Error::from_raw_os_error(*errno);
                write!(f, "{}: no parent locator leads to a readable file ({e})", shown(name))?;
                tried.iter().try_for_each(|p| write!(f, ", tried {}", shown(p)))?;
                write!(f, "; set the parent with vhd-util modify -p")
            }
            VhdError::Cycle { name, other } => write!(
                f,
                "{} is its own ancestor (it, or {} with the same id, is above it in the chain); \
                 set the right parent with vhd-util modify -p",
                shown(name),
                shown(other)
            ),
            VhdError::NoStorage { name, parent } => write!(
                f,
                "{}: its parent {} is no file of a file system for data and no block device, \
                 and is not opened; set the right parent with vhd-util modify -p",
                shown(name),
                shown(parent)
            ),
            VhdError::Elsewhere { name, parent, raw, fault } => {
                elsewhere(f, name, parent, *raw, fault.as_deref())
            }
            VhdError::Request { name, why, .. } => write!(f, "{}: {why}", shown(name)),
        }
    }
}

/// The rule, and the ways to go on for who trusts the image.
fn elsewhere(
    f: &mut fmt::Formatter<'_>,
    name: &Path,
    parent: &Path,
    raw: bool,
    fault: Option<&str>,
) -> fmt::Result {
    let (name, parent) = (shown(name), shown(parent));
    write!(
        f,
        "{name}: its parent {parent} is not opened, since it lies neither in the directory of the \
         image nor in its volume group. If you know who made the image, move both together, list \
         the place of the parent in {} (or {}), or, for files, say as root: \
         vhd-util modify -n {name} -p {parent}{}",
        image::place::LIST,
        image::place::VARIABLE,
        if raw { " -m" } else { "" },
    )?;
    fault.map_or(Ok(()), |fault| write!(f, ". {}", show::bytes(fault.as_bytes())))
}

impl std::error::Error for VhdError {}
