//! The daemon's engine over a real file, for the proofs of no allocation and no page fault.
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use disk::align::{Aligned, BOUNCE_BYTES};
use disk::probe::{AnyDisk, EngineKind, choose};
use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use frontend::Frontend;
use host::arena::Arena;
use host::sys::faults;
use image::Image;
use request::disk::Disk;
use request::disk::FileInfo;
use tapdisk::sealed::Seal;
use test_support::sys::wait_readable;
use vhd_rs::create::{NewImage, dynamic};

pub const BYTES: u64 = 64 << 20;

/// An image of [`BYTES`] bytes, "raw" or "vhd", under a new engine.
pub fn engine(
    path: &Path,
    format: &str,
    kind: EngineKind,
    limits: Limits,
) -> (File, Engine<Aligned<AnyDisk>>) {
    let (file, image) = open(path, format);
    let reserve = limits.behind(BOUNCE_BYTES);
    let arena = Arena::new((reserve.offset + reserve.bytes) as usize).unwrap();
    let chosen = choose(arena, limits.ops(), 1, Some(kind)).unwrap();
    let mut disk = Aligned::open(chosen.disk, reserve, limits.ops());
    disk.set_alignments(&[512]).unwrap();
    disk.set_files(&[file.as_raw_fd()]).unwrap();
    let mut engine = Engine::new(disk, limits);
    let info = FileInfo { bytes: file.metadata().unwrap().len(), device: false, thin: false };
    engine.attach(Chain::of(vec![image]), &[info], Policy::default());
    (file, engine)
}

fn open(path: &Path, format: &str) -> (File, Box<dyn Image>) {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path).unwrap();
    if format == "raw" {
        file.set_len(BYTES).unwrap();
        return (file, Box::new(raw::Raw::new(BYTES / 512, false)));
    }
    let new = NewImage { bytes: BYTES, room_bytes: BYTES, uuid: [7; 16], timestamp: 1 };
    dynamic(&file, path, &new, None).unwrap();
    let how = vhd_rs::OpenOptions { for_io: true, ..Default::default() };
    let opened = vhd_rs::open(&file, path, &how).unwrap();
    (file, Box::new(vhd_rs::driver::Vhd::new(opened)))
}

/// A turn as the server's, sealed; `now` tells the frontend the time before each look. Then what is
/// left to wait for is waited for. Gives the page faults of the sealed part, minor and major.
pub fn turn<F: Frontend>(
    engine: &mut Engine<Aligned<AnyDisk>>,
    frontend: &mut F,
    clock: u64,
    now: impl Fn(&mut F),
) -> (u64, u64) {
    let before = faults();
    let seal = Seal::new();
    let mut more = true;
    while more {
        now(frontend);
        let arrived = frontend.take(engine);
        let again = engine.step(clock);
        let mut finished = false;
        while let Some((slot, request, outcome)) = engine.pop_done() {
            frontend.complete(engine, slot, &request, outcome);
            finished = true;
        }
        frontend.kick(engine);
        // A polled ring is looked at again, and again.
        more = again || (arrived && finished);
    }
    engine.disk().submit().unwrap();
    drop(seal);
    let after = faults();
    if engine.active() > 0 && !engine.disk_ref().has_finished() {
        let woken = wait_readable(&engine.disk_ref().wake_fd(), Duration::from_secs(20));
        assert!(woken, "an operation took 20 s");
        engine.disk().submit().unwrap();
    }
    (after.0 - before.0, after.1 - before.1)
}
