//! Packed units: one at a time is read and unpacked, and kept until another is needed, so that
//! requests that walk through it unpack it once.
//!
//! ```text
//!   Found::Packed ─► it is the kept one: copied
//!                 └► mine now: read ─► unpacked ─► copied ─► the next one's who waits
//! ```
//! Who holds the buffers waits for one operation only: whoever is handed them and finds that it
//! has to wait for something else, or needs them no more, hands them on.
use image::Packed;

use crate::Engine;
use crate::ops::Owner;
use crate::sets::SlotSet;
use crate::slot::Cause;
use host::arena::Buf;
use request::SlotId;
use request::disk::{Disk, FileId, Kind, Op};

/// The buffers for packed units, and whose they are.
#[derive(Debug, Default)]
pub struct Unpacker {
    holder: Option<SlotId>,
    waiting: SlotSet,
    /// The unit in the buffer.
    kept: Option<(FileId, Packed)>,
}

impl Unpacker {
    fn keeps(&self, layer: FileId, packed: Packed) -> bool {
        self.kept == Some((layer, Packed { skip: 0, ..packed }))
    }

    /// Images are opened or closed.
    pub fn forget(&mut self) {
        assert!(self.holder.is_none(), "nobody unpacks while images are opened or closed");
        self.kept = None;
    }
}

/// Bytes between the beginning of its sector and that of a packed unit.
fn before(packed: Packed) -> u32 {
    (packed.byte % 512) as u32
}

impl<D: Disk> Engine<D> {
    /// Copies a run of a packed unit into a buffer, if the unit is there; else it is on its way, or
    /// others are before it.
    #[cold]
    pub(super) fn unpack_into(
        &mut self,
        id: SlotId,
        layer: FileId,
        packed: Packed,
        to: Buf,
    ) -> bool {
        let holder = self.unpacker.holder;
        if holder.is_some_and(|holder| holder != id) {
            self.unpacker.waiting.insert(id);
            self.table[id].pending += 1;
            return false;
        }
        if self.unpacker.keeps(layer, packed) {
            let unit = self.rules.limits.unit_buf();
            self.io.disk.arena().copy(unit.part(packed.skip * 512, to.bytes), to);
            self.let_go(id);
            return true;
        }
        self.unpacker.holder = Some(id);
        self.table[id].unpacks = true;
        self.unpacker.kept = Some((layer, Packed { skip: 0, ..packed }));
        let (at, buf) = self.packed_buf(packed);
        let op = Op { file: layer, kind: Kind::Read, at, buf };
        self.data_op(id, Owner::Unpack(id), op);
        false
    }

    /// Whole sectors around the packed bytes: where they begin, and where they go.
    fn packed_buf(&self, packed: Packed) -> (u64, Buf) {
        let into = before(packed);
        let bytes = (into + packed.bytes).next_multiple_of(512);
        (packed.byte - u64::from(into), self.rules.limits.packed_buf().part(0, bytes))
    }

    /// The packed bytes are there, or cannot be read.
    #[cold]
    pub(super) fn fetched(&mut self, id: SlotId, op: &Op, outcome: Result<(), i32>) {
        self.unpacked(id, outcome);
        self.table[id].ops -= 1;
        self.wake_one(id, op.file, outcome);
    }

    fn unpacked(&mut self, id: SlotId, outcome: Result<(), i32>) {
        let (file, packed) = self.unpacker.kept.expect("somebody has asked for them");
        if outcome.is_err() {
            self.unpacker.kept = None;
            return self.let_go(id);
        }
        let ((_, buf), unit) = (self.packed_buf(packed), self.rules.limits.unit_buf());
        let (from, to) =
            (buf.part(before(packed), packed.bytes), unit.part(0, packed.sectors * 512));
        let chain = self.map.chain.as_ref().expect("a request runs on a chain");
        let image = &chain.layers[usize::from(file.0)].image;
        let (bytes, unit) = self.io.disk.arena().two(from, to);
        if let Err(why) = image.unpack(bytes, unit) {
            self.unpacker.kept = None;
            self.table.fail(id, Cause { file, errno: libc::EIO, why });
            self.let_go(id);
        }
    }

    /// The buffers are the next one's, if they were this one's.
    #[cold]
    pub(super) fn let_go(&mut self, id: SlotId) {
        if !std::mem::take(&mut self.table[id].unpacks) {
            return;
        }
        self.unpacker.holder = self.table.oldest_of(self.unpacker.waiting);
        if let Some(next) = self.unpacker.holder {
            self.unpacker.waiting.remove(next);
            self.table[next].unpacks = true;
            self.wake_one(next, FileId(0), Ok(()));
        }
    }
}
