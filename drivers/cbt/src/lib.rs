//! Changed-block logs: which 64 KiB blocks of a disk were written since the log was made.
//!
//! Backup software asks a storage manager for the blocks that changed between two snapshots; the
//! answer is the union of the logs between them. A bit that is set too much costs a little time, a
//! bit that is missing costs the backup, so everything here errs on the side of the bit: nothing in
//! this crate clears one.
//!
//! ```text
//!   byte 0        16       32          36       40            48
//!     │ parent id │ child id │ consistent │ 0 0 0 0 │ disk bytes │ one bit a 64 KiB block ...
//! ```
//!
//! * [`Header`] and [`bitmap`]: the bytes.
//! * [`LogFile`]: a log on the file system or on a block device, as `cbt-util` works on it.
//! * [`Log`]: a log that a daemon marks while it serves the disk.
//!
//! The format has no magic number, no version and no checksum: a file is a log if it is long
//! enough. Fields are little-endian, as the original writes them on x86.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # let name = dir.path().join("disk.cbtlog");
//! cbt::create(&name, 10 << 20)?;
//! let log = cbt::Log::open(&name, 20480)?;
//! log.mark(127, 2); // the last sector of block 0 and the first of block 1
//! assert_eq!(cbt::LogFile::open(&name, false)?.bitmap()?[0], 0b11);
//! # Ok::<(), cbt::CbtError>(())
//! ```
#![deny(unsafe_code)]

pub mod bitmap;
mod error;
mod file;
mod header;
mod log;
mod map;
mod uuid;

pub use error::CbtError;
pub use file::{Change, LogFile, coalesce, create};
pub use header::{HEADER_BYTES, Header};
pub use image::unfinished;
pub use log::Log;
pub use uuid::Uuid;
