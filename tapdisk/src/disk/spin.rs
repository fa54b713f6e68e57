//! Whether to look again for a moment before sleeping.
//!
//! At low depth most of a request's time is the two sleeps it causes, for the device and for the client.
//! Looking for up to `limit` instead is worth it while something comes within that time; when it does not,
//! the next sleeps are taken at once, so that an idle disk costs nothing and a slow one little.
use std::time::Duration;

/// The time in µs, unless TAPDISK_POLL_US says otherwise; 0 turns it off.
const LIMIT_US: u64 = 80;
/// No processor is kept busy for longer than this.
const LIMIT_US_MAX: u64 = 1000;
/// Operations in flight above which there is always something to do soon anyway.
pub(super) const SPIN_IN_FLIGHT_MAX: u32 = 4;
/// Successes that are remembered.
const SCORE_MAX: i8 = 4;
/// Sleeps taken at once after failures.
const SKIPS: u16 = 64;

/// What was learnt lately.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long to look.
    pub limit: Duration,
    score: i8,
    skip: u16,
}

impl Spin {
    /// With the limit the environment gives.
    pub(super) fn from_environment() -> Spin {
        let given = std::env::var("TAPDISK_POLL_US").ok().and_then(|text| text.parse().ok());
        Spin::new(given.unwrap_or(LIMIT_US))
    }

    fn new(limit_us: u64) -> Spin {
        let limit = Duration::from_micros(limit_us.min(LIMIT_US_MAX));
        Spin { limit, score: 0, skip: SKIPS }
    }

    /// Whether to look now.
    pub(super) fn wanted(&mut self) -> bool {
        let now = self.skip == 0 && !self.limit.is_zero();
        self.skip = self.skip.saturating_sub(1);
        now
    }

    /// Something came in time, or not.
    pub(super) fn learn(&mut self, came: bool) {
        self.score = if came { (self.score + 1).min(SCORE_MAX) } else { self.score - 1 };
        if self.score < 0 {
            (self.score, self.skip) = (0, SKIPS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_disk_hardly_looks_and_a_busy_one_always_does() {
        let mut spin = Spin::new(80);
        let mut idle = 0;
        for _ in 0..6500 {
            if spin.wanted() {
                idle += 1;
                spin.learn(false);
            }
        }
        assert!(idle <= 100, "{idle} looks of an idle disk in 6500 sleeps");
        let mut busy = 0;
        for _ in 0..6500 {
            if spin.wanted() {
                busy += 1;
                spin.learn(true);
            }
        }
        assert!(busy > 6400, "{busy} looks of a busy disk in 6500 sleeps");
    }

    #[test]
    fn it_can_be_turned_off_and_is_bounded() {
        let mut off = Spin::new(0);
        assert!((0..1000).all(|_| !off.wanted()));
        assert_eq!(Spin::new(u64::MAX).limit, Duration::from_millis(1));
    }
}
