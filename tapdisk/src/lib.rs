//! tapdisk: one process that serves one virtual disk (the control protocol allows more).
#![deny(unsafe_code)]

pub mod disk;
pub mod engine;
pub mod pool;
pub mod transport;
