//! The disk below a frontend that is simulated: the daemon's engine over a disk in memory, the
//! images on it, and what each sector may hold.
use std::path::Path;

use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use image::{Image, Span, blocking};
use request::disk::FileInfo;
use vhd_rs::OpenOptions;
use vhd_rs::driver::Vhd;

use super::disk::{Faults, SimDisk, SimFile};
use super::model::{ANY, Model, ZERO, parse};
use super::rng::Rng;
use super::world::{Format, dynamic, first_image, uuid_of};

/// Size of the disk.
pub const SECTORS: u64 = 8 * 128 + 40;

/// The disk.
pub struct Below {
    /// The daemon's.
    pub engine: Engine<SimDisk>,
    /// What each sector may hold.
    pub model: Model,
    /// What happens to operations.
    pub faults: Faults,
    /// What a discarded sector may hold.
    pub discarded: u64,
    formats: Vec<Format>,
    limits: Limits,
    volatile: bool,
}

impl Below {
    /// A disk by chance, with one of these limits.
    ///
    /// # Errors
    /// Its image does not open.
    pub fn new(rng: &mut Rng, limits: [Limits; 2]) -> Result<Below, String> {
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
        let limits = limits[usize::from(!rng.one_in(2))];
        let (bytes, initial) = first_image(format, SECTORS, device);
        let mut below = Below {
            engine: Engine::new(SimDisk::new(limits.arena_bytes(), vec![], 0, Rng::new(0)), limits),
            model: Model::new(&vec![initial; SECTORS as usize]),
            faults,
            discarded: if device { ANY } else { ZERO },
            formats: vec![format],
            limits,
            volatile: rng.one_in(2),
        };
        below.open(rng, vec![SimFile::new(bytes, device)])?;
        Ok(below)
    }

    /// Opens files, each an image, leaf first.
    fn open(&mut self, rng: &mut Rng, mut files: Vec<SimFile>) -> Result<(), String> {
        take_marks_off(&mut files[0], self.formats[0])?;
        let layers = images(&files, &self.formats)?;
        let infos: Vec<FileInfo> = files.iter().map(SimFile::info).collect();
        let (arena, depth) = (self.limits.arena_bytes(), self.limits.ops() as usize);
        let mut disk = SimDisk::new(arena, files, depth, Rng::new(rng.next()));
        (disk.faults, disk.volatile) = (self.faults, self.volatile);
        self.engine = Engine::new(disk, self.limits);
        let policy = Policy { barriers: self.volatile, timeout_s: 600, ..Policy::default() };
        self.engine.attach(Chain::of(layers), &infos, policy);
        self.engine.set_room(true);
        Ok(())
    }

    /// What a pause does: closes the images, and opens them again, perhaps under a new leaf, whose
    /// name is `value`.
    ///
    /// # Errors
    /// They do not close or open.
    pub fn snapshot(&mut self, rng: &mut Rng, value: u64) -> Result<(), String> {
        let mut chain = self.engine.detach().expect("a chain was attached");
        let mut files = std::mem::take(&mut self.engine.disk().files);
        let closing = chain.layers[0].image.closing();
        // A close ends with a flush, whether it writes anything or not.
        files[0].settle();
        closing.apply(&files[0].in_hand()).map_err(|e| format!("closing: {e}"))?;
        let now = self.model.tick();
        self.model.flush(now);
        if self.formats.len() < 4 && rng.one_in(2) {
            let parent = (self.formats[0] != Format::Raw).then(|| uuid_of(&files[0].bytes));
            let bytes = dynamic(SECTORS, Some(parent), false, value);
            files.insert(0, SimFile::new(bytes, false));
            self.formats.insert(0, Format::Dynamic);
        }
        self.open(rng, files)
    }

    /// The power goes: what is there must be allowed, and is what the next life begins with.
    ///
    /// # Errors
    /// A sector holds what no order of the requests allows.
    pub fn power_cut(&mut self, rng: &mut Rng) -> Result<(), String> {
        let disk = SimDisk::new(self.limits.arena_bytes(), vec![], 0, Rng::new(0));
        let engine = std::mem::replace(&mut self.engine, Engine::new(disk, self.limits));
        let (files, _) = engine.into_disk().power_cut();
        self.open(rng, files)?;
        let values = self.verify("after a power cut", true)?;
        self.model.restart(&values);
        Ok(())
    }

    /// Reads the whole disk with the blocking executor, which shares no engine with the daemon.
    ///
    /// # Errors
    /// A sector holds what no order of the requests allows.
    pub fn verify(&self, when: &str, cut: bool) -> Result<Vec<u64>, String> {
        let files = &self.engine.disk_ref().files;
        let images = images(files, &self.formats)?;
        let stores: Vec<&SimFile> = files.iter().collect();
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

/// What the daemon does before it writes an image (docs/footers.md, "The batmap").
fn take_marks_off(leaf: &mut SimFile, format: Format) -> Result<(), String> {
    if format == Format::Raw {
        return Ok(());
    }
    let (name, options) = (Path::new("sim.vhd"), OpenOptions::default());
    let mut opened = vhd_rs::open(&&*leaf, name, &options).map_err(|e| e.to_string())?;
    vhd_rs::heal::take_marks_off(&leaf.in_hand(), name, &mut opened).map_err(|e| e.to_string())
}

fn images(files: &[SimFile], formats: &[Format]) -> Result<Vec<Box<dyn Image>>, String> {
    let open = |(i, (file, format)): (usize, (&SimFile, &Format))| -> Result<Box<dyn Image>, _> {
        if *format == Format::Raw {
            return Ok(Box::new(raw::Raw::new(SECTORS, file.device)));
        }
        let options = OpenOptions { read_only: i > 0, for_io: true, ..OpenOptions::default() };
        let opened = vhd_rs::open(&file, Path::new("sim.vhd"), &options);
        opened.map(|vhd| Box::new(Vhd::new(vhd)) as _).map_err(|e| format!("layer {i}: {e}"))
    };
    files.iter().zip(formats).enumerate().map(open).collect()
}
