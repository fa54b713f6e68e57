//! The ground under everybody on the way of a request: what a request is, the slots it is put in,
//! and what an operation on a file of the disk is.
//!
//! ```text
//!   frontend ── Request ─► Slots (the engine) ── Op ─► Disk (io_uring, AIO, the simulator)
//!
//!   reserve ─► Filling (the frontend writes the data) ─► start ─► … engine … ─► Done ─► release
//!                                   ▲ slot and buffer are the frontend's         ▲ again
//! ```
//! A slot owns its buffer for life. A frontend that finds no free slot leaves the request where it
//! is (in the ring, in the socket): that is the back-pressure.
#![forbid(unsafe_code)]

pub mod disk;

use image::Span;
use serde::{Deserialize, Serialize};

/// A slot, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub u16);

/// What a request asks for. Spans are checked against the disk's size by [`Slots::start`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Data into the slot's buffer.
    Read,
    /// Data from the slot's buffer. With `fua` it is on the disk before the answer.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything answered so far is on the disk before the answer.
    Flush,
    /// The span reads as zeros afterwards.
    Zero {
        /// Keep the space allocated (NBD NO_HOLE).
        keep: bool,
        /// Fail with ENOTSUP rather than write zeros slowly (NBD FAST_ZERO).
        fast: bool,
        /// Force unit access.
        fua: bool,
    },
    /// The span's contents do not matter any more.
    Discard {
        /// Force unit access.
        fua: bool,
    },
    /// Which parts of the span hold data: extents are left in the slot's buffer, as many as fit, as
    /// pairs of native u32: sectors, then 0 = data, 1 = hole that reads as zeros. May end before
    /// the span does; at least one is given.
    Status,
}

impl Verb {
    /// Whether it changes what the disk holds.
    pub fn changes(self) -> bool {
        match self {
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. } => true,
            Verb::Read | Verb::Flush | Verb::Status => false,
        }
    }
}

/// A request on its way through the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub verb: Verb,
    /// Which sectors; count 0 only for Flush. Read and Write fit the slot's buffer; Zero, Discard
    /// and Status may be of any length.
    pub span: Span,
    /// Who is answered.
    pub owner: Owner,
}

/// The frontends of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// NBD clients.
    #[default]
    Nbd,
    /// Rings of guests.
    Rings,
    /// The block device that ublk makes.
    Ublk,
    /// The block device of the kernel module blktap2.
    Blktap,
}

/// Who asked: an answer finds its way back by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Which frontend.
    pub source: Source,
    /// What that frontend knows its request by.
    pub cookie: u32,
}

/// The outcome of a request: a positive errno on failure. `Ok` of Status is the number of extents.
pub type Outcome = Result<u32, i32>;

/// The engine as frontends see it.
pub trait Slots {
    /// A free slot whose buffer has at least `bytes` bytes, now the caller's to fill; `None` if
    /// there is none just now. `bytes` is at most [`Slots::slot_bytes_max`]. Small requests are
    /// given small slots first.
    fn reserve(&mut self, bytes: u32) -> Option<SlotId>;
    /// Size of the largest slot buffer (64 KiB): longer requests are cut into pieces by the
    /// frontend.
    fn slot_bytes_max(&self) -> u32;
    /// The buffer of a slot that is the caller's (reserved or done).
    fn buffer(&self, slot: SlotId) -> &[u8];
    /// The same, to change.
    fn buffer_mut(&mut self, slot: SlotId) -> &mut [u8];
    /// Moves a request into its reserved slot and sets it going. A request that is wrong (outside
    /// the disk, write to a read-only disk) is done at once with its errno.
    fn start(&mut self, slot: SlotId, request: Request);
    /// Makes a slot whose request is done a reserved one again, with the buffer as it is.
    fn reuse(&mut self, slot: SlotId);
    /// Gives back a slot that is the caller's (reserved or done).
    fn release(&mut self, slot: SlotId);
    /// Slots in all and free ones, as (small, large) pairs: for quotas.
    fn slots(&self) -> SlotCounts;
    /// Size of the disk in sectors of 512 bytes.
    fn sectors(&self) -> u64;
    /// Logical sector size in bytes (512 or 4096): requests are multiples of it.
    fn sector_size(&self) -> u32;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
}

/// Reads and writes that somebody asked for, and what became of them. Pairs are of reads and of
/// writes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Traffic {
    /// Requests taken.
    pub begun: [u64; 2],
    /// Of them, those that are over.
    pub over: [u64; 2],
    /// Sectors of 512 bytes.
    pub sectors: [u64; 2],
    /// Time from the beginning to the end, in µs.
    pub ticks_us: [u64; 2],
    /// Requests that failed.
    pub errors: u64,
}

impl Traffic {
    /// What came after an earlier state of the same counters.
    #[must_use]
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        let less = |a: [u64; 2], b: [u64; 2]| [a[0].wrapping_sub(b[0]), a[1].wrapping_sub(b[1])];
        Traffic {
            begun: less(self.begun, earlier.begun),
            over: less(self.over, earlier.over),
            sectors: less(self.sectors, earlier.sectors),
            ticks_us: less(self.ticks_us, earlier.ticks_us),
            errors: self.errors.wrapping_sub(earlier.errors),
        }
    }
}

/// How many slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SlotCounts {
    /// Slots with a buffer of 4 KiB.
    pub small: u16,
    /// Slots with a buffer of 64 KiB.
    pub large: u16,
    /// Free ones of the first kind.
    pub small_free: u16,
    /// Free ones of the second kind.
    pub large_free: u16,
}
