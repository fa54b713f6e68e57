//! How many bytes and operations a second a disk may have: asked for, kept over every pause and
//! upgrade, shown.
use slog::info;
use tap_ctl::messages::Rates as Asked;

use super::{Env, Vbd};
use crate::stats_json::Json;
use engine::throttle::{Rates, Waited};

/// What may come at once unless somebody says otherwise: little enough that a limit is met within
/// three per cent over ten seconds.
const BURST_MS: u64 = 100;
/// More would let a disk that slept for long pass its limit for as long.
const BURST_MS_MAX: u64 = 60_000;

/// No rate, until somebody asks for one.
pub const NONE: Rates = Rates { bytes: [0; 2], ops: [0; 2], burst_ms: BURST_MS };

fn change(rates: &mut Rates, asked: &Asked) {
    for i in 0..2 {
        rates.bytes[i] = asked.bytes[i].unwrap_or(rates.bytes[i]);
        rates.ops[i] = asked.ops[i].unwrap_or(rates.ops[i]);
    }
    rates.burst_ms = asked.burst_ms.unwrap_or(rates.burst_ms).min(BURST_MS_MAX);
}

impl Vbd {
    /// Changes the limits; what is in force from now on, and what limits have cost.
    pub fn limit(&mut self, env: &Env, asked: &Asked) -> Asked {
        let changes = asked.bytes.iter().chain(&asked.ops).chain([&asked.burst_ms]);
        if changes.flatten().next().is_some() {
            change(&mut self.rates, asked);
            if let Some(data) = &mut self.data {
                data.engine.set_rates(self.rates);
            }
            info!(env.log, "minor {}: limits: {:?}", self.minor, self.rates);
        }
        let Rates { bytes, ops, burst_ms } = self.rates;
        let Waited { requests, us } = self.waited();
        Asked {
            bytes: bytes.map(Some),
            ops: ops.map(Some),
            burst_ms: Some(burst_ms),
            waited: requests,
            waited_us: us,
        }
    }

    fn waited(&self) -> Waited {
        self.data.as_ref().map_or(Waited::default(), |data| data.engine.waited())
    }

    /// For STATS; nothing where there is no limit.
    pub(super) fn limits_shown(&self, j: &mut Json) {
        if !self.rates.any() {
            return;
        }
        let Waited { requests, us } = self.waited();
        let waiting = self.data.as_ref().map_or(0, |data| data.engine.throttled());
        j.key("limits").object(|j| {
            j.numbers("bytes_per_second", &self.rates.bytes);
            j.numbers("ops_per_second", &self.rates.ops);
            j.member("burst_ms", self.rates.burst_ms);
            j.numbers("waited", &requests);
            j.numbers("waited_us", &us);
            j.member("waiting", waiting);
        });
    }
}
