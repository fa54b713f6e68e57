//! qcow2: what a header says ([`header`]), where its tables send a sector ([`driver`]).
//!
//! ```text
//!   header ─► L1 (in memory) ─► L2 (cached in pieces) ─► a cluster: here, zeros, packed, below
//! ```
//! Facts: docs/spec/qcow2.md. All integers of the file are big endian. So far images are read: what
//! would write is refused (EROFS).
#![forbid(unsafe_code)]

pub mod check;
mod counts;
pub mod create;
pub mod driver;
mod encode;
pub mod error;
pub mod extension;
pub mod head;
pub mod header;
pub mod layout;
mod num;
pub mod opened;
mod refcounts;
pub mod repair;
pub mod snapshots;

pub use check::{Report, Said, check};
pub use create::create;
pub use driver::Qcow2;
pub use error::Error;
pub use header::Header;
pub use opened::{Opened, open};
pub use repair::{What, repair};
