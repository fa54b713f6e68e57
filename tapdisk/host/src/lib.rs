//! What the daemon needs of the kernel it runs on, in the room below everybody: locked memory,
//! calls of the system, sockets, descriptors that are carried over an exec, the bounds of a ring.
#![deny(unsafe_code)]

pub mod arena;
pub mod carry;
pub mod entrance;
pub mod protection;
pub mod slab;
pub mod socket;
pub mod sys;
pub mod uring_bounds;
