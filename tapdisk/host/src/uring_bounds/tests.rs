#![allow(unsafe_code)]
use super::*;
use io_uring::{opcode, types};

/// What comes of an operation; `None` where this kernel has no rings, or no bounds.
fn tried(entry: squeue::Entry) -> Option<i32> {
    let mut ring: IoUring = IoUring::builder().setup_r_disabled().build(2).ok()?;
    let bounds = Bounds {
        operations: &[opcode::Fsync::CODE],
        flags: squeue::Flags::empty(),
        registers: &[],
    };
    if !restrict(&ring, &bounds).unwrap() {
        return None;
    }
    let again = ring.submitter().register_files(&[-1]).map_err(|e| e.raw_os_error());
    assert_eq!(again, Err(Some(libc::EACCES)), "nothing can be registered any more");
    // SAFETY: the operations of this test name no memory.
    unsafe { ring.submission().push(&entry) }.ok()?;
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().map(|done| done.result())
}

#[test]
fn a_ring_takes_what_it_was_made_for_and_nothing_else() {
    let nowhere = types::Fd(-1);
    let Some(result) = tried(opcode::Nop::new().build()) else {
        eprintln!("SKIPPED: this kernel has no io_uring, or none with restrictions");
        return;
    };
    assert_eq!(result, -libc::EACCES);
    assert_eq!(tried(opcode::Close::new(nowhere).build()), Some(-libc::EACCES));
    let fsync = || opcode::Fsync::new(nowhere).build();
    assert_eq!(tried(fsync()), Some(-libc::EBADF), "it is let through");
    assert_eq!(tried(fsync().flags(squeue::Flags::ASYNC)), Some(-libc::EACCES));
}
