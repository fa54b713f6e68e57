//! Where requests come from: the rings of guests, block devices of the host, NBD clients.
//!
//! Each frontend puts what arrives into slots of the engine ([`request::Slots`]) and answers when
//! the engine is done with it. It knows nothing of how the engine works, of formats or files.
#![deny(unsafe_code)]

pub mod blkif;
pub mod blktap;
pub mod nbd;
mod notices;
mod quota;
pub mod ublk;

use request::{Outcome, Request, SlotId, Slots};

/// A source of requests. One turn of the server calls `take`, then the engine works, then
/// `complete` is called for every finished slot of this frontend, then `kick` once. None of them
/// blocks or allocates in the steady state.
pub trait Frontend {
    /// Moves what has arrived into slots and starts it, as far as slots allow. True if more is
    /// waiting that did not fit.
    fn take(&mut self, slots: &mut dyn Slots) -> bool;
    /// A request of this frontend is done. Its slot is the frontend's until it releases it (NBD:
    /// when the bytes are sent).
    fn complete(
        &mut self,
        slots: &mut dyn Slots,
        slot: SlotId,
        request: &Request,
        outcome: Outcome,
    );
    /// Sends what was completed; one call a turn.
    fn kick(&mut self, slots: &mut dyn Slots);
    /// No request of this frontend is in the engine.
    fn idle(&self) -> bool;
}
