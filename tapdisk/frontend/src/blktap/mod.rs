//! The ring of the kernel module blktap2: requests of a block device of this kernel, `tapdevN`.
//!
//! ```text
//!   ring page ─► gather ─► line ─► slots (data of writes copied) ─► engine ─► complete (data of reads copied)
//!        ▲                  └ waits for a slot                                    │
//!        └──── responses, shown once a turn, one RESPOND call ◄───────────────────┘
//! ```
//! The data of a request lie in pages that the kernel puts into our mapping for as long as the
//! request is not answered: they are copied between there and the slot that owns the buffer. A
//! request has at most 44 KiB, so it fits a slot. What the ring page says is copied once and then
//! checked; a page that makes no sense is not served any more. Nothing here allocates, blocks or
//! logs.
pub mod abi;
pub mod device;
pub mod fake;
mod notice;
mod sys;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::AtomicU32;

use image::Span;

pub use self::notice::{Counters, Malformed, Notice};
pub use self::sys::Ring;

use self::abi::{ENTRIES, Entry, Message, Page, SEGMENTS_MAX, op, request_flag, status};
use super::notices::Notices;
use super::quota::Held;
use crate::note::Note;
use crate::{Bounds, Frontend, Mode};
use request::{Outcome, Owner, Request, SlotId, Slots, Source, Verb};

/// Large slots that are the ring's own: with them every request gets on, whatever other clients
/// hold.
pub const OWN_SLOTS: u16 = 4;
/// Sectors of one piece of a trim or of zeros.
const PIECE_MAX: u64 = 1 << 22;
const NOTICES_MAX: usize = 4;

/// The kernel's side, or what stands in for it.
pub trait Side {
    /// The ring page, of [`abi::PAGE_WORDS`] words.
    fn page(&self) -> &[AtomicU32];
    /// Copies data of a request, from byte `at` of its pages. Only of requests that are not
    /// answered.
    fn read(&self, id: u8, at: usize, into: &mut [u8]);
    /// The same, the other way.
    fn write(&mut self, id: u8, at: usize, from: &[u8]);
    /// RESPOND: the kernel takes the responses that are shown.
    ///
    /// # Errors
    /// Those of ioctl.
    fn respond(&mut self) -> io::Result<()>;
    /// Makes the kernel put what had no room, where it does not do so by itself: modules without
    /// EVENTS put requests only when they are polled.
    fn push(&mut self);
}

/// A request that was taken, by its id.
#[derive(Clone, Copy, Debug, Default)]
struct Call {
    /// Taken and not answered.
    taken: bool,
    /// Wholly in slots.
    issued: bool,
    entry: Entry,
    /// Sectors that were put into slots, and pieces that are there.
    begun: u64,
    outstanding: u16,
    status: i16,
}

/// The ring of one disk.
#[derive(Debug)]
pub struct Tap<S> {
    /// `None` once it was given back.
    side: Option<S>,
    calls: [Call; ENTRIES as usize],
    /// Requests that wait for slots, in order.
    line: VecDeque<u8>,
    req_cons: u32,
    /// Responses written, and shown.
    rsp_prod: u32,
    shown: u32,
    mode: Mode,
    broken: bool,
    /// Pieces in the engine.
    pieces: u16,
    held: Held,
    /// Slots of its own that are free, and all of them.
    spare: Vec<SlotId>,
    own: Vec<SlotId>,
    stalled: bool,
    message: Option<Message>,
    /// The kernel looks at `req_event`.
    events: bool,
    counters: Counters,
    notices: Notices<Notice, NOTICES_MAX>,
}

impl<S: Side> Tap<S> {
    /// A ring that was just mapped. It is served between [`Tap::start`] and [`Tap::stop`].
    pub fn new(side: S) -> Tap<S> {
        Tap {
            side: Some(side),
            calls: [Call::default(); ENTRIES as usize],
            line: VecDeque::with_capacity(ENTRIES as usize),
            req_cons: 0,
            rsp_prod: 0,
            shown: 0,
            mode: Mode::Holding,
            broken: false,
            pieces: 0,
            held: Held::default(),
            spare: Vec::with_capacity(OWN_SLOTS.into()),
            own: Vec::with_capacity(OWN_SLOTS.into()),
            stalled: false,
            message: None,
            events: false,
            counters: Counters::default(),
            notices: Notices::default(),
        }
    }

    /// A ring that the program before this one served, and left when it was idle. Requests are begun
    /// in order, and what was begun is answered by then: from the last answer on all wait, and their
    /// entries are as they were, whether that program had looked at them or not.
    pub fn adopt(side: S, events: bool) -> Tap<S> {
        let done = Page(side.page()).rsp_prod();
        Tap { req_cons: done, rsp_prod: done, shown: done, events, ..Tap::new(side) }
    }

    /// The disk is open: takes its own slots, and requests from now on. False if there are no
    /// slots.
    pub fn start(&mut self, slots: &mut dyn Slots) -> bool {
        let bytes = slots.slot_bytes_max();
        while self.own.len() < OWN_SLOTS.into() {
            let Some(slot) = slots.reserve(bytes) else {
                self.stop(slots);
                return false;
            };
            self.own.push(slot);
            self.spare.push(slot);
        }
        self.mode = Mode::Serving;
        true
    }

    /// The disk is closed: gives the slots back. No request is in the engine.
    pub fn stop(&mut self, slots: &mut dyn Slots) {
        assert!(self.pieces == 0, "a ring is stopped when it is idle");
        self.mode = Mode::Holding;
        self.spare.clear();
        self.own.drain(..).for_each(|slot| slots.release(slot));
    }

    /// The kernel's side, unless it was given back.
    pub fn side(&self) -> Option<&S> {
        self.side.as_ref()
    }

    /// Gives the kernel's side back, so that it can be closed: nothing of it is touched any more.
    pub fn take_side(&mut self) -> Option<S> {
        self.give_up();
        self.side.take()
    }

    /// Whether the kernel looks at `req_event` (flag EVENTS of CREATE_DEVICE).
    pub fn set_events(&mut self, events: bool) {
        self.events = events;
    }

    /// Whether it does.
    pub fn has_events(&self) -> bool {
        self.events
    }

    fn page(&self) -> Page<'_> {
        Page(self.side.as_ref().expect("a ring that is not broken").page())
    }

    /// The kernel's page made no sense, or nobody is to use it any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Nothing of the kernel's is touched any more: it is about to go.
    fn give_up(&mut self) {
        self.broken = true;
        self.line.clear();
    }

    /// Whether the kernel has said something.
    pub fn has_message(&self) -> bool {
        self.message.is_some()
    }

    /// What the kernel said since this was asked last.
    pub fn take_message(&mut self) -> Option<Message> {
        self.message.take()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The oldest notice that was not fetched yet.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.notices.take()
    }

    fn may_share(&self, slots: &dyn Slots) -> bool {
        let front = self.line.front().map(|id| bytes_of(&self.calls[usize::from(*id)].entry));
        front.is_some_and(|bytes| self.held.may(slots.slots(), bytes))
    }

    fn break_off(&mut self, why: Malformed) {
        self.notices.note(Notice::Broken(why));
        self.give_up();
    }

    /// Takes over what is in the ring.
    fn gather(&mut self) {
        let req_prod = self.page().req_prod();
        let behind = req_prod.wrapping_sub(self.req_cons);
        if behind == 0 {
            return;
        }
        // Every request has an entry until its response has it.
        if behind > ENTRIES - self.req_cons.wrapping_sub(self.rsp_prod) {
            return self.break_off(Malformed::Runaway { req_prod, req_cons: self.req_cons });
        }
        self.counters.batches += 1;
        for _ in 0..behind {
            let entry = self.page().entry(self.req_cons);
            self.req_cons = self.req_cons.wrapping_add(1);
            if let Err(why) = self.accept(entry) {
                return self.break_off(why);
            }
        }
    }

    fn accept(&mut self, mut entry: Entry) -> Result<(), Malformed> {
        let id = usize::try_from(entry.id).ok().filter(|id| *id < self.calls.len());
        let id = id.filter(|id| !self.calls[*id].taken).ok_or(Malformed::Id(entry.id))?;
        let kind = match entry.operation {
            op::READ | op::WRITE => {
                entry.sectors = measure(&entry)?;
                usize::from(entry.operation)
            }
            op::FLUSH => {
                entry.sectors = 0;
                2
            }
            op::TRIM => 3,
            op::WRITE_ZEROES => 4,
            _ => 5,
        };
        self.counters.requests[kind] += 1;
        self.calls[id] = Call { taken: true, entry, ..Call::default() };
        self.line.push_back(id as u8);
        Ok(())
    }

    /// Puts what waits into slots, as far as there are any.
    fn issue(&mut self, slots: &mut dyn Slots) {
        let bounds = Bounds::of(slots);
        while let Some(&id) = self.line.front() {
            let entry = self.calls[usize::from(id)].entry;
            let refused = match (self.mode, verb(&entry)) {
                (Mode::Holding, _) => return,
                (Mode::Refusing, _) => Some(status::ERROR),
                (Mode::Serving, None) => Some(status::NOT_SUPPORTED),
                (Mode::Serving, Some(_)) => (!allows(bounds, &entry)).then_some(status::ERROR),
            };
            if let Some(status) = refused {
                self.calls[usize::from(id)].status = status;
            } else if !self.pieces_of(id, slots) {
                self.stalled = true;
                return;
            }
            self.line.pop_front();
            self.calls[usize::from(id)].issued = true;
            if self.calls[usize::from(id)].outstanding == 0 {
                self.answer(id);
            }
        }
        self.stalled = false;
    }

    /// Puts a request into slots: one, but for very long trims. False if there is none just now.
    fn pieces_of(&mut self, id: u8, slots: &mut dyn Slots) -> bool {
        let entry = self.calls[usize::from(id)].entry;
        let verb = verb(&entry).expect("it was asked");
        loop {
            let begun = self.calls[usize::from(id)].begun;
            let left = entry.sectors - begun;
            if left == 0 && (begun > 0 || verb != Verb::Flush) {
                return true;
            }
            let Some(slot) = self.reserve(slots, bytes_of(&entry)) else { return false };
            if matches!(verb, Verb::Write { .. }) {
                let side = self.side.as_ref().expect("a ring that is not broken");
                let buffer = slots.buffer_mut(slot);
                runs(&entry).for_each(|(at, from, bytes)| {
                    side.read(id, at, &mut buffer[from..from + bytes]);
                });
            }
            let count = left.min(PIECE_MAX) as u32;
            let start = if verb == Verb::Flush { 0 } else { entry.sector + begun };
            let call = &mut self.calls[usize::from(id)];
            call.begun += u64::from(count);
            call.outstanding += 1;
            self.pieces += 1;
            let owner = Owner { source: Source::Blktap, cookie: id.into() };
            slots.start(slot, Request { verb, span: Span { start, count }, owner });
            if verb == Verb::Flush {
                return true;
            }
        }
    }

    fn reserve(&mut self, slots: &mut dyn Slots, bytes: u32) -> Option<SlotId> {
        self.held.reserve(slots, bytes).ok().or_else(|| self.spare.pop())
    }

    fn release(&mut self, slots: &mut dyn Slots, slot: SlotId) {
        if self.own.contains(&slot) {
            slots.reuse(slot);
            self.spare.push(slot);
        } else {
            self.held.release(slots, slot);
        }
    }

    /// Writes the response of a request that is over, if anybody is there to read it.
    fn answer(&mut self, id: u8) {
        let Call { entry, status, .. } = self.calls[usize::from(id)];
        self.calls[usize::from(id)].taken = false;
        if self.broken {
            return;
        }
        assert!(self.rsp_prod != self.req_cons, "only what was taken is answered");
        self.page().respond(self.rsp_prod, entry.id, entry.operation, status);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.counters.answers += 1;
        self.counters.errors += u64::from(status != status::OKAY);
    }

    /// Shows the responses of a turn.
    fn show(&mut self) {
        let was_full = self.req_cons.wrapping_sub(self.shown) == ENTRIES;
        self.shown = self.rsp_prod;
        self.page().show(self.rsp_prod);
        self.counters.kicks += 1;
        let side = self.side.as_mut().expect("a ring that is not broken");
        if let Err(error) = side.respond() {
            self.notices.note(Notice::KickFailed(error.raw_os_error().unwrap_or(libc::EIO)));
            // Whoever waits for them would wait for ever.
            self.give_up();
            return;
        }
        if was_full && !self.events {
            self.counters.polls += 1;
            side.push();
        }
    }
}

/// Whether the disk allows a request.
fn allows(bounds: Bounds, entry: &Entry) -> bool {
    match entry.operation {
        op::FLUSH => true,
        op::READ => bounds.allow_reading(entry.sector, entry.sectors),
        _ => bounds.allow_changing(entry.sector, entry.sectors),
    }
}

/// Sectors of a request with data.
fn measure(entry: &Entry) -> Result<u64, Malformed> {
    let count = usize::from(entry.count);
    if !(1..=SEGMENTS_MAX).contains(&count) {
        return Err(Malformed::Count(entry.count));
    }
    let mut sum = 0;
    for segment in &entry.segments[..count] {
        let (first, last) = (segment.first, segment.last);
        sum += u64::from(segment.sectors().ok_or(Malformed::Segment { first, last })?);
    }
    Ok(sum)
}

/// Where the data of a checked request are: byte in its pages, byte in the slot, bytes.
fn runs(entry: &Entry) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut from = 0;
    let used = entry.segments.into_iter().take(entry.count.into()).enumerate();
    used.map(move |(page, segment)| {
        let bytes = segment.sectors().map_or(0, |n| n as usize * 512);
        let at = from;
        from += bytes;
        (page * abi::PAGE_BYTES + usize::from(segment.first) * 512, at, bytes)
    })
}

/// Bytes of its slot's buffer.
fn bytes_of(entry: &Entry) -> u32 {
    match entry.operation {
        op::READ | op::WRITE => entry.sectors as u32 * 512,
        _ => 0,
    }
}

/// What the engine is asked for.
fn verb(entry: &Entry) -> Option<Verb> {
    let has = |flag| entry.flags & flag != 0;
    let fua = has(request_flag::FUA);
    match entry.operation {
        op::READ => Some(Verb::Read),
        op::WRITE => Some(Verb::Write { fua }),
        op::FLUSH => Some(Verb::Flush),
        op::TRIM => Some(Verb::Discard { fua }),
        op::WRITE_ZEROES => Some(Verb::Zero { keep: has(request_flag::NOUNMAP), fast: false, fua }),
        _ => None,
    }
}

impl<S: Side> Frontend for Tap<S> {
    fn take(&mut self, slots: &mut dyn Slots) -> bool {
        if self.broken {
            return false;
        }
        self.message = self.page().take_message().or(self.message);
        if self.mode == Mode::Holding {
            return false;
        }
        self.gather();
        self.issue(slots);
        !self.line.is_empty()
    }

    fn complete(
        &mut self,
        slots: &mut dyn Slots,
        slot: SlotId,
        request: &Request,
        outcome: Outcome,
    ) {
        let id = request.owner.cookie as u8;
        let call = &mut self.calls[usize::from(id)];
        assert!(call.taken && call.outstanding > 0, "a request is over once");
        self.pieces -= 1;
        call.outstanding -= 1;
        match outcome {
            Ok(_) => {}
            Err(libc::EOPNOTSUPP) => call.status = status::NOT_SUPPORTED,
            Err(_) => call.status = status::ERROR,
        }
        let (entry, over) = (call.entry, call.issued && call.outstanding == 0);
        let wanted = request.verb == Verb::Read && outcome.is_ok() && !self.broken;
        if let Some(side) = self.side.as_mut().filter(|_| wanted) {
            let buffer = slots.buffer(slot);
            for (at, from, bytes) in runs(&entry) {
                side.write(id, at, &buffer[from..from + bytes]);
            }
        }
        self.release(slots, slot);
        if over {
            self.answer(id);
        }
    }

    fn kick(&mut self, _slots: &mut dyn Slots) {
        if self.broken {
            return;
        }
        if self.shown != self.rsp_prod {
            self.show();
        }
        if self.events && self.mode != Mode::Holding {
            self.page().arm(self.req_cons);
        }
    }

    fn idle(&self) -> bool {
        self.pieces == 0
    }

    fn pending(&mut self, slots: &dyn Slots) -> bool {
        let arrived = || self.page().req_prod() != self.req_cons;
        let may = || !self.stalled || !self.spare.is_empty() || self.may_share(slots);
        !self.broken
            && self.mode != Mode::Holding
            && (arrived() || (!self.line.is_empty() && may()))
    }

    fn suspend(&mut self) {
        self.mode = Mode::Holding;
    }

    fn resume(&mut self) {
        // Not before it has slots of its own.
        if !self.own.is_empty() {
            self.mode = Mode::Serving;
        }
    }

    fn refuse(&mut self) {
        self.mode = Mode::Refusing;
    }

    fn has_arrived(&mut self, slots: &dyn Slots) -> bool {
        self.pending(slots)
    }

    fn take_note(&mut self) -> Option<Note> {
        self.take_notice().map(|notice| Note::warning(notice.to_string()))
    }
}
