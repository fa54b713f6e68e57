//! qcow2: what a header says ([`header`]), where its tables send a sector ([`driver`]).
//!
//! ```text
//!   header ─► L1 (in memory) ─► L2 (cached in pieces) ─► a cluster: here, zeros, packed, below
//! ```
//! One that is to be written is made [`ready()`] first. Where a change goes, and in which order its
//! metadata follows, is in `write.rs`; where there is room for it, in `space.rs`.
//!
//! Facts: docs/spec/qcow2.md. All integers of the file are big endian.
#![forbid(unsafe_code)]

mod allocate;
mod bug;
pub mod check;
mod chores;
pub mod count;
mod counts;
pub mod create;
pub mod driver;
pub mod edit;
mod encode;
mod entry;
pub mod error;
pub mod extension;
pub mod head;
pub mod header;
mod landed;
pub mod layout;
pub mod map;
mod num;
pub mod opened;
mod own;
pub mod ready;
mod rebuild;
mod refcounts;
pub mod repair;
pub mod resize;
pub mod snapshots;
mod space;
mod tables;
mod users;
mod write;
mod zeros;

pub use bug::Bug;
pub use check::{Report, Said, check};
pub use create::create;
pub use driver::Qcow2;
pub use error::Error;
pub use header::Header;
pub use opened::{Opened, open};
pub use ready::{Ready, ready};
pub use repair::{What, repair};
