//! Asynchronous file I/O under the engine ([`request::disk::Disk`]): io_uring, Linux AIO, images
//! over NBD, and the alignment that devices ask for.
//!
//! Nothing here allocates after `open`; it knows nothing of formats or requests.
#![deny(unsafe_code)]

pub mod aio;
pub mod align;
mod files;
mod flight;
pub mod probe;
pub mod remote;
pub mod uring;
pub mod worker;
