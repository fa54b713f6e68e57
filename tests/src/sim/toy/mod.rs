//! A small format of tables and counts, in the simulator alone: it uses all that a plan can say
//! and VHD has no need of (units that are copied, packed units, plans of the driver's own, orders
//! that hold whatever the policy is), so that the next format with these finds an engine that has
//! been shown to do them.
//!
//! ```text
//!   header │ L1: 8 bytes a table │ counts: 2 bytes a cluster │ clusters: data, tables, packed
//!   a table: 16 entries of 8 bytes, 64 bytes apart: 0 below, 1 zeros, an offset, packed there
//! ```
//! Crash order: a count may be too high on the disk (a leak), never too low; nothing points at what
//! is not there.
//!
//! | change | step 1 | step 2 | then |
//! |---|---|---|---|
//! | overwrite | data | | |
//! | new clusters | data, the rest copied, counts | entries | packed ones: as given back |
//! | given back | | entries | a chore, after a flush: count, hole |
//! | a table (a chore) | zeros, count | entry of the L1 | |
mod driver;
mod layout;

pub use driver::{Seen, Toy, ToyBug};
pub use layout::{Layout, check, make};
