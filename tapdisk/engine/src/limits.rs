//! How much of everything an engine has, computed at open and never exceeded.
//!
//! The reserve hierarchy, top to bottom; each waits only for what stands below it:
//! ```text
//!   frontend (ring, socket)  waits for a slot
//!   slot                      waits for a copy buffer, a metadata block, …, an operation
//!   copy buffer               waits for a metadata block, a packed unit, an operation
//!   packed unit               waits for an operation
//!   metadata block            waits for a stable copy, an operation
//!   stable copy               waits for an operation
//!   operation                 waits for the device
//! ```
//! `ops` is the sum of what everybody may have in flight, so taking an operation never fails;
//! `meta_blocks` is more than all slots can pin, so a load or a new block always finds room once
//! others finish, without luck.
use crate::sets::SLOTS_MAX;
use host::arena::Buf;
use image::Needs;
use request::SlotId;

/// Bytes of a small slot's buffer.
pub const SMALL_BYTES: u32 = 4 << 10;
/// Bytes of a large slot's buffer.
pub const LARGE_BYTES: u32 = 64 << 10;
/// Bytes of zeros kept for writing zeros.
pub const ZEROS_BYTES: u32 = 32 << 10;
/// Bytes of a page that a file ends with.
pub const PAGE_BYTES: u32 = 4096;
/// Such pages: of the leaf and of a secondary.
const END_PAGES: u32 = 2;
/// Sectors of a packed unit at most: qcow2's largest cluster.
const PACKED_MAX: u32 = 4096;
/// Plans a request has at work at once: a piece of at most 64 KiB touches at most two blocks.
pub const PLANS_MAX: usize = 2;
/// Metadata blocks one plan pins at most.
pub const PINS_MAX: usize = 3;
/// Data operations a slot has in flight at most.
pub const SLOT_OPS_MAX: u16 = 4;
/// Operations that belong to no slot: growing and flushing the leaf and a secondary.
pub const SHARED_OPS: u32 = 4;

/// Sizes of the reserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Slots with a buffer of 4 KiB.
    pub small: u16,
    /// Slots with a buffer of 64 KiB.
    pub large: u16,
    /// Metadata blocks in the cache.
    pub meta_blocks: u16,
    /// Bytes of a metadata block.
    pub meta_bytes: u16,
    /// Stable copies of metadata blocks, for writes in flight.
    pub stables: u16,
    /// Bytes of space taken ahead when a file grows: fewer, larger steps; cut off again at close.
    pub ahead: u32,
    /// Buffers of 64 KiB to copy through, for formats that do.
    pub copies: u8,
    /// Sectors of the largest packed unit; 0 where nothing is packed.
    pub packed: u32,
    /// Drivers have plans of their own.
    pub chores: bool,
}

impl Limits {
    /// What a disk gets normally: 2.3 MiB of arena. A client that is alone may have 20 large slots,
    /// more than a request of 1 MiB needs; with 16 in all, 8 such requests at once were slower.
    pub const NORMAL: Limits = Limits {
        small: 48,
        large: 24,
        meta_blocks: 1024,
        meta_bytes: 512,
        stables: 64,
        ahead: 32 << 20,
        copies: 0,
        packed: 0,
        chores: false,
    };

    /// The least that still makes progress, for tests and for tight memory limits.
    pub const MINIMUM: Limits = Limits {
        small: 1,
        large: 1,
        meta_blocks: 16,
        meta_bytes: 512,
        stables: 1,
        ahead: 0,
        copies: 0,
        packed: 0,
        chores: false,
    };

    /// The same with what a format needs; of buffers to copy through `copies`, if it copies.
    pub fn with(self, needs: Needs, copies: u8) -> Limits {
        Limits {
            meta_bytes: self.meta_bytes.max(needs.meta_bytes),
            copies: if needs.fills { self.copies.max(copies) } else { self.copies },
            packed: self.packed.max(needs.packed),
            chores: self.chores || needs.chores,
            ..self
        }
    }

    /// Whether a format gets what it needs.
    pub fn serve(&self, needs: Needs) -> bool {
        self.with(needs, 1) == *self
    }

    /// Slots of both kinds.
    pub fn slots(&self) -> u16 {
        self.small + self.large
    }

    /// The slot for the drivers' own plans, behind those of requests; it has no buffer.
    pub fn chore_slot(&self) -> Option<SlotId> {
        self.chores.then_some(SlotId(self.slots()))
    }

    /// Slots of all kinds.
    pub fn all_slots(&self) -> u16 {
        self.slots() + u16::from(self.chores)
    }

    /// Operations that can be in flight at once.
    pub fn ops(&self) -> u32 {
        let slots = u32::from(self.all_slots());
        // Each slot: its data, and one load it waits for.
        slots * (u32::from(SLOT_OPS_MAX) + 1) + u32::from(self.stables) + SHARED_OPS
    }

    /// Whether the cache is so much larger than what can be pinned that loading ahead helps.
    pub fn loads_ahead(&self) -> bool {
        let pins = usize::from(self.all_slots()) * PLANS_MAX * PINS_MAX;
        usize::from(self.meta_blocks) >= pins + 3 * usize::from(SLOT_OPS_MAX)
    }

    /// Whether the numbers keep the promises above.
    pub fn check(&self) {
        let slots = usize::from(self.all_slots());
        assert!(slots > 0 && slots <= SLOTS_MAX, "between 1 and {SLOTS_MAX} slots");
        assert!(self.large > 0 && self.stables > 0, "at least one large slot and one stable copy");
        assert!(
            usize::from(self.meta_blocks) > slots * PLANS_MAX * PINS_MAX,
            "more metadata blocks than all slots can pin"
        );
        assert!(self.meta_bytes.is_power_of_two() && self.meta_bytes >= 512);
        assert!(self.packed <= PACKED_MAX, "a packed unit is read in one piece");
    }

    /// Bytes of arena.
    pub fn arena_bytes(&self) -> usize {
        self.stable_base() as usize
            + (usize::from(self.stables) * usize::from(self.meta_bytes)).next_multiple_of(4096)
    }

    /// A slot's buffer.
    pub fn slot_buf(&self, slot: u16) -> Buf {
        let (slot, small) = (u32::from(slot), u32::from(self.small));
        if slot < small {
            return Buf { offset: slot * SMALL_BYTES, bytes: SMALL_BYTES };
        }
        Buf { offset: small * SMALL_BYTES + (slot - small) * LARGE_BYTES, bytes: LARGE_BYTES }
    }

    /// The zeros.
    pub fn zeros(&self) -> Buf {
        Buf { offset: self.zeros_base(), bytes: ZEROS_BYTES }
    }

    /// A metadata block's live copy.
    pub fn meta_buf(&self, block: u16) -> Buf {
        let offset = self.meta_base() + u32::from(block) * u32::from(self.meta_bytes);
        Buf { offset, bytes: u32::from(self.meta_bytes) }
    }

    /// A stable copy.
    pub fn stable_buf(&self, stable: u16) -> Buf {
        let offset = self.stable_base() + u32::from(stable) * u32::from(self.meta_bytes);
        Buf { offset, bytes: u32::from(self.meta_bytes) }
    }

    /// A buffer to copy through.
    pub fn copy_buf(&self, copy: u8) -> Buf {
        assert!(copy < self.copies, "there are so many buffers");
        Buf { offset: self.copy_base() + u32::from(copy) * LARGE_BYTES, bytes: LARGE_BYTES }
    }

    /// Where packed bytes are read to: those of twice a unit, and a sector more as they begin
    /// anywhere.
    pub fn packed_buf(&self) -> Buf {
        let bytes = if self.packed == 0 { 0 } else { (2 * self.packed + 1) * 512 };
        Buf { offset: self.packed_base(), bytes }
    }

    /// Where a unit is unpacked to.
    pub fn unit_buf(&self) -> Buf {
        let packed = self.packed_buf();
        Buf { offset: packed.offset + packed.bytes, bytes: self.packed * 512 }
    }

    /// A piece behind everything, for who else needs memory in the arena; it starts a page.
    pub fn behind(&self, bytes: u32) -> Buf {
        let offset = u32::try_from(self.arena_bytes()).expect("an arena has less than 4 GiB");
        Buf { offset, bytes }
    }

    fn zeros_base(&self) -> u32 {
        u32::from(self.small) * SMALL_BYTES + u32::from(self.large) * LARGE_BYTES
    }

    /// The page that a file ends with, of the leaf (0) or a secondary (1).
    pub fn end_page(&self, which: u32) -> Buf {
        assert!(which < END_PAGES, "two files are written");
        Buf { offset: self.zeros_base() + ZEROS_BYTES + which * PAGE_BYTES, bytes: PAGE_BYTES }
    }

    fn copy_base(&self) -> u32 {
        self.zeros_base() + ZEROS_BYTES + END_PAGES * PAGE_BYTES
    }

    fn packed_base(&self) -> u32 {
        self.copy_base() + u32::from(self.copies) * LARGE_BYTES
    }

    fn meta_base(&self) -> u32 {
        let unit = self.unit_buf();
        (unit.offset + unit.bytes).next_multiple_of(4096)
    }

    fn stable_base(&self) -> u32 {
        let blocks = u32::from(self.meta_blocks) * u32::from(self.meta_bytes);
        self.meta_base() + blocks.next_multiple_of(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_given_sizes_keep_their_promises_and_pieces_do_not_overlap() {
        let needs = Needs { meta_bytes: 4096, fills: true, chores: true, packed: 32 };
        let large = Limits { meta_blocks: 1024, ..Limits::MINIMUM };
        assert!(!large.serve(needs) && large.with(needs, 3).serve(needs));
        for limits in [Limits::NORMAL, Limits::MINIMUM, large.with(needs, 3)] {
            limits.check();
            let slots = (0..limits.slots()).map(|s| limits.slot_buf(s));
            let metas = (0..limits.meta_blocks).map(|b| limits.meta_buf(b));
            let stables = (0..limits.stables).map(|s| limits.stable_buf(s));
            let mut end = 0;
            let shared = [limits.zeros(), limits.end_page(0), limits.end_page(1)];
            let copies = (0..limits.copies).map(|c| limits.copy_buf(c));
            let shared = shared.into_iter().chain(copies);
            let shared = shared.chain([limits.packed_buf(), limits.unit_buf()]);
            for buf in slots.chain(shared).chain(metas).chain(stables) {
                assert!(buf.offset >= end, "{buf:?} starts before {end}");
                end = buf.offset + buf.bytes;
            }
            assert!(end as usize <= limits.arena_bytes());
        }
    }
}
