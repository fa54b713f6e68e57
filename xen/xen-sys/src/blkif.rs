//! Requests and responses of block rings.
//!
//! The entries of a ring have one of two layouts, by what the compiler of the front end makes of a
//! u64: aligned to eight bytes (x86_64, and native on all 64-bit machines) or to four (x86_32).
//! Ring entries are copied out as bytes and read at the offsets of [`Layout`]; the structures here
//! are what the offsets are taken from, and are never laid over shared memory.
use std::mem::{offset_of, size_of};

/// Operations (`BLKIF_OP_*`).
pub mod op {
    /// Data to the guest.
    pub const READ: u8 = 0;
    /// Data from the guest.
    pub const WRITE: u8 = 1;
    /// A write before which everything earlier is on the disk, and after which everything later
    /// comes.
    pub const WRITE_BARRIER: u8 = 2;
    /// What was answered so far goes to the disk.
    pub const FLUSH_DISKCACHE: u8 = 3;
    /// A range is not needed any more.
    pub const DISCARD: u8 = 5;
    /// A read or write whose segments are listed in pages of their own.
    pub const INDIRECT: u8 = 6;
}

/// Outcomes of requests (`BLKIF_RSP_*`).
pub mod status {
    /// The operation is not known here.
    pub const EOPNOTSUPP: i16 = -2;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Done.
    pub const OKAY: i16 = 0;
}

/// Segments in a request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS_MAX: usize = 11;
/// Pages of segments that an indirect request can name (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const INDIRECT_PAGES_MAX: usize = 8;
/// Segments in such a page.
pub const SEGMENTS_PER_PAGE: usize = crate::PAGE_BYTES / size_of::<Segment>();
/// Sectors of 512 bytes in a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Flag of a discard: overwrite the data (`BLKIF_DISCARD_SECURE`).
pub const DISCARD_SECURE: u8 = 1;
/// Bytes of the largest ring entry.
pub const ENTRY_BYTES_MAX: usize = size_of::<wide::Request>();

/// Data in a granted page: sectors `first` to `last` of it, both included.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The page.
    pub gref: u32,
    /// First sector of 512 bytes, 0 to 7.
    pub first: u8,
    /// Last sector.
    pub last: u8,
    /// Unused.
    pub pad: u16,
}

impl Segment {
    /// Reads a segment as it lies in memory, in a request or in an indirect page.
    pub fn from_bytes(raw: [u8; size_of::<Segment>()]) -> Segment {
        let [a, b, c, d, first, last, x, y] = raw;
        let (gref, pad) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([x, y]));
        Segment { gref, first, last, pad }
    }

    /// The same, to write.
    pub fn to_bytes(self) -> [u8; size_of::<Segment>()] {
        let ([a, b, c, d], [x, y]) = (self.gref.to_le_bytes(), self.pad.to_le_bytes());
        [a, b, c, d, self.first, self.last, x, y]
    }

    /// Sectors of 512 bytes, if the range lies in a page.
    pub fn sectors(self) -> Option<u32> {
        let fits = self.first <= self.last && self.last < SECTORS_PER_PAGE;
        fits.then(|| u32::from(self.last - self.first) + 1)
    }
}

/// Defines the structures of one layout; `$pack` is what a u64 is aligned to.
macro_rules! layout {
    ($name:ident, $pack:literal, $doc:literal) => {
        #[doc = $doc]
        pub mod $name {
            #![allow(missing_docs, reason = "the header's names")]
            use super::{INDIRECT_PAGES_MAX, SEGMENTS_MAX, Segment};

            /// Read, write, barrier, flush.
            #[repr(C, packed($pack))]
            #[derive(Clone, Copy, Debug)]
            pub struct Request {
                pub operation: u8,
                pub nr_segments: u8,
                pub handle: u16,
                pub align: [u8; $pack - 4],
                pub id: u64,
                pub sector_number: u64,
                pub segments: [Segment; SEGMENTS_MAX],
            }

            /// Discard.
            #[repr(C, packed($pack))]
            #[derive(Clone, Copy, Debug)]
            pub struct Discard {
                pub operation: u8,
                pub flag: u8,
                pub handle: u16,
                pub align: [u8; $pack - 4],
                pub id: u64,
                pub sector_number: u64,
                pub nr_sectors: u64,
            }

            /// Indirect.
            #[repr(C, packed($pack))]
            #[derive(Clone, Copy, Debug)]
            pub struct Indirect {
                pub operation: u8,
                pub indirect_op: u8,
                pub nr_segments: u16,
                pub align: [u8; $pack - 4],
                pub id: u64,
                pub sector_number: u64,
                pub handle: u16,
                pub pad: u16,
                pub grefs: [u32; INDIRECT_PAGES_MAX],
            }

            /// An answer.
            #[repr(C, packed($pack))]
            #[derive(Clone, Copy, Debug)]
            pub struct Response {
                pub id: u64,
                pub operation: u8,
                pub pad: u8,
                pub status: i16,
                pub tail: [u8; $pack - 4],
            }
        }
    };
}

layout!(wide, 8, "Where a u64 is aligned to eight bytes: x86_64, and native on 64-bit machines.");
layout!(narrow, 4, "Where a u64 is aligned to four bytes: x86_32.");

/// Offsets of the fields of one layout. Byte 0 of every request is the operation; byte 1 is the
/// number of segments, the flag of a discard or the operation behind an indirect request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a ring entry.
    pub entry_bytes: usize,
    /// Bytes of a response.
    pub response_bytes: usize,
    /// u64 that comes back in the response.
    pub id: usize,
    /// u64, first sector.
    pub sector: usize,
    /// First [`Segment`] of a direct request.
    pub segments: usize,
    /// u64, sectors of a discard.
    pub discard_sectors: usize,
    /// u16, segments of an indirect request.
    pub indirect_count: usize,
    /// u32s, pages of segments of an indirect request.
    pub indirect_grefs: usize,
}

macro_rules! offsets {
    ($name:ident) => {
        Layout {
            entry_bytes: size_of::<$name::Request>(),
            response_bytes: size_of::<$name::Response>(),
            id: offset_of!($name::Request, id),
            sector: offset_of!($name::Request, sector_number),
            segments: offset_of!($name::Request, segments),
            discard_sectors: offset_of!($name::Discard, nr_sectors),
            indirect_count: offset_of!($name::Indirect, nr_segments),
            indirect_grefs: offset_of!($name::Indirect, grefs),
        }
    };
}

impl Layout {
    /// x86_64 and native.
    pub const WIDE: Layout = offsets!(wide);
    /// x86_32.
    pub const NARROW: Layout = offsets!(narrow);

    /// The layout of a protocol number of the control message (spec/control-socket.md §3.1): 1
    /// native, 2 x86_32, 3 x86_64.
    pub fn of_protocol(number: u32) -> Option<Layout> {
        match number {
            // We are built for 64-bit machines only (see `gntdev`).
            1 | 3 => Some(Layout::WIDE),
            2 => Some(Layout::NARROW),
            _ => None,
        }
    }
}

const _: () = {
    assert!(size_of::<Segment>() == 8 && offset_of!(Segment, first) == 4);
    assert!(offset_of!(Segment, last) == 5 && SEGMENTS_PER_PAGE == 512);
    let (w, n) = (Layout::WIDE, Layout::NARROW);
    assert!(w.entry_bytes == 112 && n.entry_bytes == 108);
    assert!(w.response_bytes == 16 && n.response_bytes == 12);
    assert!(w.id == 8 && n.id == 4);
    assert!(w.sector == 16 && n.sector == 12);
    assert!(w.segments == 24 && n.segments == 20);
    assert!(w.discard_sectors == 24 && n.discard_sectors == 20);
    assert!(w.indirect_count == 2 && n.indirect_count == 2);
    assert!(w.indirect_grefs == 28 && n.indirect_grefs == 24);
    // What all kinds of requests share lies at one place.
    assert!(offset_of!(wide::Discard, id) == w.id && offset_of!(narrow::Discard, id) == n.id);
    assert!(offset_of!(wide::Indirect, id) == w.id && offset_of!(narrow::Indirect, id) == n.id);
    assert!(offset_of!(wide::Discard, sector_number) == w.sector);
    assert!(offset_of!(narrow::Discard, sector_number) == n.sector);
    assert!(offset_of!(wide::Indirect, sector_number) == w.sector);
    assert!(offset_of!(narrow::Indirect, sector_number) == n.sector);
    assert!(offset_of!(wide::Request, nr_segments) == 1 && offset_of!(wide::Discard, flag) == 1);
    assert!(offset_of!(wide::Indirect, indirect_op) == 1);
    // Kinds fit the entry.
    assert!(size_of::<wide::Discard>() <= 112 && size_of::<wide::Indirect>() <= 112);
    // The answer.
    assert!(offset_of!(wide::Response, operation) == 8 && offset_of!(wide::Response, status) == 10);
    assert!(offset_of!(narrow::Response, operation) == 8);
    assert!(offset_of!(narrow::Response, status) == 10);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_as_it_was_written_and_measured() {
        let segment = Segment { gref: 0x0102_0304, first: 2, last: 5, pad: 0x0607 };
        assert_eq!(segment.to_bytes(), [4, 3, 2, 1, 2, 5, 7, 6]);
        assert_eq!(Segment::from_bytes(segment.to_bytes()), segment);
        assert_eq!(segment.sectors(), Some(4));
        for (first, last) in [(3, 2), (0, 8), (8, 8), (255, 255), (7, 255)] {
            assert_eq!(Segment { first, last, ..segment }.sectors(), None);
        }
    }

    #[test]
    fn protocols() {
        assert_eq!(Layout::of_protocol(1), Some(Layout::WIDE));
        assert_eq!(Layout::of_protocol(2), Some(Layout::NARROW));
        assert_eq!(Layout::of_protocol(3), Some(Layout::WIDE));
        assert_eq!(Layout::of_protocol(0), None);
        assert_eq!(Layout::of_protocol(4), None);
    }
}
