//! Families of metrics: names and units of docs/spec/dom0.md f.2, and their text.
use std::fmt::Write;

use serde_json::Value;
use tap_ctl::messages::state;

use super::Disk;
use crate::command::stats::sample::bound;

/// Bounds of the histogram: powers of 4 from 16 µs on, where every fourth of the daemon's buckets
/// begins.
const BOUNDS: usize = 11;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
    Info,
}

struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: String,
}

/// All of them, in the order in which they are written.
pub struct Families(Vec<Family>);

const ALL: [(&str, Kind, &str); 21] = [
    ("tapdisk", Kind::Info, "A disk: its tapdisk, image and disk engine."),
    ("tapdisk_requests", Kind::Counter, "Requests answered, pieces of at most 64 KiB."),
    ("tapdisk_request_errors", Kind::Counter, "Requests that failed."),
    ("tapdisk_bytes", Kind::Counter, "Bytes read and written."),
    ("tapdisk_request_duration_seconds", Kind::Histogram, "From its beginning to its answer."),
    ("tapdisk_inflight_requests", Kind::Gauge, "Requests at work."),
    ("tapdisk_chain_depth", Kind::Gauge, "Open images, the leaf among them."),
    ("tapdisk_layer_sectors", Kind::Counter, "Sectors of 512 bytes that an image answered."),
    ("tapdisk_paused", Kind::Gauge, "1 while it is paused."),
    ("tapdisk_mirror_failed", Kind::Gauge, "1 since its mirror was left behind."),
    ("tapdisk_enospc_redirects", Kind::Counter, "Sectors that went to the standby."),
    ("tapdisk_limit", Kind::Gauge, "Bytes or operations a second that it may have."),
    ("tapdisk_throttled_requests", Kind::Counter, "Requests that waited for a limit."),
    ("tapdisk_throttled_seconds", Kind::Counter, "How long they did, added up."),
    ("tapdisk_locked_bytes", Kind::Gauge, "Memory that cannot be swapped out."),
    ("tapdisk_resident_bytes", Kind::Gauge, "Memory of its tapdisk."),
    ("tapdisk_major_faults", Kind::Counter, "Page faults that read from a disk, while serving."),
    ("tapdisk_sealed_allocations", Kind::Counter, "Allocations on a request's way: 0 is right."),
    ("tapdisk_protection", Kind::Gauge, "1 where a protection against memory pressure holds."),
    ("tapdisk_nbd_clients", Kind::Gauge, "NBD clients that are connected."),
    ("tapdisk_ring_requests", Kind::Counter, "Requests taken from a guest's rings."),
];

impl Default for Families {
    fn default() -> Families {
        let family = |(name, kind, help)| Family { name, kind, help, samples: String::new() };
        Families(ALL.map(family).into())
    }
}

/// A number as it is written: whole, or a fraction.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or(value.as_bool().map(f64::from))
}

/// A label's value: what it is made of is a stranger's text.
fn quoted(text: &str) -> String {
    let escape = |c: char| match c {
        '\\' => "\\\\".to_owned(),
        '"' => "\\\"".to_owned(),
        '\n' => "\\n".to_owned(),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

impl Families {
    fn family(&mut self, name: &str) -> &mut Family {
        self.0.iter_mut().find(|family| family.name == name).expect("it is in the table")
    }

    /// One line of a family. What is not known is left out.
    fn sample(&mut self, name: &str, who: &str, labels: &[(&str, &str)], value: Option<f64>) {
        let Some(value) = value else { return };
        let family = self.family(name);
        let suffix = match family.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        let more = labels.iter().map(|(name, value)| format!(",{name}={}", quoted(value)));
        let more: String = more.collect();
        let _ = writeln!(family.samples, "{name}{suffix}{{{who}{more}}} {value}");
    }

    /// All of a disk; the statistics are `null` where there are none.
    pub fn disk(&mut self, disk: &Disk, stats: &Value) {
        let who = format!("minor=\"{}\",vdi={}", disk.minor, quoted(disk.vdi()));
        let engine = stats["engine"]["name"].as_str().unwrap_or_default();
        let pid = disk.pid.to_string();
        let labels = [
            ("pid", pid.as_str()),
            ("type", &disk.kind),
            ("image", &disk.path),
            ("engine", engine),
        ];
        self.sample("tapdisk", &who, &labels, Some(1.0));
        let paused = disk.state & state::PAUSED != 0;
        self.sample("tapdisk_paused", &who, &[], Some(f64::from(paused)));
        self.requests(&who, &stats["perf"]);
        self.layers(&who, &stats["images"]);
        self.limits(&who, &stats["limits"]);
        for (name, value) in [
            ("tapdisk_mirror_failed", &stats["nbd_mirror_failed"]),
            ("tapdisk_enospc_redirects", &stats["FIXME_enospc_redirect_count"]),
            ("tapdisk_locked_bytes", &stats["memory"]["locked_bytes"]),
            ("tapdisk_resident_bytes", &stats["memory"]["resident_bytes"]),
            ("tapdisk_major_faults", &stats["faults"]["major"]),
            ("tapdisk_sealed_allocations", &stats["sealed"]["allocations"]),
            ("tapdisk_nbd_clients", &stats["nbd"]["clients"]),
        ] {
            self.sample(name, &who, &[], number(value));
        }
        for (label, name) in [("memory_locked", "locked"), ("arena_locked", "arena_locked")] {
            let holds = number(&stats["memory"][name]);
            self.sample("tapdisk_protection", &who, &[("name", label)], holds);
        }
        for (kind, count) in stats["rings"]["requests"].as_object().into_iter().flatten() {
            self.sample("tapdisk_ring_requests", &who, &[("kind", kind)], number(count));
        }
    }

    fn requests(&mut self, who: &str, perf: &Value) {
        for op in ["read", "write", "flush", "discard", "zero"] {
            let label = [("op", op)];
            self.sample("tapdisk_requests", who, &label, number(&perf["ops"][op]));
        }
        for direction in ["read", "write"] {
            let label = [("direction", direction)];
            self.sample("tapdisk_bytes", who, &label, number(&perf["bytes"][direction]));
            self.histogram(who, direction, perf);
        }
        self.sample("tapdisk_request_errors", who, &[], number(&perf["errors"]));
        self.sample("tapdisk_inflight_requests", who, &[], number(&perf["inflight"]));
    }

    fn histogram(&mut self, who: &str, op: &str, perf: &Value) {
        const NAME: &str = "tapdisk_request_duration_seconds";
        let Some(buckets) = perf["latency_us"][op].as_array() else { return };
        let counts: Vec<u64> = buckets.iter().map(|count| count.as_u64().unwrap_or(0)).collect();
        let below = |end: usize| counts.iter().take(end).sum::<u64>();
        let text = &mut self.family(NAME).samples;
        for end in (8..).step_by(4).take(BOUNDS) {
            let bound = bound(end) as f64 / 1e6;
            let count = below(end);
            let _ = writeln!(text, "{NAME}_bucket{{{who},op=\"{op}\",le=\"{bound}\"}} {count}");
        }
        let all = below(counts.len());
        let _ = writeln!(text, "{NAME}_bucket{{{who},op=\"{op}\",le=\"+Inf\"}} {all}");
        let _ = writeln!(text, "{NAME}_count{{{who},op=\"{op}\"}} {all}");
        if let Some(us) = number(&perf["time_us"][op]) {
            let _ = writeln!(text, "{NAME}_sum{{{who},op=\"{op}\"}} {}", us / 1e6);
        }
    }

    fn layers(&mut self, who: &str, images: &Value) {
        let Some(images) = images.as_array().filter(|images| !images.is_empty()) else { return };
        self.sample("tapdisk_chain_depth", who, &[], Some(images.len() as f64));
        for (i, image) in images.iter().enumerate() {
            for (hit, direction) in ["read", "write"].into_iter().enumerate() {
                let labels = [("layer", &*i.to_string()), ("direction", direction)];
                let hits = number(&image["hits"][hit]);
                self.sample("tapdisk_layer_sectors", who, &labels, hits);
            }
        }
    }

    fn limits(&mut self, who: &str, limits: &Value) {
        for (i, direction) in ["read", "write"].into_iter().enumerate() {
            for (unit, name) in [("bytes", "bytes_per_second"), ("operations", "ops_per_second")] {
                let limit = number(&limits[name][i]).filter(|limit| *limit > 0.0);
                let labels = [("direction", direction), ("unit", unit)];
                self.sample("tapdisk_limit", who, &labels, limit);
            }
            let label = [("direction", direction)];
            let (count, us) = (number(&limits["waited"][i]), number(&limits["waited_us"][i]));
            self.sample("tapdisk_throttled_requests", who, &label, count);
            self.sample("tapdisk_throttled_seconds", who, &label, us.map(|us| us / 1e6));
        }
    }

    /// The text, with its end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for family in self.0.iter().filter(|family| !family.samples.is_empty()) {
            let kind = match family.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
                Kind::Info => "info",
            };
            let (name, help) = (family.name, family.help);
            let _ = write!(text, "# TYPE {name} {kind}\n# HELP {name} {help}\n{}", family.samples);
        }
        text + "# EOF\n"
    }
}
