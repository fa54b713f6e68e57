//! Rings that take nothing but the operations that are in use.
//!
//! No filter of system calls sees what goes through a ring. So rings are made disabled, told what they
//! may take, for good, and enabled (Linux 5.10). Whoever writes into the memory of such a ring cannot
//! open, connect or send with it.
use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, squeue};

/// What a ring may take from now on.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// Codes of operations.
    pub operations: &'a [u8],
    /// Flags of entries.
    pub flags: squeue::Flags,
    /// Numbers of io_uring_register(2).
    pub registers: &'a [u8],
}

/// Sets the bounds of a ring that was made disabled, and enables it. Whether they hold: not on a ring
/// that was enabled, because the kernel does not know better. The calling thread is from then on the
/// one that uses the ring, where only one may.
///
/// # Errors
/// When the ring is not enabled.
pub fn restrict<S, C>(ring: &IoUring<S, C>, bounds: &Bounds<'_>) -> io::Result<bool>
where
    S: squeue::EntryMarker,
    C: cqueue::EntryMarker,
{
    let operations = bounds.operations.iter().map(|code| Restriction::sqe_op(*code));
    let registers = bounds.registers.iter().map(|number| Restriction::register_op(*number));
    let mut all: Vec<Restriction> = operations.chain(registers).collect();
    all.push(Restriction::sqe_flags_allowed(bounds.flags.bits()));
    let limited = ring.submitter().register_restrictions(&mut all);
    match ring.submitter().register_enable_rings() {
        Ok(()) => Ok(limited.is_ok()),
        Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
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
}
