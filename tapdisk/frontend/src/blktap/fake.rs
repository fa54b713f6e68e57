//! A kernel in memory: the other side of a ring, for tests, the simulator and the fuzzer.
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;

use super::Side;
use super::abi::{ENTRIES, Entry, PAGE_BYTES, PAGE_WORDS, Page, SEGMENTS_MAX, Segment, op};

const DATA_BYTES: usize = SEGMENTS_MAX * PAGE_BYTES;

/// The memory that both sides share, and what was counted.
#[derive(Debug)]
struct Memory {
    page: Box<[AtomicU32]>,
    data: RefCell<Vec<u8>>,
    calls: RefCell<Calls>,
}

/// Calls of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// RESPOND.
    pub responds: u64,
    /// Polls that made it push.
    pub polls: u64,
    /// The errno that RESPOND answers, if it refuses.
    pub refused: Option<i32>,
}

/// The process's view.
#[derive(Clone, Debug)]
pub struct FakeSide(Rc<Memory>);

impl Side for FakeSide {
    fn page(&self) -> &[AtomicU32] {
        &self.0.page
    }

    fn read(&self, id: u8, at: usize, into: &mut [u8]) {
        let from = usize::from(id) * DATA_BYTES + at;
        into.copy_from_slice(&self.0.data.borrow()[from..from + into.len()]);
    }

    fn write(&mut self, id: u8, at: usize, from: &[u8]) {
        let to = usize::from(id) * DATA_BYTES + at;
        self.0.data.borrow_mut()[to..to + from.len()].copy_from_slice(from);
    }

    fn respond(&mut self) -> io::Result<()> {
        let mut calls = self.0.calls.borrow_mut();
        calls.responds += 1;
        calls.refused.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn push(&mut self) {
        self.0.calls.borrow_mut().polls += 1;
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of which request.
    pub id: u8,
    /// Its operation.
    pub operation: u8,
    /// See [`super::abi::status`].
    pub status: i16,
}

/// The kernel.
#[derive(Debug)]
pub struct Kernel {
    memory: Rc<Memory>,
    req_prod: u32,
    rsp_cons: u32,
    /// Ids whose requests are not answered.
    busy: u32,
}

impl Default for Kernel {
    fn default() -> Kernel {
        let page = (0..PAGE_WORDS).map(|_| AtomicU32::new(0)).collect();
        let data = RefCell::new(vec![0; ENTRIES as usize * DATA_BYTES]);
        let memory = Rc::new(Memory { page, data, calls: RefCell::default() });
        Kernel { memory, req_prod: 0, rsp_cons: 0, busy: 0 }
    }
}

/// Whole pages, but for the last: so our own module puts data.
pub fn packed(sectors: u32) -> ([Segment; SEGMENTS_MAX], u8) {
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    let count = sectors.div_ceil(8);
    for (i, segment) in (0..count).zip(&mut segments) {
        segment.last = (sectors - i * 8).min(8) as u8 - 1;
    }
    (segments, count as u8)
}

impl Kernel {
    /// The process's view.
    pub fn side(&self) -> FakeSide {
        FakeSide(Rc::clone(&self.memory))
    }

    /// The ring page.
    pub fn page(&self) -> Page<'_> {
        Page(&self.memory.page)
    }

    /// An id that is free.
    pub fn free_id(&self) -> Option<u8> {
        (0..ENTRIES as u8).find(|id| self.busy & 1 << id == 0)
    }

    /// A request with data, or one that has a length of its own.
    pub fn ask(&mut self, operation: u8, flags: u16, sector: u64, sectors: u32) -> u8 {
        let id = self.free_id().expect("a free id");
        let data = matches!(operation, op::READ | op::WRITE);
        let (segments, count) = if data { packed(sectors) } else { Default::default() };
        let (id64, sectors) = (id.into(), sectors.into());
        self.put(&Entry { operation, count, flags, id: id64, sector, segments, sectors });
        id
    }

    /// Puts any request.
    pub fn put(&mut self, entry: &Entry) {
        self.put_words(&entry.to_words());
    }

    /// Puts anything.
    pub fn put_words(&mut self, words: &[u32; 28]) {
        let id = u64::from(words[2]) | u64::from(words[3]) << 32;
        if id < ENTRIES.into() {
            self.busy |= 1 << id;
        }
        self.page().put(self.req_prod, words);
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Whether there is an entry for another request.
    pub fn has_room(&self) -> bool {
        self.req_prod.wrapping_sub(self.rsp_cons) < ENTRIES
    }

    /// Shows what was put.
    pub fn show(&self) {
        self.page().show_requests(self.req_prod);
    }

    /// Whether the process is to be woken of what was put.
    pub fn wakes(&self) -> bool {
        self.page().is_armed(self.req_prod)
    }

    /// Claims any number of requests.
    pub fn lie(&self, req_prod: u32) {
        self.page().show_requests(req_prod);
    }

    /// The next answer.
    pub fn answer(&mut self) -> Option<Answer> {
        let rsp_prod = self.page().rsp_prod();
        let there = rsp_prod.wrapping_sub(self.rsp_cons);
        assert!(there <= self.req_prod.wrapping_sub(self.rsp_cons), "answers of requests");
        if there == 0 {
            return None;
        }
        let (id, operation, status) = self.page().response(self.rsp_cons);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        let id = u8::try_from(id).expect("an id");
        assert!(self.busy & 1 << id != 0, "a request is answered once");
        self.busy &= !(1 << id);
        Some(Answer { id, operation, status })
    }

    /// Data of a request, from its first page on.
    pub fn data<T>(&self, id: u8, change: impl FnOnce(&mut [u8]) -> T) -> T {
        let from = usize::from(id) * DATA_BYTES;
        change(&mut self.memory.data.borrow_mut()[from..from + DATA_BYTES])
    }

    /// Refuses to take answers from now on, with this errno.
    pub fn refuse(&mut self, errno: i32) {
        self.memory.calls.borrow_mut().refused = Some(errno);
    }

    /// Calls of the process so far.
    pub fn calls(&self) -> Calls {
        *self.memory.calls.borrow()
    }
}
