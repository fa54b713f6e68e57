//! The guest's side of a ring: a front end whose every index and byte a test can set.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use xen_sys::blkif::{ENTRY_BYTES_MAX, Layout, Segment};
use xen_sys::ring;

const HEADER_WORDS: usize = 16;

/// A response as the guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// As in the request.
    pub id: u64,
    /// Operation.
    pub operation: u8,
    /// Of `BLKIF_RSP_*`.
    pub status: i16,
}

/// A front end.
#[derive(Debug)]
pub struct FrontRing {
    words: Arc<[AtomicU32]>,
    layout: Layout,
    entries: u32,
    refs: Vec<u32>,
    port: u32,
    /// Requests put, and responses taken.
    req_prod: u32,
    rsp_cons: u32,
    req_shown: u32,
}

impl FrontRing {
    pub(super) fn new(
        words: Arc<[AtomicU32]>,
        layout: Layout,
        refs: Vec<u32>,
        port: u32,
    ) -> FrontRing {
        let entries = ring::entries(refs.len() as u32, layout.entry_bytes as u32);
        // As SHARED_RING_INIT: everything wakes the other end at first.
        words[1].store(1, Ordering::Relaxed);
        words[3].store(1, Ordering::Relaxed);
        FrontRing { words, layout, entries, refs, port, req_prod: 0, rsp_cons: 0, req_shown: 0 }
    }

    /// References of its pages.
    pub fn refs(&self) -> &[u32] {
        &self.refs
    }

    /// The guest's port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Its layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Requests that fit just now.
    pub fn room(&self) -> u32 {
        self.entries - self.req_prod.wrapping_sub(self.rsp_cons)
    }

    /// Puts an entry; the back end sees it after `show`.
    pub fn put(&mut self, bytes: &[u8; ENTRY_BYTES_MAX]) {
        let at = self.place(self.req_prod);
        let words = self.layout.entry_bytes / 4;
        for (word, raw) in self.words[at..at + words].iter().zip(bytes.chunks_exact(4)) {
            word.store(u32::from_le_bytes(raw.try_into().expect("four bytes")), Ordering::Relaxed);
        }
        self.req_prod = self.req_prod.wrapping_add(1);
    }

    /// Shows what was put. Whether the back end asked to be notified.
    pub fn show(&mut self) -> bool {
        let (old, new) = (self.req_shown, self.req_prod);
        self.words[0].store(new, Ordering::Release);
        fence(Ordering::SeqCst);
        self.req_shown = new;
        ring::must_notify(old, new, self.words[1].load(Ordering::Relaxed))
    }

    /// Writes any number where the producer index is.
    pub fn lie(&mut self, req_prod: u32) {
        self.words[0].store(req_prod, Ordering::Release);
    }

    /// Any word of the shared pages.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        &self.words[at]
    }

    /// The next response. Asks to be notified of the one after it when there is none.
    pub fn answer(&mut self) -> Option<Answer> {
        if self.words[2].load(Ordering::Acquire) == self.rsp_cons {
            self.words[3].store(self.rsp_cons.wrapping_add(1), Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.words[2].load(Ordering::Acquire) == self.rsp_cons {
                return None;
            }
        }
        let at = self.place(self.rsp_cons);
        let word = |i: usize| self.words[at + i].load(Ordering::Relaxed);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        let id = u64::from(word(0)) | u64::from(word(1)) << 32;
        Some(Answer { id, operation: word(2) as u8, status: (word(2) >> 16) as i16 })
    }

    fn place(&self, index: u32) -> usize {
        HEADER_WORDS + (index & (self.entries - 1)) as usize * self.layout.entry_bytes / 4
    }
}

/// A direct request, in bytes. `second` is the number of segments, which need not be true.
pub fn entry(
    layout: Layout,
    (operation, second): (u8, u8),
    id: u64,
    sector: u64,
    segments: &[Segment],
) -> [u8; ENTRY_BYTES_MAX] {
    let mut bytes = [0; ENTRY_BYTES_MAX];
    (bytes[0], bytes[1]) = (operation, second);
    bytes[layout.id..layout.id + 8].copy_from_slice(&id.to_le_bytes());
    bytes[layout.sector..layout.sector + 8].copy_from_slice(&sector.to_le_bytes());
    let places = bytes[layout.segments..layout.entry_bytes].chunks_exact_mut(8);
    for (place, segment) in places.zip(segments) {
        place.copy_from_slice(&segment.to_bytes());
    }
    bytes
}

/// An indirect request whose `count` segments are in the page `gref`.
pub fn indirect_entry(
    layout: Layout,
    operation: u8,
    id: u64,
    sector: u64,
    (count, gref): (u16, u32),
) -> [u8; ENTRY_BYTES_MAX] {
    let mut bytes = entry(layout, (xen_sys::blkif::op::INDIRECT, operation), id, sector, &[]);
    let at = layout.indirect_count;
    bytes[at..at + 2].copy_from_slice(&count.to_le_bytes());
    let at = layout.indirect_grefs;
    bytes[at..at + 4].copy_from_slice(&gref.to_le_bytes());
    bytes
}
