//! The stage of rates: how many bytes and operations a second a disk may have, read and written.
//!
//! ```text
//!   start ─► in credit, nobody waits: charged ─► the machine
//!              └─► waits in its slot, oldest first ─► in credit again: charged ─► the machine
//! ```
//! Two buckets for each direction, of bytes and of operations. What is charged may leave one in
//! debt, and nobody else of that direction goes on until time has paid it: so the rate holds for
//! requests of every size. A request that waits has its slot and nothing else; when all slots are
//! taken the rest waits in the ring or socket. A request is a piece of at most 64 KiB, so a longer
//! one counts for as many operations. Zeros and discards are one operation and no bytes; flushes
//! and block status are free. A disk that comes to rest waits for nobody's rate.
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::sets::SlotSet;
use request::disk::Disk;
use request::{Request, SlotId, Verb};

/// Credit is counted in parts of a byte or operation: a rate a second is as many parts a µs.
const PARTS: i64 = 1_000_000;

/// What a disk may have, read and written; 0 is as much as it can get.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Rates {
    /// Bytes a second.
    pub bytes: [u64; 2],
    /// Operations a second.
    pub ops: [u64; 2],
    /// What may come at once after a time with less, in ms of the rate.
    pub burst_ms: u64,
}

impl Rates {
    /// Whether there is a rate.
    pub fn any(&self) -> bool {
        self.bytes.iter().chain(&self.ops).any(|rate| *rate > 0)
    }
}

/// What rates have cost, read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Requests that waited.
    pub requests: [u64; 2],
    /// How long, in µs.
    pub us: [u64; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// A second; 0: no bound.
    rate: i64,
    /// Credit at most.
    most: i64,
    /// Parts.
    credit: i64,
}

impl Bucket {
    fn set(&mut self, rate: u64, burst_ms: u64) {
        let rate = i64::try_from(rate).unwrap_or(i64::MAX);
        let us = i64::try_from(burst_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        let most = rate.saturating_mul(us);
        // Changed while it is in use: what is owed stays owed, at the new rate's pace.
        let credit = if self.rate == 0 { most } else { self.credit.min(most) };
        *self = Bucket { rate, most, credit };
    }

    fn earn(&mut self, us: i64) {
        let earned = self.rate.saturating_mul(us);
        self.credit = self.credit.saturating_add(earned).min(self.most);
    }

    fn pay(&mut self, amount: u64) {
        if self.rate > 0 {
            let amount = i64::try_from(amount).unwrap_or(i64::MAX).saturating_mul(PARTS);
            self.credit = self.credit.saturating_sub(amount);
        }
    }

    /// µs until it is out of debt.
    fn debt_us(&self) -> u64 {
        if self.rate == 0 || self.credit >= 0 {
            return 0;
        }
        self.credit.unsigned_abs().div_ceil(self.rate.unsigned_abs())
    }
}

/// The rates of a disk, and who waits.
#[derive(Debug, Default)]
pub struct Throttle {
    on: bool,
    /// Nobody waits: the disk is to come to rest.
    lifted: bool,
    /// Read and written: bytes, operations.
    buckets: [[Bucket; 2]; 2],
    /// When credit was earned last, in µs of the clock.
    at: u64,
    waiting: [SlotSet; 2],
    waited: Waited,
}

impl Throttle {
    /// Whether there is anything to do for each request.
    pub fn is_on(&self) -> bool {
        self.on
    }

    fn earn(&mut self, now: u64) {
        let us = i64::try_from(now.saturating_sub(self.at)).unwrap_or(i64::MAX);
        self.at = now;
        self.buckets.iter_mut().flatten().for_each(|bucket| bucket.earn(us));
    }

    fn in_credit(&self, direction: usize) -> bool {
        self.lifted || self.buckets[direction].iter().all(|bucket| bucket.debt_us() == 0)
    }

    fn charge(&mut self, direction: usize, bytes: u64) {
        let [all, ops] = &mut self.buckets[direction];
        all.pay(bytes);
        ops.pay(1);
    }
}

/// The direction of a request, and its bytes; `None` if it is free.
fn cost(request: &Request) -> Option<(usize, u64)> {
    let bytes = u64::from(request.span.count) * 512;
    match request.verb {
        Verb::Read => Some((0, bytes)),
        Verb::Write { .. } => Some((1, bytes)),
        Verb::Zero { .. } | Verb::Discard { .. } => Some((1, 0)),
        Verb::Flush | Verb::Status => None,
    }
}

impl<D: Disk> Engine<D> {
    /// What rates have cost.
    pub fn waited(&self) -> Waited {
        self.throttle.waited
    }

    /// Gives the disk these rates.
    pub fn set_rates(&mut self, rates: Rates) {
        let throttle = &mut self.throttle;
        throttle.earn(self.io.now);
        for direction in 0..2 {
            let [bytes, ops] = &mut throttle.buckets[direction];
            bytes.set(rates.bytes[direction], rates.burst_ms);
            ops.set(rates.ops[direction], rates.burst_ms);
        }
        throttle.on = rates.any();
        self.watch();
        self.let_waiting_go();
    }

    /// Nobody waits for a rate from now on, or everybody does again.
    pub(super) fn lift_rates(&mut self, lifted: bool) {
        self.throttle.lifted = lifted;
        self.let_waiting_go();
    }

    /// A request begins: it is charged, or it waits.
    pub(super) fn charge_or_wait(&mut self, id: SlotId) {
        let Some((direction, bytes)) = cost(&self.slot(id).request) else { return };
        self.throttle.earn(self.io.now);
        let throttle = &mut self.throttle;
        if throttle.waiting[direction].is_empty() && throttle.in_credit(direction) {
            return throttle.charge(direction, bytes);
        }
        throttle.waiting[direction].insert(id);
        self.table.ready.remove(id);
    }

    /// Those who wait go on, as far as there is credit.
    pub(super) fn let_waiting_go(&mut self) {
        if self.throttle.waiting.iter().all(SlotSet::is_empty) {
            return;
        }
        self.throttle.earn(self.io.now);
        for direction in 0..2 {
            while self.throttle.in_credit(direction)
                && let Some(id) = self.table.oldest_of(self.throttle.waiting[direction])
            {
                let (request, since) = (self.slot(id).request, self.slot(id).since);
                let (_, bytes) = cost(&request).expect("what is free does not wait");
                let throttle = &mut self.throttle;
                throttle.charge(direction, bytes);
                throttle.waiting[direction].remove(id);
                throttle.waited.requests[direction] += 1;
                throttle.waited.us[direction] += self.io.now.saturating_sub(since);
                self.table.ready.insert(id);
            }
        }
    }

    /// When somebody who waits can go on, in µs of the clock.
    pub(super) fn next_credit(&self) -> Option<u64> {
        let throttle = &self.throttle;
        let waits = (0..2).filter(|direction| !throttle.waiting[*direction].is_empty());
        let until =
            |direction: usize| throttle.buckets[direction].iter().map(Bucket::debt_us).max();
        waits.filter_map(until).map(|us| throttle.at + us).min()
    }

    /// Requests that wait for their rate now.
    pub fn throttled(&self) -> u16 {
        self.throttle.waiting.iter().map(SlotSet::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_pays_debts_by_time_and_saves_a_burst() {
        let mut bucket = Bucket::default();
        bucket.pay(1 << 40);
        assert_eq!(bucket.debt_us(), 0, "no rate, no debt");
        bucket.set(1000, 500);
        bucket.pay(500);
        assert_eq!(bucket.debt_us(), 0, "the burst");
        bucket.pay(250);
        assert_eq!(bucket.debt_us(), 250_000);
        bucket.earn(249_999);
        assert_eq!(bucket.debt_us(), 1);
        bucket.earn(1);
        assert_eq!(bucket.debt_us(), 0);
        bucket.earn(i64::MAX);
        bucket.pay(501);
        assert_eq!(bucket.debt_us(), 1000, "no more than the burst was saved");
        bucket.set(1_000_000, 500);
        assert_eq!(bucket.debt_us(), 1, "it is paid at the new rate");
        bucket.set(u64::MAX, u64::MAX);
        bucket.earn(7);
        assert_eq!(bucket.debt_us(), 0);
    }
}
