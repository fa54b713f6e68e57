//! What a disk tells about itself: STATS for programs, a few lines for the log.
use std::fmt::Write;

use super::rings::GuestRings;
use super::tap::TapRing;
use super::{DataPath, Env, Frontends, Vbd};
use crate::formats::Kind;
use crate::memory;
use crate::sealed;
use crate::stats_json::Json;
use engine::chain;
use frontend::nbd::NbdServer;
use frontend::ublk::{Ring, Ublk};
use host::arena::Locked;
use host::sys;
use request::disk::Disk;

/// Numbers of the layers that have no image (spec/drivers.md §1).
const LOG_TYPE: u32 = 9;
const LOCAL_CACHE_TYPE: u32 = 11;
/// Requests the original's drivers have at most (spec/drivers.md §4); readers know the number.
const REQUESTS_MAX: u64 = 352;

impl Vbd {
    /// The object of STATS: the original's members (spec/tap-ctl.md §5), then ours.
    pub fn stats(&self, env: &Env, j: &mut Json) {
        let data = self.data.as_ref();
        let opened = self.opened.as_ref();
        let name = opened.map_or("(null)".into(), |opened| {
            String::from_utf8_lossy(opened.options.name.as_bytes()).into_owned()
        });
        let caching = opened.is_some_and(|opened| opened.options.page_cache);
        let redirected = data.map_or(0, |data| data.engine.stats().redirected);
        let lost = data.is_some_and(|data| data.engine.events().mirror_lost.is_some());
        let active = data.map_or(0, |data| data.engine.active());
        j.object(|j| {
            j.key("name").string(&name);
            j.numbers("secs", &self.secs());
            j.key("images").array(|j| data.into_iter().for_each(|data| images(data, j)));
            j.member("FIXME_enospc_redirect_count", redirected);
            j.member("nbd_mirror_failed", u32::from(lost || self.mirror_failed));
            j.member("reqs_outstanding", active);
            j.key("read_caching").string(if caching { "true" } else { "false" });
            if let Some(waits) = self.waits() {
                j.key("waits").string(&waits);
            }
            let catches = data.and_then(|data| data.images.as_ref()).map(|images| &images.notes);
            if let Some(notes) = catches.filter(|notes| !notes.is_empty()) {
                j.key("notes").array(|j| notes.iter().for_each(|note| j.string(note)));
            }
            self.limits_shown(j);
            if let Some(data) = data {
                ours(data, &self.frontends, env, j);
            }
            if let Some(tap) = self.tap() {
                tap_counters(self.minor, tap, j);
            }
            if let Some(device) = self.device() {
                let ublk = self.frontends.ublk.as_deref();
                block_device(&device.to_string(), device.driver(), ublk, j);
            }
        });
    }

    fn secs(&self) -> [u64; 2] {
        let now = self.data.as_ref().map_or([0; 2], |data| data.engine.stats().secs);
        [self.secs_before[0] + now[0], self.secs_before[1] + now[1]]
    }

    /// A few lines on everything about this disk.
    pub fn report(&self) -> String {
        let mut text = format!("minor {}: {} {}", self.minor, self.state, self.name());
        if let Some(waits) = self.waits() {
            let _ = write!(text, "\n  {waits}");
        }
        let Some(data) = &self.data else { return text };
        let (engine, stats) = (&data.engine, data.engine.stats());
        let _ = write!(
            text,
            "\n  {}, {} requests in flight, done: {:?}, sectors: {:?}, errors: {}, turns: {}",
            data.why,
            engine.active(),
            stats.ops,
            self.secs(),
            stats.errors,
            stats.turns
        );
        if let Some(nbd) = &self.frontends.nbd {
            let _ = write!(text, "\n  nbd: {} clients, {:?}", nbd.clients(), nbd.counters());
        }
        for layer in data.images.iter().flat_map(|images| &images.layers) {
            let how = if layer.writable { "writable" } else { "read-only" };
            let _ =
                write!(text, "\n  {}:{} {how}", layer.kind.format().name, show::path(&layer.path));
        }
        text
    }
}

/// One object for each open image, leaf first.
fn images(data: &DataPath, j: &mut Json) {
    let (Some(images), Some(chain)) = (&data.images, data.engine.chain()) else { return };
    if let Some(log) = &images.log {
        filter((&log.path().to_string_lossy(), "log", LOG_TYPE), j);
    }
    let unread = chain.secondary().filter(|secondary| secondary.purpose == image::Purpose::Mirror);
    let unread = unread.map(|s| s.file).filter(|file| !chain.order().contains(file));
    let (top, rest) = (&chain.order()[..1], &chain.order()[1..]);
    for (i, file) in top.iter().chain(&unread).chain(rest).enumerate() {
        let (layer, driver) =
            (&images.layers[usize::from(file.0)], &chain.layers[usize::from(file.0)]);
        let pending = if i == 0 { u64::from(data.engine.active()) } else { 0 };
        image((&layer.path.to_string_lossy(), layer.kind), driver, pending, j);
        if i == 0 && images.local_cache {
            filter((&layer.path.to_string_lossy(), "lc", LOCAL_CACHE_TYPE), j);
        }
    }
}

/// A layer without data of its own.
fn filter((path, name, number): (&str, &str, u32), j: &mut Json) {
    j.object(|j| {
        j.key("name").string(path);
        j.numbers("hits", &[0; 2]);
        j.numbers("fail", &[0; 2]);
        j.key("driver").object(|j| {
            j.member("type", number);
            j.key("name").string(name);
            j.member("status", "null");
        });
    });
}

fn image((path, kind): (&str, Kind), layer: &chain::Layer, pending: u64, j: &mut Json) {
    j.object(|j| {
        j.key("name").string(path);
        j.numbers("hits", &layer.hits);
        j.numbers("fail", &layer.fails);
        j.key("driver").object(|j| {
            let format = kind.format();
            j.member("type", format.number);
            j.key("name").string(format.name);
            match format.counts_requests {
                true => j.key("status").object(|j| {
                    j.key("reqs").object(|j| {
                        j.member("max", REQUESTS_MAX);
                        j.member("pending", pending);
                    });
                }),
                false => j.member("status", "null"),
            }
        });
    });
}

/// What the original does not tell.
fn ours(data: &DataPath, frontends: &Frontends, env: &Env, j: &mut Json) {
    let stats = data.engine.stats();
    j.key("perf").object(|j| {
        let [read, write, flush, discard, zero] = stats.ops;
        j.key("ops").object(|j| {
            let counts = [
                ("read", read),
                ("write", write),
                ("flush", flush),
                ("discard", discard),
                ("zero", zero),
            ];
            counts.iter().for_each(|(name, n)| j.member(name, n));
        });
        j.key("bytes").object(|j| pair(j, stats.bytes));
        j.key("latency_us").object(|j| {
            j.numbers("read", &stats.latency[0]);
            j.numbers("write", &stats.latency[1]);
        });
        j.key("time_us").object(|j| pair(j, stats.ticks_us));
        j.member("inflight", data.engine.active());
        j.member("errors", stats.errors);
        j.member("turns", stats.turns);
    });
    j.key("engine").object(|j| {
        j.key("name").string(data.engine.disk_ref().name());
        j.key("why").string(&data.why);
    });
    memory_of(data, env, j);
    j.key("sealed").object(|j| j.member("allocations", sealed::broken()));
    let (minor, major) = sys::faults();
    j.key("faults").object(|j| {
        j.member("major", major.saturating_sub(data.faults.1));
        j.member("minor", minor.saturating_sub(data.faults.0));
    });
    if let Some(rings) = &frontends.rings {
        ring_counters(rings, j);
    }
    let clients = frontends.clients();
    let nbd = frontends.nbd.as_ref().map(NbdServer::counters).unwrap_or_default();
    j.key("nbd").object(|j| {
        j.member("clients", clients);
        j.member("accepted", nbd.clients);
        j.member("refused", nbd.refused);
        j.member("dropped", nbd.dropped);
        j.member("errors", nbd.errors);
        j.member("receives", nbd.receives);
        j.member("sends", nbd.sends);
    });
}

/// What guests asked for, and what it cost in calls of the kernel.
fn ring_counters(rings: &GuestRings, j: &mut Json) {
    let c = rings.counters();
    j.key("rings").object(|j| {
        j.key("connected").array(|j| {
            rings.each().for_each(|(name, tally)| {
                j.object(|j| {
                    j.member("domid", name.domid);
                    j.member("devid", name.devid);
                    j.member("queue", name.queue);
                    j.member("reads", tally.taken[0]);
                    j.member("writes", tally.taken[1]);
                });
            });
        });
        let kinds = ["read", "write", "barrier", "flush", "discard", "refused"];
        j.key("requests")
            .object(|j| kinds.iter().zip(c.requests).for_each(|(k, n)| j.member(k, n)));
        let members = [
            ("indirect", c.indirect),
            ("answers", c.answers),
            ("errors", c.errors),
            ("copy_calls", c.copy_calls),
            ("copies", c.copies),
            ("notifications", c.notifications),
            ("wakes", c.wakes),
            ("polls", c.polls),
        ];
        members.iter().for_each(|(name, n)| j.member(name, n));
    });
}

/// The ring of the kernel module: the original's members (spec/tap-ctl.md §5), then ours.
fn tap_counters(minor: u16, tap: &TapRing, j: &mut Json) {
    let c = tap.counters();
    let taken: u64 = c.requests.iter().sum();
    j.key("tap").object(|j| {
        j.member("minor", minor);
        j.numbers("reqs", &[taken, c.answers]);
        j.numbers("kicks", &[c.batches, c.kicks]);
        let kinds = ["read", "write", "flush", "discard", "zero", "other"];
        j.key("requests")
            .object(|j| kinds.iter().zip(c.requests).for_each(|(k, n)| j.member(k, n)));
        j.member("errors", c.errors);
        j.member("polls", c.polls);
        j.member("served", !tap.is_broken());
    });
}

/// The block device, and what it cost in calls of the kernel.
fn block_device(path: &str, driver: &str, ublk: Option<&Ublk<Ring>>, j: &mut Json) {
    j.key("device").object(|j| {
        j.key("path").string(path);
        j.key("driver").string(driver);
        let Some(ublk) = ublk else { return };
        let c = ublk.counters();
        j.member("tags", ublk.tags());
        let kinds = ["read", "write", "flush", "discard", "zero", "refused"];
        j.key("requests")
            .object(|j| kinds.iter().zip(c.requests).for_each(|(k, n)| j.member(k, n)));
        j.member("errors", c.errors);
        j.member("submits", c.submits);
        j.member("enters", ublk.commands().enters());
    });
}

fn memory_of(data: &DataPath, env: &Env, j: &mut Json) {
    let arena = data.engine.disk_ref().arena_ref();
    let held = data.locked == Locked::Yes;
    j.key("memory").object(|j| {
        j.member("locked", matches!(env.memory, memory::Memory::Locked));
        j.member("locked_bytes", memory::locked_bytes());
        j.member("resident_bytes", memory::resident_bytes());
        j.member("arena_bytes", arena.bytes());
        j.member("arena_locked", held);
    });
}

fn pair(j: &mut Json, [read, write]: [u64; 2]) {
    j.member("read", read);
    j.member("write", write);
}
