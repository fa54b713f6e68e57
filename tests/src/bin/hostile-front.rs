//! A guest with bad intentions, played in dom0: it connects rings to a tapdisk's disk and puts into
//! them what no honest front end would. After each scenario the same tapdisk must serve an honest
//! ring.
//!
//! ```text
//! hostile-front PID MINOR [SEED]
//! ```
//! The disk is written to, its first MiB with known bytes. Nothing else that the tapdisk has may
//! change, which the caller checks.
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tap_ctl::client::Client;
use tap_ctl::messages::Blkif;
use tap_ctl::paths::RunDir;
use tests::rig::xen_front::Front;
use tests::rig::xen_load::{demand, load, pages, segments};
use tests::sim::rng::Rng;
use xen_sys::blkif::{op, status};

/// The virtual device number of our rings: xvda's.
const DEVID: u32 = 202 << 8;

type Outcome = Result<(), String>;

/// The tapdisk under attack.
struct Target {
    client: Client,
    pid: i32,
    minor: u16,
    seed: u64,
}

impl Target {
    fn connect(&self, order: u32, protocol: u32) -> Result<Front, String> {
        let front = Front::new(order, protocol).map_err(|e| e.to_string())?;
        front.connect(&self.client, self.pid, self.minor, DEVID)?;
        Ok(front)
    }

    fn disconnect(&self) -> Outcome {
        let gone = self.client.disconnect_ring(self.pid, 0, DEVID);
        gone.map_err(|e| format!("disconnect: {e}"))
    }
}

/// Every operation in every layout and size of ring.
fn honest(target: &Target) -> Outcome {
    for (order, protocol) in [(0, 1), (3, 3), (0, 2), (1, 2)] {
        let mut front = target.connect(order, protocol)?;
        load(&mut front, protocol)?;
        target.disconnect()?;
    }
    Ok(())
}

/// Requests whose numbers are wrong.
fn malformed(target: &Target) -> Outcome {
    let mut front = target.connect(0, 3)?;
    let page = pages(&front, 1, true)?;
    let good = (page.refs[0], 0, 7);
    let one = segments(&[good]);
    let all = segments(&[good; 11]);
    for count in [0u8, 12, 32, 255] {
        for operation in [op::READ, op::WRITE] {
            let entry = front.entry(operation, count, 100 + u64::from(count), 0, &all);
            demand(&mut front, &entry, &format!("{count} segments"), status::ERROR)?;
        }
    }
    for (first, last) in [(0, 8), (8, 8), (5, 2), (0, 255), (255, 0)] {
        let entry = front.entry(op::READ, 1, 200, 0, &segments(&[(page.refs[0], first, last)]));
        demand(&mut front, &entry, &format!("sectors {first} to {last}"), status::ERROR)?;
    }
    for sector in [u64::MAX, u64::MAX - 7, 1 << 55, 1 << 40] {
        for operation in [op::READ, op::WRITE] {
            let entry = front.entry(operation, 1, 300, sector, &one);
            demand(&mut front, &entry, &format!("sector {sector}"), status::ERROR)?;
        }
    }
    for operation in [4u8, 7, 99, 255] {
        let entry = front.entry(operation, 1, 400, 0, &one);
        demand(&mut front, &entry, &format!("operation {operation}"), status::EOPNOTSUPP)?;
    }
    for (sector, sectors) in [(u64::MAX, 1u64), (0, u64::MAX), (1 << 40, 8), (8, u64::MAX - 4)] {
        let entry = front.entry(op::DISCARD, 0, 500, sector, &sectors.to_le_bytes());
        demand(&mut front, &entry, &format!("discard {sector} + {sectors}"), status::ERROR)?;
    }
    target.disconnect()
}

/// Grants that are none, or do not allow what is asked.
fn bad_grants(target: &Target) -> Outcome {
    let mut front = target.connect(0, 3)?;
    let read_only = pages(&front, 1, false)?;
    for gref in [0u32, 5_000, 0x00ff_ffff, u32::MAX] {
        for operation in [op::READ, op::WRITE] {
            let entry = front.entry(operation, 1, 1, 0, &segments(&[(gref, 0, 7)]));
            demand(&mut front, &entry, &format!("reference {gref}"), status::ERROR)?;
        }
    }
    let entry = front.entry(op::READ, 1, 2, 0, &segments(&[(read_only.refs[0], 0, 7)]));
    demand(&mut front, &entry, "a read into a page that may only be read", status::ERROR)?;
    let half = segments(&[(read_only.refs[0], 0, 7), (u32::MAX, 0, 7)]);
    let entry = front.entry(op::WRITE, 2, 3, 0, &half);
    demand(&mut front, &entry, "a write with one bad page of two", status::ERROR)?;
    let gone = pages(&front, 1, true)?.refs[0];
    let entry = front.entry(op::WRITE, 1, 4, 0, &segments(&[(gone, 0, 7)]));
    demand(&mut front, &entry, "a page that was taken back", status::ERROR)?;
    target.disconnect()
}

/// Indirect requests: counts, pages and what is in them.
fn indirect(target: &Target) -> Outcome {
    let mut front = target.connect(0, 3)?;
    let (list, page) = (pages(&front, 1, true)?, pages(&front, 1, true)?);
    list.put(0, &segments(&[(page.refs[0], 0, 7); 16]));
    let entry = front.indirect(op::WRITE, 1, 0, 16, &list.refs);
    demand(&mut front, &entry, "an honest indirect write", status::OKAY)?;
    for (what, count, refs) in [
        ("no segments", 0, vec![list.refs[0]]),
        ("too many segments", u16::MAX, vec![list.refs[0]; 8]),
        ("a page of segments that is none", 16, vec![u32::MAX]),
        ("segments that are zeros", 300, vec![list.refs[0]; 8]),
    ] {
        let entry = front.indirect(op::READ, 2, 0, count, &refs);
        demand(&mut front, &entry, what, status::ERROR)?;
    }
    list.put(0, &segments(&[(page.refs[0], 3, 9); 16]));
    let entry = front.indirect(op::READ, 3, 0, 16, &list.refs);
    demand(&mut front, &entry, "sectors outside the page", status::ERROR)?;
    list.put(0, &segments(&[(page.refs[0], 0, 7); 16]));
    let entry = front.indirect(op::INDIRECT, 4, 0, 16, &list.refs);
    front.put(&entry);
    front.notify().map_err(|e| e.to_string())?;
    let answer = front.answers(1)?[0];
    if answer.status == status::OKAY {
        return Err("an indirect request inside an indirect request was done".to_string());
    }
    target.disconnect()
}

/// Connecting with numbers that are wrong.
fn bad_connects(target: &Target) -> Outcome {
    let front = Front::new(0, 3).map_err(|e| e.to_string())?;
    let good = front.message(DEVID);
    let mut worst = Vec::new();
    let mut wrong = |what: &str, change: &dyn Fn(&mut Blkif)| {
        let mut message = good;
        change(&mut message);
        if target.client.connect_ring(target.pid, target.minor, &message).is_ok() {
            worst.push(format!("{what} was accepted"));
            let _ = target.client.disconnect_ring(target.pid, message.domid, message.devid);
        }
    };
    wrong("a reference that is none", &|m| m.gref[0] = u32::MAX);
    wrong("a port that is none", &|m| m.port = 1_000_000);
    wrong("an order of 4", &|m| m.order = 4);
    wrong("an order of 32", &|m| m.order = 32);
    wrong("an order beyond all numbers", &|m| m.order = u32::MAX);
    wrong("protocol 0", &|m| m.proto = 0);
    wrong("protocol 9", &|m| m.proto = 9);
    wrong("a domain that is not there", &|m| m.domid = 0x7000);
    wrong("a domain that no number names", &|m| m.domid = u32::MAX);
    if worst.is_empty() { Ok(()) } else { Err(worst.join("; ")) }
}

/// Producer indices that run wild stop this ring and nothing else.
fn wild_indices(target: &Target) -> Outcome {
    for jump in [33u32, 1000, 0x8000_0000, u32::MAX] {
        let front = target.connect(0, 3)?;
        front.header(0).store(jump, Ordering::SeqCst);
        front.notify().map_err(|e| e.to_string())?;
        front.told(Duration::from_millis(200));
        let answered = front.header(2).load(Ordering::SeqCst);
        if answered > front.entries() {
            return Err(format!("{answered} answers to a producer index of {jump}"));
        }
        target.disconnect()?;
    }
    Ok(())
}

/// The port is closed, the pages are taken back while the ring is connected.
fn pulled_rugs(target: &Target) -> Outcome {
    let mut front = target.connect(0, 3)?;
    let page = pages(&front, 1, true)?;
    for i in 0..20 {
        let entry = front.entry(op::READ, 1, i, i * 8, &segments(&[(page.refs[0], 0, 7)]));
        front.put(&entry);
    }
    front.notify().map_err(|e| e.to_string())?;
    front.close_port();
    drop(page);
    drop(front);
    target.disconnect()
}

/// Words of the ring change all the time while the back end reads it: by seed, for a second.
fn noise(target: &Target) -> Outcome {
    let mut rng = Rng::new(target.seed);
    for round in 0..6u32 {
        let mut front = target.connect(round % 3, 1 + round % 3)?;
        let page = pages(&front, 4, true)?;
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            for _ in 0..rng.below(8) + 1 {
                let operation = rng.below(8) as u8;
                let list: Vec<_> = (0..8)
                    .map(|_| {
                        (page.refs[rng.below(4) as usize], rng.below(9) as u8, rng.below(9) as u8)
                    })
                    .collect();
                // Below 1 MiB: this disk may be written there.
                let sector = rng.below(2048 - 100);
                let count = rng.below(13) as u8;
                let entry = front.entry(operation, count, rng.next(), sector, &segments(&list));
                front.put(&entry);
            }
            for _ in 0..rng.below(6) {
                // Not the first words: a wild producer index would end the round at once.
                let words = front.ring.words();
                let at = 1 + rng.below(words.len() as u64 - 1) as usize;
                words[at].store(rng.next() as u32, Ordering::Relaxed);
            }
            front.notify().map_err(|e| e.to_string())?;
            std::thread::yield_now();
        }
        target.disconnect()?;
    }
    Ok(())
}

type Scenario = (&'static str, fn(&Target) -> Outcome);

const SCENARIOS: &[Scenario] = &[
    ("requests with wrong numbers", malformed),
    ("grants that are none", bad_grants),
    ("indirect requests", indirect),
    ("connections with wrong numbers", bad_connects),
    ("producer indices that run wild", wild_indices),
    ("a port closed and pages taken back under way", pulled_rugs),
    ("a ring that changes while it is read", noise),
];

fn run() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok());
    let (Some(pid), Some(minor)) = (number(0), number(1)) else {
        return Err("usage: hostile-front PID MINOR [SEED]".to_string());
    };
    let client = Client::new(RunDir::locate().map_err(|e| e.to_string())?);
    let pid = i32::try_from(pid).map_err(|e| e.to_string())?;
    let minor = u16::try_from(minor).map_err(|e| e.to_string())?;
    let target = Target { client, pid, minor, seed: number(2).unwrap_or(1) };
    honest(&target)?;
    let mut failed = Vec::new();
    for (name, scenario) in SCENARIOS {
        let outcome = scenario(&target);
        if let Err(why) = &outcome {
            failed.push(format!("{name}: {why}"));
            let _ = target.disconnect();
        }
        println!("hostile-front: {name}: {outcome:?}");
        honest(&target).map_err(|why| format!("after \"{name}\" an honest ring: {why}"))?;
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hostile-front: {why}");
            ExitCode::FAILURE
        }
    }
}
