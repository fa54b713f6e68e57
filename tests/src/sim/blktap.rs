//! A disk served through the ring of the blktap module: the frontend over the daemon's engine over
//! a disk in memory, a kernel in memory above.
//!
//! ```text
//!   World (the kernel) ─► ring page ─► Tap (the daemon's) ─► Engine (the daemon's) ─► SimDisk
//!        └─ Model: what each sector may hold
//! ```
use std::collections::BTreeMap;

use engine::limits::Limits;
use frontend::Frontend;
use frontend::blktap::abi::{op, request_flag, status};
use frontend::blktap::fake::{Answer, FakeSide, Kernel};
use frontend::blktap::{OWN_SLOTS, Tap};

use super::below::{Below, SECTORS};
use super::disk::Faults;
use super::model::{Ended, Model, ZERO, fill, parse};
use super::rng::Rng;

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// A flush is a read to the frontend.
    FlushDoesNothing,
    /// A write that must be on the disk when it is answered is like any other.
    FuaIsForgotten,
}

/// What a seed has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Requests that ended well and badly.
    pub ended: [u64; 2],
    /// Pauses, and tapdisks that died.
    pub pauses: u64,
    /// See above.
    pub deaths: u64,
    /// Programs that went on where another one stopped.
    pub upgrades: u64,
}

/// A request that is not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    operation: u8,
    sector: u64,
    count: u64,
    start: u64,
    fua: bool,
}

struct World {
    bug: Bug,
    rng: Rng,
    below: Below,
    tap: Tap<FakeSide>,
    kernel: Kernel,
    asked: BTreeMap<u8, Asked>,
    value: u64,
    now: u64,
    ran: Ran,
}

/// Runs a seed: lives with power cuts between.
///
/// # Errors
/// A sentence about the first broken promise.
pub fn run(seed: u64, bug: Bug) -> Result<Ran, String> {
    let mut world = World::new(seed, bug)?;
    for _ in 0..4 {
        world.live(120)?;
        world.below.power_cut(&mut world.rng)?;
        world.attach();
    }
    world.live(120)?;
    world.drain()?;
    world.below.verify("at the end", false)?;
    Ok(world.ran)
}

impl World {
    fn new(seed: u64, bug: Bug) -> Result<World, String> {
        let mut rng = Rng::new(seed ^ 0xb2);
        let large = Limits::MINIMUM.large + OWN_SLOTS;
        let least = Limits { large, meta_blocks: 40, ..Limits::MINIMUM };
        let some = Limits { small: 6, large: 4 + OWN_SLOTS, meta_blocks: 110, ..Limits::MINIMUM };
        let below = Below::new(&mut rng, [least, some])?;
        let kernel = Kernel::default();
        let tap = Tap::new(kernel.side());
        let asked = BTreeMap::new();
        let (value, now, ran) = (1 << 32, 1, Ran::default());
        let mut world = World { bug, rng, below, tap, kernel, asked, value, now, ran };
        world.attach();
        Ok(world)
    }

    /// A new ring, as after ATTACH and OPEN.
    fn attach(&mut self) {
        self.kernel = Kernel::default();
        self.tap = Tap::new(self.kernel.side());
        assert!(self.tap.start(&mut self.below.engine), "slots");
        self.tap.set_events(self.rng.one_in(2));
        self.asked.clear();
    }

    fn live(&mut self, requests: u32) -> Result<(), String> {
        let spot = self.rng.one_in(2).then(|| self.rng.below(SECTORS - 300));
        let mut left = requests;
        while left > 0 {
            if self.rng.one_in(2) && self.kernel.has_room() && self.kernel.free_id().is_some() {
                self.ask(spot);
                left -= 1;
            } else {
                self.below.engine.disk().complete_one();
            }
            if self.rng.one_in(2) {
                self.kernel.show();
            }
            self.turn()?;
            self.below.engine.set_room(true);
            match self.rng.below(300) {
                0 | 1 => self.pause()?,
                2 => self.die()?,
                3 | 4 => self.upgrade()?,
                _ => {}
            }
        }
        Ok(())
    }

    fn ask(&mut self, spot: Option<u64>) {
        self.value += 1;
        let operation = match self.rng.below(20) {
            0..=9 => op::WRITE,
            10..=14 => op::READ,
            15 => op::TRIM,
            16 | 17 => op::WRITE_ZEROES,
            _ => op::FLUSH,
        };
        let count = match operation {
            op::FLUSH => 0,
            op::TRIM | op::WRITE_ZEROES => 1 + self.rng.below(200),
            _ => 1 + self.rng.below(88),
        };
        let near = spot.filter(|spot| spot + 16 + count <= SECTORS && !self.rng.one_in(4));
        let (first, end) = near.map_or((0, SECTORS - count + 1), |spot| (spot, spot + 16));
        let sector = if count == 0 { 0 } else { first + self.rng.below(end - first) };
        let fua = operation == op::WRITE && self.rng.one_in(4);
        let flags = match (fua && self.bug != Bug::FuaIsForgotten, operation) {
            (true, _) => request_flag::FUA,
            (false, op::WRITE_ZEROES) => request_flag::NOUNMAP * self.rng.below(2) as u16,
            (false, _) => 0,
        };
        let mut start = self.below.model.tick();
        let becomes = match operation {
            op::WRITE => Some(self.value),
            op::TRIM => Some(self.below.discarded),
            op::WRITE_ZEROES => Some(ZERO),
            _ => None,
        };
        if let Some(value) = becomes {
            self.below.model.begin(sector..sector + count, value);
            start = self.below.model.time;
        }
        let id = match (operation, self.bug) {
            (op::FLUSH, Bug::FlushDoesNothing) => self.kernel.ask(op::READ, 0, 0, 1),
            _ => self.kernel.ask(operation, flags, sector, count as u32),
        };
        let value = self.value;
        self.kernel.data(id, |data| {
            data.fill(0xcc);
            if operation == op::WRITE {
                for (s, bytes) in (sector..sector + count).zip(data.chunks_exact_mut(512)) {
                    fill(bytes, s, value);
                }
            }
        });
        self.asked.insert(id, Asked { operation, sector, count, start, fua });
    }

    /// What the server does until it would sleep.
    fn turn(&mut self) -> Result<(), String> {
        self.now += 1 + self.rng.below(200_000);
        for _ in 0..10_000 {
            let engine = &mut self.below.engine;
            self.tap.take(engine);
            while engine.step(self.now) {}
            while let Some((slot, request, outcome)) = engine.pop_done() {
                self.tap.complete(engine, slot, &request, outcome);
            }
            self.tap.kick(engine);
            if !self.tap.pending(engine) {
                return self.hear();
            }
        }
        Err("the ring never comes to rest".into())
    }

    fn hear(&mut self) -> Result<(), String> {
        while let Some(answer) = self.kernel.answer() {
            let asked = self.asked.remove(&answer.id).ok_or("an answer nobody asked for")?;
            self.ran.ended[usize::from(answer.status != status::OKAY)] += 1;
            self.check(answer, asked)?;
        }
        if let Some(notice) = self.tap.take_notice() {
            return Err(format!("{notice}"));
        }
        Ok(())
    }

    fn check(&mut self, answer: Answer, asked: Asked) -> Result<(), String> {
        let Faults { eio, nospace, no_zero, .. } = self.below.faults;
        let ok = answer.status == status::OKAY;
        let excused = eio + nospace > 0 || (no_zero && asked.operation == op::TRIM);
        if !ok && !excused {
            return Err(format!("failed without a fault: {answer:?} to {asked:?}"));
        }
        let model = &mut self.below.model;
        let range = asked.sector..asked.sector + asked.count;
        match asked.operation {
            op::READ if ok => return check_read(&self.kernel, model, answer.id, &asked),
            op::FLUSH if ok => model.flush(asked.start),
            op::READ | op::FLUSH => {}
            op::TRIM => model.end(range, asked.start, Ended::Advice),
            _ if !ok => model.end(range, asked.start, Ended::Failed),
            _ if asked.fua => model.end(range, asked.start, Ended::Durable),
            _ => model.end(range, asked.start, Ended::Done),
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        self.kernel.show();
        for _ in 0..20_000 {
            if self.asked.is_empty() && self.below.engine.idle() {
                return Ok(());
            }
            self.below.engine.disk().complete_one();
            self.turn()?;
        }
        Err(format!("requests are stuck: {:?}", self.asked))
    }

    /// Waits for what is in the engine.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..20_000 {
            if self.tap.idle() && self.below.engine.idle() {
                return Ok(());
            }
            self.below.engine.disk().complete_one();
            self.turn()?;
        }
        Err("a pause never ends".into())
    }

    /// Suspended with requests at work and others arriving, until nothing is; a new leaf or the
    /// same one.
    fn rest(&mut self) -> Result<(), String> {
        self.tap.suspend();
        if self.kernel.has_room() && self.kernel.free_id().is_some() {
            self.ask(None);
        }
        self.kernel.show();
        self.settle()?;
        self.tap.stop(&mut self.below.engine);
        self.below.snapshot(&mut self.rng, self.value)
    }

    /// Pause, and unpause.
    fn pause(&mut self) -> Result<(), String> {
        self.ran.pauses += 1;
        self.rest()?;
        // The simulator makes a new engine, as an OPEN does; a pause of the daemon keeps it.
        assert!(self.tap.start(&mut self.below.engine), "slots");
        Ok(())
    }

    /// Another program goes on with the ring, as after KEEP and an exec.
    fn upgrade(&mut self) -> Result<(), String> {
        self.ran.upgrades += 1;
        let events = self.tap.has_events();
        self.rest()?;
        self.tap = Tap::adopt(self.kernel.side(), events);
        assert!(self.tap.start(&mut self.below.engine), "slots");
        Ok(())
    }

    /// The ring goes with requests at work: what was not answered may have landed or not, at any
    /// time.
    fn die(&mut self) -> Result<(), String> {
        self.ran.deaths += 1;
        self.tap.take_side();
        self.settle()?;
        self.tap.stop(&mut self.below.engine);
        self.attach();
        Ok(())
    }
}

fn check_read(kernel: &Kernel, model: &Model, id: u8, asked: &Asked) -> Result<(), String> {
    let values: Vec<u64> = kernel.data(id, |data| {
        let sectors = (asked.sector..asked.sector + asked.count).zip(data.chunks_exact(512));
        sectors.map(|(s, bytes)| parse(bytes, s)).collect()
    });
    for (s, value) in (asked.sector..).zip(values) {
        if !model.may_read(s, asked.start, value) {
            let why = model.explain(s);
            return Err(format!(
                "read {value:#x} from sector {s} at {}, allowed {why}",
                asked.start
            ));
        }
    }
    Ok(())
}
