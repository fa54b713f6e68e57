//! A front end in dom0 that is made of keys, grants and an event channel, for a disk that xl has
//! plugged into dom0 while no kernel's front end was loaded. tapback connects it as any other.
//!
//! ```text
//! xen-front use DEVID [ORDER [PROTOCOL]]     honest: connects, uses every operation, checks the data, closes,
//!                                            begins again. PROTOCOL: x86_64-abi, x86_32-abi, absent
//! xen-front walk DEVID STATE…                with a good ring, through these states; each time the back end has to come to
//!                                            the state that belongs to it. `-`: no state
//! xen-front jump DEVID SEED COUNT            writes states in random order as fast as it can, then closes
//! xen-front flip DEVID SEED MILLISECONDS     its other keys change all the time while it goes through its states
//! ```
//! Seeds are printed; the end state is 1 each time, with tapback in 2, ready for the next.
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tests::rig::xen_front::Front;
use tests::rig::xen_keys::Keys;
use tests::rig::xen_load::load;
use tests::sim::rng::Rng;

type Outcome = Result<(), String>;

/// A disk of dom0 in xenstore.
struct Disk {
    keys: Keys,
    front: String,
    back: String,
}

/// Keys that a front end writes before state 3, and a front end that begins again takes away.
const RING_KEYS: [&str; 6] = [
    "ring-page-order",
    "ring-ref",
    "event-channel",
    "protocol",
    "multi-queue-num-queues",
    "feature-persistent",
];

impl Disk {
    fn open(devid: &str) -> Result<Disk, String> {
        let front = format!("/local/domain/0/device/vbd/{devid}");
        let back = format!("/local/domain/0/backend/vbd3/0/{devid}");
        let mut keys = Keys::open()?;
        if keys.read(&format!("{back}/frontend"))?.is_none() {
            return Err(format!("{back} is not there: plug the disk with xl block-attach 0"));
        }
        Ok(Disk { keys, front, back })
    }

    fn set(&mut self, key: &str, value: impl AsRef<[u8]>) -> Outcome {
        self.keys.write(&format!("{}/{key}", self.front), value)
    }

    fn enter(&mut self, state: u32) -> Outcome {
        self.set("state", state.to_string())
    }

    fn back_becomes(&mut self, state: u32) -> Outcome {
        self.keys.await_value(&format!("{}/state", self.back), &state.to_string())
    }

    fn begin(&mut self) -> Outcome {
        self.enter(1)?;
        self.back_becomes(2)
    }

    fn close(&mut self) -> Outcome {
        self.enter(6)?;
        self.back_becomes(6)?;
        let numbered = (0..8).map(|page| format!("ring-ref{page}"));
        for key in RING_KEYS.into_iter().map(str::to_owned).chain(numbered) {
            self.keys.remove(&format!("{}/{key}", self.front))?;
        }
        self.begin()
    }

    /// Writes where a ring is, as Linux's blkfront does.
    fn publish(&mut self, front: &Front, devid: u32, protocol: &str) -> Outcome {
        let message = front.message(devid);
        self.set("event-channel", message.port.to_string())?;
        let refs = &front.ring.refs;
        if let [only] = refs[..] {
            self.set("ring-ref", only.to_string())?;
        } else {
            self.set("ring-page-order", message.order.to_string())?;
            for (page, gref) in refs.iter().enumerate() {
                self.set(&format!("ring-ref{page}"), gref.to_string())?;
            }
        }
        match protocol {
            "absent" => self.keys.remove(&format!("{}/protocol", self.front)),
            name => self.set("protocol", name),
        }
    }
}

fn honest(devid: &str, order: u32, protocol: &str) -> Outcome {
    let mut disk = Disk::open(devid)?;
    disk.begin()?;
    // The original takes a ring without the key for one of x86_32.
    let number = if protocol == "x86_64-abi" { 3 } else { 2 };
    let mut front = Front::new(order, number).map_err(|e| e.to_string())?;
    let device = devid.parse().map_err(|e| format!("{devid}: {e}"))?;
    disk.publish(&front, device, protocol)?;
    disk.enter(3)?;
    disk.back_becomes(4)?;
    disk.enter(4)?;
    load(&mut front, order * 10 + number)?;
    disk.enter(5)?;
    disk.back_becomes(5)?;
    disk.close()?;
    println!("xen-front: a ring of {} pages, protocol {protocol}: well", 1 << order);
    Ok(())
}

/// The back end's answer to each state, wherever the front end comes from.
fn walk(devid: &str, states: &[&str]) -> Outcome {
    let mut disk = Disk::open(devid)?;
    let device = devid.parse().map_err(|e| format!("{devid}: {e}"))?;
    let front = Front::new(0, 3).map_err(|e| e.to_string())?;
    disk.publish(&front, device, "x86_64-abi")?;
    for (i, state) in states.iter().enumerate() {
        let answer = match *state {
            "-" => {
                disk.keys.remove(&format!("{}/state", disk.front))?;
                Some(6)
            }
            name => {
                disk.set("state", name)?;
                [("1", 2), ("3", 4), ("4", 4), ("5", 5), ("6", 6)]
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, b)| *b)
            }
        };
        // A state that is none changes nothing, so there is nothing to wait for.
        if let Some(answer) = answer {
            let after = |error| format!("after {}: {error}", states[..=i].join(" "));
            disk.back_becomes(answer).map_err(after)?;
        }
    }
    disk.close()?;
    println!("xen-front: {}: answered", states.join(" "));
    Ok(())
}

/// Every state that there is, and texts that are none; 3 and 4 more often, as they do most.
const STATES: [&[u8]; 20] = [
    b"1",
    b"3",
    b"4",
    b"3",
    b"4",
    b"1",
    b"6",
    b"5",
    b"0",
    b"2",
    b"7",
    b"8",
    b"99",
    b"",
    b"-1",
    b"four",
    b"4 ",
    b"18446744073709551619",
    b"\xff\xfe\n",
    b"03",
];

/// States in random order. The ring is a good one half of the time; the node goes away now and
/// then.
fn jump(devid: &str, seed: u64, count: u64) -> Outcome {
    println!("xen-front: jumps by seed {seed}");
    let mut rng = Rng::new(seed);
    let mut disk = Disk::open(devid)?;
    let device = devid.parse().map_err(|e| format!("{devid}: {e}"))?;
    let front = Front::new(0, 3).map_err(|e| e.to_string())?;
    for _ in 0..count {
        match rng.below(12) {
            0 => disk.publish(&front, device, "x86_64-abi")?,
            1 => disk.set("ring-ref", "4000000000")?,
            2 => disk.keys.remove(&format!("{}/state", disk.front))?,
            _ => disk.set("state", STATES[rng.below(STATES.len() as u64) as usize])?,
        }
        // The back end is let through to the end of a step now and then.
        if rng.one_in(8) {
            std::thread::sleep(Duration::from_millis(rng.below(20)));
        }
    }
    disk.close()
}

/// What nobody can connect to.
const NONSENSE: [&[u8]; 14] = [
    b"-1",
    b"99",
    b"x",
    b"",
    b"0",
    b"4294967295",
    b"4294967296",
    b"99999999999999999999",
    b"1\0",
    b"\xff\xfe\x80garbage\x01",
    b"0x10",
    b" 7",
    b"foo",
    b"8",
];

/// Values change between any two reads of the back end's.
fn flip(devid: &str, seed: u64, millis: u64) -> Outcome {
    println!("xen-front: flips by seed {seed}");
    let mut rng = Rng::new(seed);
    let mut disk = Disk::open(devid)?;
    let device = devid.parse().map_err(|e| format!("{devid}: {e}"))?;
    let front = Front::new(0, 3).map_err(|e| e.to_string())?;
    let end = Instant::now() + Duration::from_millis(millis);
    let mut rounds = 0;
    while Instant::now() < end {
        disk.begin()?;
        disk.publish(&front, device, "x86_64-abi")?;
        for write in 0..40 {
            let key = RING_KEYS[rng.below(RING_KEYS.len() as u64) as usize];
            match rng.below(4) {
                0 => disk.publish(&front, device, "x86_64-abi")?,
                1 => disk.keys.remove(&format!("{}/{key}", disk.front))?,
                _ => disk.set(key, NONSENSE[rng.below(NONSENSE.len() as u64) as usize])?,
            }
            if write == 10 {
                disk.enter(3)?;
            }
        }
        disk.close()?;
        rounds += 1;
    }
    println!("xen-front: {rounds} rounds of flips");
    Ok(())
}

fn run() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    match words[..] {
        ["use", devid] => honest(devid, 0, "x86_64-abi"),
        ["use", devid, order] => honest(devid, number(order)? as u32 & 3, "x86_64-abi"),
        ["use", devid, order, name] => honest(devid, number(order)? as u32 & 3, name),
        ["walk", devid, ref states @ ..] => walk(devid, states),
        ["jump", devid, seed, count] => jump(devid, number(seed)?, number(count)?),
        ["flip", devid, seed, millis] => flip(devid, number(seed)?, number(millis)?),
        _ => Err("usage: xen-front use|walk|jump|flip DEVID …".to_string()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xen-front: {why}");
            ExitCode::FAILURE
        }
    }
}
