//! Counters of one disk: plain numbers, read by the control path between turns.

use serde::{Deserialize, Serialize};

use request::Traffic;

/// Buckets of a latency histogram; bucket i counts from floor(2^(i/2)) µs on.
pub const BUCKETS: usize = 64;

/// What a disk has done since it was attached.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Reads and writes begun.
    pub begun: [u64; 2],
    /// Time that finished reads and writes took, in µs.
    pub ticks_us: [u64; 2],
    /// Requests finished: read, write, flush, discard, zero.
    pub ops: [u64; 5],
    /// Bytes of reads and writes.
    pub bytes: [u64; 2],
    /// Sectors asked for since attach: read, write (the `secs` of `tap-ctl stats`).
    pub secs: [u64; 2],
    /// Sectors written to a secondary that has taken over.
    pub redirected: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Latency histograms of reads and writes.
    pub latency: [[u64; BUCKETS]; 2],
    /// Turns in which the engine had something to do.
    pub turns: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        Stats {
            begun: [0; 2],
            ticks_us: [0; 2],
            ops: [0; 5],
            bytes: [0; 2],
            secs: [0; 2],
            redirected: 0,
            errors: 0,
            latency: [[0; BUCKETS]; 2],
            turns: 0,
        }
    }
}

/// The same, to be carried to another program.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Carried {
    begun: [u64; 2],
    ticks_us: [u64; 2],
    ops: [u64; 5],
    bytes: [u64; 2],
    secs: [u64; 2],
    redirected: u64,
    errors: u64,
    /// Of reads and of writes; buckets that are not there are empty.
    latency: [Vec<u64>; 2],
    turns: u64,
}

impl From<&Stats> for Carried {
    fn from(stats: &Stats) -> Carried {
        let Stats { begun, ticks_us, ops, bytes, secs, redirected, errors, .. } = *stats;
        let (latency, turns) = (stats.latency.map(|buckets| buckets.to_vec()), stats.turns);
        Carried { begun, ticks_us, ops, bytes, secs, redirected, errors, latency, turns }
    }
}

impl From<Carried> for Stats {
    fn from(carried: Carried) -> Stats {
        let Carried { begun, ticks_us, ops, bytes, secs, redirected, errors, turns, .. } = carried;
        let bucket = |buckets: &Vec<u64>, i: usize| buckets.get(i).copied().unwrap_or(0);
        let latency = carried.latency.map(|buckets| std::array::from_fn(|i| bucket(&buckets, i)));
        Stats { begun, ticks_us, ops, bytes, secs, redirected, errors, latency, turns }
    }
}

impl Stats {
    /// A read or a write begins.
    pub(super) fn begin(&mut self, way: usize, sectors: u64) {
        self.begun[way] += 1;
        self.secs[way] += sectors;
    }

    /// Reads and writes, and what became of them.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            begun: self.begun,
            over: [self.ops[0], self.ops[1]],
            sectors: self.bytes.map(|bytes| bytes / image::SECTOR_BYTES),
            ticks_us: self.ticks_us,
            errors: self.errors,
        }
    }
}

/// The bucket of a latency in µs: the largest i with floor(2^(i/2)) ≤ µs.
pub fn bucket(us: u64) -> usize {
    let us = us.clamp(1, u64::from(u32::MAX));
    let lg = us.ilog2();
    // Half a step up when us² ≥ 2^(2·lg + 1).
    let half = usize::from(us * us >= 1 << (2 * lg + 1));
    (2 * lg as usize + half).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_start_at_powers_of_the_square_root_of_two() {
        for (us, want) in
            [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (8, 6), (1 << 20, 40)]
        {
            assert_eq!(bucket(us), want, "{us} µs");
        }
    }
}
