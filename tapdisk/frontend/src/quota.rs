//! How many slots one client may hold (an NBD connection, a guest's ring), so that one that stops
//! reading its replies, stops in the middle of a payload, or asks for very much, costs only itself.
use request::{SlotCounts, SlotId, Slots};

/// Size of a small slot's buffer.
pub(super) const SMALL_BYTES: u32 = 4096;
/// Slots of a class that every client may take while there are any.
const FEW: u16 = 2;

/// Why a client's requests are left where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stall {
    /// They are not.
    No,
    /// Something of its own has to finish first.
    Own,
    /// It may not have another slot of so many bytes just now.
    Slot(u32),
}

/// The slots that one client holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    small: u16,
    large: u16,
    /// Clients that share the slots, at the last turn.
    pub clients: u16,
}

impl Held {
    /// A slot, if there is one and the client may have it.
    pub(super) fn reserve(&mut self, slots: &mut dyn Slots, bytes: u32) -> Result<SlotId, Stall> {
        if !self.may(slots.slots(), bytes) {
            return Err(Stall::Slot(bytes));
        }
        let slot = slots.reserve(bytes).ok_or(Stall::Slot(bytes))?;
        *self.class(&*slots, slot) += 1;
        Ok(slot)
    }

    /// Gives a slot back.
    pub(super) fn release(&mut self, slots: &mut dyn Slots, slot: SlotId) {
        *self.class(&*slots, slot) -= 1;
        slots.release(slot);
    }

    /// Whether the client may have another slot. Beyond a few it gets its share, and leaves a few
    /// to whoever comes next.
    pub(super) fn may(&self, counts: SlotCounts, bytes: u32) -> bool {
        let large = bytes > SMALL_BYTES || counts.small_free == 0;
        let (held, total, free) = match large {
            true => (self.large, counts.large, counts.large_free),
            false => (self.small, counts.small, counts.small_free),
        };
        free > 0 && (held < FEW || (held < self.share(total) && free > 2 * FEW.min(total / 8)))
    }

    pub(super) fn is_none(&self) -> bool {
        self.small == 0 && self.large == 0
    }

    /// Five sixths for a client that is alone, an equal share and one share unused otherwise.
    fn share(&self, total: u16) -> u16 {
        let share = match self.clients {
            0 | 1 => total - total / 6,
            n => total / (n + 1),
        };
        share.max(FEW)
    }

    fn class(&mut self, slots: &dyn Slots, slot: SlotId) -> &mut u16 {
        match slots.buffer(slot).len() > SMALL_BYTES as usize {
            true => &mut self.large,
            false => &mut self.small,
        }
    }
}
