//! The back end's side of a shared ring.
//!
//! Indices of our own are kept here and only written to the ring, never read back; the front end's
//! are read when asked for, and checked. A front end that claims more requests than its ring holds
//! has lost its mind ([`Runaway`]), and so nothing of it is looked at any more.
use std::sync::atomic::{AtomicU32, Ordering, fence};

use xen_sys::blkif::{ENTRY_BYTES_MAX, Layout};
use xen_sys::ring::{self, Header};

use crate::RingPages;

/// Words of the header: req_prod, req_event, rsp_prod, rsp_event.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;
const HEADER_WORDS: usize = size_of::<Header>() / 4;
const RESPONSE_WORDS_MAX: usize = 4;

/// The front end's producer index has run away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runaway {
    /// What it says.
    pub req_prod: u32,
    /// Requests that we have taken.
    pub req_cons: u32,
}

/// A private copy of a ring entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its bytes, zeros behind them in the narrow layout.
    pub bytes: [u8; ENTRY_BYTES_MAX],
    /// How to read them.
    pub layout: Layout,
}

/// A ring that we take requests from.
#[derive(Debug)]
pub struct BackRing {
    pages: RingPages,
    layout: Layout,
    entries: u32,
    /// The front end's index as we saw it last, checked.
    req_prod: u32,
    req_cons: u32,
    /// Responses written.
    rsp_prod: u32,
    /// Responses that the front end was shown.
    rsp_shown: u32,
}

impl BackRing {
    /// A ring in freshly initialised pages.
    pub fn new(pages: RingPages, layout: Layout) -> BackRing {
        let count = pages.words().len() * 4 / crate::PAGE_BYTES;
        let entries = ring::entries(count as u32, layout.entry_bytes as u32);
        assert!(entries > 0, "a ring has at least a page");
        BackRing { pages, layout, entries, req_prod: 0, req_cons: 0, rsp_prod: 0, rsp_shown: 0 }
    }

    /// A ring that another program served up to here: `requests` were taken, and as many answered.
    pub fn adopt(pages: RingPages, layout: Layout, requests: u32) -> BackRing {
        let fresh = BackRing::new(pages, layout);
        let (req_prod, req_cons) = (requests, requests);
        BackRing { req_prod, req_cons, rsp_prod: requests, rsp_shown: requests, ..fresh }
    }

    /// Requests that fit.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Requests taken and responses written, both counted from 0 with wrap-around.
    pub fn indices(&self) -> (u32, u32) {
        (self.req_cons, self.rsp_prod)
    }

    /// What the ring says for itself: req_prod, req_event, rsp_prod, rsp_event. For people.
    pub fn shown(&self) -> [u32; 4] {
        [REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT].map(|at| self.word(at).load(Ordering::Relaxed))
    }

    /// Looks for new requests: how many can be taken.
    ///
    /// # Errors
    /// More than there is room for.
    pub fn look(&mut self) -> Result<u32, Runaway> {
        let req_prod = self.word(REQ_PROD).load(Ordering::Acquire);
        let behind = ring::unconsumed(req_prod, self.req_cons) > self.entries;
        if behind || ring::is_overflown(req_prod, self.rsp_prod, self.entries) {
            return Err(Runaway { req_prod, req_cons: self.req_cons });
        }
        self.req_prod = req_prod;
        Ok(ring::unconsumed(req_prod, self.req_cons))
    }

    /// Copies out the next of the requests that `look` has seen.
    pub fn take(&mut self) -> Option<Entry> {
        if self.req_prod == self.req_cons {
            return None;
        }
        let words = self.layout.entry_bytes / 4;
        let at = self.place(self.req_cons);
        let mut bytes = [0; ENTRY_BYTES_MAX];
        let from = &self.pages.words()[at..at + words];
        for (to, word) in bytes.chunks_exact_mut(4).zip(from) {
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        self.req_cons = self.req_cons.wrapping_add(1);
        Some(Entry { bytes, layout: self.layout })
    }

    /// Asks to be notified of the next request, unless one is there already
    /// (`RING_FINAL_CHECK_FOR_REQUESTS`). How many can be taken after all.
    ///
    /// # Errors
    /// As for `look`.
    pub fn final_check(&mut self) -> Result<u32, Runaway> {
        self.word(REQ_EVENT).store(self.req_cons.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Writes a response. The front end sees it after `show`.
    pub fn respond(&mut self, id: u64, operation: u8, status: i16) {
        assert!(self.rsp_prod != self.req_cons, "only what was taken is answered");
        let [low, high] = [id as u32, (id >> 32) as u32];
        let tail = u32::from(operation) | u32::from(status as u16) << 16;
        // Every byte of the response is set, padding included.
        let response: [u32; RESPONSE_WORDS_MAX] = [low, high, tail, 0];
        let at = self.place(self.rsp_prod);
        let words = self.layout.response_bytes / 4;
        for (word, value) in self.pages.words()[at..at + words].iter().zip(response) {
            word.store(value, Ordering::Relaxed);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    /// Shows the front end what was written. Whether it wants to be notified
    /// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
    pub fn show(&mut self) -> bool {
        let (old, new) = (self.rsp_shown, self.rsp_prod);
        if old == new {
            return false;
        }
        self.word(RSP_PROD).store(new, Ordering::Release);
        fence(Ordering::SeqCst);
        self.rsp_shown = new;
        ring::must_notify(old, new, self.word(RSP_EVENT).load(Ordering::Relaxed))
    }

    /// Whether responses wait to be shown.
    pub fn has_unshown(&self) -> bool {
        self.rsp_shown != self.rsp_prod
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        &self.pages.words()[at]
    }

    /// First word of an entry.
    fn place(&self, index: u32) -> usize {
        HEADER_WORDS + (index & (self.entries - 1)) as usize * self.layout.entry_bytes / 4
    }
}

const _: () = assert!(Layout::WIDE.response_bytes == RESPONSE_WORDS_MAX * 4);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn ring(pages: usize, layout: Layout) -> (BackRing, Arc<[AtomicU32]>) {
        let words: Arc<[AtomicU32]> =
            (0..pages * crate::PAGE_BYTES / 4).map(|_| AtomicU32::new(0)).collect();
        (BackRing::new(RingPages::Memory(Arc::clone(&words)), layout), words)
    }

    #[test]
    fn entries_are_copied_from_where_each_layout_has_them() {
        for (layout, second) in [(Layout::WIDE, 64 + 112), (Layout::NARROW, 64 + 108)] {
            let (mut ring, words) = ring(1, layout);
            words[second / 4].store(0x0605_0403, Ordering::Relaxed);
            words[0].store(2, Ordering::Relaxed);
            assert_eq!(ring.look(), Ok(2));
            assert_eq!(ring.take().unwrap().bytes, [0; ENTRY_BYTES_MAX]);
            let entry = ring.take().unwrap();
            words[second / 4].store(!0, Ordering::Relaxed);
            assert_eq!(entry.bytes[..5], [3, 4, 5, 6, 0]);
            assert_eq!(ring.take(), None);
        }
    }

    #[test]
    fn the_last_entry_of_the_largest_ring_lies_inside() {
        for layout in [Layout::WIDE, Layout::NARROW] {
            let (mut ring, words) = ring(8, layout);
            assert_eq!(ring.entries(), 256);
            for i in 1..=1000u32 {
                words[0].store(i, Ordering::Relaxed);
                assert_eq!(ring.look(), Ok(1));
                ring.take().unwrap();
                ring.respond(u64::MAX, 9, -2);
                ring.show();
            }
            assert_eq!(ring.indices(), (1000, 1000));
            assert_eq!(words[RSP_PROD].load(Ordering::Relaxed), 1000);
        }
    }

    #[test]
    fn a_response_overwrites_all_of_its_bytes() {
        let (mut ring, words) = ring(1, Layout::WIDE);
        words[HEADER_WORDS..].iter().for_each(|w| w.store(!0, Ordering::Relaxed));
        words[0].store(1, Ordering::Relaxed);
        ring.look().unwrap();
        ring.take().unwrap();
        ring.respond(0x1122_3344_5566_7788, 5, -1);
        let got: Vec<u32> = words[HEADER_WORDS..HEADER_WORDS + 5]
            .iter()
            .map(|w| w.load(Ordering::Relaxed))
            .collect();
        assert_eq!(got, [0x5566_7788, 0x1122_3344, 0xffff_0005, 0, !0]);
    }

    #[test]
    fn a_producer_that_runs_away_is_found_out() {
        for (taken, req_prod) in [(0, 33), (5, 38), (5, 4), (5, u32::MAX), (0, 1 << 31)] {
            let (mut ring, words) = ring(1, Layout::WIDE);
            words[0].store(taken, Ordering::Relaxed);
            ring.look().unwrap();
            while ring.take().is_some() {
                ring.respond(0, 0, 0);
            }
            words[0].store(req_prod, Ordering::Relaxed);
            assert_eq!(ring.look(), Err(Runaway { req_prod, req_cons: taken }));
            assert_eq!(ring.final_check(), Err(Runaway { req_prod, req_cons: taken }));
            assert_eq!(ring.take(), None);
        }
    }

    #[test]
    fn unanswered_requests_take_room() {
        let (mut ring, words) = ring(1, Layout::WIDE);
        words[0].store(32, Ordering::Relaxed);
        assert_eq!(ring.look(), Ok(32));
        (0..32).for_each(|_| assert!(ring.take().is_some()));
        words[0].store(33, Ordering::Relaxed);
        assert!(ring.look().is_err());
        ring.respond(0, 0, 0);
        assert_eq!(ring.look(), Ok(1));
    }

    #[test]
    fn a_ring_goes_on_where_another_program_left_it() {
        let (mut first, words) = ring(1, Layout::WIDE);
        words[0].store(40, Ordering::Relaxed);
        assert!(first.look().is_err(), "more than it holds at once");
        words[0].store(30, Ordering::Relaxed);
        first.look().unwrap();
        while first.take().is_some() {
            first.respond(0, 0, 0);
        }
        first.show();
        words[0].store(35, Ordering::Relaxed);
        let pages = RingPages::Memory(Arc::clone(&words));
        let mut next = BackRing::adopt(pages, Layout::WIDE, first.indices().0);
        assert_eq!(next.look(), Ok(5));
        assert!(next.take().is_some() && !next.has_unshown());
        next.respond(7, 0, 0);
        next.show();
        assert_eq!(words[RSP_PROD].load(Ordering::Relaxed), 31);
    }

    #[test]
    fn notifications_come_when_they_are_asked_for() {
        let (mut ring, words) = ring(1, Layout::WIDE);
        words[0].store(3, Ordering::Relaxed);
        words[RSP_EVENT].store(2, Ordering::Relaxed);
        ring.look().unwrap();
        (0..3).for_each(|_| assert!(ring.take().is_some()));
        assert_eq!(ring.final_check(), Ok(0));
        assert_eq!(words[REQ_EVENT].load(Ordering::Relaxed), 4);
        ring.respond(1, 0, 0);
        assert!(ring.has_unshown() && !ring.show());
        ring.respond(2, 0, 0);
        assert!(ring.show());
        assert!(!ring.show(), "nothing new");
        ring.respond(3, 0, 0);
        assert!(!ring.show());
    }
}
