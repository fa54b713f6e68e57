//! Any bytes, changed: no change of an image panics, whatever the image or the journal holds, and
//! one that is refused leaves the bytes as they were. The seed is fixed; a failure prints its
//! input.

use crate::common::{Block, build};
use image::blocking::Writer;
use image::{MemStorage, Span, Storage};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::cell::Cell;
use std::path::Path;
use std::sync::OnceLock;
use vhd_rs::batmap::KeyHash;
use vhd_rs::driver::Vhd;
use vhd_rs::resize::{Growth, fast};
use vhd_rs::revert::revert;
use vhd_rs::scan::{Look, add_marks, facts};
use vhd_rs::{OpenOptions, VhdError, edit, fill, key, modify, open};

const MIB: u64 = 1 << 20;

fn config() -> Config {
    Config { cases: 300, rng_seed: RngSeed::Fixed(0x7664_6f70), ..Config::default() }
}

/// Memory that does not grow beyond what a test may take; it remembers that it was asked to.
struct Bounded {
    inner: MemStorage,
    asked_too_much: Cell<bool>,
}

impl Bounded {
    fn new(bytes: &[u8], device: bool) -> Bounded {
        let inner = MemStorage::new(bytes.to_vec(), device);
        Bounded { inner, asked_too_much: Cell::new(false) }
    }

    fn within(&self, end: u64) -> std::io::Result<()> {
        if end > 48 * MIB {
            self.asked_too_much.set(true);
            return Err(std::io::Error::from_raw_os_error(27));
        }
        Ok(())
    }
}

impl Storage for Bounded {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.within(offset.saturating_add(buf.len() as u64))?;
        let done = self.inner.write_at(offset, buf);
        if done.is_err() {
            self.asked_too_much.set(true);
        }
        done
    }
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.within(len)?;
        self.inner.set_len(len)
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn is_device(&self) -> bool {
        self.inner.is_device()
    }
}

fn small() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let blocks = [(0, Block::Some(vec![(0, 0x11)])), (2, Block::Full)];
        build(10, &blocks, Some("./p.vhd"))
    })
}

fn name() -> &'static Path {
    Path::new("/nonexistent/t.vhd")
}

fn write_and_zero(storage: &dyn Storage) -> Result<(), VhdError> {
    let options = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut image = Vhd::new(open(storage, name(), &options)?);
    let failed = |e: std::io::Error| VhdError::io(name(), "write", 0, &e);
    let mut writer = Writer::new(&mut image, storage).map_err(failed)?;
    let last = writer.sectors().saturating_sub(1);
    for sector in [0, 4097, last] {
        // One may fail, the others go on.
        let _ = writer.write(sector, &[7; 512]);
    }
    let _ = writer.zero(Span { start: 0, count: 4096 }, true, false);
    let _ = writer.close();
    Ok(())
}

fn grow(storage: &dyn Storage) -> Result<(), VhdError> {
    let Some(growth) = Growth::plan(storage, name(), 64 * MIB)? else { return Ok(()) };
    growth.run(storage, &Bounded::new(&[], false), Path::new("j"), &|_| ())
}

/// Every change in turn on a copy of its own.
fn changes(bytes: &[u8], device: bool) {
    type Change = (&'static str, fn(&dyn Storage) -> Result<(), VhdError>);
    let all: [Change; 10] = [
        ("hidden", |s| edit::set_hidden(s, name(), 1)),
        ("repair", |s| edit::repair(s, name(), false, [7; 16])),
        ("repair -b", |s| edit::repair(s, name(), true, [7; 16])),
        ("end", |s| modify::set_physical_size(s, name(), 8 * MIB)),
        ("zero", |s| modify::zero_data(s, name())),
        ("mark", |s| fill::mark(s, name(), None)),
        ("key", |s| key::set_hash(s, name(), &KeyHash { nonce: [1; 32], hash: [2; 32] })),
        ("fast", |s| fast(s, name(), 64 * MIB)),
        ("grow", grow),
        ("write", write_and_zero),
    ];
    for (what, change) in all {
        let storage = Bounded::new(bytes, device);
        if let Err(e) = change(&storage) {
            assert!(e.errno() > 0 && !e.to_string().is_empty());
            let asked_too_much = storage.asked_too_much.get();
            let same = storage.inner.into_inner() == bytes;
            assert!(same || asked_too_much, "{what} was refused ({e}) and changed something");
        }
    }
    let storage = Bounded::new(bytes, device);
    for look in [Look::Full, Look::Fast] {
        if let Ok(mut found) = facts(&storage, name(), look) {
            add_marks(&mut found, &storage, name(), look);
        }
    }
}

/// A journal of an interrupted resize, and the image as it was left.
fn interrupted() -> &'static (Vec<u8>, Vec<u8>) {
    static BOTH: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    BOTH.get_or_init(|| {
        let image = MemStorage::new(small().clone(), false);
        let journal = MemStorage::new(Vec::new(), false);
        let growth = Growth::plan(&image, name(), 600 * MIB).unwrap().unwrap();
        let seen = std::cell::RefCell::new(None);
        growth
            .run(&image, &journal, Path::new("j"), &|point| {
                if point == modify::Point::ResizeMetadataMoved {
                    let copy = |s: &MemStorage| {
                        let mut all = vec![0; s.len().unwrap() as usize];
                        s.read_at(0, &mut all).unwrap();
                        all
                    };
                    *seen.borrow_mut() = Some((copy(&image), copy(&journal)));
                }
            })
            .unwrap();
        seen.into_inner().unwrap()
    })
}

fn mutate(bytes: &mut [u8], edits: &[(usize, [u8; 4], u8)]) {
    for (at, new, n) in edits {
        for (to, from) in bytes.iter_mut().skip(*at).zip(new.iter().take(1 + usize::from(n % 4))) {
            *to = *from;
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<(usize, [u8; 4], u8)>> {
    let value = prop_oneof![Just([0; 4]), Just([0xff; 4]), any::<[u8; 4]>(), Just([0, 0, 0, 7])];
    let place = prop_oneof![
        0..8192_usize,
        0..128_usize,
        512..640_usize,
        1088..1200_usize,
        1536..1560_usize,
        2048..2200_usize
    ];
    prop::collection::vec((place, value, any::<u8>()), 1..8)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changes_of_mutated_images_are_harmless(
        edits in edits(),
        seal: bool,
        cut in prop::option::of(0..8192_usize),
        device: bool,
    ) {
        let mut bytes = small().clone();
        mutate(&mut bytes, &edits);
        if seal {
            crate::common::seal(&mut bytes, 0);
            crate::common::seal(&mut bytes, -512);
            crate::common::seal_header(&mut bytes);
        }
        bytes.truncate(cut.unwrap_or(bytes.len()));
        changes(&bytes, device);
    }

    #[test]
    fn changes_of_random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        changes(&bytes, false);
    }

    #[test]
    fn mutated_journals_are_harmless(
        edits in edits(),
        cut in prop::option::of(0..20_000_usize),
    ) {
        let (image, journal) = interrupted();
        let mut journal = journal.clone();
        mutate(&mut journal, &edits);
        journal.truncate(cut.unwrap_or(journal.len()));
        let (image_file, journal) = (Bounded::new(image, false), Bounded::new(&journal, false));
        if let Err(e) = revert(&image_file, name(), &journal, Path::new("j")) {
            prop_assert!(e.errno() > 0);
            let asked_too_much = image_file.asked_too_much.get();
            prop_assert!(image_file.inner.into_inner() == *image || asked_too_much, "{}", e);
        }
    }

    #[test]
    fn random_journals_are_harmless(mut bytes in prop::collection::vec(any::<u8>(), 512..2048)) {
        let (image, journal) = interrupted();
        bytes[..24].copy_from_slice(&journal[..24]);
        let image_file = Bounded::new(image, false);
        let _ = revert(&image_file, name(), &Bounded::new(&bytes, false), Path::new("j"));
    }
}
