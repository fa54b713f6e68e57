//! Requests of guests between the ring and the answer: a fixed table, and beside it for each its
//! list of segments, in the bytes in which the guest gave it, copied once.
use std::ops::{Index, IndexMut};

use xen::{Segment, status};

/// Requests taken from rings and not answered: more than slots, so that what waits for slots is
/// known.
pub(super) const CALLS_MAX: usize = 256;
/// Segments of an indirect request: 1 MiB of whole pages.
pub const SEGMENTS_MAX: u16 = 256;
/// Bytes of a list.
pub(super) const LIST_BYTES: usize = SEGMENTS_MAX as usize * size_of::<Segment>();
const SECTOR: u32 = image::SECTOR_BYTES as u32;

/// What is done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write,
    Discard,
    Flush,
    /// A write with a flush before and after, alone on its device.
    Barrier(Stage),
}

impl Work {
    /// 0 for what is counted as a read, 1 for a write.
    pub(super) fn way(self) -> Option<usize> {
        match self {
            Work::Read => Some(0),
            Work::Write | Work::Barrier(_) => Some(1),
            Work::Discard | Work::Flush => None,
        }
    }
}

/// Where a barrier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Earlier requests of the device are being finished.
    Alone,
    /// What was written so far goes to the disk.
    Before,
    /// Its own data are written.
    Data,
    /// And go to the disk.
    After,
}

/// Where the segments of a request are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lists {
    /// Here and checked, so many of them.
    Ready(u16),
    /// In this page of the guest's.
    Wanted {
        /// How many.
        count: u16,
        /// The page.
        gref: u32,
    },
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// Place of its ring.
    pub queue: u8,
    /// For the response.
    pub id: u64,
    /// For the response.
    pub operation: u8,
    pub work: Work,
    pub sector: u64,
    /// Sectors of 512 bytes, and how many of them were put into slots.
    pub sectors: u64,
    pub issued: u64,
    /// Pieces in slots.
    pub outstanding: u16,
    /// Of the response.
    pub status: i16,
    pub list: Lists,
    /// It stands in its ring's line; others behind it wait.
    pub in_line: bool,
    /// When it was taken, in µs.
    pub since: u64,
}

impl Call {
    /// Remembers the first thing that went wrong; nothing more of it is begun.
    pub(super) fn fail(&mut self, status: i16) {
        if self.status == status::OKAY {
            self.status = status;
        }
        self.issued = self.sectors;
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Calls {
    slab: Box<[Option<Call>]>,
    free: Vec<u16>,
    /// Lists, by place.
    lists: Box<[[u8; LIST_BYTES]]>,
}

impl Calls {
    pub(super) fn new() -> Calls {
        Calls {
            slab: (0..CALLS_MAX).map(|_| None).collect(),
            free: (0..CALLS_MAX as u16).rev().collect(),
            lists: (0..CALLS_MAX).map(|_| [0; LIST_BYTES]).collect(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn used(&self) -> usize {
        CALLS_MAX - self.free.len()
    }

    /// Puts a call into a free place, of which there is one.
    pub(super) fn put(&mut self, call: Call) -> u16 {
        let index = self.free.pop().expect("`is_full` was asked");
        self.slab[usize::from(index)] = Some(call);
        index
    }

    pub(super) fn free(&mut self, index: u16) {
        assert!(self.slab[usize::from(index)].take().is_some(), "a call is over once");
        self.free.push(index);
    }

    pub(super) fn list_mut(&mut self, index: u16) -> &mut [u8; LIST_BYTES] {
        &mut self.lists[usize::from(index)]
    }

    /// Sectors of a list, if every segment lies in its page.
    pub(super) fn measure(&self, index: u16, count: u16) -> Option<u32> {
        segments(&self.lists[usize::from(index)], count).map(Segment::sectors).sum()
    }

    /// Where `count` sectors from the `from`th of a call on are in the guest.
    pub(super) fn runs(&self, index: u16, from: u32, count: u32) -> impl Iterator<Item = Run> + '_ {
        let Lists::Ready(segments) = self[index].list else { unreachable!("the list was fetched") };
        runs(&self.lists[usize::from(index)], segments, from, count)
    }
}

impl Index<u16> for Calls {
    type Output = Call;
    fn index(&self, index: u16) -> &Call {
        self.slab[usize::from(index)].as_ref().expect("a call that is not over")
    }
}

impl IndexMut<u16> for Calls {
    fn index_mut(&mut self, index: u16) -> &mut Call {
        self.slab[usize::from(index)].as_mut().expect("a call that is not over")
    }
}

/// Some bytes of one page of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub gref: u32,
    /// First byte in the page.
    pub offset: u16,
    /// Byte in the piece that they belong to.
    pub at: u32,
    pub bytes: u16,
}

fn segments(list: &[u8; LIST_BYTES], count: u16) -> impl Iterator<Item = Segment> + '_ {
    let raw = list.chunks_exact(size_of::<Segment>()).take(usize::from(count));
    raw.map(|raw| Segment::from_bytes(raw.try_into().expect("eight bytes")))
}

fn runs(
    list: &[u8; LIST_BYTES],
    count: u16,
    from: u32,
    sectors: u32,
) -> impl Iterator<Item = Run> + '_ {
    let mut start = 0;
    segments(list, count).filter_map(move |segment| {
        let length = segment.sectors()?;
        let (first, end) = (start, start + length);
        start = end;
        let (low, high) = (first.max(from), end.min(from + sectors));
        (low < high).then(|| Run {
            gref: segment.gref,
            offset: ((u32::from(segment.first) + low - first) * SECTOR) as u16,
            at: (low - from) * SECTOR,
            bytes: ((high - low) * SECTOR) as u16,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_a_request_is_found_across_segments_of_all_lengths() {
        let mut list = [0; LIST_BYTES];
        let given = [(10, 0, 7), (11, 2, 3), (12, 7, 7), (13, 1, 5)];
        for (raw, (gref, first, last)) in list.chunks_exact_mut(8).zip(given) {
            raw.copy_from_slice(&Segment { gref, first, last, pad: 9 }.to_bytes());
        }
        assert_eq!(segments(&list, 4).map(Segment::sectors).sum::<Option<u32>>(), Some(16));
        let found = |from, count| {
            let of = |r: Run| (r.gref, r.offset / 512, r.at / 512, r.bytes / 512);
            runs(&list, 4, from, count).map(of).collect::<Vec<_>>()
        };
        assert_eq!(found(0, 16), [(10, 0, 0, 8), (11, 2, 8, 2), (12, 7, 10, 1), (13, 1, 11, 5)]);
        assert_eq!(found(3, 2), [(10, 3, 0, 2)]);
        assert_eq!(found(7, 4), [(10, 7, 0, 1), (11, 2, 1, 2), (12, 7, 3, 1)]);
        assert_eq!(found(13, 3), [(13, 3, 0, 3)]);
    }

    #[test]
    fn a_segment_outside_its_page_makes_the_list_worthless() {
        let mut calls = Calls::new();
        calls.list_mut(3)[..8]
            .copy_from_slice(&Segment { gref: 1, first: 3, last: 2, pad: 0 }.to_bytes());
        assert_eq!(calls.measure(3, 1), None);
        assert_eq!(calls.measure(3, 0), Some(0));
    }
}
