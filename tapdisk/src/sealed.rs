//! The allocator that can be sealed: proof that the path of a request does not allocate.
//!
//! The turn seals the allocator for its thread while requests are being worked on. An allocation,
//! or a release, by that thread is then counted; in debug builds, or with `TAPDISK_SEAL=abort`, the
//! process stops at once with a backtrace of the offender on standard error and in the file that
//! `TAPDISK_SEAL_TRACE` names. Other threads (opening an image, discarding on a device) are free to
//! allocate.
#![allow(unsafe_code)]
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The thread that sealed the allocator; 0 while nobody has.
static SEALED_BY: AtomicUsize = AtomicUsize::new(0);
/// Calls of the allocator while sealed.
static BROKEN: AtomicU64 = AtomicU64::new(0);
/// Calls of the allocator in all.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// Whether a call while sealed ends the process.
static ABORT: AtomicBool = AtomicBool::new(cfg!(debug_assertions));

/// The global allocator of the daemon: the system's, which can be sealed.
pub struct Sealable;

// SAFETY: every call goes to the system's allocator unchanged; the notes beside it do not allocate.
unsafe impl GlobalAlloc for Sealable {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract of `GlobalAlloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

fn note() {
    CALLS.fetch_add(1, Relaxed);
    let owner = SEALED_BY.load(Relaxed);
    if owner == 0 || owner != this_thread() {
        return;
    }
    BROKEN.fetch_add(1, Relaxed);
    if ABORT.load(Relaxed) {
        // The report itself allocates.
        SEALED_BY.store(0, Relaxed);
        let trace = std::backtrace::Backtrace::force_capture();
        let text = format!("the allocator was called in the sealed part of a turn:\n{trace}\n");
        eprint!("{text}");
        if let Some(path) = std::env::var_os("TAPDISK_SEAL_TRACE") {
            let _ = std::fs::write(path, text);
        }
        std::process::abort();
    }
}

/// A number that no other thread has, without touching thread-local memory of Rust's.
fn this_thread() -> usize {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::pthread_self() as usize }
}

/// The allocator is sealed for this thread while this lives.
#[derive(Debug)]
pub struct Seal {
    /// Belongs to its thread.
    _here: PhantomData<Cell<*const ()>>,
}

impl Seal {
    /// Seals the allocator for the calling thread. Only one thread of a process does so.
    pub fn new() -> Seal {
        SEALED_BY.store(this_thread(), Relaxed);
        Seal { _here: PhantomData }
    }
}

impl Default for Seal {
    fn default() -> Seal {
        Seal::new()
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        SEALED_BY.store(0, Relaxed);
    }
}

/// Whether a broken seal ends the process; otherwise it is counted.
pub fn abort_when_broken(yes: bool) {
    ABORT.store(yes, Relaxed);
}

/// How often the allocator was called while sealed.
pub fn broken() -> u64 {
    BROKEN.load(Relaxed)
}

/// How often the allocator was called in all.
pub fn calls() -> u64 {
    CALLS.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_only_while_this_thread_has_sealed() {
        abort_when_broken(false);
        note();
        assert_eq!(broken(), 0);
        let seal = Seal::new();
        note();
        std::thread::scope(|s| {
            s.spawn(note);
        });
        drop(seal);
        note();
        assert_eq!(broken(), 1);
        assert!(calls() >= 4);
    }
}
