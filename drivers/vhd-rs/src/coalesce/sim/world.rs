//! A chain in memory, coalesced with faults, and what it must show.
use std::cell::Cell;
use std::path::Path;

use image::{Image, MemStorage, Meta, Place as At, Plan, Run, Span, Step, Stop, Want, blocking};

use super::super::machine::{Job, Machine, Next, Table};
use super::super::memory::Pages;
use super::super::source::Source;
use super::super::target::{Place, Target};
use super::super::{begin, chunks, end};
use super::disk::{Rng, SimMedium};
use crate::batmap::BatmapHeader;
use crate::check::{CheckOptions, check};
use crate::driver::Vhd;
use crate::footer::{DiskType, Footer};
use crate::header::Header;
use crate::open::{OpenOptions, open};

/// Bytes of a block; the daemon's is 2 MiB, but a small one shows the same.
const BLOCK: u32 = 128 << 10;
const SECTORS: u64 = BLOCK as u64 / 512;
/// Jobs at work at once.
const DEPTH: u64 = 4;

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    None,
    /// No flush has any effect.
    FlushLies,
    /// Metadata is written without the flush before it.
    MetadataUnflushed,
    /// A bitmap is written as soon as the data has been, and not after the flush.
    BitmapWithData,
    /// The bitmap of a new block is not written.
    NewBitmapLost,
    /// What lies behind the last block stays there.
    StaleSpace,
    /// A chunk counts as moved before it is.
    DataLate,
}

/// The bytes of a chain, child first; `None` where the image is a raw one.
pub(super) struct World {
    rng: Rng,
    bug: Bug,
    child: Vec<u8>,
    parent: Vec<u8>,
    grand: Option<Vec<u8>>,
    raw: bool,
    pub(super) device: bool,
    volatile: bool,
    sparse: bool,
    sectors: u64,
    /// What the child shows, and what the parent showed at first and shows in the end.
    through: Vec<u8>,
    old: Vec<u8>,
    /// Which sectors the child has.
    has: Vec<bool>,
    /// The parent has ended with its footer.
    footed: Cell<bool>,
}

/// A flat image, for reading.
struct Flat(u64);

impl Image for Flat {
    fn sectors(&self) -> u64 {
        self.0
    }
    fn map(&self, _: &dyn Meta, span: Span) -> Result<Run, Stop> {
        Ok(Run { place: At::At { byte: span.start * 512 }, count: span.count })
    }
    fn plan(&mut self, _: &mut dyn Meta, _: Span, _: Want) -> Result<Plan, Stop> {
        unreachable!("it is only read")
    }
    fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> Step {
        unreachable!("it is only read")
    }
    fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) -> bool {
        unreachable!("it is only read")
    }
}

/// A VHD with sectors at random places, every one with a value of its own or zero.
fn vhd(
    rng: &mut Rng,
    sectors: u64,
    kind: DiskType,
    device: bool,
    dense: u64,
) -> (Vec<u8>, Vec<bool>) {
    let blocks = sectors.div_ceil(SECTORS) as u32;
    let footer = Footer::new(kind, sectors * 512, [kind.code() as u8; 16], 0);
    let mut header = Header::new(1536, blocks, BLOCK);
    if kind == DiskType::Differencing {
        header.parent_uuid = [1; 16];
        assert!(header.set_parent_name("p"));
    }
    let mut batmap = BatmapHeader::new(2048, blocks);
    let mut map = vec![0; 512];
    let mut bytes = vec![0; 3072];
    let mut has = vec![false; sectors as usize];
    let mut bat = vec![crate::bat::UNUSED; blocks as usize];
    let mut lba = 7;
    let (salt, dense) = (rng.below(1 << 40), 1 + rng.below(dense));
    for block in 0..blocks {
        if !rng.one_in(dense) {
            continue;
        }
        // Not every writer begins blocks at a page.
        lba += rng.below(3) * 4;
        bat[block as usize] = lba as u32;
        let base = u64::from(block) * SECTORS;
        let mut bits = vec![0u8; 512];
        let full = rng.one_in(3);
        let mut data = vec![if rng.one_in(2) { 0xbb } else { 0 }; BLOCK as usize];
        let mut on = rng.one_in(2);
        let zeros = rng.one_in(5);
        for s in 0..SECTORS.min(sectors - base) {
            if rng.one_in(9) {
                on = !on;
            }
            if !on && !full {
                continue;
            }
            bits[s as usize / 8] |= 0x80 >> (s % 8);
            has[(base + s) as usize] = true;
            let value = if zeros || rng.one_in(40) { 0 } else { salt << 16 | (base + s) | 1 << 62 };
            data[s as usize * 512..][..512]
                .chunks_exact_mut(8)
                .for_each(|c| c.copy_from_slice(&value.to_be_bytes()));
        }
        if full && sectors - base >= SECTORS && rng.one_in(2) {
            map[block as usize / 8] |= 0x80 >> (block % 8);
        }
        bytes.resize(lba as usize * 512, if device { 0xcc } else { 0 });
        bytes.extend(bits);
        bytes.extend(data);
        lba += SECTORS + 8;
    }
    batmap.checksum = batmap.checksum_of(&map, sectors * 512, BLOCK);
    if device {
        let room = (u64::from(blocks) - rng.below(2)) * (SECTORS + 20) * 512;
        bytes.resize((bytes.len() + room as usize).next_multiple_of(512), 0xcc);
    }
    bytes.extend(footer.encode());
    bytes[..512].copy_from_slice(&footer.encode());
    bytes[512..1536].copy_from_slice(&header.encode());
    bytes[1536..2048].copy_from_slice(&crate::bat::encode(bat.into_iter()));
    bytes[2048..2560].copy_from_slice(&batmap.encode());
    bytes[2560..3072].copy_from_slice(&map);
    (bytes, has)
}

impl World {
    pub(super) fn new(rng: &mut Rng, bug: Bug) -> World {
        let sectors = 4 * SECTORS + rng.below(8) * SECTORS + rng.below(2) * 77;
        let (child, has) = vhd(rng, sectors, DiskType::Differencing, false, 2);
        let raw = rng.one_in(6);
        let grand =
            (!raw && rng.one_in(2)).then(|| vhd(rng, sectors, DiskType::Dynamic, false, 2).0);
        let kind = if grand.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let device = !raw && rng.one_in(3);
        let parent = match raw {
            true => (0..sectors * 512).map(|i| (i / 512 % 3) as u8).collect(),
            false => vhd(rng, sectors, kind, device, 3).0,
        };
        let mut parent = parent;
        let killed = !raw && !device && rng.one_in(3);
        if killed {
            // A writer was killed: no footer at the end, and a block there that nothing points at.
            parent.truncate(parent.len() - 512);
            parent.resize(parent.len() + 2 * BLOCK as usize, 0xdd);
        }
        let mut world = World {
            rng: Rng(rng.below(u64::MAX)),
            bug,
            child,
            parent,
            grand,
            raw,
            device,
            volatile: rng.one_in(2) || bug != Bug::None,
            sparse: rng.one_in(3),
            sectors,
            through: Vec::new(),
            old: Vec::new(),
            has,
            footed: Cell::new(!killed),
        };
        world.through = world.shown(true).expect("a good chain");
        world.old = world.shown(false).expect("a good chain");
        world
    }

    /// What the child shows, or the parent alone.
    fn shown(&self, through_child: bool) -> Result<Vec<u8>, String> {
        let name = Path::new("sim");
        let mut stores = Vec::new();
        let mut images: Vec<Box<dyn Image>> = Vec::new();
        let child = through_child.then_some((&self.child, false, false));
        let parent = Some((&self.parent, self.raw, self.device));
        let grand = self.grand.as_ref().map(|g| (g, false, false));
        for (bytes, raw, device) in child.into_iter().chain(parent).chain(grand) {
            let store = MemStorage::new(bytes.clone(), device);
            images.push(match raw {
                true => Box::new(Flat(self.sectors)),
                false => {
                    let o = OpenOptions { read_only: true, for_io: true, ..<_>::default() };
                    Box::new(Vhd::new(open(&store, name, &o).map_err(|e| e.to_string())?))
                }
            });
            stores.push(store);
        }
        let layers: Vec<blocking::Layer<'_>> = images
            .iter()
            .zip(&stores)
            .map(|(image, storage)| blocking::Layer { image: &**image, storage })
            .collect();
        let mut buf = vec![0; self.sectors as usize * 512];
        blocking::read(&layers, Span { start: 0, count: self.sectors as u32 }, &mut buf)
            .map_err(|e| e.to_string())?;
        Ok(buf)
    }

    /// However it ended, the parent's file ends with its footer.
    fn check_end(&self, when: &str) -> Result<(), String> {
        let end = &self.parent[self.parent.len().saturating_sub(512)..];
        let own = Footer::parse(end).is_ok_and(|f| f.encode() == self.parent[..512]);
        // A killed writer left it without one; from the moment it has one it always has.
        let had = self.footed.replace(own || self.footed.get());
        match own || self.raw || !had {
            true => Ok(()),
            false => Err(format!("{when}: the parent does not end with its footer")),
        }
    }

    /// Compares what there is with what there may be.
    pub(super) fn check(&self, when: &str, whole: bool) -> Result<(), String> {
        self.check_end(when)?;
        let through = self.shown(true).map_err(|e| format!("{when}, through the child: {e}"))?;
        let alone = self.shown(false).map_err(|e| format!("{when}, the parent: {e}"))?;
        for s in 0..self.sectors as usize {
            let at = |bytes: &Vec<u8>| bytes[s * 512..][..512].to_vec();
            if at(&through) != at(&self.through) {
                return Err(format!("{when}: sector {s} is another one through the child"));
            }
            let new =
                at(&alone) == at(&self.through) && (self.has[s] || at(&alone) == at(&self.old));
            if !new && (whole || at(&alone) != at(&self.old)) {
                let value = |bytes: &Vec<u8>| {
                    u64::from_be_bytes(bytes[s * 512..][..8].try_into().expect("eight bytes"))
                };
                return Err(format!(
                    "{when}: sector {s} of the parent is {:#x}, neither {:#x} nor {:#x}; the child {}",
                    value(&alone),
                    value(&self.old),
                    value(&self.through),
                    if self.has[s] { "has it" } else { "does not have it" },
                ));
            }
        }
        if whole && !self.raw {
            let store = MemStorage::new(self.parent.clone(), self.device);
            // An image that nothing was merged into is left as it was.
            let ignore_footer = !self.has.contains(&true);
            let o = CheckOptions { ignore_footer, ..CheckOptions::default() };
            let report = check(&store, Path::new("sim"), &o).map_err(|e| format!("{when}: {e}"))?;
            if let Some((text, _)) = report.fault {
                return Err(format!("{when}: {text}"));
            }
        }
        Ok(())
    }

    /// Coalesces until the end (how it ended, with an errno), or until the power goes (`None`).
    pub(super) fn coalesce(
        &mut self,
        cut_in: Option<u64>,
        eio: u64,
        room: Option<u64>,
    ) -> Result<Option<Result<(), i32>>, String> {
        let name = Path::new("sim");
        let medium = SimMedium::new(
            self.parent.clone(),
            self.device,
            self.volatile,
            Rng(self.rng.below(u64::MAX)),
        );
        medium.with(|disk| {
            (disk.cut_in, disk.eio, disk.room) = (cut_in, eio, room);
            disk.lies = self.bug == Bug::FlushLies;
        });
        let read = |bytes: &Vec<u8>| SimMedium::new(bytes.clone(), false, false, Rng(0));
        let child = read(&self.child);
        let opened = open(&child, name, &OpenOptions { read_only: true, ..<_>::default() })
            .map_err(|e| e.to_string())?;
        let sources = vec![Source::vhd(name, Box::new(child), opened)];
        let opened = match self.raw {
            true => None,
            false => {
                let o = OpenOptions { for_io: true, ..<_>::default() };
                Some(open(&medium, name, &o).map_err(|e| format!("the parent: {e}"))?)
            }
        };
        let target = Target {
            name: name.into(),
            medium: Box::new(medium.clone()),
            sectors: self.sectors,
            chunk: BLOCK / 512,
            below_zero: self.grand.is_none(),
            fresh: false,
            sparse: self.sparse,
            find_zeros: true,
        };
        let table = opened.map(Table::new);
        let chunks = chunks(&sources, &target);
        medium.with(|disk| disk.alone = true);
        let machine = match self.bug {
            Bug::StaleSpace if !self.device => stale_begin(&target, &medium, chunks, table),
            _ => begin(&target, chunks, table),
        };
        medium.with(|disk| disk.alone = false);
        let ended = match medium.with(|disk| disk.is_off()) {
            true => Err(5),
            false => Jobs::new(self, &medium, &target, &sources).all(machine),
        };
        let cut = medium.with(|disk| disk.is_off());
        self.parent = match cut {
            true => medium.with(|disk| disk.after_the_cut()),
            // The machine goes on, so what was not flushed is not lost; but it may be slow.
            false => medium.with(|disk| disk.bytes.clone()),
        };
        Ok((!cut).then_some(ended))
    }
}

impl World {
    /// Compacts the parent until the end, or until the power goes.
    pub(super) fn compact(&mut self, cut_in: Option<u64>) -> Option<Result<(), i32>> {
        let rng = Rng(self.rng.below(u64::MAX));
        let medium = SimMedium::new(self.parent.clone(), self.device, self.volatile, rng);
        medium.with(|disk| {
            (disk.cut_in, disk.alone) = (cut_in, true);
            disk.lies = self.bug == Bug::FlushLies;
        });
        let done = super::super::compact::on(Path::new("sim"), &medium, &mut |_| {});
        let cut = medium.with(|disk| disk.is_off());
        self.parent = match cut {
            true => medium.with(|disk| disk.after_the_cut()),
            false => medium.with(|disk| disk.bytes.clone()),
        };
        (!cut).then_some(done.map(drop).map_err(|e| e.errno()))
    }

    /// Whether there is a table to compact.
    pub(super) fn has_blocks(&self) -> bool {
        !self.raw
    }

    /// The parent shows what it showed at first.
    pub(super) fn check_old(&self, when: &str, whole: bool) -> Result<(), String> {
        self.check_end(when)?;
        let alone = self.shown(false).map_err(|e| format!("{when}: {e}"))?;
        if let Some(s) = (0..self.sectors as usize).find(|s| {
            let at = s * 512..s * 512 + 512;
            alone[at.clone()] != self.old[at]
        }) {
            return Err(format!("{when}: sector {s} is another one"));
        }
        if whole {
            let store = MemStorage::new(self.parent.clone(), self.device);
            let o = CheckOptions { ignore_footer: true, ..CheckOptions::default() };
            let report = check(&store, Path::new("sim"), &o).map_err(|e| format!("{when}: {e}"))?;
            if let Some((text, _)) = report.fault {
                return Err(format!("{when}: {text}"));
            }
        }
        Ok(())
    }
}

/// As `begin`, but nothing is cut off and nothing made zero.
fn stale_begin(
    target: &Target,
    medium: &SimMedium,
    chunks: Vec<u32>,
    table: Option<Table>,
) -> Machine {
    let end = table.as_ref().map(|t| t.end_with(t.missing(&chunks)));
    let mut machine = Machine::new(&target.name, chunks, table);
    if let Some(end) = end {
        medium.with(|disk| disk.bytes.resize((end as usize).max(disk.bytes.len()), 0));
        machine.begun(Ok(()));
    }
    machine
}

/// The jobs at work, ended in random order.
struct Jobs<'a> {
    world: &'a mut World,
    medium: &'a SimMedium,
    target: &'a Target,
    sources: &'a [Source],
    queue: Vec<(Job, usize)>,
    /// Planted: chunks that are said to be done.
    late: Vec<(u32, Place)>,
}

impl<'a> Jobs<'a> {
    fn new(
        world: &'a mut World,
        medium: &'a SimMedium,
        target: &'a Target,
        sources: &'a [Source],
    ) -> Jobs<'a> {
        Jobs { world, medium, target, sources, queue: Vec::new(), late: Vec::new() }
    }

    /// Runs a machine to its end, or into the dark.
    fn all(mut self, mut machine: Machine) -> Result<(), i32> {
        let depth = 1 + self.world.rng.below(DEPTH) as usize;
        loop {
            let mut over = false;
            while self.queue.len() < depth && !over {
                match machine.next() {
                    Next::Do(job) => {
                        self.queue.push((job, self.medium.with(|disk| disk.unflushed())));
                    }
                    Next::Wait => break,
                    Next::Over => over = true,
                }
            }
            if over {
                break;
            }
            assert!(!self.queue.is_empty(), "waiting for nothing");
            let i = self.world.rng.below(self.queue.len() as u64) as usize;
            let (job, mark) = self.queue.swap_remove(i);
            self.one(job, mark, &mut machine);
            if self.medium.with(|disk| disk.is_off()) {
                self.in_the_dark();
                return Err(5);
            }
        }
        self.medium.with(|disk| (disk.mark, disk.alone) = (usize::MAX, true));
        end(self.target, machine).map(drop).map_err(|e| e.errno())
    }

    /// What was at work when the power went lands in parts, or not at all.
    fn in_the_dark(&mut self) {
        let mut pages = self.target.memory().expect("memory");
        for (job, _) in std::mem::take(&mut self.queue) {
            match job {
                Job::Move { chunk, place } => {
                    let _ = self.target.fill(self.sources, chunk, place, &mut pages);
                }
                Job::Write(pieces) => {
                    let _ = self.target.write(&pieces);
                }
                Job::Flush => {}
            }
        }
        for (chunk, place) in std::mem::take(&mut self.late) {
            let _ = self.target.fill(self.sources, chunk, place, &mut pages);
        }
    }

    fn one(&mut self, job: Job, mark: usize, machine: &mut Machine) {
        let bug = self.world.bug;
        let mut pages = self.target.memory().expect("memory");
        match job {
            Job::Move { chunk, place } if bug == Bug::DataLate => {
                let (before, mark) =
                    self.medium.with(|disk| (disk.bytes.clone(), disk.unflushed()));
                let result = self.target.fill(self.sources, chunk, place, &mut pages);
                self.medium.with(|disk| disk.take_back(before, mark));
                self.late.push((chunk, place));
                machine.moved(chunk, place, result);
            }
            Job::Move { chunk, place } => {
                let result = self.fill(chunk, place, &mut pages);
                if let (Bug::BitmapWithData, Ok(moved), Place::There { lba, .. }) =
                    (bug, &result, place)
                    && let Some(bits) = &moved.bitmap
                {
                    let _ = self.target.write(&[(u64::from(lba) * 512, bits.bitmap())]);
                }
                machine.moved(chunk, place, result);
            }
            Job::Flush => {
                self.medium.with(|disk| disk.mark = mark);
                let skip = bug == Bug::MetadataUnflushed;
                machine.flushed(if skip { Ok(()) } else { self.target.flush() });
            }
            Job::Write(pieces) => machine.written(self.target.write(&pieces)),
        }
    }

    fn fill(
        &self,
        chunk: u32,
        place: Place,
        pages: &mut Pages,
    ) -> Result<super::super::target::Moved, crate::VhdError> {
        if let (Bug::NewBitmapLost, Place::New { lba, .. }) = (self.world.bug, place) {
            self.medium.with(|disk| disk.forget = Some(u64::from(lba) * 512));
        }
        let result = self.target.fill(self.sources, chunk, place, pages);
        self.medium.with(|disk| disk.forget = None);
        result
    }
}
