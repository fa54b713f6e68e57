//! An allocator that counts the calls of threads that ask for it.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The allocator; a test program that uses it makes it its `global_allocator`.
pub struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Calls are counted from now on, or not.
pub fn watch(on: bool) {
    WATCHED.set(on);
}

/// Calls of this thread while it was watched, since it was last asked.
pub fn calls() -> u64 {
    CALLS.replace(0)
}

fn note() {
    if WATCHED.try_with(Cell::get).unwrap_or(false) {
        CALLS.set(CALLS.get() + 1);
    }
}

// SAFETY: everything is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}
