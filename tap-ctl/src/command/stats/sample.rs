//! Counters of a disk at one moment, and what two moments say about the time between.

use serde_json::{Value, json};

/// Buckets of a latency histogram. Bucket i counts requests that took [B(i), B(i+1)) µs with
/// B(i) = ⌊2^(i/2)⌋, since attach.
pub const BUCKETS: usize = 64;

/// The counters of one direction. What the daemon does not tell (an original one) is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Direction {
    ops: Option<u64>,
    bytes: Option<u64>,
    latency: Option<Vec<u64>>,
}

/// The counters of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub name: String,
    read: Direction,
    write: Direction,
    inflight: Option<u64>,
}

/// One direction between two samples; `None` is unknown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rate {
    pub iops: Option<f64>,
    /// 10^6 bytes a second.
    pub megabytes: Option<f64>,
    /// Upper bounds in microseconds; `None` also when there was no request.
    pub p50: Option<u64>,
    pub p99: Option<u64>,
}

/// A disk between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    pub name: String,
    pub read: Rate,
    pub write: Rate,
    pub inflight: Option<u64>,
}

impl Sample {
    /// The counters in the daemon's object. Nothing in it has to be there.
    pub fn from_json(stats: &Value) -> Sample {
        let name = stats["name"].as_str().unwrap_or("-");
        Sample {
            name: name.to_owned(),
            read: Direction::from_json(stats, "read", 0),
            write: Direction::from_json(stats, "write", 1),
            inflight: stats["perf"]["inflight"].as_u64(),
        }
    }

    /// What happened since `before`, `seconds` ago.
    pub fn since(&self, before: &Sample, seconds: f64) -> Rates {
        Rates {
            name: self.name.clone(),
            read: self.read.since(&before.read, seconds),
            write: self.write.since(&before.write, seconds),
            inflight: self.inflight,
        }
    }

    /// Nothing is known about the time before the first sample.
    pub fn first(&self) -> Rates {
        Rates { name: self.name.clone(), inflight: self.inflight, ..Rates::default() }
    }
}

impl Direction {
    fn from_json(stats: &Value, name: &str, index: usize) -> Direction {
        let perf = &stats["perf"];
        let sectors = stats["secs"][index].as_u64();
        let counts = |array: &Vec<Value>| array.iter().map(|n| n.as_u64().unwrap_or(0)).collect();
        Direction {
            ops: perf["ops"][name].as_u64(),
            bytes: perf["bytes"][name].as_u64().or(sectors.map(|n| n.saturating_mul(512))),
            latency: perf["latency_us"][name].as_array().map(counts),
        }
    }

    fn since(&self, before: &Direction, seconds: f64) -> Rate {
        let counts = histogram(self.latency.as_deref(), before.latency.as_deref());
        let percentile = |percent| percentile(counts.as_deref()?, percent);
        let bytes = rate(self.bytes, before.bytes, seconds);
        Rate {
            iops: rate(self.ops, before.ops, seconds),
            megabytes: bytes.map(|bytes| bytes / 1e6),
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

/// Unknown if a counter is, if it went back (the disk was attached anew), or if no time passed.
fn rate(now: Option<u64>, before: Option<u64>, seconds: f64) -> Option<f64> {
    let difference = now?.checked_sub(before?)?;
    (seconds > 0.0).then(|| difference as f64 / seconds)
}

fn histogram(now: Option<&[u64]>, before: Option<&[u64]>) -> Option<Vec<u64>> {
    let (now, before) = (now?, before?);
    let difference = |(i, count): (usize, &u64)| count.checked_sub(before.get(i).copied()?);
    now.iter().take(BUCKETS).enumerate().map(difference).collect()
}

/// Upper bound of the bucket in which the request is that `percent` of all are not slower than.
fn percentile(counts: &[u64], percent: u64) -> Option<u64> {
    let total: u128 = counts.iter().map(|count| u128::from(*count)).sum();
    let wanted = (total * u128::from(percent)).div_ceil(100);
    let mut seen = 0u128;
    let bucket = counts.iter().position(|count| {
        seen += u128::from(*count);
        *count > 0 && seen >= wanted
    })?;
    Some(bound(bucket + 1))
}

/// B(i) = ⌊2^(i/2)⌋ µs, the lower bound of bucket i and the upper one of bucket i − 1.
pub fn bound(i: usize) -> u64 {
    2f64.powf(i as f64 / 2.0).floor() as u64
}

impl Rates {
    /// An object; unknown numbers are null.
    pub fn json(&self, pid: i32, minor: i32) -> Value {
        let direction = |rate: &Rate| {
            json!({
                "iops": rate.iops,
                "mb_per_s": rate.megabytes,
                "p50_us": rate.p50,
                "p99_us": rate.p99,
            })
        };
        json!({
            "pid": pid,
            "minor": minor,
            "name": self.name,
            "read": direction(&self.read),
            "write": direction(&self.write),
            "inflight": self.inflight,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(ops: u64, bucket: usize, count: u64) -> Sample {
        let mut latency = vec![0u64; BUCKETS];
        latency[2] = ops - count;
        latency[bucket] += count;
        Sample::from_json(&json!({
            "name": "vhd:/x",
            "secs": [ops * 8, 0],
            "perf": {
                "ops": {"read": ops, "write": 0, "flush": 0, "discard": 0, "zero": 0},
                "bytes": {"read": ops * 4096, "write": 0},
                "latency_us": {"read": latency, "write": vec![0; BUCKETS]},
                "inflight": 3,
            },
        }))
    }

    #[test]
    fn rates_are_differences_over_time() {
        let rates = daemon(1100, 20, 10).since(&daemon(100, 20, 0), 2.0);
        assert_eq!(rates.read.iops, Some(500.0));
        assert_eq!(rates.read.megabytes, Some(2.048));
        assert_eq!(rates.write.iops, Some(0.0));
        assert_eq!(rates.inflight, Some(3));
    }

    #[test]
    fn percentiles_are_upper_bounds_of_buckets() {
        // 990 of 1000 requests took 2 µs (bucket 2: [2, 2) is empty, its bound is B(3) = 2), 10
        // took ~1 ms.
        let rates = daemon(1000, 20, 10).since(&daemon(0, 20, 0), 1.0);
        assert_eq!((rates.read.p50, rates.read.p99), (Some(2), Some(2)));
        let rates = daemon(1000, 20, 11).since(&daemon(0, 20, 0), 1.0);
        assert_eq!(rates.read.p99, Some(1448), "B(21) = ⌊2^10.5⌋");
        assert_eq!((rates.write.p50, rates.write.p99), (None, None), "no request, no latency");
    }

    #[test]
    fn bounds() {
        assert_eq!([0, 1, 2, 3, 4, 20, 64].map(bound), [1, 1, 2, 2, 4, 1024, 1 << 32]);
    }

    #[test]
    fn an_original_tapdisk_gives_sectors_only() {
        let stats =
            |sectors: u64| Sample::from_json(&json!({"name": "aio:/y", "secs": [sectors, 0]}));
        let rates = stats(4000).since(&stats(2000), 1.0);
        assert_eq!(rates.read, Rate { megabytes: Some(1.024), ..Rate::default() });
        assert_eq!(rates.inflight, None);
    }

    #[test]
    fn a_counter_that_went_back_is_unknown() {
        let rates = daemon(5, 20, 0).since(&daemon(100, 20, 0), 1.0);
        assert_eq!(rates.read, Rate::default());
        assert_eq!(
            daemon(5, 20, 0).since(&daemon(5, 20, 0), 0.0).read.iops,
            None,
            "no time passed"
        );
    }

    #[test]
    fn any_document_is_tolerated() {
        for value in [json!(null), json!([1]), json!({"perf": {"latency_us": {"read": "x"}}})] {
            let sample = Sample::from_json(&value);
            assert_eq!(sample.since(&sample, 1.0).read.p50, None);
        }
    }
}
