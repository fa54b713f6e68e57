//! The ring page of `/dev/xen/blktap-2/blktapN`: where things are, and what a request says.
//!
//! ```text
//!   page 0:  req_prod req_event rsp_prod rsp_event | message | … @64: 32 entries of 112 bytes
//!   then:    11 pages for each of the 32 request ids, with the data of its segments
//! ```
//! Facts: spec/history.md §3; what is beyond them (flags of requests, zeros):
//! `xen/blktap-dkms/README.md`.
use std::sync::atomic::{AtomicU32, Ordering, fence};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Entries of the ring, and ids of requests.
pub const ENTRIES: u32 = 32;
/// Segments of a request, a page each.
pub const SEGMENTS_MAX: usize = 11;
/// Pages of the mapping.
pub const PAGES: usize = 1 + ENTRIES as usize * SEGMENTS_MAX;
/// Words of the ring page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 4;

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const MESSAGE: usize = 4;
const FIRST_ENTRY: usize = 64 / 4;
const ENTRY_WORDS: usize = 112 / 4;
/// First word of the segments in an entry, and words of one.
const SEGMENTS: usize = 24 / 4;
const SEGMENT_WORDS: usize = 2;
/// Sectors of a page.
const PAGE_SECTORS: u8 = (PAGE_BYTES / 512) as u8;

const _: () = assert!(FIRST_ENTRY + ENTRY_WORDS * ENTRIES as usize <= PAGE_WORDS);
const _: () = assert!(SEGMENTS + SEGMENT_WORDS * SEGMENTS_MAX <= ENTRY_WORDS);

/// Operations of requests.
pub mod op {
    /// Data from the image.
    pub const READ: u8 = 0;
    /// Data to the image.
    pub const WRITE: u8 = 1;
    /// What was answered is on the disk.
    pub const FLUSH: u8 = 2;
    /// Sectors that do not matter any more.
    pub const TRIM: u8 = 3;
    /// Sectors that read as zeros afterwards.
    pub const WRITE_ZEROES: u8 = 4;
}

/// Flags of requests (u16 at 2), of our own module.
pub mod request_flag {
    /// Of a write, or of zeros: it is on the disk before the answer.
    pub const FUA: u16 = 1;
    /// Of zeros: the space stays allocated.
    pub const NOUNMAP: u16 = 2;
}

/// Flags of CREATE_DEVICE.
pub mod device_flag {
    /// Writes are refused.
    pub const READ_ONLY: u64 = 0x1;
    /// Flushes are served.
    pub const FLUSH: u64 = 0x4;
    /// Trims are served.
    pub const TRIM: u64 = 0x8;
    /// Trimmed sectors read as zeros: our own module never accepts it, so it always tells what it
    /// accepts.
    pub const TRIM_ZEROES: u64 = 0x10;
    /// Zeros are served.
    pub const ZEROES: u64 = 0x100;
    /// Writes may carry FUA.
    pub const FUA: u64 = 0x200;
    /// `req_event` says when to be woken.
    pub const EVENTS: u64 = 0x400;
}

/// ioctls of the ring device; plain numbers.
pub mod ring_ioctl {
    /// RESPOND.
    pub const RESPOND: u32 = 1;
    /// CREATE_DEVICE, with a [`super::DeviceInfo`].
    pub const CREATE_DEVICE: u32 = 208;
    /// The same for the first modules, with an [`super::OldInfo`].
    pub const CREATE_DEVICE_OLD: u32 = 202;
    /// REMOVE_DEVICE.
    pub const REMOVE_DEVICE: u32 = 207;
    /// KEEP, of our own module: whether the ring outlives its mapping, 0 or 1.
    pub const KEEP: u32 = 209;
}

/// What CREATE_DEVICE is told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Physical sector size in bytes.
    pub physical_sector_size: u32,
    /// See [`device_flag`]; out: what was accepted, where the module tells.
    pub flags: u64,
    /// Not used: the form of other modules.
    pub physical: [u32; 2],
    /// Bytes that trims are multiples of.
    pub trim_granularity: u32,
    /// Where the first such piece begins.
    pub trim_offset: u32,
    /// Zeros.
    pub reserved: [u64; 2],
}

/// The form of the first modules.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OldInfo {
    /// For people.
    pub name: [u8; 256],
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u64,
}

const _: () = assert!(size_of::<DeviceInfo>() == 56 && size_of::<OldInfo>() == 272);
const _: () = assert!(std::mem::offset_of!(DeviceInfo, flags) == 16);
const _: () = assert!(std::mem::offset_of!(DeviceInfo, trim_granularity) == 32);
const _: () = assert!(std::mem::offset_of!(OldInfo, sectors) == 256);

/// Statuses of responses.
pub mod status {
    /// Done.
    pub const OKAY: i16 = 0;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Not known, or not possible with this image.
    pub const NOT_SUPPORTED: i16 = -2;
}

/// What the kernel says in the ring page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Take no requests.
    Pause,
    /// Take them again.
    Resume,
    /// The disk is to be closed.
    Close,
}

/// Data of one page of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First sector of the page.
    pub first: u8,
    /// Last one.
    pub last: u8,
}

impl Segment {
    /// Sectors, if it lies in its page.
    pub fn sectors(self) -> Option<u32> {
        let inside = self.first <= self.last && self.last < PAGE_SECTORS;
        inside.then(|| u32::from(self.last - self.first) + 1)
    }
}

/// A request, copied once and not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// See [`op`].
    pub operation: u8,
    /// Segments in use.
    pub count: u8,
    /// See [`request_flag`].
    pub flags: u16,
    /// Index of its data.
    pub id: u64,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// Where the data are in its pages.
    pub segments: [Segment; SEGMENTS_MAX],
    /// Sectors of a trim or of zeros, in the place of the segments.
    pub sectors: u64,
}

impl Entry {
    /// From the words of an entry.
    pub fn of_words(words: &[u32; ENTRY_WORDS]) -> Entry {
        let long = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
        let [operation, count, low, high] = words[0].to_le_bytes();
        let segment = |i: usize| {
            let [first, last, ..] = words[SEGMENTS + SEGMENT_WORDS * i + 1].to_le_bytes();
            Segment { first, last }
        };
        Entry {
            operation,
            count,
            flags: u16::from_le_bytes([low, high]),
            id: long(2),
            sector: long(4),
            segments: std::array::from_fn(segment),
            sectors: if has_length(operation) { long(SEGMENTS) } else { 0 },
        }
    }

    /// The inverse, for what stands in for the kernel.
    pub fn to_words(&self) -> [u32; ENTRY_WORDS] {
        let mut words = [0; ENTRY_WORDS];
        let [low, high] = self.flags.to_le_bytes();
        words[0] = u32::from_le_bytes([self.operation, self.count, low, high]);
        for (at, value) in [(2, self.id), (4, self.sector)] {
            (words[at], words[at + 1]) = (value as u32, (value >> 32) as u32);
        }
        for (i, segment) in self.segments.iter().enumerate() {
            words[SEGMENTS + SEGMENT_WORDS * i + 1] =
                u32::from_le_bytes([segment.first, segment.last, 0, 0]);
        }
        if has_length(self.operation) {
            words[SEGMENTS] = self.sectors as u32;
            words[SEGMENTS + 1] = (self.sectors >> 32) as u32;
        }
        words
    }
}

/// The ring page, which the kernel may change at any time: every word is read once, as an atomic
/// one.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a>(pub &'a [AtomicU32]);

impl Page<'_> {
    /// Requests put so far.
    pub fn req_prod(&self) -> u32 {
        self.0[REQ_PROD].load(Ordering::Acquire)
    }

    /// Asks to be woken when there is a request after `req_cons`; `req_prod` is to be looked at
    /// once more.
    pub fn arm(&self, req_cons: u32) {
        self.0[REQ_EVENT].store(req_cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Copies out the request of an index.
    pub fn entry(&self, index: u32) -> Entry {
        let at = place(index);
        let words = std::array::from_fn(|i| self.0[at + i].load(Ordering::Relaxed));
        Entry::of_words(&words)
    }

    /// Writes the response of an index, whole, over the request that was there.
    pub fn respond(&self, index: u32, id: u64, operation: u8, status: i16) {
        let tail = u32::from(operation) | u32::from(status as u16) << 16;
        let words = [id as u32, (id >> 32) as u32, tail, 0];
        for (word, value) in self.0[place(index)..].iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Shows the kernel the responses before an index.
    pub fn show(&self, rsp_prod: u32) {
        self.0[RSP_PROD].store(rsp_prod, Ordering::Release);
    }

    /// What the kernel says, once.
    pub fn take_message(&self) -> Option<Message> {
        let message = match self.0[MESSAGE].load(Ordering::Relaxed) as u8 {
            0 => return None,
            1 => Some(Message::Pause),
            2 => Some(Message::Resume),
            3 => Some(Message::Close),
            _ => None,
        };
        self.0[MESSAGE].store(0, Ordering::Relaxed);
        message
    }

    // ---- the kernel's side, for what stands in for it ----

    /// Whether the requests before an index are to wake the process.
    pub fn is_armed(&self, req_prod: u32) -> bool {
        fence(Ordering::SeqCst);
        let req_event = self.0[REQ_EVENT].load(Ordering::Relaxed);
        req_prod.wrapping_sub(req_event) < 1 << 31
    }

    /// Puts a request.
    pub fn put(&self, index: u32, words: &[u32; ENTRY_WORDS]) {
        for (word, value) in self.0[place(index)..].iter().zip(words) {
            word.store(*value, Ordering::Relaxed);
        }
    }

    /// Shows the requests before an index.
    pub fn show_requests(&self, req_prod: u32) {
        self.0[REQ_PROD].store(req_prod, Ordering::Release);
    }

    /// Responses put so far.
    pub fn rsp_prod(&self) -> u32 {
        self.0[RSP_PROD].load(Ordering::Acquire)
    }

    /// The response of an index: id, operation and status.
    pub fn response(&self, index: u32) -> (u64, u8, i16) {
        let words: [u32; 3] =
            std::array::from_fn(|i| self.0[place(index) + i].load(Ordering::Relaxed));
        let id = u64::from(words[0]) | u64::from(words[1]) << 32;
        (id, words[2] as u8, (words[2] >> 16) as i16)
    }

    /// Leaves a message.
    pub fn say(&self, message: u8) {
        self.0[MESSAGE].store(message.into(), Ordering::Relaxed);
    }
}

/// Whether a length stands where others have their segments.
fn has_length(operation: u8) -> bool {
    matches!(operation, op::TRIM | op::WRITE_ZEROES)
}

fn place(index: u32) -> usize {
    FIRST_ENTRY + (index % ENTRIES) as usize * ENTRY_WORDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_words_and_back() {
        let mut segments = [Segment::default(); SEGMENTS_MAX];
        segments[0] = Segment { first: 1, last: 7 };
        segments[10] = Segment { first: 2, last: 3 };
        let (id, sector) = (0x1_0000_0001, u64::MAX - 8);
        let entry =
            Entry { operation: op::WRITE, count: 11, flags: 3, id, sector, segments, sectors: 0 };
        let mut words = entry.to_words();
        assert_eq!(words[0], 0x0003_0b01);
        assert_eq!((words[7], words[27]), (0x0701, 0x0302));
        assert_eq!(Entry::of_words(&words), entry);
        // Where a trim has its length a request with data has nothing.
        words[6] = 0xffff_ffff;
        assert_eq!(Entry::of_words(&words).segments, segments);
    }

    #[test]
    fn a_trim_has_its_length_where_others_have_segments() {
        let entry = Entry { operation: op::TRIM, sectors: 0x1_0000_0010, ..Entry::default() };
        assert_eq!(Entry::of_words(&entry.to_words()).sectors, entry.sectors);
    }

    #[test]
    fn segments_lie_in_their_pages() {
        let of = |first, last| Segment { first, last }.sectors();
        assert_eq!((of(0, 7), of(3, 3), of(7, 7)), (Some(8), Some(1), Some(1)));
        assert_eq!((of(4, 3), of(0, 8), of(255, 255)), (None, None, None));
    }

    #[test]
    fn responses_and_messages_are_where_the_spec_says() {
        let words: Vec<AtomicU32> = (0..PAGE_WORDS).map(|_| AtomicU32::new(u32::MAX)).collect();
        let page = Page(&words);
        page.respond(33, 5, op::FLUSH, status::NOT_SUPPORTED);
        let at = (64 + 112) / 4;
        let found: Vec<u32> = words[at..at + 4].iter().map(|w| w.load(Ordering::Relaxed)).collect();
        assert_eq!(found, [5, 0, 0xfffe_0002, 0]);
        assert_eq!(page.response(1), (5, op::FLUSH, status::NOT_SUPPORTED));
        page.say(3);
        assert_eq!(words[4].load(Ordering::Relaxed), 3);
        assert_eq!((page.take_message(), page.take_message()), (Some(Message::Close), None));
        page.say(9);
        assert_eq!(page.take_message(), None);
        page.show(7);
        page.show_requests(8);
        assert_eq!((words[2].load(Ordering::Relaxed), words[0].load(Ordering::Relaxed)), (7, 8));
    }
}
