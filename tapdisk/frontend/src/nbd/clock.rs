//! The time limits of a client: for negotiating, for taking its replies, for leaving after DISC.
//! Time only passes in `check` and `rest`, which the server's tick calls.
use std::time::{Duration, Instant};

use super::notice::Why;

/// How long a negotiation may take.
const NEGOTIATION_MAX: Duration = Duration::from_secs(30);
/// How long replies may wait for a client that takes none of them.
const STUCK_MAX: Duration = Duration::from_secs(60);

/// How long after DISC a client that connected has to close its end before it is greeted again.
const FAREWELL: Duration = Duration::from_millis(50);

/// How far a client has got with our replies: bytes sent, and those of them in the socket. A change
/// of either is progress: a socket only becomes writable again when most of what is in it was
/// taken.
pub(super) type Taken = (u64, i32);

/// The clocks of one client.
#[derive(Debug, Default)]
pub(super) struct Clock {
    negotiation: Option<Instant>,
    /// Not started before the client's first word: it may come much later to a descriptor that was
    /// passed, and after DISC (a migration reconnects when its disk is unpaused).
    patient: bool,
    stuck: Option<(Instant, Taken)>,
    farewell: Option<Instant>,
    /// It did not leave after DISC.
    pub stayed: bool,
}

impl Clock {
    /// A negotiation begins.
    pub(super) fn start(&mut self, patient: bool) {
        *self = Clock { patient, ..Clock::default() };
    }

    /// The client said something.
    pub(super) fn heard(&mut self) {
        self.patient = false;
    }

    /// The server did not listen for a while.
    pub(super) fn restart(&mut self) {
        self.negotiation = None;
    }

    /// A client has said DISC and everything is answered.
    pub(super) fn rest(&mut self, now: Instant) {
        let since = *self.farewell.get_or_insert(now);
        self.stayed = now.saturating_duration_since(since) >= FAREWELL;
    }

    /// Which limit is exceeded. `waiting`: if there is more to send.
    pub(super) fn check(
        &mut self,
        now: Instant,
        negotiating: bool,
        waiting: Option<Taken>,
    ) -> Option<Why> {
        if negotiating && !self.patient {
            let since = *self.negotiation.get_or_insert(now);
            if now.saturating_duration_since(since) >= NEGOTIATION_MAX {
                return Some(Why::Slow);
            }
        }
        let Some(taken) = waiting else {
            self.stuck = None;
            return None;
        };
        match self.stuck {
            Some((since, before)) if before == taken => {
                (now.saturating_duration_since(since) >= STUCK_MAX).then_some(Why::Stuck)
            }
            _ => {
                self.stuck = Some((now, taken));
                None
            }
        }
    }
}
