//! A disk served through guest rings: the blkif frontend over the daemon's engine over a disk in
//! memory.
//!
//! ```text
//!   RingGuest ─► rings in memory ─► Rings (the daemon's) ─► Watch ─► Engine (the daemon's) ─► SimDisk
//!        └─ Model: what each sector may hold                  └─ what is at work while a barrier is
//! ```
use engine::Engine;
use engine::limits::Limits;
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingName, RingParams, Rings};
use image::Span;
use request::{Request, SlotCounts, SlotId, Slots, Verb};
use xen::fake::{DOMID, Fake};
use xen::{Layout, op};

use super::below::{Below, SECTORS};
use super::disk::{Faults, SimDisk};
use super::model::parse;
use super::ring_guest::RingGuest;
use super::rng::Rng;

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// A flush is answered without one.
    FlushDoesNothing,
    /// Queues are taken for devices of their own, so that a barrier does not drain the others.
    BarrierOfOneQueue,
    /// A read is answered with what was there before.
    StaleRead,
}

/// What a seed has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Requests that ended well and badly.
    pub ended: [u64; 2],
    /// Pauses, and rings that were disconnected at work.
    pub pauses: u64,
    /// See above.
    pub reconnects: u64,
    /// Pieces of barriers.
    pub barriers: u64,
}

/// What is in the engine.
#[derive(Debug, Default)]
struct Flight {
    at_work: Vec<(SlotId, bool)>,
    paused: bool,
    barriers: u64,
    wrong: Option<String>,
}

/// The engine, as rings see it.
struct Watch<'a> {
    engine: &'a mut Engine<SimDisk>,
    flight: &'a mut Flight,
    guest: &'a RingGuest,
    bug: Bug,
}

struct World {
    bug: Bug,
    rng: Rng,
    below: Below,
    rings: Rings<Fake>,
    guest: RingGuest,
    flight: Flight,
    hot: bool,
    queues: u32,
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
        world.power_cut()?;
    }
    world.live(120)?;
    world.drain()?;
    world.below.verify("at the end", false)?;
    world.ran.barriers += world.flight.barriers;
    Ok(world.ran)
}

impl World {
    fn new(seed: u64, bug: Bug) -> Result<World, String> {
        let mut rng = Rng::new(seed ^ 0xb1f);
        let some = Limits { small: 6, large: 4, meta_blocks: 110, ..Limits::MINIMUM };
        let below = Below::new(&mut rng, [Limits::MINIMUM, some])?;
        let guest = RingGuest::new(1 << 32, below.discarded);
        let mut world = World {
            bug,
            below,
            rings: Rings::new(guest.guest.back_end()),
            guest,
            flight: Flight::default(),
            hot: rng.one_in(2),
            queues: 1 + rng.below(4) as u32,
            now: 1,
            ran: Ran::default(),
            rng,
        };
        world.connect()?;
        Ok(world)
    }

    fn connect(&mut self) -> Result<(), String> {
        self.guest.rings.clear();
        for queue in 0..self.queues {
            let order = self.rng.below(2) as u32;
            let ring = self.guest.guest.ring(order, Layout::WIDE);
            let devid = if self.bug == Bug::BarrierOfOneQueue { queue } else { 0 };
            let mut refs = [0; 8];
            refs[..ring.refs().len()].copy_from_slice(ring.refs());
            let name = RingName { domid: DOMID, devid, queue };
            let port = ring.port();
            let params = RingParams::new(name, (order, &refs), port, 3, PollPolicy::default());
            let connected = params.and_then(|params| self.rings.connect(&params));
            connected.map_err(|e| e.to_string())?;
            self.guest.rings.push(ring);
        }
        Ok(())
    }

    // ---- living --------------------------------------------------------------------------------

    fn live(&mut self, requests: u32) -> Result<(), String> {
        let spot = self.hot.then(|| self.rng.below(SECTORS - 300));
        let mut left = requests;
        while left > 0 {
            if self.rng.one_in(2) && self.guest.has_room() {
                self.guest.ask(&mut self.rng, &mut self.below.model, SECTORS, spot);
                left -= 1;
            } else {
                self.below.engine.disk().complete_one();
            }
            let queue = self.rng.below(u64::from(self.queues)) as usize;
            if self.rng.one_in(2) {
                self.guest.show(queue);
            }
            self.turn()?;
            self.below.engine.set_room(true);
            match self.rng.below(300) {
                0 | 1 => self.pause()?,
                2 => self.reconnect()?,
                _ => {}
            }
        }
        Ok(())
    }

    /// What the server does until it would sleep.
    fn turn(&mut self) -> Result<(), String> {
        self.now += 1 + self.rng.below(200_000);
        if self.guest.guest.wakes_back_end() {
            self.rings.event();
        }
        self.rings.clock(self.now);
        for _ in 0..10_000 {
            let World { rings, below, flight, guest, bug, .. } = self;
            let engine = &mut below.engine;
            rings.take(&mut Watch { engine, flight, guest, bug: *bug });
            while self.below.engine.step(self.now) {}
            while let Some((slot, request, outcome)) = self.below.engine.pop_done() {
                self.flight.over(slot, outcome.is_ok());
                self.rings.complete(&mut self.below.engine, slot, &request, outcome);
            }
            self.rings.kick(&mut self.below.engine);
            if let Some(wrong) = self.flight.wrong.take() {
                return Err(wrong);
            }
            if !self.rings.pending(&self.below.engine) {
                return self.hear();
            }
        }
        Err("the rings never come to rest".into())
    }

    fn hear(&mut self) -> Result<(), String> {
        let Faults { eio, nospace, no_zero, .. } = self.below.faults;
        let excused = |operation| eio + nospace > 0 || (operation == op::DISCARD && no_zero);
        let ended = self.guest.hear(&mut self.below.model, excused)?;
        (0..2).for_each(|i| self.ran.ended[i] += ended[i]);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        (0..self.queues as usize).for_each(|queue| self.guest.show(queue));
        for _ in 0..20_000 {
            if self.guest.asked.is_empty() && self.below.engine.idle() {
                return Ok(());
            }
            self.below.engine.disk().complete_one();
            self.turn()?;
        }
        Err(format!("requests are stuck: {:?}", self.guest.asked))
    }

    /// Pause with requests at work and others arriving; a new leaf or the same one; unpause.
    fn pause(&mut self) -> Result<(), String> {
        self.ran.pauses += 1;
        self.rings.suspend();
        self.flight.paused = true;
        let mut rounds = 0;
        while !(self.rings.idle() && self.below.engine.idle()) {
            self.guest.ask(&mut self.rng, &mut self.below.model, SECTORS, None);
            (0..self.queues as usize).for_each(|queue| self.guest.show(queue));
            self.below.engine.disk().complete_one();
            self.turn()?;
            rounds += 1;
            if rounds > 20_000 {
                return Err("a pause never ends".into());
            }
        }
        for _ in 0..2 {
            self.guest.rings.iter().for_each(|ring| self.guest.guest.notify(ring.port()));
            self.rings.event();
        }
        self.guest.rings.iter().for_each(|ring| self.guest.guest.notify(ring.port()));
        if self.guest.guest.wakes_back_end() {
            return Err("a guest wakes a paused disk again and again".into());
        }
        self.below.snapshot(&mut self.rng, self.guest.value())?;
        self.flight.paused = false;
        self.rings.resume();
        Ok(())
    }

    /// The front end goes, with requests at work, and comes back. What was not answered may land at
    /// any time.
    fn reconnect(&mut self) -> Result<(), String> {
        self.ran.reconnects += 1;
        self.rings.disconnect_all();
        self.guest.asked.clear();
        self.guest.barriers.clear();
        self.flight.forgive();
        self.connect()
    }

    fn power_cut(&mut self) -> Result<(), String> {
        self.ran.barriers += self.flight.barriers;
        self.below.power_cut(&mut self.rng)?;
        self.guest = RingGuest::new(self.guest.value(), self.guest.discarded);
        self.rings = Rings::new(self.guest.guest.back_end());
        self.flight = Flight::default();
        self.connect()
    }
}

impl Flight {
    fn begin(&mut self, slot: SlotId, request: &Request, barrier: bool) {
        let other = self.at_work.iter().any(|(_, other)| !(barrier && *other));
        let meets = barrier || self.at_work.iter().any(|(_, other)| *other);
        if self.paused {
            self.wrong = Some(format!("{request:?} is begun while the disk is paused"));
        } else if other && meets {
            self.wrong = Some(format!("a barrier is not alone: {request:?}, {:?}", self.at_work));
        }
        self.barriers += u64::from(barrier);
        self.at_work.push((slot, barrier));
    }

    fn over(&mut self, slot: SlotId, ok: bool) {
        let at = self.at_work.iter().position(|(other, _)| *other == slot).expect("it was begun");
        let (_, barrier) = self.at_work.swap_remove(at);
        if barrier && !ok {
            // One that failed promises nothing.
            self.forgive();
        }
    }

    fn forgive(&mut self) {
        self.at_work.iter_mut().for_each(|(_, barrier)| *barrier = false);
    }
}

impl Slots for Watch<'_> {
    fn start(&mut self, slot: SlotId, mut request: Request) {
        let writes = matches!(request.verb, Verb::Write { .. });
        let first = |buf: &[u8]| parse(&buf[..512], request.span.start);
        let barrier = writes && self.guest.barriers.contains(&first(self.engine.buffer(slot)));
        self.flight.begin(slot, &request, barrier);
        match (self.bug, request.verb) {
            (Bug::FlushDoesNothing, Verb::Flush) => {
                (request.verb, request.span) = (Verb::Read, Span { start: 0, count: 1 });
            }
            (Bug::StaleRead, Verb::Read) => request.verb = Verb::Flush,
            _ => {}
        }
        self.engine.start(slot, request);
    }
    fn reserve(&mut self, bytes: u32) -> Option<SlotId> {
        self.engine.reserve(bytes)
    }
    fn slot_bytes_max(&self) -> u32 {
        self.engine.slot_bytes_max()
    }
    fn buffer(&self, slot: SlotId) -> &[u8] {
        self.engine.buffer(slot)
    }
    fn buffer_mut(&mut self, slot: SlotId) -> &mut [u8] {
        self.engine.buffer_mut(slot)
    }
    fn reuse(&mut self, slot: SlotId) {
        self.engine.reuse(slot);
    }
    fn release(&mut self, slot: SlotId) {
        self.engine.release(slot);
    }
    fn slots(&self) -> SlotCounts {
        self.engine.slots()
    }
    fn sectors(&self) -> u64 {
        self.engine.sectors()
    }
    fn sector_size(&self) -> u32 {
        self.engine.sector_size()
    }
    fn read_only(&self) -> bool {
        self.engine.read_only()
    }
}
