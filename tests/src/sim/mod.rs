//! The simulator: the daemon's engine, cache and drivers over a disk in memory that fails by seed.
//!
//! ```text
//!   World ── requests ──► Engine (the daemon's) ──► SimDisk: random completion order, short transfers,
//!     │                                              EIO, ENOSPC, EAGAIN, volatile cache, power cuts
//!     └── Model: which values each sector may hold ◄── compared with every read and, after a power cut,
//!                                                      with the blocking executor's view of the files
//! ```
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod below;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod bench;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod blktap;
pub mod disk;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod hostile;
pub mod logged;
pub mod model;
#[cfg(any(debug_assertions, feature = "canary"))]
mod planted;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod qcow2;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod ring;
#[cfg(any(debug_assertions, feature = "canary"))]
mod ring_guest;
pub mod seeds;
#[cfg(any(debug_assertions, feature = "canary"))]
mod stack;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod toy;
#[cfg(any(debug_assertions, feature = "canary"))]
pub mod world;

#[cfg(any(debug_assertions, feature = "canary"))]
pub use planted::find_planted;
pub use seeds::{Counts, each};
pub use test_support::rng;
#[cfg(any(debug_assertions, feature = "canary"))]
pub use world::{Ran, Setup, run, run_all};
