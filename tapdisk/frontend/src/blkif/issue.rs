//! Requests, from the line of their ring into slots.
//!
//! A request longer than a slot is cut into pieces that proceed in parallel. Data of writes are
//! copied before their pieces are started, all together (`batch`). A barrier waits until its device
//! has nothing else in flight, and holds up what comes behind it (`order`).
use std::ops::ControlFlow::{self, Break, Continue};

use image::Span;
use xen::status;

use super::Parts;
use super::calls::{Stage, Work};
use super::order::Gate;
use super::queue::Queue;
use crate::quota::Stall;
use request::{Owner, Request, Slots, Source, Verb};

/// Sectors of one piece of a discard.
const DISCARD_MAX: u64 = 1 << 30;

/// Why no more of a line is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// Something has to come free or to be over.
    Stalled(Stall),
    /// The batch of copies is full and has to be made.
    BatchFull,
}

/// What has to be done before everything that can be in slots is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Rest,
    /// The batch of copies has to be made.
    Fill,
    /// A barrier is over: the device's other queues have their turn.
    Others,
}

impl Queue {
    /// Puts what waits into slots, as far as there are any and the device's other queues let it.
    pub(super) fn issue(&mut self, parts: &mut Parts, slots: &mut dyn Slots, gate: Gate) -> Next {
        while let Some(&id) = self.line.front() {
            let call = parts.calls[id];
            let done = match call.work {
                _ if call.status != status::OKAY => Continue(()),
                Work::Barrier(stage) => self.barrier(id, stage, (parts, slots), gate),
                _ if !self.may_begin(&parts.calls, gate) => {
                    self.draw(parts);
                    Break(Halt::Stalled(Stall::Own))
                }
                Work::Read | Work::Write | Work::Discard => self.pieces(id, parts, slots),
                Work::Flush => self.flush(id, parts, slots),
            };
            match done {
                Continue(()) => {
                    self.leave(id, parts);
                    if matches!(call.work, Work::Barrier(_)) {
                        self.stall = Stall::No;
                        return Next::Others;
                    }
                }
                Break(Halt::BatchFull) => return Next::Fill,
                Break(Halt::Stalled(stall)) => {
                    self.stall = stall;
                    return Next::Rest;
                }
            }
        }
        self.stall = Stall::No;
        Next::Rest
    }

    fn draw(&mut self, parts: &mut Parts) {
        if self.ticket.is_none() {
            parts.tickets += 1;
            self.ticket = Some(parts.tickets);
        }
    }

    /// Cuts a request into pieces that fit slots.
    fn pieces(&mut self, id: u16, parts: &mut Parts, slots: &mut dyn Slots) -> ControlFlow<Halt> {
        let piece_max = u64::from(slots.slot_bytes_max()) / image::SECTOR_BYTES;
        loop {
            let call = parts.calls[id];
            let left = call.sectors - call.issued;
            if left == 0 {
                return Continue(());
            }
            let (sectors, verb) = match call.work {
                Work::Discard => (left.min(DISCARD_MAX), Verb::Discard { fua: false }),
                Work::Read => (left.min(piece_max), Verb::Read),
                _ => (left.min(piece_max), Verb::Write { fua: false }),
            };
            let writes = matches!(verb, Verb::Write { .. });
            let count = sectors as u32;
            if writes && !parts.fills.has_room(count) {
                return Break(Halt::BatchFull);
            }
            let bytes = if call.work == Work::Discard { 0 } else { count * 512 };
            let slot = match self.held.reserve(slots, bytes) {
                Ok(slot) => slot,
                Err(stall) => return Break(Halt::Stalled(stall)),
            };
            if writes {
                let range = (call.issued as u32, count);
                parts.fills.add(&parts.calls, self.name.domid, (slot, id), range, false);
            } else {
                let span = Span { start: call.sector + call.issued, count };
                self.start_piece();
                slots.start(
                    slot,
                    Request {
                        verb,
                        span,
                        owner: Owner { source: Source::Rings, cookie: id.into() },
                    },
                );
            }
            let call = &mut parts.calls[id];
            call.issued += sectors;
            call.outstanding += 1;
        }
    }

    /// A piece goes to the engine.
    pub(super) fn start_piece(&mut self) {
        self.pieces += 1;
    }

    fn flush(&mut self, id: u16, parts: &mut Parts, slots: &mut dyn Slots) -> ControlFlow<Halt> {
        let slot = match self.held.reserve(slots, 0) {
            Ok(slot) => slot,
            Err(stall) => return Break(Halt::Stalled(stall)),
        };
        self.start_piece();
        parts.calls[id].outstanding += 1;
        let span = Span::default();
        slots.start(
            slot,
            Request {
                verb: Verb::Flush,
                span,
                owner: Owner { source: Source::Rings, cookie: id.into() },
            },
        );
        Continue(())
    }

    /// A barrier: alone, flush, data, flush.
    fn barrier(
        &mut self,
        id: u16,
        mut stage: Stage,
        (parts, slots): (&mut Parts, &mut dyn Slots),
        gate: Gate,
    ) -> ControlFlow<Halt> {
        self.draw(parts);
        loop {
            let call = parts.calls[id];
            let over = call.outstanding == 0;
            let next = match stage {
                Stage::Alone if self.may_begin_barrier(gate) => {
                    self.flush(id, parts, slots)?;
                    Stage::Before
                }
                Stage::Before if over && call.sectors == 0 => return Continue(()),
                Stage::Before if over => Stage::Data,
                Stage::Data if call.issued < call.sectors => {
                    self.pieces(id, parts, slots)?;
                    Stage::Data
                }
                Stage::Data if over => {
                    self.flush(id, parts, slots)?;
                    Stage::After
                }
                Stage::After if over => return Continue(()),
                Stage::Alone | Stage::Before | Stage::Data | Stage::After => {
                    return Break(Halt::Stalled(Stall::Own));
                }
            };
            stage = next;
            parts.calls[id].work = Work::Barrier(stage);
        }
    }
}
