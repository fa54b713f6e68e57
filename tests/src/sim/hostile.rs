//! A guest that writes footers, headers and tables of its own into every sector it has, over disks
//! that are killed and lose power at every point: afterwards the image is what it was, its file
//! ends with its footer, and the strict list of `check` finds nothing (docs/footers.md).
//!
//! ```text
//!   life: hostile writes, zeros ─► kill │ power cut │ close, the copy damaged
//!           ─► look ─► heal ─► life …       (killed or cut within heal and close, too)
//! ```
use std::collections::HashSet;
use std::path::Path;

use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use image::{Closing, Image, MemStorage, Span, blocking};
use request::disk::FileInfo;
use request::{Owner, Request, Slots, Verb};
use vhd_rs::batmap::BatmapHeader;
use vhd_rs::driver::Vhd;
use vhd_rs::{CheckOptions, DiskType, Footer, Header, OpenOptions, bat, check, heal};

use super::disk::{SimDisk, SimFile};
use super::logged::{Crash, Logged};
use super::rng::Rng;
use super::world::Wrap;

const BLOCK_BYTES: u32 = 64 << 10;
const BLOCKS: u32 = 12;
const SECTORS: u64 = BLOCKS as u64 * BLOCK_BYTES as u64 / 512;
const ID: [u8; 16] = [0x5a; 16];

/// What a seed is run with.
#[derive(Clone, Copy)]
pub struct Setup {
    /// The seed.
    pub seed: u64,
    /// Lives of the disk.
    pub lives: u32,
    /// Wraps the driver; the canary plants its bugs here.
    pub wrap: Wrap,
    /// Images are opened for writing without being made whole (a planted bug).
    pub unhealed: bool,
    /// Flushes do nothing (a planted bug).
    pub lazy_flush: bool,
    /// The last writes of a close do not wait for those before them (a planted bug).
    pub hasty: bool,
}

impl Setup {
    /// The normal run of a seed.
    pub fn new(seed: u64) -> Setup {
        Setup {
            seed,
            lives: 8,
            wrap: |image| image,
            unhealed: false,
            lazy_flush: false,
            hasty: false,
        }
    }
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Kill,
    Cut,
    /// In an orderly way; then the copy of the footer is damaged.
    Close,
    /// Before it began, while the image was made whole.
    Opening(Crash),
    /// In the middle of the last writes.
    Closing(Crash),
}

/// The disk and its guest.
struct World {
    setup: Setup,
    rng: Rng,
    kind: DiskType,
    device: bool,
    volatile: bool,
    ahead: u32,
    footer: Footer,
    /// The copy of the footer was damaged since the image was last made whole.
    damaged: bool,
    /// What the guest ever wrote anywhere, by its sum. (Which sector holds what is the other
    /// simulator's.)
    written: HashSet<u64>,
    /// How often the disk was crashed.
    crashes: u64,
}

/// Runs a seed; how often the disk was crashed.
///
/// # Errors
/// A sentence about the first broken promise.
pub fn run(setup: Setup) -> Result<u64, String> {
    let mut rng = Rng::new(setup.seed ^ 0x0f00_7e12);
    let kind = [DiskType::Fixed, DiskType::Dynamic, DiskType::Dynamic][rng.below(3) as usize];
    let device = rng.one_in(4);
    let mut footer = Footer::new(kind, SECTORS * 512, ID, 0);
    if rng.one_in(3) {
        // Of a creator that knows no batmap.
        footer.creator = *b"sim ";
    }
    let mut world = World {
        setup,
        kind,
        device,
        volatile: rng.one_in(2),
        ahead: [0, 1 << 16, 1 << 18][rng.below(3) as usize],
        footer,
        damaged: false,
        written: HashSet::from([sum(&[0; 512])]),
        crashes: 0,
        rng,
    };
    let mut bytes = world.first_image();
    for _ in 0..setup.lives {
        bytes = world.life(bytes)?;
    }
    Ok(world.crashes)
}

impl World {
    fn first_image(&mut self) -> Vec<u8> {
        let footer = self.footer.encode();
        if self.kind == DiskType::Fixed {
            let mut bytes = vec![0; SECTORS as usize * 512];
            if self.device {
                bytes.resize(bytes.len() + 8192, 0xee);
            }
            bytes.extend(footer);
            return bytes;
        }
        let mut bytes = footer.to_vec();
        bytes.extend(Header::new(1536, BLOCKS, BLOCK_BYTES).encode());
        bytes.extend([0xff; 512]);
        if self.footer.by_tap() {
            let mut map = BatmapHeader::new(2048, BLOCKS);
            map.checksum = map.checksum_of(&[0; 512], SECTORS * 512, BLOCK_BYTES);
            bytes.extend(map.encode());
            bytes.extend([0; 512]);
        }
        if self.device {
            bytes.resize(4096 + BLOCKS as usize * (BLOCK_BYTES as usize + 4096), 0xee);
        }
        bytes.extend(footer);
        bytes
    }

    /// One life, and the bytes it leaves.
    fn life(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let storage = Logged::new(bytes, self.device);
        let options = OpenOptions { for_io: true, ..OpenOptions::default() };
        let mut opened = vhd_rs::open(&storage, Path::new("sim"), &options)
            .map_err(|e| format!("does not open for writing: {e}"))?;
        if !self.setup.unhealed {
            heal(&storage, Path::new("sim"), &mut opened, 512).map_err(|e| e.to_string())?;
        }
        if !self.damaged && self.rng.one_in(6) {
            return self.crashed(&storage, End::Opening);
        }
        self.damaged = false;
        let bytes = storage.into_inner();
        let image = (self.setup.wrap)(Box::new(Vhd::new(opened)));
        let mut engine = self.engine(bytes, image);
        self.live(&mut engine);
        let end = [End::Kill, End::Cut, End::Close][self.rng.below(3) as usize];
        let files = match end {
            End::Kill => engine.into_disk().killed(),
            End::Cut => engine.into_disk().power_cut().0,
            _ => {
                let (storage, closing) = self.close(engine);
                closing.apply(&storage).map_err(|e| e.to_string())?;
                if self.rng.one_in(2) {
                    return self.crashed(&storage, End::Closing);
                }
                vec![SimFile::new(storage.into_inner(), self.device)]
            }
        };
        let mut bytes = files.into_iter().next().expect("one file").bytes;
        self.crashes += u64::from(end != End::Close);
        self.look(&bytes, end)?;
        if end == End::Close && self.kind != DiskType::Fixed {
            self.damage(&mut bytes);
        }
        Ok(bytes)
    }

    /// What a crash somewhere in what was just done leaves.
    fn crashed(&mut self, storage: &Logged, end: impl Fn(Crash) -> End) -> Result<Vec<u8>, String> {
        let how = if self.rng.one_in(2) { Crash::Kill } else { Crash::Cut };
        let bytes = storage.crash(how, &mut self.rng);
        self.crashes += 1;
        self.look(&bytes, end(how))?;
        Ok(bytes)
    }

    fn engine(&mut self, bytes: Vec<u8>, image: Box<dyn Image>) -> Engine<SimDisk> {
        let limits = Limits {
            small: 3,
            large: 2,
            meta_blocks: 36,
            stables: 2,
            ahead: self.ahead,
            ..Limits::MINIMUM
        };
        let info = FileInfo { bytes: bytes.len() as u64, device: self.device, thin: false };
        let file = SimFile::new(bytes, self.device);
        let chance = Rng::new(self.rng.next());
        let mut disk =
            SimDisk::new(limits.arena_bytes(), vec![file], limits.ops() as usize, chance);
        disk.volatile = self.volatile;
        disk.faults.lazy_flush = self.setup.lazy_flush;
        let mut engine = Engine::new(disk, limits);
        let policy = Policy { barriers: self.volatile, ..Policy::default() };
        engine.attach(Chain::of(vec![image]), &[info], policy);
        engine.set_room(true);
        engine
    }

    /// Requests and completions in random order, up to a random moment.
    fn live(&mut self, engine: &mut Engine<SimDisk>) {
        let mut now = 0;
        for _ in 0..self.rng.below(120) {
            match self.rng.below(3) {
                0 => self.start(engine),
                _ => engine.disk().complete_one(),
            }
            now += 1000;
            while engine.step(now) {}
            while let Some((slot, ..)) = engine.pop_done() {
                engine.release(slot);
            }
        }
    }

    fn start(&mut self, engine: &mut Engine<SimDisk>) {
        let whole = self.rng.one_in(4);
        let count = if whole { 128 } else { 1 + self.rng.below(8) };
        let Some(slot) = engine.reserve((count * 512) as u32) else { return };
        let start = match self.rng.below(4) {
            _ if whole => self.rng.below(u64::from(BLOCKS)) * 128,
            0 => 0,
            // The last sectors of a block, with which a file might end.
            1 => (1 + self.rng.below(u64::from(BLOCKS))) * 128 - count,
            _ => self.rng.below(SECTORS - count),
        };
        let span = Span { start, count: count as u32 };
        let zero = whole && self.rng.one_in(3);
        let verb = match zero {
            true => Verb::Zero { keep: false, fast: false, fua: false },
            false => Verb::Write { fua: false },
        };
        if !zero {
            for i in 0..count as usize {
                let bytes = self.forged();
                self.written.insert(sum(&bytes));
                engine.buffer_mut(slot)[i * 512..][..512].copy_from_slice(&bytes);
            }
        }
        engine.start(slot, Request { verb, span, owner: Owner::default() });
    }

    /// A sector that looks like a part of an image.
    fn forged(&mut self) -> [u8; 512] {
        // Where a guest may think that its sectors lie in the file, or that its file ends.
        let place =
            |rng: &mut Rng| rng.below(16) * (u64::from(BLOCK_BYTES) + 4096) + 512 * rng.below(16);
        let mut bytes = [0; 512];
        match self.rng.below(6) {
            0 => bytes = self.footer.encode(),
            1 | 2 => {
                let kinds = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];
                let kind = kinds[self.rng.below(3) as usize];
                let mut footer = Footer::new(kind, SECTORS * 512, ID, 0);
                footer.hidden = self.rng.below(2) as u8;
                if self.rng.one_in(2) {
                    footer.current_bytes = 512 * self.rng.below(2 * SECTORS);
                }
                if kind != DiskType::Fixed && self.rng.one_in(2) {
                    footer.data_offset = place(&mut self.rng);
                }
                if self.rng.one_in(4) {
                    footer.uuid = [1; 16];
                }
                if self.rng.one_in(8) {
                    footer.cookie = *b"v_poison";
                }
                bytes = footer.encode();
            }
            3 => {
                let mut header = Header::new(place(&mut self.rng), BLOCKS, BLOCK_BYTES);
                header.parent_uuid = [1; 16];
                bytes.copy_from_slice(&header.encode()[..512]);
            }
            4 => {
                let wild =
                    (0..128).map(|_| (place(&mut self.rng) / 512) as u32).collect::<Vec<_>>();
                bytes.copy_from_slice(&bat::encode(wild.into_iter()));
            }
            _ => bytes = [0xff; 512],
        }
        bytes
    }

    /// The file and its closing writes, after all requests are over.
    fn close(&mut self, mut engine: Engine<SimDisk>) -> (Logged, Closing) {
        let mut now = 1 << 40;
        while !engine.idle() {
            engine.disk().complete_one();
            now += 1000;
            while engine.step(now) {}
            while let Some((slot, ..)) = engine.pop_done() {
                engine.release(slot);
            }
        }
        let mut chain = engine.detach().expect("a chain was attached");
        let file = engine.into_disk().files.remove(0);
        let storage = Logged::new(file.bytes, self.device);
        let mut closing = chain.layers[0].image.closing();
        if self.setup.hasty {
            closing.writes.append(&mut closing.last);
        }
        (storage, closing)
    }

    /// What is there after the end of a life.
    fn look(&self, bytes: &[u8], end: End) -> Result<(), String> {
        let name = Path::new("sim");
        let what = format!("{:?}, device {}, after {end:?}", self.kind, self.device);
        let storage = MemStorage::new(bytes.to_vec(), self.device);
        let options = OpenOptions { read_only: true, for_io: true, ..OpenOptions::default() };
        let opened = vhd_rs::open(&storage, name, &options)
            .map_err(|e| format!("{what}: does not open: {e}"))?;
        if opened.footer.encode() != self.footer.encode() {
            let (kind, uuid) = (opened.footer.kind, opened.footer.uuid);
            return Err(format!("{what}: another footer is believed: {kind:?} {uuid:?}"));
        }
        if bytes[bytes.len() - 512..] != self.footer.encode() {
            return Err(format!("{what}: {} bytes do not end with the footer", bytes.len()));
        }
        let report = check(&storage, name, &CheckOptions::default()).map_err(|e| e.to_string())?;
        if let Some((fault, _)) = report.fault {
            return Err(format!("{what}: {fault}"));
        }
        let image = Vhd::new(opened);
        let layer = [blocking::Layer { image: &image, storage: &storage }];
        let mut disk = vec![0; SECTORS as usize * 512];
        blocking::read(&layer, Span { start: 0, count: SECTORS as u32 }, &mut disk)
            .map_err(|e| format!("{what}: {e}"))?;
        match disk.chunks(512).position(|bytes| !self.written.contains(&sum(bytes))) {
            Some(at) => Err(format!("{what}: sector {at} holds what no guest wrote")),
            None => Ok(()),
        }
    }

    /// Something happens to the copy at byte 0 while nobody has the image open.
    fn damage(&mut self, bytes: &mut [u8]) {
        self.damaged = true;
        match self.rng.below(6) {
            0 => bytes[..512].fill(0),
            1 => bytes[64..68].fill(1),
            2 => bytes[..512]
                .copy_from_slice(&Footer { uuid: [3; 16], ..self.footer.clone() }.encode()),
            3 => bytes[..512].copy_from_slice(
                &Footer { kind: DiskType::Differencing, ..self.footer.clone() }.encode(),
            ),
            4 => bytes[..512].copy_from_slice(
                &Footer { current_bytes: 512 * SECTORS / 2, ..self.footer.clone() }.encode(),
            ),
            _ => {}
        }
    }
}

/// A number for the bytes of a sector.
fn sum(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
