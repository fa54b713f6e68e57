//! VHDs and raw images on disks with sectors of 4096 bytes: simulated, and on a loop device.
//!
//! The real ones need root and loop devices; without them they say SKIPPED.
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use disk::aio::Aio;
use disk::align::{Aligned, BOUNCE_BYTES, alignment_of};
use disk::uring::Uring;
use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use host::arena::{Arena, Buf};
use image::Span;
use request::disk::FileInfo;
use request::disk::{Disk, FileId, Kind, Op};
use request::{Owner, Request, Slots, Verb};
use tapdisk::sealed::{Seal, Sealable};
use tests::sim::rng::Rng;
use tests::sim::{Counts, Setup, run, run_all};

/// Calls while a disk works stop the test.
#[global_allocator]
static ALLOCATOR: Sealable = Sealable;

const SEEDS: u64 = 150;

fn large(seed: u64) -> Setup {
    Setup { large_sectors: Some(true), ..Setup::new(seed) }
}

#[test]
fn no_seed_loses_a_neighbour_on_large_sectors() {
    run_all("align", Counts { same: 100, fresh: 300 }, large);
}

#[test]
fn rewrites_without_locks_are_found() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..SEEDS).find_map(|seed| {
        let setup = Setup { locks: false, ..large(seed) };
        match std::panic::catch_unwind(move || run(setup)) {
            Ok(Ok(_)) => None,
            Ok(Err(why)) => Some((seed, why)),
            Err(_) => Some((seed, "an assertion".into())),
        }
    });
    std::panic::set_hook(quiet);
    let (seed, why) = found.expect("the missing locks are found");
    println!("no locks: seed {seed}: {}", why.chars().take(100).collect::<String>());
}

// ---- real disks --------------------------------------------------------------------------------

const DISK_BYTES: u64 = 16 << 20;
const DEPTH: u32 = 16;
/// Memory of one operation.
const PIECE_BYTES: u32 = 64 << 10;
const OPS: usize = 2000;
/// Sectors at work on: few, so that neighbours meet.
const SECTORS: u64 = 600;

/// Output of a command, or why there is none.
fn command(name: &str, arguments: &[&str]) -> Result<String, String> {
    let out = Command::new(name).args(arguments).output().map_err(|e| format!("{name}: {e}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// A loop device with sectors of 4096 bytes, gone in the end.
struct Loop {
    path: String,
    mounted: Option<PathBuf>,
    dir: tempfile::TempDir,
}

impl Loop {
    fn new() -> Result<Loop, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let file = dir.path().join("disk");
        let made = File::create(&file).and_then(|f| f.set_len(2 * DISK_BYTES));
        made.map_err(|e| e.to_string())?;
        let name = file.to_str().ok_or("a path of letters")?;
        let path = command("losetup", &["-f", "--show", "-b", "4096", name])?;
        Ok(Loop { path, mounted: None, dir })
    }

    /// A file of whole sectors of 512 on a file system of it.
    fn file_inside(&mut self) -> Result<PathBuf, String> {
        command("mkfs.ext4", &["-q", "-F", &self.path])?;
        let at = self.dir.path().join("at");
        std::fs::create_dir(&at).map_err(|e| e.to_string())?;
        command("mount", &[&self.path, at.to_str().ok_or("a path of letters")?])?;
        self.mounted = Some(at.clone());
        Ok(at.join("image"))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(at) = &self.mounted {
            // Lazily: io_uring lets go of its files a moment after its end.
            let _ = command("umount", &["-l", at.to_str().unwrap_or("")]);
        }
        let _ = command("losetup", &["-d", &self.path]);
    }
}

fn open(path: &Path) -> File {
    let mut how = OpenOptions::new();
    how.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    how.open(path).expect("a file for O_DIRECT")
}

/// Puts both engines over the file in turn; they carry one model on.
fn exercise(path: &Path, bounces: u32, seed: u64) {
    // One thread at a time seals the allocator.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let file = open(path);
    assert_eq!(alignment_of(&file), 4096, "{}", path.display());
    let mut model = vec![0; SECTORS as usize];
    let reserve = Buf { offset: DEPTH * PIECE_BYTES, bytes: bounces * BOUNCE_BYTES };
    let arena = || Arena::new((reserve.offset + reserve.bytes) as usize).expect("an arena");
    let aio = Aio::open(arena(), DEPTH, 1).expect("Linux AIO");
    work(Aligned::open(aio, reserve, DEPTH), &file, &mut model, seed);
    match Uring::open(arena(), DEPTH, 1) {
        Ok(uring) => work(Aligned::open(uring, reserve, DEPTH), &file, &mut model, seed + 1),
        Err(why) => println!("SKIPPED io_uring over large sectors: {why}"),
    }
    let mut found = vec![0; SECTORS as usize * 512];
    let cached = File::open(path).expect("the same file");
    cached.read_exact_at(&mut found, 0).expect("its bytes");
    for (s, value) in model.iter().enumerate() {
        assert!(found[s * 512..][..512] == sector(s as u64, *value), "sector {s} in the end");
    }
}

fn sector(s: u64, value: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    if value != 0 {
        tests::sim::model::fill(&mut bytes, s, value);
    }
    bytes
}

/// Sectors, whether they are written, and the value.
type AtWork = (std::ops::Range<u64>, bool, u64);

/// Random reads and writes of neighbouring sectors, of which those in flight never touch the same
/// one.
fn work<D: Disk>(mut disk: Aligned<D>, file: &File, model: &mut [u64], seed: u64) {
    println!("{}: seed {seed}", disk.name());
    disk.set_alignments(&[alignment_of(file)]).expect("an alignment that is served");
    disk.set_files(&[file.as_raw_fd()]).expect("the file");
    let mut rng = Rng::new(seed);
    let mut at_work: [Option<AtWork>; DEPTH as usize] = [const { None }; DEPTH as usize];
    let (mut started, mut ended) = (0, 0);
    while ended < OPS {
        let tag = rng.below(DEPTH.into()) as usize;
        if at_work[tag].is_none() && started < OPS {
            let count = if rng.one_in(4) { 1 + rng.below(128) } else { 1 + rng.below(6) };
            let first = rng.below(SECTORS - count);
            let range = first..first + count;
            let writes = rng.one_in(2);
            let meets =
                |(r, w, _): &AtWork| (*w || writes) && r.start < range.end && range.start < r.end;
            if !at_work.iter().flatten().any(meets) {
                started += 1;
                let value = seed << 32 | started as u64;
                let buf = Buf { offset: tag as u32 * PIECE_BYTES, bytes: count as u32 * 512 };
                let bytes = disk.arena().slice_mut(buf);
                bytes.fill(0xcc);
                if writes {
                    for (s, part) in range.clone().zip(bytes.chunks_exact_mut(512)) {
                        part.copy_from_slice(&sector(s, value));
                    }
                }
                let kind = if writes { Kind::Write } else { Kind::Read };
                let op = Op { file: FileId(0), kind, at: first * 512, buf };
                sealed(|| disk.push(tag as u32, op));
                at_work[tag] = Some((range, writes, value));
                continue;
            }
        }
        let done = sealed(|| {
            disk.submit().expect("the kernel takes it");
            disk.reap()
        });
        let Some((tag, result)) = done else {
            wait(&disk);
            continue;
        };
        ended += 1;
        let (range, writes, value) = at_work[tag as usize].take().expect("it was at work");
        let bytes = (range.end - range.start) as u32 * 512;
        assert_eq!(result, Ok(bytes), "sectors {range:?}");
        if writes {
            range.for_each(|s| model[s as usize] = value);
            continue;
        }
        let buf = Buf { offset: tag * PIECE_BYTES, bytes };
        for (s, part) in range.zip(disk.arena_ref().slice(buf).chunks_exact(512)) {
            assert!(*part == sector(s, model[s as usize]), "sector {s}");
        }
    }
}

/// Nothing is allocated meanwhile.
fn sealed<R>(f: impl FnOnce() -> R) -> R {
    let _seal = Seal::new();
    f()
}

fn wait(disk: &impl Disk) {
    if disk.has_finished() {
        return;
    }
    let mut poll = libc::pollfd { fd: disk.wake_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    let woken = unsafe { libc::poll(&raw mut poll, 1, 20_000) };
    assert!(woken != 0, "a wakeup was lost");
}

#[test]
fn a_device_of_large_sectors_takes_small_ones() {
    match Loop::new() {
        Ok(device) => {
            exercise(Path::new(&device.path), 8, 1);
            exercise_zeroed(&device, 1, 3);
        }
        Err(why) => println!("SKIPPED: no loop device with sectors of 4096 bytes: {why}"),
    }
}

/// Once more from zeros, with one bounce buffer.
fn exercise_zeroed(device: &Loop, bounces: u32, seed: u64) {
    let zeros = vec![0; SECTORS as usize * 512];
    let cached = OpenOptions::new().write(true).open(&device.path).expect("the device");
    cached.write_all_at(&zeros, 0).and_then(|()| cached.sync_all()).expect("zeros");
    exercise(Path::new(&device.path), bounces, seed);
}

#[test]
fn a_file_on_large_sectors_takes_small_ones() {
    let inside = Loop::new().and_then(|mut device| Ok((device.file_inside()?, device)));
    match inside {
        Ok((path, _device)) => {
            // It ends inside a large sector, and is read there; a write would make it longer.
            File::create(&path).and_then(|f| f.set_len(DISK_BYTES + 512)).expect("a file");
            exercise(&path, 2, 5);
            let length = path.metadata().expect("the file").len();
            assert_eq!(length, DISK_BYTES + 512, "nobody wrote at its end");
        }
        Err(why) => println!("SKIPPED: no file system on sectors of 4096 bytes: {why}"),
    }
}

#[test]
fn space_of_a_block_that_went_comes_back_on_a_device_of_large_sectors() {
    match Loop::new() {
        Ok(device) => blocks_come_and_go(&device),
        Err(why) => println!("SKIPPED: no loop device with sectors of 4096 bytes: {why}"),
    }
}

/// Each engine writes a block of a VHD on the device and zeros it, and looks at the file below.
fn blocks_come_and_go(device: &Loop) {
    let path = Path::new(&device.path);
    let image = tests::sim::bench::empty(8 * BLOCK, true).bytes;
    let (image, footer) = image.split_at(image.len() - 512);
    let cached = OpenOptions::new().write(true).open(path).expect("the device");
    cached.write_all_at(image, 0).expect("an image");
    cached.write_all_at(footer, 2 * DISK_BYTES - 512).expect("its footer");
    cached.sync_all().expect("on the disk");
    let limits = Limits::MINIMUM;
    let reserve = limits.behind(BOUNCE_BYTES);
    let arena = || Arena::new((reserve.offset + reserve.bytes) as usize).expect("an arena");
    let aio = Aio::open(arena(), limits.ops(), 1).expect("Linux AIO");
    one_block(Aligned::open(aio, reserve, limits.ops()), device);
    match Uring::open(arena(), limits.ops(), 1) {
        Ok(uring) => one_block(Aligned::open(uring, reserve, limits.ops()), device),
        Err(why) => println!("SKIPPED io_uring over large sectors: {why}"),
    }
}

/// Sectors of a block.
const BLOCK: u64 = tests::sim::bench::BLOCK;

fn one_block<D: Disk>(mut disk: Aligned<D>, device: &Loop) {
    let file = open(Path::new(&device.path));
    let options = vhd_rs::OpenOptions { for_io: true, ..vhd_rs::OpenOptions::default() };
    let cached = OpenOptions::new().read(true).write(true).open(&device.path).expect("it");
    let opened = vhd_rs::open(&cached, Path::new(&device.path), &options).expect("an image");
    disk.set_alignments(&[alignment_of(&file)]).expect("an alignment that is served");
    disk.set_files(&[file.as_raw_fd()]).expect("the file");
    let mut engine = Engine::new(disk, Limits::MINIMUM);
    let image = Box::new(vhd_rs::driver::Vhd::new(opened));
    let info = FileInfo { bytes: 2 * DISK_BYTES, device: true, thin: false };
    engine.attach(Chain::of(vec![image]), &[info], Policy::default());
    request(&mut engine, Verb::Write { fua: true });
    let with = blocks_below(device);
    request(&mut engine, Verb::Zero { keep: false, fast: false, fua: true });
    let without = blocks_below(device);
    let freed = with.saturating_sub(without);
    assert!(freed >= BLOCK, "{with} sectors, then {without}: a block's worth less");
}

/// Sectors that the file below the device has.
fn blocks_below(device: &Loop) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(
        &device.dir.path().join("disk").metadata().expect("the file below"),
    )
}

/// Changes the whole first block.
fn request<D: Disk>(engine: &mut Engine<Aligned<D>>, verb: Verb) {
    let slot = engine.reserve(BLOCK as u32 * 512).expect("a slot");
    engine.buffer_mut(slot).fill(7);
    engine.start(
        slot,
        Request { verb, span: Span { start: 0, count: BLOCK as u32 }, owner: Owner::default() },
    );
    loop {
        while engine.step(0) {}
        if let Some((slot, _, outcome)) = engine.pop_done() {
            assert_eq!(outcome, Ok(0), "{verb:?}");
            return engine.release(slot);
        }
        engine.disk().submit().expect("the kernel takes it");
        wait(engine.disk_ref());
    }
}
