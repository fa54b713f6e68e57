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
pub mod model;
pub mod ring;
mod ring_guest;
pub mod rng;
mod stack;
pub mod world;

pub use world::{Ran, Setup, run};

/// The first seed of a run and how many: `SIM_FIRST` (0) and `SIM_SEEDS` (`default`) of the environment.
///
/// # Panics
/// When one of the variables is no number.
pub fn first_and_count(default: u64) -> (u64, u64) {
    let number = |name: &str, default| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number of seeds"))
    };
    (number("SIM_FIRST", 0), number("SIM_SEEDS", default))
}
