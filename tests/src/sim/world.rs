//! One simulated life of a disk: requests, faults, pauses with snapshots, power cuts.
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use disk::align::{Aligned, BOUNCE_BYTES, BOUNCES};
use engine::chain::{Chain, Layer};
use engine::limits::Limits;
use engine::{Bug, Engine, Policy};
use image::blocking;
use image::{Cipher, Image, Needs, Span, Storage};
use qcow2::Qcow2;
use request::disk::FileInfo;
use request::{Outcome, Owner, Request, SlotId, Slots, Verb};
use vhd_rs::batmap::BatmapHeader;
use vhd_rs::driver::Vhd;
use vhd_rs::{DiskType, Footer, Header, OpenOptions, Opened, heal};

use super::disk::{Faults, SimDisk, SimFile};
use super::model::{ANY, Ended, Model, ZERO, fill, parse};
use super::qcow2::{self as images, Verdict};
use super::rng::Rng;
use super::seeds::{Counts, each};
use super::stack::Stack;
use super::toy::{self, Seen, Toy, ToyBug};

mod beside;
mod zeros;

/// Wraps the leaf's driver; the canary plants its bugs here.
pub type Wrap = fn(Box<dyn Image>) -> Box<dyn Image>;

/// What a seed is run with.
#[derive(Clone, Copy)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// Requests between power cuts.
    pub requests: u32,
    /// Power cuts.
    pub cuts: u32,
    /// Wraps every leaf driver.
    pub wrap: Wrap,
    /// Overrides the disk's faults.
    pub lazy_flush: bool,
    /// Files of sectors of 4096 bytes: all that can be (true), none, or as the seed says.
    pub large_sectors: Option<bool>,
    /// Rewrites of parts of large sectors lock them (false: a planted bug).
    pub locks: bool,
    /// The local cache forgets which sectors were changed meanwhile (a planted bug).
    pub careless_cache: bool,
    /// Places in the leaf are remembered as if it did not change (a planted bug).
    pub remembers_too_much: bool,
    /// With what only the wide world has, that is: killed daemons, several BAT sectors, no
    /// barriers.
    pub wide: bool,
    /// Overrides the chance of EIO: one operation in so many.
    pub eio: Option<u64>,
    /// Blocks come and go, whatever the seed says.
    pub churn: bool,
    /// An empty VHD in a file, or (true) on a device, over a volatile cache whose order is
    /// nobody's, with many short lives: where the order of writes counts most.
    pub unordered: Option<bool>,
    /// A planted bug of the engine.
    pub bug: Bug,
    /// A new block does not wait for others on its block (a planted bug).
    pub appears_beside_others: bool,
    /// Marks of full blocks stay on the disk while an image is written (a planted bug).
    pub marks_stay: bool,
    /// Most images are of the toy format, whose driver has this bug.
    pub toy: Option<ToyBug>,
    /// Most images are of qcow2, whose driver has this bug.
    pub qcow2: Option<qcow2::Bug>,
    /// The leaf is committed to its parent now and then, while it is used.
    pub commits: bool,
    /// Blocks of leaves that are committed become zeros, and soon power goes; nothing else.
    pub zeros: bool,
}

impl Setup {
    /// The normal run of a seed.
    pub fn new(seed: u64) -> Setup {
        Setup {
            seed,
            requests: 400,
            cuts: 3,
            wrap: |image| image,
            lazy_flush: false,
            large_sectors: None,
            locks: true,
            careless_cache: false,
            remembers_too_much: false,
            wide: false,
            eio: None,
            churn: false,
            unordered: None,
            bug: Bug::None,
            appears_beside_others: false,
            marks_stay: false,
            toy: None,
            qcow2: None,
            commits: false,
            zeros: false,
        }
    }

    /// The format of tables that most images are of.
    fn tabled(&self) -> Option<Format> {
        let toy = self.toy.map(|_| Format::Toy);
        toy.or(self.qcow2.map(|_| Format::Qcow2))
    }

    /// The run of a seed in the world of the toy format.
    pub fn toy(seed: u64) -> Setup {
        Setup { toy: Some(ToyBug::None), ..Setup::wide(seed) }
    }

    /// The run of a seed in the world of qcow2.
    pub fn qcow2(seed: u64) -> Setup {
        Setup { qcow2: Some(qcow2::Bug::None), ..Setup::wide(seed) }
    }

    /// The run of a seed in a world whose leaves are committed; half of it is of qcow2.
    pub fn commit(seed: u64) -> Setup {
        let setup = if seed.is_multiple_of(2) { Setup::qcow2(seed) } else { Setup::wide(seed) };
        Setup { commits: true, ..setup }
    }

    /// The run of a seed in the wide world.
    pub fn wide(seed: u64) -> Setup {
        Setup { wide: true, ..Setup::new(seed) }
    }
}

/// What only the wide world has. Its chances are its own.
#[derive(Clone, Debug)]
struct Wide {
    rng: Rng,
    /// The table has two sectors, and most requests lie where they meet.
    long: bool,
    /// A volatile cache without barriers, the daemon's default.
    no_barriers: bool,
    /// The daemon is killed now and then.
    kills: bool,
    /// Requests begin several at a time.
    together: bool,
    /// Steps of a request before others have their turn.
    steps: u32,
    /// Every second sector of a fresh disk was written before: long spans have many runs.
    striped: bool,
}

impl Wide {
    fn new(seed: u64) -> Wide {
        let mut rng = Rng::new(seed ^ 0x77_69_64_65);
        Wide {
            long: rng.one_in(6),
            no_barriers: rng.one_in(2),
            kills: rng.one_in(2),
            together: rng.one_in(2),
            steps: [1, 2, 3, 64][rng.below(4) as usize],
            striped: rng.one_in(3),
            rng,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Raw,
    Fixed,
    Dynamic,
    Toy,
    Qcow2,
}

const BLOCK_BYTES: u32 = 64 << 10;
/// Sectors of a disk that are looked at together: as many as stay in the CPU's cache.
const AT_ONCE: u32 = 2048;

/// The world.
pub struct World {
    setup: Setup,
    rng: Rng,
    engine: Engine<Aligned<SimDisk>>,
    model: Model,
    formats: Vec<Format>,
    limits: Limits,
    volatile: bool,
    faults: Faults,
    /// Chance of what is about large sectors; its own, so that old seeds stay what they were.
    large: Rng,
    large_sectors: bool,
    bounces: u32,
    now: u64,
    value: u64,
    sectors: u64,
    hot: bool,
    /// Blocks come and go all the time.
    churn: bool,
    spot: u64,
    /// Where the disk is read to when it is looked at.
    read_back: Box<[u8]>,
    at_work: HashMap<SlotId, (Request, u64, u64)>,
    stack: Stack,
    wide: Option<Wide>,
    mirror_lost: bool,
    /// When the secondary took over, by the model's clock; 0: before its memory begins.
    parted: Option<u64>,
    /// The owner has named leaf and secondary again after that.
    forgotten: bool,
    ran: Ran,
    toys: Arc<Seen>,
}

/// What a seed has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Requests that ended well and badly.
    pub ended: [u64; 2],
    /// Sectors kept by the local cache.
    pub kept: u64,
    /// Secondaries that took over.
    pub taken_over: u64,
    /// Remote mirrors that were left behind, and those that were compared at the end.
    pub mirrors: [u64; 2],
    /// Daemons that were killed while the disk's cache lived on.
    pub kills: u64,
    /// Secondaries that had taken over and became images of the chain.
    pub promoted: u64,
    /// Owners that did not see a takeover.
    pub forgotten: u64,
    /// What the toy format has done: units copied and unpacked, tables made, counts that went down.
    pub toys: [u64; 4],
    /// Commits that were over when the chain was taken away, that were given up, that had not come
    /// so far; and bases that became the disk.
    pub commits: [u64; 4],
}

impl Ran {
    /// Adds another seed.
    pub fn add(&mut self, other: Ran) {
        self.toys.iter_mut().zip(other.toys).for_each(|(all, one)| *all += one);
        self.commits.iter_mut().zip(other.commits).for_each(|(all, one)| *all += one);
        for i in 0..2 {
            self.ended[i] += other.ended[i];
            self.mirrors[i] += other.mirrors[i];
        }
        self.kept += other.kept;
        self.taken_over += other.taken_over;
        self.kills += other.kills;
        self.promoted += other.promoted;
        self.forgotten += other.forgotten;
    }
}

/// Runs the seeds of a world: how many, and what they have seen together.
///
/// # Panics
/// A seed fails, or next to no request of theirs succeeds.
pub fn run_all(world: &str, counts: Counts, setup: impl Fn(u64) -> Setup) -> (u64, Ran) {
    let seen = each(world, counts, |seed| run(setup(seed)));
    let mut ran = Ran::default();
    seen.iter().for_each(|one| ran.add(*one));
    let seeds = seen.len() as u64;
    println!("{seeds} seeds: {ran:?}");
    assert!(ran.ended[0] > seeds * 100, "requests succeed");
    (seeds, ran)
}

/// Runs a seed.
///
/// # Errors
/// A sentence about the first broken promise.
pub fn run(setup: Setup) -> Result<Ran, String> {
    let mut world = World::new(setup)?;
    if setup.zeros {
        return world.zeros_and_cuts();
    }
    if world.wide.as_ref().is_some_and(|wide| wide.striped) {
        world.stripe()?;
    }
    // Hot seeds: many short lives, with requests that fight for the same few sectors of a fresh
    // place.
    let (cuts, requests) =
        if world.hot { (setup.cuts * 6, 30) } else { (setup.cuts, setup.requests) };
    for _ in 0..cuts {
        world.live(requests)?;
        if !world.forgotten {
            world = world.power_cut()?;
        }
        if world.forgotten {
            return Ok(world.ran());
        }
    }
    world.live(setup.requests)?;
    if world.forgotten {
        return Ok(world.ran());
    }
    world.drain()?;
    world.note_events();
    world.verify_all("at the end", false)?;
    world.verify_mirror()?;
    Ok(world.ran())
}

impl World {
    fn new(setup: Setup) -> Result<World, String> {
        let mut rng = Rng::new(setup.seed);
        let format =
            [Format::Raw, Format::Fixed, Format::Dynamic, Format::Dynamic, Format::Dynamic]
                [rng.below(5) as usize];
        let device = rng.one_in(3);
        let format = setup.unordered.map_or(format, |_| Format::Dynamic);
        let device = setup.unordered.unwrap_or(device);
        let tabled = setup.tabled();
        let mut tables = tabled.map(|_| Rng::new(setup.seed ^ 0x746f79));
        let most = tables.as_mut().is_some_and(|rng| rng.below(4) > 0 || setup.unordered.is_some());
        let format = tabled.filter(|_| most).unwrap_or(format);
        let mut wide = setup.wide.then(|| Wide::new(setup.seed));
        let blocks = if wide.as_ref().is_some_and(|wide| wide.long) { 132 } else { 8 };
        let sectors = blocks * 128 + [0, 0, 1, 40][rng.below(4) as usize];
        let stack = Stack::new(setup.seed, sectors);
        let stack = if setup.commits { stack.that_commits(setup.seed) } else { stack };
        let (bytes, initial) = first_image(format, sectors, device);
        let mut values = vec![initial; sectors as usize];
        let bytes = match &mut tables {
            Some(rng) if most => {
                // What is packed is not encrypted.
                let packs = !stack.encrypted && rng.one_in(2);
                first_tables(format, (sectors, device), (rng, packs), &mut values)
            }
            _ => bytes,
        };
        let limits = match rng.below(3) {
            0 => Limits::MINIMUM,
            1 => Limits {
                small: 3,
                large: 2,
                meta_blocks: 36,
                stables: 2,
                ahead: 1 << 16,
                ..Limits::MINIMUM
            },
            _ => Limits {
                small: 8,
                large: 8,
                meta_blocks: 110,
                stables: 8,
                ahead: 1 << 18,
                ..Limits::MINIMUM
            },
        };
        let limits = tables.as_mut().map_or(limits, |rng| with_tables(limits, rng));
        let faulty = rng.one_in(2);
        let full = wide.as_mut().map_or(0, |wide| [0, 0, 100][wide.rng.below(3) as usize]);
        let faults = Faults {
            full: if faulty { full } else { 0 },
            eio: if faulty && rng.one_in(2) { 60 } else { 0 },
            short: [0, 5][rng.below(2) as usize],
            again: if faulty { [0, 20][rng.below(2) as usize] } else { 0 },
            nospace: if faulty { [0, 2][rng.below(2) as usize] } else { 0 },
            no_zero: rng.one_in(4),
            slow_reads: rng.one_in(4),
            lazy_flush: setup.lazy_flush,
            unreadable: None,
        };
        let faults = Faults { eio: setup.eio.unwrap_or(faults.eio), ..faults };
        let volatile = rng.one_in(2) || setup.unordered.is_some() || setup.zeros;
        if let Some(wide) = wide.as_mut().filter(|_| setup.zeros) {
            wide.no_barriers = false;
        }
        if let Some(wide) = wide.as_mut().filter(|_| setup.unordered.is_some()) {
            wide.no_barriers = true;
        }
        let mut files = vec![SimFile::new(bytes, device)];
        let mut formats = vec![format];
        if let Some(second) = stack.second {
            let format = if second.remote { Format::Raw } else { Format::Dynamic };
            let bytes = match format {
                Format::Raw => vec![0; sectors as usize * 512],
                _ => dynamic(sectors, None, false, 1 << 40),
            };
            files.push(SimFile::new(bytes, second.remote));
            formats.push(format);
        }
        let mut large = Rng::new(setup.seed ^ 4096);
        let large_sectors = large.one_in(3);
        // One buffer is enough, and hard.
        let bounces = if large.one_in(2) { 1 } else { 1 + large.below(u64::from(BOUNCES)) as u32 };
        let mut world = World {
            setup,
            engine: no_engine(),
            // The zeros that an encrypted fixed image is made of read as noise.
            model: Model::new(&match stack.encrypted && format == Format::Fixed {
                true => vec![ANY; sectors as usize],
                false => values,
            }),
            formats: formats.clone(),
            stack,
            limits,
            volatile,
            faults,
            large,
            large_sectors: setup.large_sectors.unwrap_or(large_sectors),
            bounces,
            now: 1,
            value: 1 << 32,
            sectors,
            hot: rng.one_in(3) || setup.unordered.is_some(),
            churn: rng.one_in(4) || setup.churn,
            spot: 0,
            read_back: vec![0; sectors.min(AT_ONCE.into()) as usize * 512].into(),
            at_work: HashMap::new(),
            mirror_lost: false,
            parted: None,
            forgotten: false,
            ran: Ran::default(),
            toys: Arc::default(),
            wide,
            rng,
        };
        let files =
            files.into_iter().zip(formats).map(|(file, format)| world.unit(file, format)).collect();
        world.open(files)?;
        Ok(world)
    }

    // ---- opening and closing -------------------------------------------------------------------

    fn open(&mut self, mut files: Vec<SimFile>) -> Result<(), String> {
        self.stack.choose_base(files.len());
        let chain = self.chain_to_write(&mut files)?;
        let infos: Vec<FileInfo> = files.iter().map(SimFile::info).collect();
        let depth = self.limits.ops() as usize;
        let seed = self.rng.next();
        // Only large sectors need them.
        let bounces = if files.iter().any(|f| f.unit > 512) { self.bounces } else { 0 };
        let reserve = self.limits.behind(bounces * BOUNCE_BYTES);
        let arena_bytes = (reserve.offset + reserve.bytes) as usize;
        let alignments: Vec<u32> = files.iter().map(|f| f.unit as u32).collect();
        let mut disk = SimDisk::new(arena_bytes, files, depth, Rng::new(seed));
        disk.faults = self.faults;
        disk.volatile = self.volatile;
        let mut disk = Aligned::open(disk, reserve, depth as u32);
        disk.set_alignments(&alignments).map_err(|e| e.to_string())?;
        if !self.setup.locks {
            disk.without_locks();
        }
        self.engine = Engine::new(disk, self.limits);
        self.engine.plant(self.setup.bug);
        if let Some(wide) = &self.wide {
            self.engine.set_steps_max(wide.steps);
        }
        let last = chain.len() - 1;
        let layers =
            chain.into_iter().enumerate().zip(&self.formats).map(|((i, image), format)| {
                let image = if i == 0 { (self.setup.wrap)(image) } else { image };
                let cipher = self.stack.cipher().filter(|_| *format != Format::Raw);
                let cipher = cipher.map(|cipher| Box::new(cipher) as Box<dyn Cipher>);
                Layer { cipher, ..Layer::new(self.stack.role(i, last), image) }
            });
        let mut chain = Chain::new(layers.collect()).map_err(|misfit| misfit.to_string())?;
        if self.stack.second.is_some_and(|second| second.taken_over) {
            chain.take_over();
        }
        if self.setup.remembers_too_much {
            chain.remember_too_much();
        } else if self.stack.remembers {
            chain.remember();
        }
        chain.changes = Some(Box::new(self.stack.marked.clone()));
        self.stack.mirrored.fill(false);
        let barriers = self.volatile && !self.unordered();
        let policy = Policy { barriers, timeout_s: 600, ..Policy::default() };
        self.engine.attach(chain, &infos, policy);
        self.engine.set_room(true);
        self.engine.set_rates(self.stack.rates());
        if self.setup.careless_cache {
            self.engine.forget_overlaps();
        }
        Ok(())
    }

    /// Whether the order in which the volatile cache is written back is nobody's.
    fn unordered(&self) -> bool {
        self.volatile && self.wide.as_ref().is_some_and(|wide| wide.no_barriers)
    }

    /// Gives a fresh file its sectors. A file whose length says where the disk or its footer ends
    /// is not made longer by a write, so its last large sector must not be a shared one.
    fn unit(&mut self, file: SimFile, format: Format) -> SimFile {
        let whole = matches!(format, Format::Dynamic | Format::Toy | Format::Qcow2);
        let fits = file.device || whole || self.sectors.is_multiple_of(8);
        let all = self.setup.large_sectors == Some(true);
        let large = self.large_sectors && fits && (all || self.large.below(4) > 0);
        file.with_unit(if large { 4096 } else { 512 })
    }

    fn chain_of(&self, files: &[SimFile]) -> Result<Vec<Box<dyn Image>>, String> {
        let open = |i| self.image(self.opened(files, i)?, &files[i], i);
        (0..files.len()).map(open).collect()
    }

    /// The same to be written: the marks of full blocks are taken off first.
    fn chain_to_write(&self, files: &mut [SimFile]) -> Result<Vec<Box<dyn Image>>, String> {
        let count = files.len();
        let open = |i: usize| {
            if self.formats[i] == Format::Qcow2 && self.writes(count, i) {
                return self.qcow2_to_write(&mut files[i], i);
            }
            let mut opened = self.opened(files, i)?;
            if let Some(opened) = opened.as_mut().filter(|_| self.writes(count, i)) {
                let (file, name) = (&mut files[i], Path::new("sim.vhd"));
                // Marks come with a close, which ends with a flush, as this does.
                let off = match self.setup.marks_stay {
                    true => heal::take_marks_off(&file.clone().in_hand(), name, opened),
                    false => heal::take_marks_off(&file.in_hand(), name, opened),
                };
                off.map_err(|e| e.to_string())?;
            }
            self.image(opened, &files[i], i)
        };
        (0..count).map(open).collect()
    }

    /// Whether this one of so many images is written.
    fn writes(&self, files: usize, i: usize) -> bool {
        let base = self.stack.base && i == 1;
        i == 0 || base || (self.stack.second.is_some() && i == files - 1)
    }

    /// An image, if it is none of a raw disk.
    fn opened(&self, files: &[SimFile], i: usize) -> Result<Option<Opened>, String> {
        if matches!(self.formats[i], Format::Raw | Format::Toy | Format::Qcow2) {
            return Ok(None);
        }
        let read_only = !self.writes(files.len(), i);
        let options = OpenOptions { read_only, for_io: true, ..OpenOptions::default() };
        let opened = vhd_rs::open(&&files[i], Path::new("sim.vhd"), &options)
            .map_err(|e| format!("layer {i} does not open: {e}"))?;
        if !opened.bad_blocks.is_empty() {
            let (len, bat, bad) = (files[i].bytes.len(), &opened.bat, &opened.bad_blocks);
            return Err(format!("layer {i} of {len} bytes has bad blocks {bad:?}: {bat:?}"));
        }
        Ok(Some(opened))
    }

    fn image(
        &self,
        opened: Option<Opened>,
        file: &SimFile,
        i: usize,
    ) -> Result<Box<dyn Image>, String> {
        if self.formats[i] == Format::Toy {
            toy::check(&file.bytes).map_err(|why| format!("layer {i}: {why}"))?;
            let bug = self.setup.toy.unwrap_or_default();
            return Ok(Box::new(Toy::open(&file.bytes, bug, Arc::clone(&self.toys))?));
        }
        if self.formats[i] == Format::Qcow2 {
            let opened = qcow2::open(&file, Path::new("sim.qcow2")).map_err(|e| e.to_string())?;
            return Ok(Box::new(Qcow2::new(opened)));
        }
        let Some(opened) = opened else {
            return Ok(Box::new(raw::Raw::new(self.sectors, file.device)));
        };
        let mut vhd = Vhd::new(opened);
        if self.setup.appears_beside_others {
            vhd.appear_beside_others();
        }
        Ok(Box::new(vhd))
    }

    /// A qcow2 image that is to be written: what a clean one says is so, and the counts of one that
    /// was not closed are mended.
    fn qcow2_to_write(&self, file: &mut SimFile, i: usize) -> Result<Box<dyn Image>, String> {
        let named = |why: String| format!("layer {i}: {why}");
        let found = images::check(&file.bytes).map_err(named)?;
        if found.low > 0 && !self.unordered() {
            return Err(named(format!("clusters that count too little: {found:?}")));
        }
        let marked = found.dirty || !self.has_mark(file);
        if !marked && found != Verdict::default() {
            return Err(named(format!("it is clean, and is not: {found:?}")));
        }
        let name = Path::new("sim.qcow2");
        let said = |e: qcow2::Error| named(e.to_string());
        // Of those without a mark some are repaired by hand, and others leak.
        let (mark, by_hand) = (self.has_mark(file), self.value.is_multiple_of(2));
        if !mark && by_hand && found != Verdict::default() {
            let all = qcow2::What::All;
            qcow2::repair(&file.in_hand(), name, all, &mut |_| {}).map_err(said)?;
        }
        let storage = file.in_hand();
        let opened = qcow2::open(&storage, name).map_err(said)?;
        let ready = qcow2::ready(&storage, name, opened).map_err(said)?;
        let left = images::check(&file.bytes).map_err(named)?;
        if left.low > 0 || (left.leaks > 0 && mark) {
            return Err(named(format!("it was made ready with wrong counts: {left:?}")));
        }
        let mut image = Qcow2::to_write(ready);
        let bug = self.setup.qcow2.unwrap_or_default();
        image.plant(bug);
        if bug == qcow2::Bug::CleanTooEarly && self.has_mark(&file.clone()) {
            let clean = image.clean_features().to_be_bytes();
            file.in_hand().write_at(72, &clean).map_err(|e| named(e.to_string()))?;
        }
        Ok(Box::new(image))
    }

    /// Whether an image can say that it was not closed.
    fn has_mark(&self, file: &SimFile) -> bool {
        file.bytes[7] == 3
    }

    /// Pause, a new leaf on top or the same one again, unpause.
    fn pause(&mut self) -> Result<(), String> {
        self.drain()?;
        self.note_events();
        self.verify_base()?;
        let concluded = self.is_concluded();
        let mut chain = self.engine.detach().expect("a chain was attached");
        let mut files = std::mem::take(&mut self.engine.disk().inner().files);
        let count = files.len();
        for i in (0..count).filter(|i| self.writes(count, *i)) {
            let closing = chain.layers[i].image.closing();
            // A close ends with a flush, whether it writes anything or not.
            files[i].settle();
            closing.apply(&files[i].in_hand()).map_err(|e| format!("closing: {e}"))?;
        }
        self.drop_lost(&mut files);
        self.promote(&mut files);
        self.pivot(&mut files, concluded);
        let now = self.model.tick();
        self.model.flush(now);
        let taken_over = self.stack.second.is_some_and(|second| second.taken_over);
        if self.formats.len() < 5 && self.rng.one_in(2) && !taken_over {
            let device = self.rng.one_in(3);
            self.snapshot(&mut files, device);
        }
        self.open(files)
    }

    /// A new leaf.
    fn snapshot(&mut self, files: &mut Vec<SimFile>, device: bool) {
        let most = !self.value.is_multiple_of(4);
        let format = self.setup.tabled().filter(|_| most).unwrap_or(Format::Dynamic);
        let bytes = self.child(format, &files[0].bytes, device);
        let file = self.unit(SimFile::new(bytes, device), format);
        files.insert(0, file);
        self.formats.insert(0, format);
    }

    /// An empty image over the leaf.
    fn child(&self, format: Format, leaf: &[u8], device: bool) -> Vec<u8> {
        if format == Format::Toy {
            let layout = toy::Layout::new(self.sectors, device, self.value % 8);
            return toy::make(layout, device, None, &mut []);
        }
        if format == Format::Qcow2 {
            let mut rng = Rng::new(self.value);
            let layout = images::Layout::new(&mut rng, self.sectors, device);
            return images::make(layout, None, &mut []);
        }
        let has_uuid = !matches!(self.formats[0], Format::Raw | Format::Toy | Format::Qcow2);
        dynamic(self.sectors, Some(has_uuid.then(|| uuid_of(leaf))), device, self.value)
    }

    fn power_cut(mut self) -> Result<World, String> {
        self.note_events();
        let concluded = self.is_concluded();
        let engine = std::mem::replace(&mut self.engine, no_engine());
        let (mut files, _) = engine.into_disk().into_inner().power_cut();
        self.at_work.clear();
        self.drop_lost(&mut files);
        if self.owner_forgets() {
            self.open(files)?;
            self.verify_all("after a cut that the owner did not see", true)?;
            return Ok(self);
        }
        if self.stack.stale_mirror() {
            let last = files.pop().expect("the mirror is a file");
            files.push(last.rewritten(dynamic(self.sectors, None, false, 1 << 40)));
        }
        self.pivot(&mut files, concluded);
        self.open(files)?;
        let values = self.verify_all("after a power cut", true)?;
        self.model.restart(&values);
        Ok(self)
    }

    /// The daemon is killed, and another one goes on over the same cache of the disk: what was
    /// answered is
    /// there, what was not may be or not.
    fn kill(&mut self) -> Result<(), String> {
        self.ran.kills += 1;
        self.note_events();
        let concluded = self.is_concluded();
        let engine = std::mem::replace(&mut self.engine, no_engine());
        let (mut files, _) = engine.into_disk().into_inner().kill();
        let mut left: Vec<_> = std::mem::take(&mut self.at_work).into_values().collect();
        left.sort_unstable_by_key(|(_, start, _)| *start);
        for (request, start, _) in left {
            if request.verb.changes() {
                let range = request.span.start..request.span.end();
                self.model.end(range, start, Ended::Failed);
            }
        }
        self.drop_lost(&mut files);
        if self.owner_forgets() {
            self.open(files)?;
            return self.verify_all("after a kill that the owner did not see", false).map(drop);
        }
        if self.stack.stale_mirror() {
            let last = files.pop().expect("the mirror is a file");
            files.push(last.rewritten(dynamic(self.sectors, None, false, 1 << 40)));
        }
        self.pivot(&mut files, concluded);
        while self.formats.len() < 5 && self.stack.wants_snapshot() {
            self.snapshot(&mut files, false);
        }
        // Whoever opens a chain flushes its parents.
        files.iter_mut().skip(1).for_each(SimFile::settle);
        self.open(files)?;
        self.verify_all("after a kill", false).map(drop)
    }

    /// Whether the owner names leaf and secondary again as if nothing had happened, at the first
    /// crash after a takeover; in the wide world only, and not always. What is promised then is
    /// looked at once, and the disk is not used any more.
    fn owner_forgets(&mut self) -> bool {
        let Some(second) = self.stack.second.as_mut().filter(|second| second.taken_over) else {
            return false;
        };
        let chance = self.wide.as_mut().is_some_and(|wide| wide.rng.one_in(2));
        if chance && self.parted.is_some_and(|time| time > 0) {
            second.taken_over = false;
            self.forgotten = true;
            self.ran.forgotten += 1;
        } else {
            // From the next crash on the model does not know any more what changed since.
            self.parted = Some(0);
        }
        self.forgotten
    }

    /// A secondary that has taken over becomes an image of the chain like others, so that it can
    /// have
    /// children; in the wide world only, and not always.
    fn promote(&mut self, files: &mut [SimFile]) {
        let taken = self.stack.second.is_some_and(|second| second.taken_over);
        if !taken || !self.wide.as_mut().is_some_and(|wide| wide.rng.one_in(2)) {
            return;
        }
        self.ran.promoted += 1;
        self.stack.second = None;
        files.rotate_right(1);
        self.formats.rotate_right(1);
    }

    fn ran(&self) -> Ran {
        Ran { toys: self.toys.all(), ..self.ran }
    }

    // ---- living --------------------------------------------------------------------------------

    fn live(&mut self, requests: u32) -> Result<(), String> {
        let mut left = requests;
        self.spot = self.rng.below(self.sectors - 32);
        while left > 0 && !self.forgotten {
            match self.rng.below(6) {
                0..=2 => {
                    left -= u32::from(self.start());
                    if left > 0 && self.together() {
                        continue;
                    }
                }
                _ => self.engine.disk().inner().complete_one(),
            }
            self.turn()?;
            self.engine.set_room(true);
            if self.rng.one_in(150) {
                self.pause()?;
            }
            if self.wide.as_mut().is_some_and(|wide| wide.kills && wide.rng.one_in(200)) {
                self.kill()?;
            }
        }
        Ok(())
    }

    /// Whether the next request comes in the same turn.
    fn together(&mut self) -> bool {
        self.wide.as_mut().is_some_and(|wide| wide.together && wide.rng.one_in(2))
    }

    /// Where most requests of a long disk begin.
    fn near_the_end(&mut self, count: u64) -> Option<u64> {
        let room = (8 * 128u64).checked_sub(count)?;
        let wide = self.wide.as_mut().filter(|wide| wide.long)?;
        if wide.rng.one_in(8) {
            return None;
        }
        Some(self.sectors - 8 * 128 + wide.rng.below(room + 1))
    }

    /// Every second sector of the first images is written, as a guest would.
    fn stripe(&mut self) -> Result<(), String> {
        for sector in (0..4 * 128).step_by(2) {
            let verb = Verb::Write { fua: false };
            while !self.begin(verb, Span { start: sector, count: 1 }) {
                self.engine.disk().inner().complete_one();
                self.turn()?;
            }
        }
        self.pause()
    }

    fn turn(&mut self) -> Result<(), String> {
        self.now += 1 + self.rng.below(200_000);
        let mut more = true;
        for _ in 0..100_000 {
            if !more {
                break;
            }
            more = self.engine.step(self.now);
        }
        if self.parted.is_none() && self.engine.events().taken_over {
            self.parted = Some(self.model.tick());
        }
        if more {
            return Err("the engine never comes to rest".into());
        }
        while let Some((slot, request, outcome)) = self.engine.pop_done() {
            self.done(slot, &request, outcome)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), String> {
        self.engine.come_to_rest(self.value.is_multiple_of(2));
        for _ in 0..200_000 {
            if self.at_work.is_empty() && self.engine.idle() {
                return Ok(());
            }
            self.engine.disk().inner().complete_one();
            self.turn()?;
        }
        let slots = (0..self.limits.all_slots()).map(|id| self.engine.slot(SlotId(id)));
        let waiting = slots.filter(|slot| slot.active()).map(|slot| {
            let engine::slot::Slot { state, request, cursor, pending, seq, .. } = slot;
            format!("\n  {state:?} {request:?} at {cursor}, waits for {pending}, seq {seq}")
        });
        Err(format!("requests are stuck:{}", waiting.collect::<String>()))
    }

    fn start(&mut self) -> bool {
        let verb = self.verb();
        let count = self.length(verb);
        let bytes =
            if matches!(verb, Verb::Read | Verb::Write { .. }) { count * 512 } else { 4096 };
        let Some(slot) = self.engine.reserve(bytes as u32) else { return false };
        let near = self.near_the_end(count);
        let span = if verb == Verb::Flush {
            Span::default()
        } else {
            let whole = count == 128 && self.rng.one_in(2);
            let mut start = self.rng.below(self.sectors - count + 1);
            if self.hot && count < 16 {
                start = self.spot + self.rng.below(16);
            }
            let start = near.unwrap_or(start);
            Span { start: if whole { start / 128 * 128 } else { start }, count: count as u32 }
        };
        self.begin_in(slot, verb, span);
        true
    }

    fn begin(&mut self, verb: Verb, span: Span) -> bool {
        let slot = self.engine.reserve(span.count * 512);
        slot.inspect(|slot| self.begin_in(*slot, verb, span)).is_some()
    }

    fn begin_in(&mut self, slot: SlotId, verb: Verb, span: Span) {
        let (range, mut start) = (span.start..span.end(), self.model.tick());
        self.value += 1;
        match verb {
            Verb::Write { .. } => {
                let buf = self.engine.buffer_mut(slot);
                for (i, s) in range.clone().enumerate() {
                    fill(&mut buf[i * 512..][..512], s, self.value);
                }
                self.model.begin(range, self.value);
                start = self.model.time;
            }
            Verb::Zero { .. } => {
                self.model.begin(range, ZERO);
                start = self.model.time;
            }
            Verb::Discard { .. } => {
                // On a device anything may be there afterwards, on a file the old or zeros.
                let device = self.engine.disk_ref().inner_ref().files[0].device;
                self.model.begin(range, self.stack.discarded(device, self.wide.is_some()));
                start = self.model.time;
            }
            Verb::Read => self.engine.buffer_mut(slot).fill(0xcc),
            Verb::Flush | Verb::Status => {}
        }
        let request = Request { verb, span, owner: owner(self.value) };
        self.engine.start(slot, request);
        self.at_work.insert(slot, (request, start, self.value));
    }

    fn verb(&mut self) -> Verb {
        let fua = self.rng.one_in(6);
        if self.churn && self.rng.one_in(4) {
            return Verb::Zero { keep: false, fast: false, fua };
        }
        match self.rng.below(20) {
            0..=8 => Verb::Write { fua },
            9..=14 => Verb::Read,
            15 | 16 => {
                Verb::Zero { keep: self.rng.one_in(3), fast: self.value.is_multiple_of(3), fua }
            }
            17 => Verb::Discard { fua },
            18 => Verb::Status,
            _ => Verb::Flush,
        }
    }

    fn length(&mut self, verb: Verb) -> u64 {
        match self.rng.below(4) {
            _ if self.churn && matches!(verb, Verb::Zero { .. }) => 128,
            0 => 1 + self.rng.below(4),
            _ if self.hot && self.rng.below(8) != 0 => 1 + self.rng.below(12),
            1 => 8,
            2 => 1 + self.rng.below(128),
            _ if matches!(verb, Verb::Zero { .. } | Verb::Discard { .. } | Verb::Status) => {
                1 + self.rng.below(self.sectors)
            }
            _ => 128,
        }
    }

    fn done(&mut self, slot: SlotId, request: &Request, outcome: Outcome) -> Result<(), String> {
        let (_, start, value) = self.at_work.remove(&slot).ok_or("an answer nobody asked for")?;
        if request.owner != owner(value) {
            return Err("the answer to another request".into());
        }
        self.ran.ended[usize::from(outcome.is_err())] += 1;
        self.note_change(request, outcome)?;
        let range = request.span.start..request.span.end();
        let ok = |fua: bool| match (outcome, fua) {
            (Err(_), _) => Ended::Failed,
            (Ok(_), true) => Ended::Durable,
            (Ok(_), false) => Ended::Done,
        };
        match request.verb {
            Verb::Write { fua } | Verb::Zero { fua, .. } => self.model.end(range, start, ok(fua)),
            Verb::Discard { .. } => self.model.end(range, start, Ended::Advice),
            Verb::Flush if outcome.is_ok() => self.model.flush(start),
            Verb::Read if outcome.is_ok() => {
                self.check_read(slot, request, start)?;
                if self.wide.is_some() {
                    self.observe(slot, request, start);
                }
            }
            Verb::Status if outcome.is_ok() => self.check_status(slot, request, outcome, start)?,
            Verb::Flush | Verb::Read | Verb::Status => {}
        }
        if outcome.is_err() && self.faults.eio == 0 && self.faults.nospace == 0 {
            let devices = self.engine.disk_ref().inner_ref().files.iter().any(|f| f.device);
            let scarce = devices || self.faults.full > 0;
            let full = outcome == Err(libc::ENOSPC) && scarce;
            // What is to be quick fails where nothing quick is possible.
            let quick = matches!(request.verb, Verb::Zero { fast: true, .. });
            let cannot = self.faults.no_zero || self.stack.encrypted;
            let slow = outcome == Err(libc::EOPNOTSUPP) && quick && cannot;
            if !full && !slow {
                return Err(format!("{request:?} failed without a fault: {outcome:?}"));
            }
        }
        self.engine.release(slot);
        Ok(())
    }

    fn observe(&mut self, slot: SlotId, request: &Request, start: u64) {
        let buf = self.engine.buffer(slot);
        for (s, bytes) in (request.span.start..request.span.end()).zip(buf.chunks_exact(512)) {
            self.model.observe(s, start, parse(bytes, s));
        }
    }

    fn check_read(&self, slot: SlotId, request: &Request, start: u64) -> Result<(), String> {
        let buf = self.engine.buffer(slot);
        for (i, s) in (request.span.start..request.span.end()).enumerate() {
            let value = parse(&buf[i * 512..][..512], s);
            if !self.model.may_read(s, start, value) {
                let why = self.model.explain(s);
                return Err(format!("read {value:#x} from sector {s} at {start}, allowed {why}"));
            }
        }
        Ok(())
    }

    fn check_status(
        &self,
        slot: SlotId,
        request: &Request,
        n: Outcome,
        start: u64,
    ) -> Result<(), String> {
        let buf = self.engine.buffer(slot);
        let word = |at: usize| u32::from_ne_bytes(buf[at..at + 4].try_into().expect("four bytes"));
        let mut s = request.span.start;
        for i in 0..n.unwrap_or(0) as usize {
            let (count, hole) = (u64::from(word(i * 8)), word(i * 8 + 4) == 1);
            let bad = (s..s + count).find(|s| hole && !self.model.may_read(*s, start, ZERO));
            if let Some(bad) = bad {
                return Err(format!("sector {bad} is called a hole: {}", self.model.explain(bad)));
            }
            s += count;
        }
        if s <= request.span.start || s > request.span.end() {
            return Err(format!(
                "block status covers {} to {s} of {request:?}",
                request.span.start
            ));
        }
        Ok(())
    }

    // ---- checking ------------------------------------------------------------------------------

    /// Reads the whole disk with the blocking executor, which shares no engine with the daemon; as
    /// the images show it from a place of the order down.
    fn values(&mut self, when: &str, from: usize) -> Result<Vec<u64>, String> {
        let files = &self.engine.disk_ref().inner_ref().files;
        // The closing writes are not there; the table and bitmaps must do.
        let images = self.chain_of(files)?;
        let stores: Vec<&SimFile> = files.iter().collect();
        let layer = |i: usize| blocking::Layer { image: &*images[i], storage: &stores[i] };
        let order = self.stack.order(files.len()).split_off(from);
        let layers: Vec<blocking::Layer<'_>> = order.iter().copied().map(layer).collect();
        let cipher = self.stack.cipher();
        let decode = |layer: Option<usize>, first: u64, bytes: &mut [u8]| {
            let encrypted = layer.is_some_and(|i| self.formats[order[i]] != Format::Raw);
            if let Some(cipher) = cipher.as_ref().filter(|_| encrypted) {
                cipher.decrypt(first, bytes);
            }
        };
        let mut values = Vec::with_capacity(self.sectors as usize);
        let mut span = Span { start: 0, count: self.sectors as u32 };
        while span.count > 0 {
            let now = span.first(AT_ONCE);
            let buf = &mut self.read_back[..now.count as usize * 512];
            blocking::read_with(&layers, now, buf, decode).map_err(|e| format!("{when}: {e}"))?;
            let sectors = (now.start..now.end()).zip(buf.chunks_exact(512));
            values.extend(sectors.map(|(s, bytes)| parse(bytes, s)));
            span = span.skip(now.count);
        }
        Ok(values)
    }

    fn verify_all(&mut self, when: &str, cut: bool) -> Result<Vec<u64>, String> {
        let values = self.values(when, 0)?;
        for (s, value) in (0..).zip(&values) {
            if cut && self.unordered() && self.model.unsettled(s) {
                continue;
            }
            if self.forgotten && self.model.changed_since(s, self.parted.unwrap_or(0)) {
                // Of before, or of since.
                if !self.model.held(s, *value) {
                    let why = self.model.explain(s);
                    return Err(format!("{when} sector {s} holds {value:#x}, never there: {why}"));
                }
                continue;
            }
            if !self.model.may_survive(s, *value, cut && self.volatile) {
                let why = self.model.explain(s);
                return Err(format!("{when} sector {s} holds {value:#x}, allowed {why}"));
            }
        }
        Ok(values)
    }
}

/// An engine to be replaced.
fn no_engine() -> Engine<Aligned<SimDisk>> {
    let limits = Limits::MINIMUM;
    let disk = SimDisk::new(limits.arena_bytes(), Vec::new(), 0, Rng::new(0));
    Engine::new(Aligned::open(disk, limits.behind(0), 0), limits)
}

/// The first image of a format of tables.
fn first_tables(
    format: Format,
    (sectors, device): (u64, bool),
    (rng, packs): (&mut Rng, bool),
    values: &mut [u64],
) -> Vec<u8> {
    if format == Format::Toy {
        let layout = toy::Layout::new(sectors, device, rng.below(8));
        return toy::make(layout, device, packs.then_some(rng), values);
    }
    let layout = images::Layout::new(rng, sectors, device);
    images::make(layout, packs.then_some(rng), values)
}

/// What formats of tables need, and hardly more than that.
fn with_tables(limits: Limits, rng: &mut Rng) -> Limits {
    let needs = Needs { meta_bytes: 4096, packed: 128, ..Toy::NEEDS };
    let limits = limits.with(needs, 1 + rng.below(3) as u8);
    let least = limits.all_slots() * 6 + 1;
    Limits { meta_blocks: limits.meta_blocks.max(least), ..limits }
}

/// The first image and the value its sectors hold.
pub(super) fn first_image(format: Format, sectors: u64, device: bool) -> (Vec<u8>, u64) {
    match format {
        Format::Raw => (vec![0; sectors as usize * 512], ZERO),
        Format::Fixed => {
            let footer = Footer::new(DiskType::Fixed, sectors * 512, [7; 16], 0);
            let mut bytes = vec![0; sectors as usize * 512];
            bytes.extend(footer.encode());
            (bytes, ZERO)
        }
        Format::Dynamic => (dynamic(sectors, None, device, 0), ZERO),
        // Made where its chances are.
        Format::Toy | Format::Qcow2 => (Vec::new(), ZERO),
    }
}

/// Whose answer it is: that of the request which has this value.
fn owner(value: u64) -> Owner {
    Owner { cookie: value as u32, ..Owner::default() }
}

/// An empty dynamic or differencing image; `parent` is Some(None) over a raw one.
pub(super) fn dynamic(
    sectors: u64,
    parent: Option<Option<[u8; 16]>>,
    device: bool,
    salt: u64,
) -> Vec<u8> {
    let blocks = (sectors * 512).div_ceil(u64::from(BLOCK_BYTES)) as u32;
    let kind = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
    let mut uuid = [9; 16];
    uuid[..8].copy_from_slice(&salt.to_le_bytes());
    let footer = Footer::new(kind, sectors * 512, uuid, 0).encode();
    let mut header = Header::new(1536, blocks, BLOCK_BYTES);
    if let Some(Some(uuid)) = parent {
        header.parent_uuid = uuid;
    }
    // As long as it gets, so that it is not moved time and again.
    let all = u64::from(blocks.min(16)) * 137 * 512 + header.table_bytes() + 8192;
    let mut bytes = Vec::with_capacity(all as usize);
    bytes.extend(footer);
    bytes.extend(header.encode());
    let table = header.table_bytes() as usize;
    bytes.resize(bytes.len() + table, 0xff);
    // Room for a batmap. Not valid yet in some: a hint that is distrusted.
    let mut map = BatmapHeader::new(1536 + table as u64, blocks);
    map.checksum = map.checksum_of(&[0; 512], sectors * 512, BLOCK_BYTES);
    bytes.extend(if salt % 4 == 3 { [0; 512] } else { map.encode() });
    bytes.extend([0; 512]);
    if device {
        // Stale bytes everywhere, and not quite enough room for every block.
        let room = u64::from(blocks).saturating_sub(salt % 2) * (129 + 8) * 512;
        bytes.resize(4096 + (table - 512) + room as usize, 0xee);
    }
    bytes.extend(footer);
    bytes
}

pub(super) fn uuid_of(bytes: &[u8]) -> [u8; 16] {
    let at = if bytes.starts_with(b"conectix") { 0 } else { bytes.len() - 512 };
    bytes[at + 68..at + 84].try_into().expect("sixteen bytes")
}
