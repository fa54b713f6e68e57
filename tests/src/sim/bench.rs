//! A disk of which each operation completes when a test says so: for orders that chance finds
//! rarely.
//!
//! The images are differencing or dynamic VHDs with blocks of 64 KiB; the values of sectors are
//! those of the
//! model.
use engine::chain::{Chain, Layer, Role};
use engine::limits::Limits;
use engine::{Engine, Policy};
use image::Purpose;
use image::Span;
use request::disk::FileInfo;
use request::disk::Op;
use request::{Outcome, Owner, Request, SlotId, Slots, Verb};
use vhd_rs::OpenOptions;
use vhd_rs::driver::Vhd;

use super::disk::{SimDisk, SimFile};
use super::model::{fill, parse};
use super::rng::Rng;
use super::world::{dynamic, uuid_of};

/// Sectors of a block.
pub const BLOCK: u64 = 128;

/// The disk.
pub struct Bench {
    /// The daemon's.
    pub engine: Engine<SimDisk>,
    done: Vec<(SlotId, Outcome)>,
}

/// An empty image of this many sectors.
pub fn empty(sectors: u64, device: bool) -> SimFile {
    SimFile::new(dynamic(sectors, None, device, 0), device)
}

/// An empty child of an image.
pub fn child(parent: &SimFile, sectors: u64) -> SimFile {
    let uuid = uuid_of(&parent.bytes);
    SimFile::new(dynamic(sectors, Some(Some(uuid)), false, 2), false)
}

impl Bench {
    /// Over images, leaf first, on a volatile cache. The last one may be a second image, which is
    /// read.
    pub fn new(files: Vec<SimFile>, second: Option<Purpose>) -> Bench {
        let limits = Limits { small: 4, large: 4, meta_blocks: 64, stables: 4, ..Limits::MINIMUM };
        let last = files.len() - 1;
        let layers = files.iter().enumerate().map(|(i, file)| {
            let read_only = i > 0 && !(second.is_some() && i == last);
            let options = OpenOptions { read_only, for_io: true, ..OpenOptions::default() };
            let opened = vhd_rs::open(&file, "bench.vhd".as_ref(), &options);
            let role = match second {
                _ if i == 0 => Role::Top { keeps: false },
                Some(Purpose::Mirror) if i == last => Role::Mirror { read: true, remote: false },
                Some(Purpose::Standby) if i == last => Role::Standby,
                _ => Role::Parent,
            };
            Layer::new(role, Box::new(Vhd::new(opened.expect("an image"))))
        });
        let chain = Chain::new(layers.collect()).expect("they fit");
        let infos: Vec<FileInfo> = files.iter().map(SimFile::info).collect();
        let depth = limits.ops() as usize;
        let mut disk = SimDisk::new(limits.arena_bytes(), files, depth, Rng::new(1));
        disk.volatile = true;
        let mut engine = Engine::new(disk, limits);
        engine.attach(chain, &infos, Policy::default());
        Bench { engine, done: Vec::new() }
    }

    /// Begins a request; a write writes `value`.
    pub fn start(&mut self, verb: Verb, start: u64, count: u64, value: u64) -> SlotId {
        let slot = self.engine.reserve(65536).expect("a slot");
        let span = Span { start, count: count as u32 };
        if let Verb::Write { .. } = verb {
            let bytes = self.engine.buffer_mut(slot).chunks_exact_mut(512);
            (span.start..span.end()).zip(bytes).for_each(|(s, bytes)| fill(bytes, s, value));
        }
        self.engine.start(slot, Request { verb, span, owner: Owner::default() });
        slot
    }

    /// Lets the engine go as far as it can without the disk.
    pub fn turn(&mut self) {
        while self.engine.step(1) {}
        while let Some((slot, _, outcome)) = self.engine.pop_done() {
            self.done.push((slot, outcome));
        }
    }

    /// Completes the oldest operation of this kind, and goes on.
    ///
    /// # Panics
    /// There is none.
    pub fn land(&mut self, what: &str, which: impl Fn(&Op) -> bool) {
        self.turn();
        assert!(self.engine.disk().complete_first(which), "{what} is queued");
        self.turn();
    }

    /// The same, which lands and fails all the same.
    ///
    /// # Panics
    /// There is none.
    pub fn fail(&mut self, what: &str, errno: i32, which: impl Fn(&Op) -> bool) {
        self.turn();
        assert!(self.engine.disk().fail_first(which, errno), "{what} is queued");
        self.turn();
    }

    /// Completes everything.
    ///
    /// # Panics
    /// It never ends.
    pub fn drain(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if !self.engine.disk().complete_first(|_| true) {
                assert!(self.engine.idle(), "nothing waits for ever");
                return;
            }
        }
        panic!("the requests never end");
    }

    /// Takes the answer to a request, if there is one.
    pub fn answer(&mut self, slot: SlotId) -> Option<Outcome> {
        let at = self.done.iter().position(|(done, _)| *done == slot)?;
        self.engine.release(slot);
        Some(self.done.swap_remove(at).1)
    }

    /// Does a request to its end.
    ///
    /// # Panics
    /// It fails.
    pub fn run(&mut self, verb: Verb, start: u64, count: u64, value: u64) {
        let slot = self.start(verb, start, count, value);
        self.drain();
        assert!(matches!(self.answer(slot), Some(Ok(_))), "{verb:?} of {start}+{count}");
    }

    /// The value of a sector, as a guest reads it.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn value(&mut self, sector: u64) -> u64 {
        let slot = self.start(Verb::Read, sector, 1, 0);
        self.drain();
        let at = self.done.iter().position(|(done, _)| *done == slot).expect("an answer");
        assert!(self.done.swap_remove(at).1.is_ok(), "sector {sector} is read");
        let value = parse(&self.engine.buffer(slot)[..512], sector);
        self.engine.release(slot);
        value
    }

    /// A BAT entry, as the file has it.
    ///
    /// # Panics
    /// The file is no such image.
    pub fn entry(&self, file: usize, block: usize) -> u32 {
        let bytes = &self.engine.disk_ref().files[file].bytes[1536 + block * 4..][..4];
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The files after a power cut that loses all that was not flushed, but for what `kept` keeps.
    pub fn cut(self, kept: impl Fn(usize) -> bool) -> Vec<SimFile> {
        self.engine.into_disk().power_cut_with(kept)
    }
}
