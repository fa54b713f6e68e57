//! qcow2 in the simulator: images of every geometry, made and checked by code that shares nothing
//! with the driver's crate but the deflate library.
mod check;
mod layout;

pub use check::{Verdict, check};
pub use layout::{Layout, make};
