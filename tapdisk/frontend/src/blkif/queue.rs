//! One ring of a guest: what was taken from it and waits, and what it may hold.
//!
//! ```text
//!   entries ─► gather ─► line ─► issue ─► slots (busy) ─► finish ─► responses
//!                         │ waits for a list, a slot, or a barrier of its device
//! ```
use std::collections::VecDeque;

use xen::{BackRing, Entry, List, Port, Refusal, Runaway, op, status};

use super::Parts;
use super::calls::{Call, Lists, SEGMENTS_MAX, Stage, Work};
use super::connect::RingParams;
use super::notice::{Indices, Notice, Tally};
use super::poll::Polling;
use crate::Bounds;
use crate::quota::{Held, Stall};

/// Requests of a ring that wait for slots; further ones stay in the ring.
pub(super) const LINE_MAX: usize = 32;

/// Who a ring belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingName {
    /// The front end's domain.
    pub domid: u16,
    /// Its device.
    pub devid: u32,
    /// Which of the device's queues.
    pub queue: u32,
}

impl RingName {
    /// Whether both are queues of one device.
    pub(super) fn same_device(self, other: RingName) -> bool {
        (self.domid, self.devid) == (other.domid, other.devid)
    }
}

/// Whether the disk allows a request of `work` for these sectors.
pub(super) fn allows(bounds: Bounds, work: Work, sector: u64, sectors: u64) -> bool {
    match work {
        Work::Flush => true,
        Work::Read => sectors > 0 && bounds.allow_reading(sector, sectors),
        Work::Write | Work::Discard => sectors > 0 && bounds.allow_changing(sector, sectors),
        // Without data it is a flush, and its sector means nothing.
        Work::Barrier(_) => sectors == 0 || bounds.allow_changing(sector, sectors),
    }
}

/// A ring.
#[derive(Debug)]
pub(super) struct Queue {
    /// Its place among the rings.
    pub index: u8,
    pub name: RingName,
    /// How it was connected.
    pub params: RingParams,
    /// `None` once disconnected; what is in flight comes back nevertheless.
    pub ring: Option<BackRing>,
    pub port: Port,
    /// The front end cannot be trusted any more.
    pub broken: bool,
    /// Calls that are not wholly in slots, in order.
    pub line: VecDeque<u16>,
    /// Calls that left the line and are not answered.
    pub busy: u16,
    /// Pieces in the engine.
    pub pieces: u16,
    pub held: Held,
    pub stall: Stall,
    /// Drawn by the front of the line: it is a barrier, or waits for one.
    pub ticket: Option<u64>,
    /// Its port has fired and is masked.
    pub fired: bool,
    /// The front end was asked to notify of the request after this many.
    armed: Option<u32>,
    /// The ring was not seen empty: there was no room for what is in it.
    pub behind: bool,
    pub polling: Polling,
    pub tally: Tally,
}

impl Queue {
    pub(super) fn new(index: u8, params: &RingParams, (ring, port): (BackRing, Port)) -> Queue {
        let polling = Polling::new(params.poll);
        Queue {
            index,
            name: params.name,
            params: *params,
            ring: Some(ring),
            port,
            broken: false,
            line: VecDeque::with_capacity(LINE_MAX),
            busy: 0,
            pieces: 0,
            held: Held::default(),
            stall: Stall::No,
            ticket: None,
            fired: false,
            armed: None,
            behind: true,
            polling,
            tally: Tally::default(),
        }
    }

    /// Whether requests are taken from it.
    pub(super) fn is_live(&self) -> bool {
        self.ring.is_some() && !self.broken
    }

    /// Disconnected, and nothing of it in flight: its place is free.
    pub(super) fn is_over(&self) -> bool {
        self.ring.is_none() && self.busy == 0
    }

    /// Takes entries off the ring, as many as the line holds. True if there were any.
    pub(super) fn gather(&mut self, parts: &mut Parts, bounds: Bounds) -> bool {
        if !self.is_live() {
            return false;
        }
        let mut taken = 0;
        self.behind = true;
        while self.behind && taken < LINE_MAX && self.has_room(parts) {
            match self.next(parts.now) {
                Ok(Some(entry)) => {
                    taken += 1;
                    // At once, so that the front end is not asked to notify of the next one.
                    let begins = self.polling.extend(parts.now, parts.idle);
                    parts.log.counters.polls += u64::from(begins);
                    self.accept(&entry, parts, bounds);
                }
                Ok(None) => self.behind = false,
                Err(runaway) => {
                    self.break_off(runaway, parts);
                    break;
                }
            }
        }
        taken > 0
    }

    fn next(&mut self, now: u64) -> Result<Option<Entry>, Runaway> {
        let ring = self.ring.as_mut().expect("a live ring");
        if let Some(entry) = ring.take() {
            return Ok(Some(entry));
        }
        if ring.look()? > 0 {
            return Ok(ring.take());
        }
        let (req_cons, _) = ring.indices();
        // While it is polled the front end need not notify.
        if (self.polling.is_on() && !self.polling.expire(now)) || self.armed == Some(req_cons) {
            return Ok(None);
        }
        self.armed = Some(req_cons);
        ring.final_check()?;
        Ok(ring.take())
    }

    /// Whether another entry could be taken.
    pub(super) fn has_room(&self, parts: &Parts) -> bool {
        self.line.len() < LINE_MAX && !parts.calls.is_full()
    }

    /// Nothing is taken from it or written to it any more. What waits in the line may be part of a
    /// batch just now; the end of the turn gives it up.
    fn break_off(&mut self, runaway: Runaway, parts: &mut Parts) {
        parts.log.notices.note(Notice::Broken { name: self.name, runaway });
        self.broken = true;
        self.polling.stop();
    }

    /// What waits in the line is not begun.
    pub(super) fn give_up(&mut self, parts: &mut Parts) {
        while let Some(&id) = self.line.front() {
            parts.calls[id].fail(status::ERROR);
            self.leave(id, parts);
        }
        self.stall = Stall::No;
    }

    fn accept(&mut self, entry: &Entry, parts: &mut Parts, bounds: Bounds) {
        let request = match xen::Request::parse(entry, SEGMENTS_MAX) {
            Ok(request) => request,
            Err(refusal) => return self.refuse(refusal, parts),
        };
        let (work, list, sectors) = match request.kind {
            xen::Kind::Read(list) => (Work::Read, Some(list), 0),
            xen::Kind::Write(list) => (Work::Write, Some(list), 0),
            xen::Kind::Barrier(list) => (Work::Barrier(Stage::Alone), Some(list), 0),
            xen::Kind::Flush => (Work::Flush, None, 0),
            xen::Kind::Discard { sectors } => (Work::Discard, None, sectors),
        };
        let sectors = match &list {
            Some(List::Here { count, segments }) => {
                let given = &segments[..usize::from(*count)];
                given.iter().filter_map(|segment| segment.sectors()).map(u64::from).sum()
            }
            Some(List::Page { .. }) | None => sectors,
        };
        let known = !matches!(list, Some(List::Page { .. }));
        if known && !allows(bounds, work, request.sector, sectors) {
            let (id, operation) = (request.id, request.operation);
            return self.refuse(Refusal { id, operation, status: status::ERROR }, parts);
        }
        self.count(parts, work, sectors);
        let call = parts.calls.put(Call {
            queue: self.index,
            id: request.id,
            operation: request.operation,
            work,
            sector: request.sector,
            sectors,
            issued: 0,
            outstanding: 0,
            status: status::OKAY,
            list: Lists::Ready(0),
            in_line: true,
            since: parts.now,
        });
        self.line.push_back(call);
        match list {
            Some(List::Here { count, segments }) => {
                let raw = parts.calls.list_mut(call).chunks_exact_mut(8);
                for (raw, segment) in raw.zip(&segments[..usize::from(count)]) {
                    raw.copy_from_slice(&segment.to_bytes());
                }
                parts.calls[call].list = Lists::Ready(count);
            }
            Some(List::Page { count, gref }) => {
                parts.log.counters.indirect += 1;
                parts.calls[call].list = Lists::Wanted { count, gref };
                parts.lists.add_list(self.name.domid, call, gref, count * 8);
            }
            None => {}
        }
    }

    fn refuse(&mut self, refusal: Refusal, parts: &mut Parts) {
        parts.log.counters.requests[5] += 1;
        self.answer(refusal.id, refusal.operation, refusal.status, parts);
    }

    /// Takes a call off the line: all of it is in slots, or it failed.
    pub(super) fn leave(&mut self, id: u16, parts: &mut Parts) {
        assert!(self.line.pop_front() == Some(id), "the first leaves first");
        self.ticket = None;
        self.busy += 1;
        let call = &mut parts.calls[id];
        call.in_line = false;
        if call.outstanding == 0 {
            self.finish(id, parts);
        }
    }

    /// A piece of a call is over.
    pub(super) fn piece_over(&mut self, id: u16, failed: Option<i16>, parts: &mut Parts) {
        let call = &mut parts.calls[id];
        call.outstanding -= 1;
        if let Some(status) = failed {
            call.fail(status);
        }
        if call.outstanding == 0 && !call.in_line {
            self.finish(id, parts);
        }
        self.stall = Stall::No;
    }

    fn finish(&mut self, id: u16, parts: &mut Parts) {
        let call = parts.calls[id];
        parts.calls.free(id);
        self.busy -= 1;
        if let Some(way) = call.work.way() {
            let took = parts.now.saturating_sub(call.since);
            self.tally.answered[way] += 1;
            self.tally.ticks_us[way] += took;
            self.tally.longest_us[way] = self.tally.longest_us[way].max(took);
        }
        self.answer(call.id, call.operation, call.status, parts);
    }

    /// Writes a response, if anybody is there to read it.
    fn answer(&mut self, id: u64, operation: u8, status: i16, parts: &mut Parts) {
        if !self.is_live() {
            return;
        }
        let ring = self.ring.as_mut().expect("a live ring");
        ring.respond(id, operation, status);
        parts.log.counters.answers += 1;
        let failed = u64::from(status != status::OKAY);
        parts.log.counters.errors += failed;
        self.tally.errors += failed;
    }

    fn count(&mut self, parts: &mut Parts, work: Work, sectors: u64) {
        let counters = &mut parts.log.counters;
        let kind = match work {
            Work::Read => op::READ,
            Work::Write => op::WRITE,
            Work::Barrier(_) => op::WRITE_BARRIER,
            Work::Flush => op::FLUSH_DISKCACHE,
            Work::Discard => 4,
        };
        counters.requests[usize::from(kind)] += 1;
        self.tally.flushes += u64::from(work == Work::Flush);
        self.tally.discards += u64::from(work == Work::Discard);
        if let Some(way) = work.way() {
            self.tally.taken[way] += 1;
            self.tally.sectors[way] += sectors;
        }
    }

    /// Where its ends are, while it is connected.
    pub(super) fn indices(&self) -> Option<Indices> {
        let ring = self.ring.as_ref()?;
        let ([req_prod, req_event, rsp_prod, rsp_event], (req_cons, rsp_pvt)) =
            (ring.shown(), ring.indices());
        let entries = ring.entries();
        Some(Indices { entries, req_prod, req_cons, req_event, rsp_prod, rsp_pvt, rsp_event })
    }
}
