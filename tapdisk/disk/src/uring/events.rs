//! A descriptor that gives events as u32s, and takes them back when they have been seen (event
//! channels of Xen), read and written inside the ring: no call of its own for either.
//!
//! ```text
//!   poll ─link─► read   queued before each sleep until it has brought something
//!   write               queued with them
//! ```
//! The poll leaves no completion when it fires, so that the sleeper wakes with the numbers in hand;
//! a write that succeeds leaves none, so that it wakes nobody. The descriptor is non-blocking: the
//! read that follows the poll and the write are made at once, or fail.
use std::os::fd::RawFd;

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

/// Numbers of one read or write.
pub const NUMBERS_MAX: usize = 32;
/// Entries of the submission queue at most.
pub(super) const ENTRIES: u32 = 3;
/// User data of its entries.
pub(super) const READ: u64 = 3 << 32;
pub(super) const WRITE: u64 = 4 << 32;
pub(super) const POLL: u64 = 5 << 32;
const BYTES: u32 = (NUMBERS_MAX * size_of::<u32>()) as u32;

/// Numbers that the kernel reads or writes: at one place for life, and left alone meanwhile.
#[derive(Debug)]
struct Numbers {
    all: Box<[u32; NUMBERS_MAX]>,
    count: usize,
    /// The kernel has them.
    lent: bool,
}

impl Numbers {
    fn new() -> Numbers {
        Numbers { all: Box::new([0; NUMBERS_MAX]), count: 0, lent: false }
    }
}

/// Must outlive the ring that was given its entries.
#[derive(Debug)]
pub(super) struct EventReader {
    fd: RawFd,
    came: Numbers,
    seen: Numbers,
    /// To be written when the write that is on its way is over.
    next: [u32; NUMBERS_MAX],
    next_count: usize,
}

impl EventReader {
    pub(super) fn new(fd: RawFd) -> EventReader {
        EventReader {
            fd,
            came: Numbers::new(),
            seen: Numbers::new(),
            next: [0; NUMBERS_MAX],
            next_count: 0,
        }
    }

    /// What has to be queued before a sleep.
    pub(super) fn entries(&mut self, mut queue: impl FnMut(&Entry)) {
        let fd = types::Fd(self.fd);
        if !self.came.lent && self.came.count == 0 {
            self.came.lent = true;
            let readable = u32::from(libc::POLLIN.unsigned_abs());
            let poll = opcode::PollAdd::new(fd, readable).build().user_data(POLL);
            queue(&poll.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS));
            let to = self.came.all.as_mut_ptr().cast();
            queue(&opcode::Read::new(fd, to, BYTES).offset(u64::MAX).build().user_data(READ));
        }
        if !self.seen.lent && self.next_count > 0 {
            self.seen.all.copy_from_slice(&self.next);
            self.seen.count = std::mem::take(&mut self.next_count);
            self.seen.lent = true;
            let (from, bytes) = (self.seen.all.as_ptr().cast(), self.seen.count * size_of::<u32>());
            let write = opcode::Write::new(fd, from, bytes as u32).offset(u64::MAX);
            queue(&write.build().user_data(WRITE).flags(Flags::SKIP_SUCCESS));
        }
    }

    /// A read is over; a poll that was refused takes its read with it.
    pub(super) fn read(&mut self, result: i32) {
        self.came.lent = false;
        self.came.count = usize::try_from(result).unwrap_or(0) / size_of::<u32>();
    }

    /// The kernel has taken all entries: the write was made with them.
    pub(super) fn submitted(&mut self) {
        self.seen.lent = false;
    }

    /// A write failed: once more at the next sleep, as far as there is room.
    pub(super) fn not_written(&mut self) {
        let (at, count) = (self.next_count, std::mem::take(&mut self.seen.count));
        let again = count.min(NUMBERS_MAX - at);
        self.next[at..at + again].copy_from_slice(&self.seen.all[..again]);
        self.next_count += again;
    }

    pub(super) fn has_events(&self) -> bool {
        self.came.count > 0
    }

    /// What was read, once.
    pub(super) fn take_events(&mut self) -> &[u32] {
        &self.came.all[..std::mem::take(&mut self.came.count)]
    }

    /// Writes a number with the next sleep. False if there is no room.
    pub(super) fn acknowledge(&mut self, number: u32) -> bool {
        let Some(place) = self.next.get_mut(self.next_count) else { return false };
        *place = number;
        self.next_count += 1;
        true
    }
}
