//! Rings that take nothing but the operations that are in use.
//!
//! No filter of system calls sees what goes through a ring. So rings are made disabled, told what
//! they may take, for good, and enabled (Linux 5.10). Whoever writes into the memory of such a ring
//! cannot open, connect or send with it.
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

/// Sets the bounds of a ring that was made disabled, and enables it. Whether they hold: not on a
/// ring that was enabled, because the kernel does not know better. The calling thread is from then
/// on the one that uses the ring, where only one may.
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
mod tests;
