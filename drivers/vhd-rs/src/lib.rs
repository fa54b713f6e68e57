//! VHD images as XenServer reads and writes them: the bytes, opening, closing, making, checking.
//!
//! Section signs (§) refer to the project's description of the format. Nothing here panics on the
//! bytes of an image, and nothing allocates more than the image has bytes.
//!
//! ```text
//!   locate (footer, header) ─► open (bat, batmap, parent) ─► Opened ─► closing
//!   create ─► the same structures written      check ─► the strict list
//! ```
#![forbid(unsafe_code)]

mod bytes;

pub mod bat;
pub mod batmap;
mod batmap_read;
pub mod chain;
pub mod check;
mod check_bat;
mod check_parent;
pub mod closing;
pub mod coalesce;
pub mod copy;
pub mod create;
pub mod crypt;
pub mod driver;
pub mod edit;
pub mod error;
pub mod files;
pub mod fill;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod journal;
pub mod key;
pub mod locate;
pub mod locator;
pub mod lock;
pub mod modify;
pub mod open;
pub mod path;
pub mod resize;
pub mod revert;
pub mod scan;

pub use check::{CheckOptions, Parents, Report, check};
pub use closing::closing;
pub use error::VhdError;
pub use footer::{DiskType, Footer};
pub use header::Header;
pub use locate::FooterAt;
pub use open::{BatmapState, OpenOptions, Opened, Parent, open, resolve_parent};
