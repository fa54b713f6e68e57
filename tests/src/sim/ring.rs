//! A disk served through guest rings: the blkif transport over the daemon's engine over a disk in memory.
//!
//! ```text
//!   RingGuest ─► rings in memory ─► Rings (the daemon's) ─► Watch ─► Engine (the daemon's) ─► SimDisk
//!        └─ Model: what each sector may hold                  └─ what is at work while a barrier is
//! ```
use std::path::Path;

use image::{Image, MemStorage, Span, blocking};
use tapdisk::engine::chain::{Chain, Layer};
use tapdisk::engine::limits::Limits;
use tapdisk::engine::{Engine, FileInfo, Policy};
use tapdisk::transport::blkif::{PollPolicy, RingName, RingWish, Rings};
use tapdisk::transport::{Request, SlotCounts, SlotId, Slots, Transport, Verb};
use vhd_rs::OpenOptions;
use vhd_rs::driver::Vhd;
use xen::fake::{DOMID, Fake};
use xen::{Layout, op};

use super::disk::{Faults, SimDisk, SimFile};
use super::model::{ANY, Model, ZERO, parse};
use super::ring_guest::RingGuest;
use super::rng::Rng;
use super::world::{Format, dynamic, first_image, uuid_of};

const SECTORS: u64 = 8 * 128 + 40;

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
    engine: Engine<SimDisk>,
    rings: Rings<Fake>,
    guest: RingGuest,
    flight: Flight,
    model: Model,
    formats: Vec<Format>,
    limits: Limits,
    faults: Faults,
    volatile: bool,
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
    world.verify("at the end", false)?;
    world.ran.barriers += world.flight.barriers;
    Ok(world.ran)
}

impl World {
    fn new(seed: u64, bug: Bug) -> Result<World, String> {
        let mut rng = Rng::new(seed ^ 0xb1f);
        let format = if rng.one_in(3) { Format::Raw } else { Format::Dynamic };
        let device = format == Format::Raw && rng.one_in(3);
        let faulty = rng.one_in(2);
        let faults = Faults {
            eio: if faulty { [0, 80][rng.below(2) as usize] } else { 0 },
            short: [0, 5][rng.below(2) as usize],
            again: if faulty { [0, 20][rng.below(2) as usize] } else { 0 },
            nospace: if faulty { [0, 3][rng.below(2) as usize] } else { 0 },
            no_zero: rng.one_in(4),
            slow_reads: rng.one_in(4),
            ..Faults::default()
        };
        let some = Limits { small: 6, large: 4, meta_blocks: 110, ..Limits::MINIMUM };
        let limits = if rng.one_in(2) { Limits::MINIMUM } else { some };
        let guest = RingGuest::new(1 << 32, if device { ANY } else { ZERO });
        let (bytes, initial) = first_image(format, SECTORS, device);
        let mut world = World {
            bug,
            engine: Engine::new(SimDisk::new(limits.arena_bytes(), vec![], 0, Rng::new(0)), limits),
            rings: Rings::new(guest.guest.back_end()),
            guest,
            flight: Flight::default(),
            model: Model::new(&vec![initial; SECTORS as usize]),
            formats: vec![format],
            limits,
            faults,
            volatile: rng.one_in(2),
            hot: rng.one_in(2),
            queues: 1 + rng.below(4) as u32,
            now: 1,
            ran: Ran::default(),
            rng,
        };
        world.open(vec![SimFile::new(bytes, device)])?;
        world.connect()?;
        Ok(world)
    }

    fn open(&mut self, files: Vec<SimFile>) -> Result<(), String> {
        let layers = images(&files, &self.formats)?.into_iter().map(Layer::new).collect();
        let info = |f: &SimFile| FileInfo { bytes: f.bytes.len() as u64, device: f.device };
        let infos: Vec<FileInfo> = files.iter().map(info).collect();
        let (arena, depth) = (self.limits.arena_bytes(), self.limits.ops() as usize);
        let mut disk = SimDisk::new(arena, files, depth, Rng::new(self.rng.next()));
        (disk.faults, disk.volatile) = (self.faults, self.volatile);
        self.engine = Engine::new(disk, self.limits);
        let policy = Policy { barriers: self.volatile, timeout_s: 600, ..Policy::default() };
        self.engine.attach(Chain::new(layers), &infos, policy);
        self.engine.set_room(true);
        Ok(())
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
            let wish = RingWish::new(name, (order, &refs), port, 3, PollPolicy::default());
            let connected = wish.and_then(|wish| self.rings.connect(&wish));
            connected.map_err(|e| e.to_string())?;
            self.guest.rings.push(ring);
        }
        Ok(())
    }

    // ---- living ----------------------------------------------------------------------------------------

    fn live(&mut self, requests: u32) -> Result<(), String> {
        let spot = self.hot.then(|| self.rng.below(SECTORS - 300));
        let mut left = requests;
        while left > 0 {
            if self.rng.one_in(2) && self.guest.has_room() {
                self.guest.ask(&mut self.rng, &mut self.model, SECTORS, spot);
                left -= 1;
            } else {
                self.engine.disk().complete_one();
            }
            let queue = self.rng.below(u64::from(self.queues)) as usize;
            if self.rng.one_in(2) {
                self.guest.show(queue);
            }
            self.turn()?;
            self.engine.set_room(true);
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
            let World { rings, engine, flight, guest, bug, .. } = self;
            rings.take(&mut Watch { engine, flight, guest, bug: *bug });
            while self.engine.step(self.now) {}
            while let Some((slot, request, outcome)) = self.engine.pop_done() {
                self.flight.over(slot, outcome.is_ok());
                self.rings.complete(&mut self.engine, slot, &request, outcome);
            }
            self.rings.kick(&mut self.engine);
            if let Some(wrong) = self.flight.wrong.take() {
                return Err(wrong);
            }
            if !self.rings.pending(&self.engine) {
                return self.hear();
            }
        }
        Err("the rings never come to rest".into())
    }

    fn hear(&mut self) -> Result<(), String> {
        let Faults { eio, nospace, no_zero, .. } = self.faults;
        let excused = |operation| eio + nospace > 0 || (operation == op::DISCARD && no_zero);
        let ended = self.guest.hear(&mut self.model, excused)?;
        (0..2).for_each(|i| self.ran.ended[i] += ended[i]);
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        (0..self.queues as usize).for_each(|queue| self.guest.show(queue));
        for _ in 0..20_000 {
            if self.guest.asked.is_empty() && self.engine.idle() {
                return Ok(());
            }
            self.engine.disk().complete_one();
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
        while !(self.rings.idle() && self.engine.idle()) {
            self.guest.ask(&mut self.rng, &mut self.model, SECTORS, None);
            (0..self.queues as usize).for_each(|queue| self.guest.show(queue));
            self.engine.disk().complete_one();
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
        let mut chain = self.engine.detach().expect("a chain was attached");
        let mut files = std::mem::take(&mut self.engine.disk().files);
        let storage = MemStorage::new(std::mem::take(&mut files[0].bytes), files[0].device);
        let closing = chain.layers[0].image.closing();
        closing.apply(&storage).map_err(|e| format!("closing: {e}"))?;
        // A close ends with a flush.
        files[0] = SimFile::new(storage.into_inner(), files[0].device);
        let now = self.model.tick();
        self.model.flush(now);
        if self.formats.len() < 4 && self.rng.one_in(2) {
            let parent = (self.formats[0] != Format::Raw).then(|| uuid_of(&files[0].bytes));
            let bytes = dynamic(SECTORS, Some(parent), false, self.guest.value());
            files.insert(0, SimFile::new(bytes, false));
            self.formats.insert(0, Format::Dynamic);
        }
        self.open(files)?;
        self.flight.paused = false;
        self.rings.resume();
        Ok(())
    }

    /// The front end goes, with requests at work, and comes back. What was not answered may land at any time.
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
        let disk = SimDisk::new(self.limits.arena_bytes(), vec![], 0, Rng::new(0));
        let engine = std::mem::replace(&mut self.engine, Engine::new(disk, self.limits));
        let (files, _) = engine.into_disk().power_cut();
        self.open(files)?;
        let values = self.verify("after a power cut", true)?;
        self.model = Model::new(&values);
        self.guest = RingGuest::new(self.guest.value(), self.guest.discarded);
        self.rings = Rings::new(self.guest.guest.back_end());
        self.flight = Flight::default();
        self.connect()
    }

    /// Reads the whole disk with the blocking executor, which shares no engine with the daemon.
    fn verify(&mut self, when: &str, cut: bool) -> Result<Vec<u64>, String> {
        let files = &self.engine.disk_ref().files;
        let images = images(files, &self.formats)?;
        let store = |f: &SimFile| MemStorage::new(f.bytes.clone(), f.device);
        let stores: Vec<MemStorage> = files.iter().map(store).collect();
        let both = images.iter().zip(&stores);
        let layers: Vec<_> =
            both.map(|(image, storage)| blocking::Layer { image: &**image, storage }).collect();
        let mut buf = vec![0; SECTORS as usize * 512];
        let span = Span { start: 0, count: SECTORS as u32 };
        blocking::read_with(&layers, span, &mut buf, |_, _, _| {})
            .map_err(|e| format!("{when}: {e}"))?;
        let values: Vec<u64> =
            (0..SECTORS).map(|s| parse(&buf[s as usize * 512..][..512], s)).collect();
        for (s, value) in (0..).zip(&values) {
            if !self.model.may_survive(s, *value, cut && self.volatile) {
                let why = self.model.explain(s);
                return Err(format!("{when} sector {s} holds {value:#x}, allowed {why}"));
            }
        }
        Ok(values)
    }
}

fn images(files: &[SimFile], formats: &[Format]) -> Result<Vec<Box<dyn Image>>, String> {
    let open = |(i, (file, format)): (usize, (&SimFile, &Format))| -> Result<Box<dyn Image>, _> {
        if *format == Format::Raw {
            return Ok(Box::new(raw::Raw::new(SECTORS, file.device)));
        }
        let storage = MemStorage::new(file.bytes.clone(), file.device);
        let options = OpenOptions { read_only: i > 0, for_io: true, ..OpenOptions::default() };
        let opened = vhd_rs::open(&storage, Path::new("sim.vhd"), &options);
        opened.map(|vhd| Box::new(Vhd::new(vhd)) as _).map_err(|e| format!("layer {i}: {e}"))
    };
    files.iter().zip(formats).enumerate().map(open).collect()
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
