//! The fake engine: a disk in memory whose requests finish when and how the test says.
use std::collections::{BTreeSet, VecDeque};

use frontend::nbd::Export;
use request::{Outcome, Request, SlotCounts, SlotId, Slots, Verb};
use test_support::rng::Rng;

const SMALL: usize = 4096;
const LARGE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Free,
    Filling,
    Engine,
    Done,
}

/// In which order requests finish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    Arrival,
    Reverse,
    Random,
}

/// A disk in memory behind slots.
pub struct Memory {
    pub disk: Vec<u8>,
    export: Export,
    counts: SlotCounts,
    buffers: Vec<Vec<u8>>,
    states: Vec<State>,
    queue: VecDeque<(SlotId, Request)>,
    /// Requests that touch these sectors fail with EIO.
    pub bad: BTreeSet<u64>,
    /// Requests stay in the engine.
    pub hold: bool,
    pub order: Order,
    /// At most so many finish in a turn.
    pub per_turn: usize,
    finished: usize,
    pub random: Rng,
    pub flushes: usize,
    /// Every request that was started.
    pub seen: Vec<Request>,
    /// Most slots in the engine or waiting to be sent at once.
    pub most: usize,
}

impl Memory {
    pub fn new(export: Export) -> Memory {
        let mut memory = Memory {
            disk: vec![0; (export.sectors * 512) as usize],
            export,
            counts: SlotCounts::default(),
            buffers: Vec::new(),
            states: Vec::new(),
            queue: VecDeque::new(),
            bad: BTreeSet::new(),
            hold: false,
            order: Order::Arrival,
            per_turn: usize::MAX,
            finished: 0,
            random: Rng::new(1),
            flushes: 0,
            seen: Vec::new(),
            most: 0,
        };
        memory.set_slots(96, 32);
        memory
    }

    pub fn set_slots(&mut self, small: u16, large: u16) {
        assert_eq!(self.reserved(), 0);
        self.counts = SlotCounts { small, large, small_free: small, large_free: large };
        let size = |i| if i < usize::from(small) { SMALL } else { LARGE };
        let all = usize::from(small + large);
        self.buffers = (0..all).map(|i| vec![0xee; size(i)]).collect();
        self.states = vec![State::Free; all];
    }

    /// Fills the disk with a pattern that tells every place from every other.
    pub fn pattern(&mut self) {
        for (i, word) in self.disk.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(i as u64 + 1).to_le_bytes());
        }
    }

    pub fn reserved(&self) -> usize {
        self.states.iter().filter(|&&s| s != State::Free).count()
    }

    pub fn in_engine(&self) -> usize {
        self.queue.len()
    }

    pub fn is_ready(&self) -> bool {
        !self.hold && !self.queue.is_empty()
    }

    /// The next request that finishes in this turn.
    pub fn finish(&mut self) -> Option<(SlotId, Request, Outcome)> {
        if self.hold || self.queue.is_empty() || self.finished == self.per_turn {
            self.finished = 0;
            return None;
        }
        self.finished += 1;
        let at = match self.order {
            Order::Arrival => 0,
            Order::Reverse => self.queue.len() - 1,
            Order::Random => self.random.below(self.queue.len() as u64) as usize,
        };
        let (slot, request) = self.queue.remove(at)?;
        self.states[usize::from(slot.0)] = State::Done;
        let outcome = self.perform(slot, &request);
        Some((slot, request, outcome))
    }

    fn perform(&mut self, slot: SlotId, request: &Request) -> Outcome {
        let (start, end) = (request.span.start, request.span.end());
        if end > self.export.sectors {
            return Err(libc::EINVAL);
        }
        if self.bad.range(start..end).next().is_some() {
            return Err(libc::EIO);
        }
        let disk = &mut self.disk[(start * 512) as usize..(end * 512) as usize];
        let buffer = &mut self.buffers[usize::from(slot.0)];
        match request.verb {
            Verb::Read => buffer[..disk.len()].copy_from_slice(disk),
            Verb::Write { .. } => disk.copy_from_slice(&buffer[..disk.len()]),
            Verb::Zero { .. } | Verb::Discard { .. } => disk.fill(0),
            Verb::Flush => self.flushes += 1,
            Verb::Status => return Ok(status(disk, buffer)),
        }
        Ok(0)
    }
}

/// Extents of 64 KiB granularity, alternating ones merged.
fn status(disk: &[u8], buffer: &mut [u8]) -> u32 {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    for block in disk.chunks(64 << 10) {
        let hole = u32::from(block.iter().all(|&b| b == 0));
        let sectors = (block.len() / 512) as u32;
        match extents.last_mut() {
            Some(last) if last.1 == hole => last.0 += sectors,
            _ => extents.push((sectors, hole)),
        }
    }
    extents.truncate(buffer.len() / 8);
    for (raw, (sectors, hole)) in buffer.chunks_exact_mut(8).zip(&extents) {
        raw[..4].copy_from_slice(&sectors.to_ne_bytes());
        raw[4..].copy_from_slice(&hole.to_ne_bytes());
    }
    extents.len() as u32
}

impl Slots for Memory {
    fn reserve(&mut self, bytes: u32) -> Option<SlotId> {
        assert!(bytes as usize <= LARGE);
        let fits =
            |i: &usize| self.states[*i] == State::Free && self.buffers[*i].len() >= bytes as usize;
        let i = (0..self.states.len()).find(fits)?;
        self.states[i] = State::Filling;
        self.most = self.most.max(self.reserved());
        Some(SlotId(i as u16))
    }

    fn slot_bytes_max(&self) -> u32 {
        LARGE as u32
    }

    fn buffer(&self, slot: SlotId) -> &[u8] {
        let i = usize::from(slot.0);
        assert!(matches!(self.states[i], State::Filling | State::Done));
        &self.buffers[i]
    }

    fn buffer_mut(&mut self, slot: SlotId) -> &mut [u8] {
        let i = usize::from(slot.0);
        assert!(matches!(self.states[i], State::Filling | State::Done));
        &mut self.buffers[i]
    }

    fn start(&mut self, slot: SlotId, request: Request) {
        let i = usize::from(slot.0);
        assert_eq!(self.states[i], State::Filling);
        if matches!(request.verb, Verb::Read | Verb::Write { .. }) {
            assert!(request.span.count as usize * 512 <= self.buffers[i].len());
        }
        self.states[i] = State::Engine;
        self.seen.push(request);
        self.queue.push_back((slot, request));
    }

    fn reuse(&mut self, slot: SlotId) {
        let i = usize::from(slot.0);
        assert_eq!(self.states[i], State::Done);
        self.states[i] = State::Filling;
    }

    fn release(&mut self, slot: SlotId) {
        let i = usize::from(slot.0);
        assert!(matches!(self.states[i], State::Filling | State::Done), "not ours: {slot:?}");
        self.states[i] = State::Free;
    }

    fn slots(&self) -> SlotCounts {
        let small = usize::from(self.counts.small);
        let free = |s: &[State]| s.iter().filter(|&&s| s == State::Free).count() as u16;
        SlotCounts {
            small_free: free(&self.states[..small]),
            large_free: free(&self.states[small..]),
            ..self.counts
        }
    }

    fn sectors(&self) -> u64 {
        self.export.sectors
    }

    fn sector_size(&self) -> u32 {
        self.export.sector_size
    }

    fn read_only(&self) -> bool {
        self.export.read_only
    }
}
