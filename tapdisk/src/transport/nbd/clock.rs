//! The two time limits of a client: for negotiating, and for taking its replies. Time only passes in
//! `check`, which the server's tick calls.
use std::time::{Duration, Instant};

use super::notice::Why;

/// How long a negotiation may take.
const NEGOTIATION_MAX: Duration = Duration::from_secs(30);
/// How long replies may wait for a client that takes none of them.
const STUCK_MAX: Duration = Duration::from_secs(60);

/// The clocks of one client.
#[derive(Debug, Default)]
pub(super) struct Clock {
    negotiation: Option<Instant>,
    /// Not started before the client's first word: it may come much later to a descriptor that was
    /// passed, and after DISC (a migration reconnects when its disk is unpaused).
    patient: bool,
    stuck: Option<(Instant, u64)>,
}

impl Clock {
    /// A negotiation begins.
    pub(super) fn start(&mut self, patient: bool) {
        *self = Clock { negotiation: None, patient, stuck: None };
    }

    /// The client said something.
    pub(super) fn heard(&mut self) {
        self.patient = false;
    }

    /// The server did not listen for a while.
    pub(super) fn restart(&mut self) {
        self.negotiation = None;
    }

    /// Which limit is exceeded. `waiting`: bytes sent so far, if there are more to send.
    pub(super) fn check(
        &mut self,
        now: Instant,
        negotiating: bool,
        waiting: Option<u64>,
    ) -> Option<Why> {
        if negotiating && !self.patient {
            let since = *self.negotiation.get_or_insert(now);
            if now.saturating_duration_since(since) >= NEGOTIATION_MAX {
                return Some(Why::Slow);
            }
        }
        let Some(sent) = waiting else {
            self.stuck = None;
            return None;
        };
        match self.stuck {
            Some((since, before)) if before == sent => {
                (now.saturating_duration_since(since) >= STUCK_MAX).then_some(Why::Stuck)
            }
            _ => {
                self.stuck = Some((now, sent));
                None
            }
        }
    }
}
