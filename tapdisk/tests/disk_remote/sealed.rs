//! Nothing allocates once the remotes are set.
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

use tapdisk::disk::{Disk, Kind};

use crate::support::{DEPTH, each, offer, reply};

/// Counts the calls of threads that ask for it.
struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
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

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn requests_answers_and_the_end_do_not_allocate() {
    each(|bench| {
        let mut b = bench(offer());
        let mut answers = Vec::with_capacity(1 << 22);
        CALLS.set(0);
        for round in 0..50 {
            WATCHED.set(true);
            for tag in 0..DEPTH {
                match tag % 3 {
                    0 => b.push(tag, Kind::Read, 0, 65536),
                    1 => b.push(tag, Kind::Write, 0, 4096),
                    _ => b.push(tag, Kind::Sync, 0, 0),
                }
            }
            b.disk.submit().unwrap();
            WATCHED.set(false);
            answers.clear();
            for _ in 0..DEPTH {
                let r = b.request();
                answers.extend(reply(r.handle, 0));
                match r.command {
                    0 => answers.resize(answers.len() + 65536, round),
                    1 => drop(b.data(4096)),
                    _ => {}
                }
            }
            let mut far = b.far.try_clone().unwrap();
            let all = std::mem::take(&mut answers);
            let writer = std::thread::spawn(move || {
                far.write_all(&all).unwrap();
                all
            });
            let mut done = 0;
            while done < DEPTH {
                WATCHED.set(true);
                b.disk.submit().unwrap();
                while b.disk.reap().is_some() {
                    done += 1;
                }
                WATCHED.set(false);
            }
            answers = writer.join().unwrap();
        }
        (0..DEPTH).for_each(|tag| b.push(tag, Kind::Read, 0, 512));
        b.far.write_all(&[0; 16]).unwrap();
        WATCHED.set(true);
        b.disk.submit().unwrap();
        let failed = std::iter::from_fn(|| b.disk.reap()).count();
        WATCHED.set(false);
        assert_eq!((failed, CALLS.get()), (DEPTH as usize, 0));
    });
}
