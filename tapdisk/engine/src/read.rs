//! Reads and block status: mapping a request down the chain.
use image::{Place, Span, Stop};

use super::chain::{Chain, Found};
use super::files::Views;
use super::limits::SLOT_OPS_MAX;
use super::ops::Owner;
use super::slot::Ahead;
use super::{Engine, STATUS_RUNS_MAX};
use request::SlotId;
use request::disk::{Disk, FileId, Kind, Op};

impl<D: Disk> Engine<D> {
    /// Where a span is, from place `from` of the reading order down.
    #[inline]
    pub(super) fn map(&mut self, from: usize, span: Span) -> Result<(Found, u32), (FileId, Stop)> {
        let (mut views, chain) = self.views();
        chain.map(&mut views, from, span)
    }

    /// The chain, and the cache as its layers see it.
    pub(super) fn views(&mut self) -> (Views<'_>, &mut Chain) {
        let views = Views {
            meta: &mut self.map.meta,
            arena: self.io.disk.arena(),
            files: &self.map.files,
            seq: self.table.seq,
            oldest: self.table.oldest,
            fills: false,
        };
        (views, self.map.chain.as_mut().expect("a request runs on a chain"))
    }

    /// Issues the reads for as much of the request as the metadata at hand allows.
    pub(super) fn read_on(&mut self, id: SlotId) {
        let (top, commits) = (self.map.top(), self.slot(id).local.commits);
        while self.slot(id).cursor < self.slot(id).request.span.count
            && self.slot(id).ops < SLOT_OPS_MAX
        {
            let (rest, done) = (self.slot(id).rest(), self.slot(id).cursor);
            let (found, count) = match self.map(0, rest) {
                Ok(run) => run,
                Err((file, stop)) => {
                    self.stop(id, file, stop);
                    return self.load_ahead(id, file, stop, rest);
                }
            };
            let buf = self.rules.limits.slot_buf(id.0).part(done * 512, count * 512);
            match found {
                Found::Zero => self.io.disk.arena().slice_mut(buf).fill(0),
                Found::At { layer, byte } => {
                    if (layer == top) == commits {
                        self.table[id].local.note(done, count);
                    }
                    self.hit(layer, 0, count);
                    let op = Op { file: layer, kind: Kind::Read, at: byte, buf };
                    self.data_op(id, Owner::Slot(id), op);
                }
                Found::Packed { layer, packed } => {
                    if !self.unpack_into(id, layer, packed, buf) {
                        return;
                    }
                    if (layer == top) == commits {
                        self.table[id].local.note(done, count);
                    }
                    self.hit(layer, 0, count);
                }
            }
            self.table[id].cursor += count;
        }
    }

    /// A layer has to load metadata: what the layers below will ask for next is loaded at the same
    /// time, so that the first read through a long chain does not wait for one layer after the
    /// other. Uses the operations that the slot has and does not need while it waits.
    fn load_ahead(&mut self, id: SlotId, file: FileId, stop: Stop, span: Span) {
        let Stop::Load(_) = stop else { return };
        let slot = &mut self.table[id];
        // With data in flight a failure could not be told apart.
        if !self.rules.limits.loads_ahead() || slot.ops > 0 || slot.ahead == Ahead::Failed {
            return;
        }
        slot.ahead = Ahead::Loading;
        let mut started = 0;
        let from = self.map.chain.as_ref().expect("a request runs on a chain").below(file);
        for place in from.. {
            let (mut views, chain) = self.views();
            let Some(layer) = chain.order().get(place).copied().filter(|_| started < SLOT_OPS_MAX)
            else {
                return;
            };
            match chain.map_one(&mut views, layer, span) {
                Some(Err(Stop::Load(r))) => started += u16::from(self.try_load(id, layer, r)),
                Some(Ok(run)) if run.place == Place::Below => {}
                _ => return,
            }
        }
    }

    /// Collects extents, merging neighbours of one kind, until the span or the buffer ends.
    pub(super) fn status_on(&mut self, id: SlotId) {
        let buf = self.rules.limits.slot_buf(id.0);
        for _ in 0..STATUS_RUNS_MAX {
            let slot = self.slot(id);
            if slot.cursor == slot.request.span.count {
                return;
            }
            let (rest, n) = (slot.rest(), slot.extents);
            let (found, count) = match self.map(0, rest) {
                Ok(run) => run,
                Err((file, stop)) => return self.stop(id, file, stop),
            };
            let hole = u32::from(found == Found::Zero);
            let bytes = self.io.disk.arena().slice_mut(buf);
            let last = (n as usize).checked_sub(1).map(|i| i * 8);
            let merged =
                last.filter(|at| bytes[at + 4..at + 8] == hole.to_ne_bytes()).and_then(|at| {
                    let old = u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
                    old.checked_add(count).map(|sum| (at, sum))
                });
            if let Some((at, sum)) = merged {
                bytes[at..at + 4].copy_from_slice(&sum.to_ne_bytes());
            } else {
                let at = n as usize * 8;
                if at + 8 > bytes.len() {
                    // The answer may end before the span does.
                    let slot = &mut self.table[id];
                    slot.cursor = slot.request.span.count;
                    return;
                }
                bytes[at..at + 4].copy_from_slice(&count.to_ne_bytes());
                bytes[at + 4..at + 8].copy_from_slice(&hole.to_ne_bytes());
                self.table[id].extents += 1;
            }
            self.table[id].cursor += count;
        }
    }
}
