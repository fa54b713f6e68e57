//! How far replies may run ahead of their reader.
//!
//! A client that finds all replies in its socket takes them all before it asks for more; meanwhile
//! the disk has nothing to do, and then everybody waits for the disk. A short send buffer hands it
//! a few at a time, so its next requests arrive while the rest is still being sent: a third more
//! small reads a second at depth 32. Long reads are one request each, and for them a long buffer is
//! better; so is one for a network.
use std::os::fd::BorrowedFd;

use super::life::SOCKET_BUFFER_BYTES;
use super::sys::{self, Buffer};

/// The short send buffer; the kernel doubles it, and counts its own overhead.
const SHORT_BYTES: i32 = 24 << 10;
/// Reads from this length on want the long buffer.
const LONG_READ_BYTES: u32 = 256 << 10;
/// Shorter reads in a row after which the short one is back.
const SHORT_READS: u8 = 64;

/// The send buffer of one client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    fixed: bool,
    long: bool,
    short_reads: u8,
}

impl Pace {
    /// A client arrives; one that was passed as a descriptor may be at the other end of a network.
    pub(super) fn begin(&mut self, fd: BorrowedFd<'_>, passed: bool) {
        *self = Pace { fixed: passed, long: passed, short_reads: 0 };
        self.apply(Some(fd));
    }

    /// A read of `bytes` bytes is on its way.
    pub(super) fn read(&mut self, fd: Option<BorrowedFd<'_>>, bytes: u32) {
        let long = bytes >= LONG_READ_BYTES;
        if self.fixed || long == self.long {
            self.short_reads = 0;
            return;
        }
        self.short_reads += 1;
        if long || self.short_reads == SHORT_READS {
            (self.long, self.short_reads) = (long, 0);
            self.apply(fd);
        }
    }

    fn apply(self, fd: Option<BorrowedFd<'_>>) {
        let bytes = if self.long { SOCKET_BUFFER_BYTES } else { SHORT_BYTES };
        if let Some(fd) = fd {
            sys::size_buffer(fd, Buffer::Send, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reads_get_the_long_buffer_until_many_short_ones_follow() {
        let mut pace = Pace::default();
        pace.read(None, 4096);
        assert!(!pace.long);
        pace.read(None, 1 << 20);
        assert!(pace.long);
        (0..SHORT_READS - 1).for_each(|_| pace.read(None, 4096));
        assert!(pace.long, "a few short reads between long ones change nothing");
        pace.read(None, 1 << 20);
        (0..SHORT_READS).for_each(|_| pace.read(None, 4096));
        assert!(!pace.long);
    }
}
