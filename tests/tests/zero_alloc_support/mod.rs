//! The daemon's engine over a real file, for the proofs of no allocation and no page fault.
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use disk::align::{Aligned, BOUNCE_BYTES};
use disk::probe::{AnyDisk, EngineKind, choose};
use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use host::arena::Arena;
use image::Image;
use request::disk::Disk;
use request::disk::FileInfo;
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

/// Until a descriptor is readable.
pub fn wait(fd: i32) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, alive during the call.
    let ready = unsafe { libc::poll(&mut poll, 1, 20_000) };
    assert!(ready == 1, "an operation took 20 s");
}
