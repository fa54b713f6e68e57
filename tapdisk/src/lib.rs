//! tapdisk: one process that serves one virtual disk (the control protocol allows more).
//!
//! ```text
//!   process ─► server (the loop) ─┬─► control ─► vbd ─► formats, job     what may allocate and log
//!                                 └─► vbd::Served: transport ─► engine ─► disk     what may not
//! ```
#![deny(unsafe_code)]

pub mod carry;
pub mod confine;
pub mod control;
pub mod disk;
pub mod engine;
pub mod entrance;
pub mod formats;
pub mod handover;
pub mod job;
pub mod kernel_nbd;
pub mod log;
pub mod memory;
mod nbd_proto;
mod places;
pub mod pool;
pub mod process;
pub mod protection;
pub mod receiver;
pub mod reclaim;
pub mod sealed;
pub mod server;
pub mod signals;
mod socket;
pub mod stats_json;
pub mod sys;
pub mod tokens;
pub mod transport;
pub mod uring_bounds;
pub mod vbd;
