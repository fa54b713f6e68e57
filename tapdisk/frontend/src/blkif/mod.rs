//! Rings of Xen guests: requests taken from shared memory, data moved by grant copies.
//!
//! ```text
//!   ring ─► queue: gather ─► (lists: one copy call) ─► issue ─► (data of writes: one copy call) ─► slots
//!                                                                                   engine │
//!   ring ◄─ show, notify once ◄─ answers ◄─ (data of reads: one copy call) ◄─ complete ◄───┘
//! ```
//! A disk may have several rings at once: those of several domains, and several queues of one
//! device; all of them share the disk's slots under quotas. A guest can break its own rings and
//! nothing else: entries and lists are copied once and then checked, and a ring whose producer
//! index runs away is not served any more. Nothing on the path of a request allocates, blocks or
//! logs.
//!
//! Facts: spec/xenstore-tapback.md §11, spec/control-socket.md §5.9–5.10, spec/operations.md §6;
//! what is beyond them: docs/rings.md.
mod batch;
mod calls;
mod connect;
mod issue;
mod memory;
mod notice;
mod order;
mod poll;
mod queue;

use xen::{EventChannels, GrantTable, status};

pub use self::calls::SEGMENTS_MAX;
pub use self::connect::{ConnectError, QUEUES_MAX, RingParams, RingState};
pub use self::notice::{Counters, Indices, Notice, Tally};
pub use self::poll::PollPolicy;
pub use self::queue::RingName;

use self::batch::Batch;
use self::calls::{Calls, Lists, Work};
use self::issue::Next;
use self::notice::Log;
use self::order::Gate;
use self::queue::{Queue, allows};
use super::quota::Stall;
use crate::note::Note;
use crate::{Bounds, Frontend};
use host::slab::next_first;
use request::{Outcome, Owner, Request, SlotId, Slots, Source, Verb};

/// Rings of a disk at once, those included that are disconnected and have requests in flight.
pub const RINGS_MAX: usize = 32;
/// Rounds of gathering and issuing in one turn.
const ROUNDS_MAX: u32 = 16;

/// The rings of one disk, over the devices of Xen or over a guest in memory.
#[derive(Debug)]
pub struct Rings<X> {
    xen: X,
    queues: Vec<Option<Queue>>,
    parts: Parts,
    suspended: bool,
    /// What was taken is done to its end, and no more is taken.
    finishing: bool,
    /// Whose turn it is to be first.
    first: usize,
}

/// What all rings of a disk use.
#[derive(Debug)]
struct Parts {
    calls: Calls,
    /// Lists of indirect requests.
    lists: Batch,
    /// Data of writes.
    fills: Batch,
    /// Data of reads.
    reads: Batch,
    log: Log,
    /// The clock, in µs.
    now: u64,
    /// How idle the host is, in percent.
    idle: f32,
    /// Tickets that were drawn.
    tickets: u64,
}

impl<X: GrantTable + EventChannels> Rings<X> {
    /// No rings yet.
    pub fn new(xen: X) -> Rings<X> {
        Rings {
            xen,
            queues: Vec::with_capacity(RINGS_MAX),
            parts: Parts {
                calls: Calls::new(),
                lists: Batch::new(),
                fills: Batch::new(),
                reads: Batch::new(),
                log: Log::default(),
                now: 0,
                idle: 0.0,
                tickets: 0,
            },
            suspended: false,
            finishing: false,
            first: 0,
        }
    }

    /// The devices, or what stands in for them.
    pub fn xen(&self) -> &X {
        &self.xen
    }

    /// The same, to change.
    pub fn xen_mut(&mut self) -> &mut X {
        &mut self.xen
    }

    /// These ports have fired, and are masked until the next turn that takes requests.
    pub fn ports_fired(&mut self, ports: &[xen::Port]) {
        self.parts.log.counters.wakes += 1;
        for port in ports {
            if let Some(queue) = live(&mut self.queues).find(|queue| queue.port == *port) {
                queue.fired = true;
            }
        }
    }

    /// Looks which ports have fired, and remembers. They stay masked until the next turn that takes
    /// requests. True if there was one.
    pub fn event(&mut self) -> bool {
        let mut room = [0; RINGS_MAX];
        let fired = self.xen.fired(&mut room).len();
        self.ports_fired(&room[..fired]);
        fired > 0
    }

    /// The host is idle for so many percent of the time; asked for about once a second, while
    /// [`Rings::wants_ticks`].
    pub fn set_idle(&mut self, percent: f32) {
        self.parts.idle = percent;
    }

    /// Whether some ring may be polled.
    pub fn wants_ticks(&self) -> bool {
        let mut queues = self.queues.iter().flatten();
        queues.any(|queue| queue.is_live() && queue.polling.policy.duration_us > 0)
    }

    /// Polls all rings from now on, as far as their policies allow (SIGUSR2).
    pub fn poll_now(&mut self) {
        let Parts { now, idle, log, .. } = &mut self.parts;
        for queue in live(&mut self.queues) {
            log.counters.polls += u64::from(queue.polling.extend(*now, *idle));
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let log = &self.parts.log;
        Counters { notices_lost: log.notices.lost(), ..log.counters }
    }

    /// What the rings of a device have done, and where the first of them is.
    pub fn tally(&self, domid: u16, devid: u32) -> (Tally, Option<Indices>) {
        let ours = |queue: &&Queue| queue.name.domid == domid && queue.name.devid == devid;
        let rings = self.queues.iter().flatten().filter(|queue| queue.ring.is_some());
        let mut rings = rings.filter(ours).peekable();
        let indices = rings.peek().and_then(|queue| queue.indices());
        (rings.fold(Tally::default(), |sum, queue| sum.plus(&queue.tally)), indices)
    }

    /// The oldest notice that was not fetched yet.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.parts.log.notices.take()
    }

    /// Lets ports that have fired do so again, before their rings are looked at.
    fn unmask(&mut self) {
        for queue in live(&mut self.queues).filter(|q| q.fired && !q.polling.is_on()) {
            queue.fired = false;
            if let Err(error) = self.xen.unmask(queue.port) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.parts.log.notices.note(Notice::UnmaskFailed(errno));
            }
        }
    }

    /// Fetches the lists of indirect requests and checks them.
    fn fetch(&mut self, slots: &mut dyn Slots, bounds: Bounds) {
        let Parts { lists, calls, log, .. } = &mut self.parts;
        lists.run(&mut self.xen, slots, calls, log);
        for piece in &lists.pieces {
            let call = calls[piece.call];
            let Lists::Wanted { count, .. } = call.list else { unreachable!("it was wanted") };
            let sectors = if piece.ok { calls.measure(piece.call, count) } else { None };
            let sectors = sectors.map(u64::from);
            let allowed = sectors.filter(|n| allows(bounds, call.work, call.sector, *n));
            let call = &mut calls[piece.call];
            call.list = Lists::Ready(count);
            match allowed {
                Some(sectors) => call.sectors = sectors,
                None => call.fail(status::ERROR),
            }
            let (sectors, way) = (call.sectors, usize::from(call.work == Work::Write));
            at(&mut self.queues, call.queue).tally.sectors[way] += sectors;
        }
        lists.clear();
    }

    /// Copies the data of writes, and starts those that came whole.
    fn fill(&mut self, slots: &mut dyn Slots) {
        let Parts { fills, calls, log, .. } = &mut self.parts;
        fills.run(&mut self.xen, slots, calls, log);
        for i in 0..self.parts.fills.pieces.len() {
            let piece = self.parts.fills.pieces[i];
            let call = self.parts.calls[piece.call];
            let queue = at(&mut self.queues, call.queue);
            if piece.ok {
                let start = call.sector + u64::from(piece.from);
                let span = image::Span { start, count: piece.sectors };
                let verb = Verb::Write { fua: false };
                queue.start_piece();
                slots.start(
                    piece.slot,
                    Request {
                        verb,
                        span,
                        owner: Owner { source: Source::Rings, cookie: piece.call.into() },
                    },
                );
            } else {
                queue.held.release(slots, piece.slot);
                queue.piece_over(piece.call, Some(status::ERROR), &mut self.parts);
            }
        }
        self.parts.fills.clear();
    }

    /// Copies the data of reads to the guests.
    fn deliver(&mut self, slots: &mut dyn Slots) {
        let Parts { reads, calls, log, .. } = &mut self.parts;
        reads.run(&mut self.xen, slots, calls, log);
        for i in 0..self.parts.reads.pieces.len() {
            let piece = self.parts.reads.pieces[i];
            let queue = at(&mut self.queues, self.parts.calls[piece.call].queue);
            queue.held.release(slots, piece.slot);
            let failed = (!piece.ok).then_some(status::ERROR);
            queue.piece_over(piece.call, failed, &mut self.parts);
        }
        self.parts.reads.clear();
    }

    fn gather(&mut self, bounds: Bounds) -> bool {
        let (head, tail) = self.queues.split_at_mut(self.first);
        let mut found = false;
        for queue in tail.iter_mut().chain(head).flatten() {
            found |= queue.gather(&mut self.parts, bounds);
        }
        found
    }

    /// Puts what waits into slots; makes the batch as often as it is full.
    fn issue(&mut self, slots: &mut dyn Slots) {
        loop {
            match self.issue_each(slots) {
                Next::Rest => return,
                Next::Fill => self.fill(slots),
                Next::Others => {}
            }
        }
    }

    /// Lets each queue put its requests into slots.
    fn issue_each(&mut self, slots: &mut dyn Slots) -> Next {
        let mut next = Next::Rest;
        for index in (self.first..self.queues.len()).chain(0..self.first) {
            let waits = |queue: &Queue| queue.is_live() && !queue.line.is_empty();
            if !self.queues[index].as_ref().is_some_and(waits) {
                continue;
            }
            let gate = self.gate(index as u8);
            let queue = at(&mut self.queues, index as u8);
            match queue.issue(&mut self.parts, slots, gate) {
                Next::Rest => {}
                Next::Fill => next = Next::Fill,
                Next::Others if next == Next::Rest => next = Next::Others,
                Next::Others => {}
            }
        }
        next
    }

    fn gate(&self, index: u8) -> Gate {
        Gate::of(&self.queues, usize::from(index), &self.parts.calls)
    }
}

fn live(queues: &mut [Option<Queue>]) -> impl Iterator<Item = &mut Queue> {
    queues.iter_mut().flatten().filter(|queue| queue.is_live())
}

fn at(queues: &mut [Option<Queue>], index: u8) -> &mut Queue {
    queues[usize::from(index)].as_mut().expect("a call has a ring")
}

impl<X: GrantTable + EventChannels> Frontend for Rings<X> {
    fn take(&mut self, slots: &mut dyn Slots) -> bool {
        if self.suspended {
            return false;
        }
        self.first = next_first(&self.queues, self.first);
        if !self.finishing {
            self.unmask();
        }
        let clients = live(&mut self.queues).count() as u16;
        live(&mut self.queues).for_each(|queue| queue.held.clients = clients);
        let bounds = Bounds::of(slots);
        for _ in 0..ROUNDS_MAX {
            let found = !self.finishing && self.gather(bounds);
            self.fetch(slots, bounds);
            self.issue(slots);
            if !found {
                break;
            }
        }
        self.fill(slots);
        for queue in self.queues.iter_mut().flatten().filter(|queue| queue.broken) {
            queue.give_up(&mut self.parts);
        }
        let finishing = self.finishing;
        let more = |queue: &mut Queue| (queue.behind && !finishing) || !queue.line.is_empty();
        live(&mut self.queues).any(more)
    }

    fn complete(
        &mut self,
        slots: &mut dyn Slots,
        slot: SlotId,
        request: &Request,
        outcome: Outcome,
    ) {
        let id = request.owner.cookie as u16;
        let call = self.parts.calls[id];
        let queue = at(&mut self.queues, call.queue);
        queue.pieces -= 1;
        let wanted = call.work == Work::Read && call.status == status::OKAY && queue.is_live();
        if outcome.is_ok() && wanted {
            let range = ((request.span.start - call.sector) as u32, request.span.count);
            if !self.parts.reads.has_room(range.1) {
                self.deliver(slots);
            }
            let domid = at(&mut self.queues, call.queue).name.domid;
            let Parts { reads, calls, .. } = &mut self.parts;
            return reads.add(calls, domid, (slot, id), range, true);
        }
        queue.held.release(slots, slot);
        let failed = outcome.err().map(|errno| match (call.work, errno) {
            (Work::Discard, libc::EOPNOTSUPP) => status::EOPNOTSUPP,
            _ => status::ERROR,
        });
        queue.piece_over(id, failed, &mut self.parts);
    }

    fn kick(&mut self, slots: &mut dyn Slots) {
        self.deliver(slots);
        for queue in live(&mut self.queues) {
            let ring = queue.ring.as_mut().expect("a live ring");
            if !ring.show() {
                continue;
            }
            self.parts.log.counters.notifications += 1;
            if let Err(error) = self.xen.notify(queue.port) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                self.parts.log.notices.note(Notice::NotifyFailed(errno));
            }
        }
    }

    fn idle(&self) -> bool {
        self.parts.reads.is_empty() && self.queues.iter().flatten().all(|queue| queue.pieces == 0)
    }

    fn pending(&mut self, slots: &dyn Slots) -> bool {
        let mut queues = self.queues.iter().flatten();
        !self.suspended
            && queues.any(|queue| {
                let may = match queue.stall {
                    Stall::No => !queue.line.is_empty(),
                    Stall::Own => queue.is_let_through(&self.parts.calls, self.gate(queue.index)),
                    Stall::Slot(bytes) => queue.held.may(slots.slots(), bytes),
                };
                let behind = queue.behind && queue.has_room(&self.parts);
                let more = behind || queue.fired || queue.polling.is_on();
                queue.is_live() && (may || (more && !self.finishing))
            })
    }

    fn clock(&mut self, now: u64) {
        self.parts.now = now;
    }

    fn suspend(&mut self) {
        self.suspended = true;
    }

    fn resume(&mut self) {
        (self.suspended, self.finishing) = (false, false);
        live(&mut self.queues).for_each(|queue| queue.behind = true);
    }

    fn finish(&mut self) {
        self.finishing = true;
    }

    fn at_rest(&self) -> bool {
        let quiet = |queue: &Queue| {
            let unshown = queue.ring.as_ref().is_some_and(|ring| ring.has_unshown());
            queue.line.is_empty() && queue.busy == 0 && queue.pieces == 0 && !unshown
        };
        self.parts.calls.used() == 0 && self.queues.iter().flatten().all(quiet)
    }

    fn go_on(&mut self) {
        self.finishing = false;
        live(&mut self.queues).for_each(|queue| queue.behind = true);
    }

    fn has_arrived(&mut self, _: &dyn Slots) -> bool {
        // Event channels are read by asking.
        self.event()
    }

    fn hang_up(&mut self, _: &mut dyn Slots) {
        self.disconnect_all();
    }

    fn take_note(&mut self) -> Option<Note> {
        self.take_notice().map(|notice| Note::warning(notice.to_string()))
    }
}
