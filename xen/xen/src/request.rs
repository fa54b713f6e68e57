//! What a ring entry asks for, checked as far as the entry itself goes.
use xen_sys::blkif::{DISCARD_SECURE, SEGMENTS_MAX, Segment, op, status};

use crate::Entry;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Comes back in the response.
    pub id: u64,
    /// Operation that the response names: of an indirect request the one behind it.
    pub operation: u8,
    /// First sector of 512 bytes.
    pub sector: u64,
    /// What.
    pub kind: Kind,
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data to the guest.
    Read(List),
    /// Data from the guest.
    Write(List),
    /// Data from the guest, perhaps none, before and after everything else.
    Barrier(List),
    /// Everything answered so far is on the disk before the answer.
    Flush,
    /// A range is not needed any more.
    Discard {
        /// Sectors of 512 bytes.
        sectors: u64,
    },
}

/// Where the segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// In the request; the first `count` of them, each checked.
    Here {
        /// At most [`SEGMENTS_MAX`].
        count: u16,
        /// The segments.
        segments: [Segment; SEGMENTS_MAX],
    },
    /// In a page of the guest's, to be copied and checked.
    Page {
        /// At most what was asked for in [`Request::parse`].
        count: u16,
        /// The page.
        gref: u32,
    },
}

/// The answer to an entry that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Comes back in the response.
    pub id: u64,
    /// As in the entry.
    pub operation: u8,
    /// Of [`status`].
    pub status: i16,
}

impl Request {
    /// Reads an entry. Indirect requests have at most `indirect_max` segments, which fit one page.
    ///
    /// # Errors
    /// What to answer.
    pub fn parse(entry: &Entry, indirect_max: u16) -> Result<Request, Refusal> {
        let (operation, second) = (entry.bytes[0], entry.bytes[1]);
        let layout = entry.layout;
        let id = entry.u64_at(layout.id);
        let refuse = |status| Refusal { id, operation, status };
        let sector = entry.u64_at(layout.sector);
        let whole = |kind| Ok(Request { id, operation, sector, kind });
        match operation {
            op::READ => whole(Kind::Read(entry.list(1).ok_or(refuse(status::ERROR))?)),
            op::WRITE => whole(Kind::Write(entry.list(1).ok_or(refuse(status::ERROR))?)),
            op::WRITE_BARRIER => whole(Kind::Barrier(entry.list(0).ok_or(refuse(status::ERROR))?)),
            op::FLUSH_DISKCACHE => whole(Kind::Flush),
            // Not offered: overwriting what was discarded cannot be promised.
            op::DISCARD if second & DISCARD_SECURE != 0 => Err(refuse(status::EOPNOTSUPP)),
            op::DISCARD => whole(Kind::Discard { sectors: entry.u64_at(layout.discard_sectors) }),
            op::INDIRECT => {
                let count = entry.u16_at(layout.indirect_count);
                let list = List::Page { count, gref: entry.u32_at(layout.indirect_grefs) };
                let kind = match second {
                    op::READ => Kind::Read(list),
                    op::WRITE => Kind::Write(list),
                    _ => return Err(refuse(status::EOPNOTSUPP)),
                };
                match (1..=indirect_max).contains(&count) {
                    true => Ok(Request { id, operation: second, sector, kind }),
                    false => Err(Refusal { id, operation: second, status: status::ERROR }),
                }
            }
            _ => Err(refuse(status::EOPNOTSUPP)),
        }
    }
}

impl Entry {
    /// The segments in the entry, if they are at least `least` and all in order.
    fn list(&self, least: usize) -> Option<List> {
        let count = usize::from(self.bytes[1]);
        if !(least..=SEGMENTS_MAX).contains(&count) {
            return None;
        }
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        for (i, segment) in segments.iter_mut().enumerate().take(count) {
            *segment = Segment::from_bytes(self.array(self.layout.segments + 8 * i));
            segment.sectors()?;
        }
        Some(List::Here { count: count as u16, segments })
    }

    /// Offsets are those of [`xen_sys::blkif::Layout`], which lie inside by its assertions.
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes[at..at + N].try_into().expect("a slice of N bytes")
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen_sys::blkif::{ENTRY_BYTES_MAX, Layout};

    fn entry(operation: u8, second: u8, layout: Layout) -> Entry {
        let mut bytes = [0; ENTRY_BYTES_MAX];
        (bytes[0], bytes[1]) = (operation, second);
        bytes[layout.id..layout.id + 8].copy_from_slice(&7u64.to_le_bytes());
        bytes[layout.sector..layout.sector + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        Entry { bytes, layout }
    }

    fn put(entry: &mut Entry, i: usize, segment: Segment) {
        let at = entry.layout.segments + 8 * i;
        entry.bytes[at..at + 8].copy_from_slice(&segment.to_bytes());
    }

    fn answer(entry: &Entry) -> i16 {
        Request::parse(entry, 256).map_or_else(|refusal| refusal.status, |_| status::OKAY)
    }

    #[test]
    fn a_direct_request_is_read_in_both_layouts() {
        for layout in [Layout::WIDE, Layout::NARROW] {
            let mut e = entry(op::WRITE, 11, layout);
            let segment = |i: usize| Segment { gref: i as u32, first: 1, last: 7, pad: 0 };
            (0..11).for_each(|i| put(&mut e, i, segment(i)));
            let request = Request::parse(&e, 256).unwrap();
            assert_eq!((request.id, request.sector, request.operation), (7, 1 << 40, op::WRITE));
            let Kind::Write(List::Here { count: 11, segments }) = request.kind else { panic!() };
            assert_eq!(segments[10], segment(10));
        }
    }

    #[test]
    fn segment_counts_are_limited() {
        for (operation, count, want) in [
            (op::READ, 0, status::ERROR),
            (op::READ, 1, status::OKAY),
            (op::WRITE, 11, status::OKAY),
            (op::WRITE, 12, status::ERROR),
            (op::READ, 32, status::ERROR),
            (op::READ, 255, status::ERROR),
            (op::WRITE_BARRIER, 0, status::OKAY),
            (op::WRITE_BARRIER, 12, status::ERROR),
            (op::FLUSH_DISKCACHE, 0, status::OKAY),
        ] {
            assert_eq!(answer(&entry(operation, count, Layout::WIDE)), want, "{operation} {count}");
        }
    }

    #[test]
    fn a_segment_outside_its_page_fails_the_request() {
        for (first, last) in [(0, 8), (5, 4), (200, 255)] {
            let mut e = entry(op::WRITE, 2, Layout::NARROW);
            put(&mut e, 1, Segment { gref: 1, first, last, pad: 0 });
            assert_eq!(answer(&e), status::ERROR);
        }
    }

    #[test]
    fn unknown_operations_are_answered_as_such() {
        for operation in [4, 7, 99, 255] {
            let refusal = Request::parse(&entry(operation, 0, Layout::WIDE), 256).unwrap_err();
            assert_eq!(refusal, Refusal { id: 7, operation, status: status::EOPNOTSUPP });
        }
        assert_eq!(answer(&entry(op::DISCARD, DISCARD_SECURE, Layout::WIDE)), status::EOPNOTSUPP);
        assert_eq!(answer(&entry(op::INDIRECT, op::FLUSH_DISKCACHE, Layout::WIDE)), -2);
    }

    #[test]
    fn indirect_requests_and_discards_are_read_in_both_layouts() {
        for layout in [Layout::WIDE, Layout::NARROW] {
            let mut e = entry(op::INDIRECT, op::READ, layout);
            e.bytes[2..4].copy_from_slice(&256u16.to_le_bytes());
            e.bytes[layout.indirect_grefs] = 0x42;
            let request = Request::parse(&e, 256).unwrap();
            assert_eq!(request.operation, op::READ, "what the front end compares with");
            assert_eq!(request.kind, Kind::Read(List::Page { count: 256, gref: 0x42 }));
            assert_eq!(answer_count(&e, 257), status::ERROR);
            assert_eq!(answer_count(&e, 0), status::ERROR);
            let mut d = entry(op::DISCARD, 0, layout);
            let at = layout.discard_sectors;
            d.bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            let kind = Request::parse(&d, 256).unwrap().kind;
            assert_eq!(kind, Kind::Discard { sectors: u64::MAX });
        }
    }

    fn answer_count(e: &Entry, count: u16) -> i16 {
        let mut e = *e;
        e.bytes[2..4].copy_from_slice(&count.to_le_bytes());
        answer(&e)
    }
}
