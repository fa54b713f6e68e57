//! Where requests come from: the rings of guests, block devices of the host, NBD clients.
//!
//! Each frontend puts what arrives into slots of the engine ([`request::Slots`]) and answers when
//! the engine is done with it. It knows nothing of how the engine works, of formats or files.
#![deny(unsafe_code)]

pub mod blkif;
pub mod blktap;
mod intake;
pub mod nbd;
pub mod note;
mod notices;
mod quota;
pub mod ublk;

use request::{Outcome, Request, SlotId, Slots};

pub use self::intake::{Bounds, Mode};

/// A source of requests, from its birth to its end.
///
/// One turn of the server calls `take`, then the engine works, then `complete` is called for every
/// finished request of this frontend, then `kick` once. None of them blocks, allocates or logs.
///
/// ```text
///   suspended ◄──────── suspend ─────────┐
///       └──── resume ──► taking ─────────┴── finish ──► at rest ──► (another program) or go_on
///                          └── refuse: devices, while they are being taken away
/// ```
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
    /// Bytes of payload that were copied since the last call, or will be by the next `kick`, where
    /// that is so many that the disk should have its work first.
    fn take_moved(&mut self) -> usize {
        0
    }
    /// No request of this frontend is in the engine.
    fn idle(&self) -> bool;
    /// Another turn would get something done: the server does not sleep now. To be asked after
    /// `kick`.
    fn pending(&mut self, slots: &dyn Slots) -> bool;
    /// Something has come since the last turn; asked where that costs less than the poll.
    fn has_arrived(&mut self, slots: &dyn Slots) -> bool;
    /// What time it is, in µs; at the beginning of a turn.
    fn clock(&mut self, _now: u64) {}

    /// While the disk pauses or is paused: nothing is taken, and answers are still given.
    fn suspend(&mut self);
    /// Goes on.
    fn resume(&mut self);
    /// Requests fail from now on, those that wait as well: the device is being taken away. Clients
    /// that are no device of this kernel are let go of instead ([`Frontend::hang_up`]).
    fn refuse(&mut self) {}
    /// The disk is being closed: clients are let go of. What is in the engine comes back to
    /// `complete` as always; until [`Frontend::idle`] the frontend must be kept.
    ///
    /// A device of this kernel was taken away before: nothing is left but to take nothing.
    fn hang_up(&mut self, _slots: &mut dyn Slots) {
        self.suspend();
    }

    /// For another program (docs/upgrade.md): what has been begun is done to its end and answered,
    /// and nothing more is begun.
    fn finish(&mut self) {}
    /// Whether it is.
    fn at_rest(&self) -> bool {
        true
    }
    /// There is no other program: goes on after [`Frontend::finish`].
    fn go_on(&mut self) {}

    /// The oldest thing to say that was not fetched yet; between turns. May allocate.
    fn take_note(&mut self) -> Option<note::Note>;
}
