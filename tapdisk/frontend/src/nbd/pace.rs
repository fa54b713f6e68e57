//! How far replies may run ahead of their reader.
//!
//! A client that finds all replies in its socket takes them all before it asks for more; meanwhile
//! the disk has nothing to do, and then everybody waits for the disk. A short send buffer hands it
//! a few at a time, so its next requests arrive while the rest is still being sent: a third more
//! small reads a second at depth 32. It has to hold more than one reply, though: one that does not
//! fit is sent in parts, with a sleep between them, so reads of some length get a longer one. Long
//! reads are one request each, and for them a long buffer is better; so is one for a network.
use std::os::fd::BorrowedFd;

use super::life::SOCKET_BUFFER_BYTES;
use super::sys::{self, Buffer};

/// The short send buffer; the kernel doubles it, and counts its own overhead.
const SHORT_BYTES: i32 = 24 << 10;
/// The middle one: two replies of 64 KiB.
const MIDDLE_BYTES: i32 = 96 << 10;
/// Reads from these lengths on want the middle buffer, and the long one.
const MIDDLE_READ_BYTES: u32 = 32 << 10;
const LONG_READ_BYTES: u32 = 256 << 10;
/// Reads in a row that want a shorter buffer, after which there is one.
const SHORT_READS: u8 = 64;

/// Sizes of the buffer, the shortest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Size {
    #[default]
    Short,
    Middle,
    Long,
}

impl Size {
    fn for_read(bytes: u32) -> Size {
        match bytes {
            LONG_READ_BYTES.. => Size::Long,
            MIDDLE_READ_BYTES.. => Size::Middle,
            _ => Size::Short,
        }
    }

    fn bytes(self) -> i32 {
        match self {
            Size::Short => SHORT_BYTES,
            Size::Middle => MIDDLE_BYTES,
            Size::Long => SOCKET_BUFFER_BYTES,
        }
    }
}

/// The send buffer of one client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    fixed: bool,
    size: Size,
    short_reads: u8,
}

impl Pace {
    /// A client arrives; one that was passed as a descriptor may be at the other end of a network.
    pub(super) fn begin(&mut self, fd: BorrowedFd<'_>, passed: bool) {
        let size = if passed { Size::Long } else { Size::Short };
        *self = Pace { fixed: passed, size, short_reads: 0 };
        self.apply(Some(fd));
    }

    /// A read of `bytes` bytes is on its way.
    pub(super) fn read(&mut self, fd: Option<BorrowedFd<'_>>, bytes: u32) {
        let size = Size::for_read(bytes);
        if self.fixed || size == self.size {
            self.short_reads = 0;
            return;
        }
        self.short_reads += 1;
        if size > self.size || self.short_reads == SHORT_READS {
            (self.size, self.short_reads) = (size, 0);
            self.apply(fd);
        }
    }

    fn apply(self, fd: Option<BorrowedFd<'_>>) {
        if let Some(fd) = fd {
            sys::size_buffer(fd, Buffer::Send, self.size.bytes());
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
        assert_eq!(pace.size, Size::Short);
        pace.read(None, 1 << 20);
        assert_eq!(pace.size, Size::Long);
        (0..SHORT_READS - 1).for_each(|_| pace.read(None, 4096));
        assert_eq!(pace.size, Size::Long, "a few short reads between long ones change nothing");
        pace.read(None, 1 << 20);
        (0..SHORT_READS).for_each(|_| pace.read(None, 4096));
        assert_eq!(pace.size, Size::Short);
    }

    #[test]
    fn replies_that_do_not_fit_the_short_buffer_get_the_middle_one() {
        let mut pace = Pace::default();
        pace.read(None, 64 << 10);
        assert_eq!(pace.size, Size::Middle);
        (0..SHORT_READS).for_each(|_| pace.read(None, 4096));
        assert_eq!(pace.size, Size::Short);
    }
}
