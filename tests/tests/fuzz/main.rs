//! Every parser that takes bytes from a stranger, under the fuzzer of `tests::fuzz`: kept inputs first, then
//! new ones. A finding prints its seed and its input.
//!
//! `vhd-rs` and `xenstore-rs` have property tests of their own; here are the searches that learn from
//! what happened, and everything that works on an image after it was opened.
mod cbt;
mod control;
mod nbd;
mod nbd_client;
mod planted;
mod sparse;
mod vhd;
mod vhd_journal;
mod vhd_parts;

/// The bench of the NBD server's own tests: a fake engine, and turns of the loop in one thread.
#[path = "../../../tapdisk/tests/nbd_support/mod.rs"]
mod nbd_support;

#[global_allocator]
static ALLOCATOR: tests::fuzz::alloc::Counting = tests::fuzz::alloc::Counting;
