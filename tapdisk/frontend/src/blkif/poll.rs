//! Adaptive polling (spec/operations.md §6): after a batch of requests the ring is looked at in
//! every turn, without sleeping and without the guest having to notify, until nothing has come for
//! a while; if the host has CPU to spare (`Rings::set_idle`).

/// How a ring may be polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollPolicy {
    /// How long without a request, in µs; 0: never poll.
    pub duration_us: u32,
    /// Poll only while the host is idle for more than this, in percent.
    pub idle_threshold: u32,
}

/// Whether a ring is being polled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Polling {
    pub policy: PollPolicy,
    /// Until then, in µs of the clock.
    until: Option<u64>,
}

impl Polling {
    pub(super) fn new(policy: PollPolicy) -> Polling {
        Polling { policy, until: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// Requests were found, or somebody asks for polling. True if it begins now.
    pub(super) fn extend(&mut self, now: u64, idle: f32) -> bool {
        let may = self.policy.duration_us > 0 && idle > self.policy.idle_threshold as f32;
        if !may {
            return false;
        }
        self.until.replace(now + u64::from(self.policy.duration_us)).is_none()
    }

    /// Nothing was found: true if polling ends now.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }

    pub(super) fn stop(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polling(duration_us: u32, idle_threshold: u32) -> Polling {
        Polling::new(PollPolicy { duration_us, idle_threshold })
    }

    #[test]
    fn polling_needs_a_duration_and_an_idle_host() {
        assert!(!polling(0, 0).extend(5, 100.0));
        assert!(!polling(1000, 50).extend(5, 50.0));
        assert!(!polling(1000, 0).extend(5, 0.0), "as long as nobody knows, idle counts as 0");
        assert!(polling(1000, 50).extend(5, 50.5));
    }

    #[test]
    fn each_request_extends_it() {
        let mut p = polling(1000, 50);
        assert!(p.extend(100, 90.0) && p.is_on());
        assert!(!p.extend(900, 90.0), "it is on already");
        assert!(!p.expire(1899) && p.is_on());
        assert!(p.expire(1900) && !p.is_on());
        assert!(!p.expire(2000));
    }
}
