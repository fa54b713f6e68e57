//! The memory that grant copies go to and come from: buffers of slots, and lists of segments.
#![allow(unsafe_code)]
use xen::Memory;

use super::calls::Calls;
use request::{SlotId, Slots};

/// Set in the name of a list; the rest is the place of its call. Otherwise it is a slot.
const LIST: u32 = 1 << 31;

/// A slot's buffer, as a piece of [`CopyMemory`].
pub(super) fn of_slot(slot: SlotId) -> u32 {
    u32::from(slot.0)
}

/// The list of a call.
pub(super) fn of_list(call: u16) -> u32 {
    LIST | u32::from(call)
}

/// Slots and lists during a copy.
pub(super) struct CopyMemory<'a> {
    pub slots: &'a mut dyn Slots,
    pub calls: &'a mut Calls,
}

// SAFETY: a slot owns its buffer for life and `buffer_mut` demands that it is the frontend's,
// which it stays until it is started or released, and nobody can do so while `slots` is borrowed
// here; lists lie in a box that never moves. Slots and lists are different memory, and so are any
// two of them.
unsafe impl Memory for CopyMemory<'_> {
    fn piece(&mut self, name: u32) -> &mut [u8] {
        match name & LIST {
            0 => self.slots.buffer_mut(SlotId(name as u16)),
            _ => self.calls.list_mut(name as u16),
        }
    }
}
