//! The blocking writer over the VHD driver: what is written is read back, and after a stop at any
//! operation every sector is old or new and the image passes the check.

use image::blocking::{Layer, Writer, read};
use image::{Image, MemStorage, Place, Span, Storage};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use vhd_rs::driver::Vhd;
use vhd_rs::{CheckOptions, OpenOptions, check, create, open};

const MIB: u64 = 1 << 20;
const SECTORS: u64 = 8 * MIB / 512;

/// A file whose operations fail from the `left`-th on.
struct Failing {
    inner: MemStorage,
    left: Cell<u64>,
}

impl Failing {
    fn new(bytes: Vec<u8>, left: u64) -> Failing {
        Failing { inner: MemStorage::new(bytes, false), left: Cell::new(left) }
    }

    fn spend(&self) -> io::Result<()> {
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 0 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

impl Storage for Failing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.spend()?;
        self.inner.write_at(offset, buf)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn is_device(&self) -> bool {
        false
    }
}

fn empty() -> Vec<u8> {
    let storage = MemStorage::new(Vec::new(), false);
    let new = create::NewImage { bytes: 8 * MIB, room_bytes: 8 * MIB, uuid: [7; 16], timestamp: 5 };
    create::dynamic(&storage, Path::new("x.vhd"), &new, None).unwrap();
    storage.into_inner()
}

fn opened(storage: &dyn Storage) -> Vhd {
    let options = OpenOptions { for_io: true, ..OpenOptions::default() };
    Vhd::new(open(storage, Path::new("x.vhd"), &options).unwrap())
}

fn contents(storage: &dyn Storage) -> Vec<u8> {
    let image = opened(storage);
    let mut all = vec![0; (8 * MIB) as usize];
    let chain = [Layer { image: &image, storage }];
    read(&chain, Span { start: 0, count: SECTORS as u32 }, &mut all).unwrap();
    all
}

/// A change: writes a value into sectors, or zeroes them.
#[derive(Clone, Copy, Debug)]
struct Change {
    start: u64,
    count: u32,
    value: u8,
}

fn changes(seed: u64) -> Vec<Change> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = |n: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % n
    };
    let mut one = |value| {
        let count = [1, 8, 4096, 5000][next(4) as usize] as u32;
        let start = next(SECTORS - u64::from(count)) / 4 * 4;
        // Zeros of whole blocks give them back.
        match next(4) {
            0 => Change { start: start / 4096 * 4096, count: 4096, value: 0 },
            _ => Change { start, count, value },
        }
    };
    (1..12).map(&mut one).collect()
}

fn apply(writer: &mut Writer<'_>, c: Change) -> io::Result<()> {
    match c.value {
        0 => writer.zero(Span { start: c.start, count: c.count }, true, false),
        value => writer.write(c.start, &vec![value; c.count as usize * 512]),
    }
}

fn remember(model: &mut [u8], c: Change) {
    let from = c.start as usize * 512;
    model[from..from + c.count as usize * 512].fill(c.value);
}

#[test]
fn what_is_written_is_read_back_and_passes_the_check() {
    for seed in 0..8 {
        let storage = MemStorage::new(empty(), false);
        let mut model = vec![0; (8 * MIB) as usize];
        let mut image = opened(&storage);
        let mut writer = Writer::new(&mut image, &storage).unwrap().with_barriers(seed % 2 == 0);
        for change in changes(seed) {
            apply(&mut writer, change).unwrap();
            remember(&mut model, change);
        }
        writer.close().unwrap();
        assert!(contents(&storage) == model, "seed {seed}");
        let report = check(&storage, Path::new("x.vhd"), &CheckOptions::default()).unwrap();
        assert_eq!(report.fault, None, "seed {seed}");
    }
}

#[test]
fn after_a_stop_at_any_operation_each_sector_is_old_or_new() {
    let ran_out = RefCell::new(0);
    for seed in 0..3 {
        for left in 0..200 {
            let storage = Failing::new(empty(), left);
            let mut before = vec![0; (8 * MIB) as usize];
            let mut after = before.clone();
            let mut image = opened(&storage);
            let mut writer = Writer::new(&mut image, &storage).unwrap();
            let all_done = changes(seed).into_iter().try_for_each(|change| {
                after.clone_from(&before);
                remember(&mut after, change);
                apply(&mut writer, change)?;
                before.clone_from(&after);
                io::Result::Ok(())
            });
            drop(writer);
            storage.left.set(u64::MAX);
            let found = contents(&storage);
            let sectors = found.chunks(512).zip(before.chunks(512).zip(after.chunks(512)));
            for (sector, (now, (old, new))) in sectors.enumerate() {
                assert!(now == old || now == new, "seed {seed}, stop {left}, sector {sector}");
            }
            let options = CheckOptions { ignore_footer: true, ..CheckOptions::default() };
            let report = check(&storage, Path::new("x.vhd"), &options).unwrap();
            assert_eq!(report.fault, None, "seed {seed}, stop {left}");
            *ran_out.borrow_mut() += u32::from(all_done.is_err());
            if all_done.is_ok() {
                break;
            }
        }
    }
    assert!(*ran_out.borrow() > 60, "enough stops were tried: {}", ran_out.borrow());
}

#[test]
fn after_a_failure_the_same_writer_goes_on_and_mends_what_is_in_doubt() {
    for left in 0..12 {
        let storage = Failing::new(empty(), left);
        let mut image = opened(&storage);
        let mut writer = Writer::new(&mut image, &storage).unwrap();
        let failed = (0..4).find(|block| writer.write(block * 4096, &[9; 512]).is_err());
        storage.left.set(u64::MAX);
        for block in 0..4 {
            writer.write(block * 4096 + 1, &[8; 512]).unwrap();
        }
        writer.close().unwrap();
        let found = contents(&storage);
        for block in 0..4 {
            let at = block as usize * (2 << 20);
            let kept = failed.is_none_or(|f| block < f);
            assert!(!kept || found[at..at + 512] == [9; 512], "stop {left}: block {block}");
            assert!(found[at + 512..at + 1024] == [8; 512], "stop {left}: block {block}");
        }
        let report = check(&storage, Path::new("x.vhd"), &CheckOptions::default()).unwrap();
        assert_eq!(report.fault, None, "stop {left}");
    }
}

#[test]
fn a_request_beyond_the_end_is_refused_and_changes_nothing() {
    let storage = MemStorage::new(empty(), false);
    let mut image = opened(&storage);
    let mut writer = Writer::new(&mut image, &storage).unwrap();
    let e = writer.write(SECTORS - 1, &[1; 1024]).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(34));
    let run = writer.map(Span { start: SECTORS - 1, count: 1 }).unwrap();
    assert_eq!((run.place, run.count), (Place::Below, 1));
    writer.close().unwrap();
    assert!(storage.into_inner() == empty());
    assert_eq!(image.sectors(), SECTORS);
}
