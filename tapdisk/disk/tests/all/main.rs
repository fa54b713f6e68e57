//! The disk engines over real files and devices, and over servers of NBD that the tests play.
#![allow(unsafe_code, reason = "file descriptors that the tests make by hand")]
#[path = "../../../tests/counting/mod.rs"]
mod counting;
mod engines;
mod remote;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;
