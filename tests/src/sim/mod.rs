//! The simulator: the daemon's engine, cache and drivers over a disk in memory that fails by seed.
//!
//! ```text
//!   World ── requests ──► Engine (the daemon's) ──► SimDisk: random completion order, short transfers,
//!     │                                              EIO, ENOSPC, EAGAIN, volatile cache, power cuts
//!     └── Model: which values each sector may hold ◄── compared with every read and, after a power cut,
//!                                                      with the blocking executor's view of the files
//! ```
pub mod below;
pub mod bench;
pub mod blktap;
pub mod disk;
pub mod hostile;
pub mod logged;
pub mod model;
pub mod ring;
mod ring_guest;
pub mod rng;
pub mod seeds;
mod stack;
pub mod toy;
pub mod world;

pub use seeds::{Counts, each};
pub use world::{Ran, Setup, run};
