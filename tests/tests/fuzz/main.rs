//! Every parser that takes bytes from a stranger, under the fuzzer of `tests::fuzz`: kept inputs
//! first, then new ones. A finding prints its seed and its input.
//!
//! `vhd-rs` and `xenstore-rs` have property tests of their own; here are the searches that learn
//! from what happened, and everything that works on an image after it was opened.
// Both benches have the same engine.
#![allow(clippy::duplicate_mod)]

mod blktap_ring;
mod cbt;
mod control;
mod guest_ring;
mod nbd;
mod nbd_client;
mod planted;
mod qcow2;
mod sparse;
mod vhd;
mod vhd_chain;
mod vhd_journal;
mod vhd_parts;

/// The bench of the ring frontend's own tests: a guest in memory.
#[path = "../../../tapdisk/frontend/tests/all/blkif_support/mod.rs"]
mod blkif_support;
/// The bench of the blktap module's ring: a kernel in memory.
#[path = "../../../tapdisk/frontend/tests/all/blktap_support/mod.rs"]
mod blktap_support;
/// The bench of the NBD server's own tests: a fake engine, and turns of the loop in one thread.
#[path = "../../../tapdisk/frontend/tests/all/nbd_support/mod.rs"]
mod nbd_support;

#[global_allocator]
static ALLOCATOR: tests::fuzz::alloc::Counting = tests::fuzz::alloc::Counting;

/// The next `N` bytes; zeros where there are none left.
fn next<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let count = N.min(input.len());
    let mut bytes = [0; N];
    bytes[..count].copy_from_slice(&input[..count]);
    *input = &input[count..];
    bytes
}
