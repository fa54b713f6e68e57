//! tapdisk: one process that serves one virtual disk (the control protocol allows more).
//!
//! ```text
//!   process ─► server (the loop) ─┬─► control ─► vbd ─► formats, job     what may allocate and log
//!                                 └─► vbd::DataPath: frontend ─► engine ─► disk     what may not
//! ```
#![deny(unsafe_code)]

pub mod confine;
pub mod control;
pub mod formats;
pub mod handover;
pub mod job;
pub mod kernel_nbd;
pub mod log;
pub mod memory;
pub mod process;
pub mod receiver;
pub mod reclaim;
pub mod sealed;
pub mod server;
pub mod signals;
pub mod stats_json;
pub mod tokens;
pub mod vbd;
