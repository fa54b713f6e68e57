//! A guest in memory, its rings served by the frontend, and a disk in memory below.
#![allow(dead_code)]

pub use crate::nbd_support::engine;
use engine::Memory;
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingName, RingParams, Rings};
use frontend::nbd::Export;
use xen::fake::{Access, Answer, DOMID, Fake, FrontRing, Guest, entry, indirect_entry};
use xen::{Layout, PAGE_BYTES, Segment, op};

pub const DEVID: u32 = 51712;
/// 16 MiB.
pub const SECTORS: u64 = 32768;

pub struct Bench {
    pub guest: Guest,
    pub rings: Rings<Fake>,
    pub memory: Memory,
    pub now: u64,
}

pub fn export(sector_size: u32, read_only: bool) -> Export {
    Export { sectors: SECTORS, sector_size, read_only, fast_zero: true }
}

pub fn name(queue: u32) -> RingName {
    RingName { domid: DOMID, devid: DEVID, queue }
}

pub fn params(ring: &FrontRing, name: RingName, protocol: u32, poll: PollPolicy) -> RingParams {
    let mut refs = [0; 8];
    refs[..ring.refs().len()].copy_from_slice(ring.refs());
    let order = ring.refs().len().ilog2();
    RingParams::new(name, (order, &refs), ring.port(), protocol, poll).expect("valid parameters")
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(export(512, false))
    }

    pub fn with(export: Export) -> Bench {
        let guest = Guest::new();
        let rings = Rings::new(guest.back_end());
        Bench { guest, rings, memory: Memory::new(export), now: 1 }
    }

    /// A connected ring.
    pub fn connect(&mut self, order: u32, protocol: u32, queue: u32) -> FrontRing {
        let layout = Layout::of_protocol(protocol).expect("a protocol");
        let ring = self.guest.ring(order, layout);
        self.rings
            .connect(&params(&ring, name(queue), protocol, PollPolicy::default()))
            .expect("connects");
        ring
    }

    /// What the server does: events, then rounds until there is nothing to do.
    pub fn turn(&mut self) {
        if self.guest.wakes_back_end() {
            self.rings.event();
        }
        self.rings.clock(self.now);
        for _ in 0..100 {
            let arrived = self.rings.take(&mut self.memory);
            let mut finished = false;
            while let Some((slot, request, outcome)) = self.memory.finish() {
                self.rings.complete(&mut self.memory, slot, &request, outcome);
                finished = true;
            }
            self.rings.kick(&mut self.memory);
            let more = self.rings.pending(&self.memory) || (arrived && finished);
            if !more {
                return;
            }
        }
    }

    /// Shows what was put, notifies if asked to, serves, and gives the answers in order of arrival.
    pub fn serve(&mut self, ring: &mut FrontRing) -> Vec<Answer> {
        if ring.show() {
            self.guest.notify(ring.port());
        }
        self.turn();
        answers(ring)
    }

    /// One request, one status.
    pub fn ask(&mut self, ring: &mut FrontRing, bytes: &[u8; 112]) -> i16 {
        ring.put(bytes);
        let got = self.serve(ring);
        assert_eq!(got.len(), 1, "one answer");
        got[0].status
    }

    /// Pages of the guest's in a row, as whole segments.
    pub fn pages(&self, count: usize) -> Vec<Segment> {
        let whole = |gref| Segment { gref, first: 0, last: 7, pad: 0 };
        (0..count).map(|_| whole(self.guest.grant(Access::Full))).collect()
    }

    /// The guest's data in segments.
    pub fn data(&self, segments: &[Segment]) -> Vec<u8> {
        let of = |s: &Segment| {
            let (from, to) = (usize::from(s.first) * 512, (usize::from(s.last) + 1) * 512);
            self.guest.page(s.gref, |page| page[from..to].to_vec())
        };
        segments.iter().flat_map(of).collect()
    }

    pub fn put_data(&self, segments: &[Segment], data: &[u8]) {
        let mut rest = data;
        for s in segments {
            let (from, to) = (usize::from(s.first) * 512, (usize::from(s.last) + 1) * 512);
            let (now, later) = rest.split_at(to - from);
            self.guest.page(s.gref, |page| page[from..to].copy_from_slice(now));
            rest = later;
        }
    }

    /// A page with a list of segments.
    pub fn list(&self, segments: &[Segment]) -> u32 {
        let gref = self.guest.grant(Access::ReadOnly);
        self.guest.page(gref, |page| {
            for (raw, segment) in page.chunks_exact_mut(8).zip(segments) {
                raw.copy_from_slice(&segment.to_bytes());
            }
        });
        gref
    }

    /// An entry for any number of segments.
    pub fn request(
        &self,
        layout: Layout,
        operation: u8,
        id: u64,
        sector: u64,
        segments: &[Segment],
    ) -> [u8; 112] {
        if segments.len() <= 11 {
            return entry(layout, (operation, segments.len() as u8), id, sector, segments);
        }
        let list = self.list(segments);
        indirect_entry(layout, operation, id, sector, (segments.len() as u16, list))
    }

    /// Nothing is left behind.
    pub fn assert_clean(&mut self) {
        self.rings.disconnect_all();
        self.memory.hold = false;
        self.turn();
        assert!(self.rings.idle());
        assert_eq!(self.rings.in_flight(), 0, "calls");
        assert_eq!(self.memory.reserved(), 0, "slots");
        let counts = self.guest.counts();
        assert_eq!((counts.mapped, counts.bound), (0, 0), "pages and ports");
    }
}

/// What is there; a guest that overwrites the back end's index sees very much.
pub fn answers(ring: &mut FrontRing) -> Vec<Answer> {
    std::iter::from_fn(|| ring.answer()).take(256).collect()
}

pub fn write(bench: &Bench, id: u64, sector: u64, segments: &[Segment]) -> [u8; 112] {
    bench.request(Layout::WIDE, op::WRITE, id, sector, segments)
}

pub fn read(bench: &Bench, id: u64, sector: u64, segments: &[Segment]) -> [u8; 112] {
    bench.request(Layout::WIDE, op::READ, id, sector, segments)
}

/// A discard, in bytes.
pub fn discard(flag: u8, id: u64, sector: u64, sectors: u64) -> [u8; 112] {
    let layout = Layout::WIDE;
    let mut bytes = entry(layout, (op::DISCARD, flag), id, sector, &[]);
    let at = layout.discard_sectors;
    bytes[at..at + 8].copy_from_slice(&sectors.to_le_bytes());
    bytes
}

pub const PAGE: usize = PAGE_BYTES;
