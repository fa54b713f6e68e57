//! A descriptor that tells in u32s what has happened, and is told in u32s what has been seen (event
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
pub(super) struct Ear {
    fd: RawFd,
    heard: Numbers,
    told: Numbers,
    /// To be told when the write that is on its way is over.
    next: [u32; NUMBERS_MAX],
    next_count: usize,
}

impl Ear {
    pub(super) fn new(fd: RawFd) -> Ear {
        Ear {
            fd,
            heard: Numbers::new(),
            told: Numbers::new(),
            next: [0; NUMBERS_MAX],
            next_count: 0,
        }
    }

    /// What has to be queued before a sleep.
    pub(super) fn entries(&mut self, mut queue: impl FnMut(&Entry)) {
        let fd = types::Fd(self.fd);
        if !self.heard.lent && self.heard.count == 0 {
            self.heard.lent = true;
            let readable = u32::from(libc::POLLIN.unsigned_abs());
            let poll = opcode::PollAdd::new(fd, readable).build().user_data(POLL);
            queue(&poll.flags(Flags::IO_LINK | Flags::SKIP_SUCCESS));
            let to = self.heard.all.as_mut_ptr().cast();
            queue(&opcode::Read::new(fd, to, BYTES).offset(u64::MAX).build().user_data(READ));
        }
        if !self.told.lent && self.next_count > 0 {
            self.told.all.copy_from_slice(&self.next);
            self.told.count = std::mem::take(&mut self.next_count);
            self.told.lent = true;
            let (from, bytes) = (self.told.all.as_ptr().cast(), self.told.count * size_of::<u32>());
            let write = opcode::Write::new(fd, from, bytes as u32).offset(u64::MAX);
            queue(&write.build().user_data(WRITE).flags(Flags::SKIP_SUCCESS));
        }
    }

    /// A read is over; a poll that was refused takes its read with it.
    pub(super) fn read(&mut self, result: i32) {
        self.heard.lent = false;
        self.heard.count = usize::try_from(result).unwrap_or(0) / size_of::<u32>();
    }

    /// The kernel has taken all entries: the write was made with them.
    pub(super) fn submitted(&mut self) {
        self.told.lent = false;
    }

    /// A write failed: once more at the next sleep, as far as there is room.
    pub(super) fn not_written(&mut self) {
        let (at, count) = (self.next_count, std::mem::take(&mut self.told.count));
        let again = count.min(NUMBERS_MAX - at);
        self.next[at..at + again].copy_from_slice(&self.told.all[..again]);
        self.next_count += again;
    }

    pub(super) fn has_heard(&self) -> bool {
        self.heard.count > 0
    }

    /// What was read, once.
    pub(super) fn take_heard(&mut self) -> &[u32] {
        &self.heard.all[..std::mem::take(&mut self.heard.count)]
    }

    /// Writes a number with the next sleep. False if there is no room.
    pub(super) fn tell(&mut self, number: u32) -> bool {
        let Some(place) = self.next.get_mut(self.next_count) else { return false };
        *place = number;
        self.next_count += 1;
        true
    }
}
