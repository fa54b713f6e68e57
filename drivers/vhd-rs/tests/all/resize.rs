//! Growing disks: the bytes of the journal, contents that stay, and a power cut at every operation
//! of the resize and of its revert.

use crate::common::crash::{Fragile, Power};
use crate::common::{Block, MIB, build, checked, file, open_rw, poke};
use image::blocking::{Layer, read};
use image::{MemStorage, Span, Storage};
use std::path::Path;
use vhd_rs::driver::Vhd;
use vhd_rs::journal::{Journal, Kind};
use vhd_rs::modify::Point;
use vhd_rs::resize::{Growth, fast};
use vhd_rs::revert::revert;
use vhd_rs::{CheckOptions, VhdError};

const IMAGE: &str = "t.vhd";
const JOURNAL: &str = "t.journal";

/// Blocks 0 and 2, as in the example of the specification.
fn example(parent: Option<&str>) -> Vec<u8> {
    build(10, &[(0, Block::Some(vec![(0, 0x11)])), (2, Block::Full)], parent)
}

fn grow(
    storage: &dyn Storage,
    journal: &dyn Storage,
    mib: u64,
    at: &dyn Fn(Point),
) -> Result<(), VhdError> {
    let growth = Growth::plan(storage, Path::new(IMAGE), mib * MIB)?.expect("a larger disk");
    growth.run(storage, journal, Path::new(JOURNAL), at)
}

fn undo(storage: &dyn Storage, journal: &dyn Storage) -> Result<(), VhdError> {
    revert(storage, Path::new(IMAGE), journal, Path::new(JOURNAL))
}

/// The first 10 MiB of the disk, without its parent.
fn contents(storage: &dyn Storage) -> Vec<u8> {
    let image = Vhd::new(open_rw(storage).unwrap());
    let mut all = vec![0; 10 << 20];
    let chain = [Layer { image: &image, storage }];
    read(&chain, Span { start: 0, count: 20480 }, &mut all).unwrap();
    all
}

fn assert_sound(storage: &dyn Storage) {
    assert_eq!(checked(storage, &CheckOptions::default()).fault, None);
}

fn empty() -> MemStorage {
    MemStorage::new(Vec::new(), false)
}

#[test]
fn the_journal_holds_what_the_example_of_the_specification_holds() {
    let (image, journal) = (file(&example(None)), empty());
    let seen = std::cell::RefCell::new(Vec::new());
    let at = |point| {
        if point == Point::ResizeDataMoved {
            let log = Journal::open(&journal, Path::new(JOURNAL)).unwrap();
            let note = |e: vhd_rs::journal::Entry| {
                seen.borrow_mut().push((e.kind, e.bytes.len(), e.at));
                Ok(())
            };
            log.entries(note).unwrap();
        }
    };
    grow(&image, &journal, 600, &at).unwrap();
    let want = [
        (Kind::TrailingFooter, 512, 4_202_496),
        (Kind::LeadingFooter, 512, 0),
        (Kind::Header, 1024, 512),
        (Kind::Table, 512, 1536),
        (Kind::BatmapHeader, 512, 2048),
        (Kind::Batmap, 512, 2560),
        // Not in the example: the unused sector before the first block, so that it comes back as it
        // was.
        (Kind::Data, 512, 3072),
        (Kind::Data, 512, 3584),
        (Kind::Data, 2_097_152, 4096),
    ];
    assert_eq!(seen.into_inner(), want);
}

#[test]
fn a_grown_disk_has_its_contents_and_its_new_size() {
    for (parent, mib) in [(None, 12), (None, 600), (None, 8194), (Some("./t1.vhd"), 600)] {
        let bytes = example(parent);
        let (image, journal) = (file(&bytes), empty());
        let before = contents(&image);
        grow(&image, &journal, mib, &|_| ()).unwrap();
        assert!(contents(&image) == before, "{mib} MiB");
        assert_sound(&image);
        let opened = open_rw(&image).unwrap();
        assert_eq!(opened.sectors, mib * MIB / 512);
        assert_eq!(opened.footer.original_bytes, 10 * MIB);
        assert_eq!(opened.header.as_ref().unwrap().max_entries, u32::try_from(mib / 2).unwrap());
        let paths = opened.parent.map_or(0, |p| p.candidates.len());
        assert_eq!(paths, if parent.is_some() { 3 } else { 0 }, "locators moved along");
        assert!(vhd_rs::batmap::is_full(&opened.full, 2), "and marks");
        assert!(Journal::open(&journal, Path::new(JOURNAL)).unwrap().is_empty());
        assert_eq!(image.len().unwrap(), opened.end_of_data + 512);
    }
}

#[test]
fn room_that_was_made_at_creation_is_not_added_to() {
    let storage = empty();
    let new = vhd_rs::create::NewImage {
        bytes: 10 * MIB,
        room_bytes: 100 * MIB,
        uuid: [7; 16],
        timestamp: 0,
    };
    vhd_rs::create::dynamic(&storage, Path::new(IMAGE), &new, None).unwrap();
    grow(&storage, &empty(), 20, &|_| ()).unwrap();
    assert_eq!(open_rw(&storage).unwrap().header.unwrap().max_entries, 50);
    assert_sound(&storage);
    fast(&storage, Path::new(IMAGE), 100 * MIB).unwrap();
    assert_sound(&storage);
    assert_eq!(fast(&storage, Path::new(IMAGE), 102 * MIB).unwrap_err().errno(), 22);
    assert_eq!(fast(&storage, Path::new(IMAGE), 98 * MIB).unwrap_err().errno(), 22);
}

#[test]
fn what_cannot_grow_is_refused_untouched() {
    let plan = |bytes: &[u8], mib: u64| {
        let storage = file(bytes);
        let e = Growth::plan(&storage, Path::new(IMAGE), mib * MIB).unwrap_err();
        assert!(storage.into_inner() == bytes);
        e.errno()
    };
    let good = example(None);
    assert_eq!(plan(&good, 8), 38);
    assert_eq!(plan(&good, 2_088_962), 22);
    let mut foreign = good.clone();
    for at in [0, -512] {
        let len = foreign.len() as i64;
        poke(&mut foreign, if at < 0 { len + at + 28 } else { at + 28 }, b"gen ");
        crate::common::seal(&mut foreign, at);
    }
    assert_eq!(plan(&foreign, 600), 22);
    let mut damaged = good.clone();
    poke(&mut damaged, 1536, &(1_u32 << 20).to_be_bytes());
    assert_eq!(plan(&damaged, 600), 22);
    let same = Growth::plan(&file(&good), Path::new(IMAGE), 10 * MIB).unwrap();
    assert!(same.is_none());
}

#[test]
fn a_device_must_have_room_for_the_blocks_that_move() {
    let mut bytes = example(None);
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.resize(bytes.len() + 8192, 0xee);
    bytes.extend(&footer);
    let small = MemStorage::new(bytes.clone(), true);
    let e = Growth::plan(&small, Path::new(IMAGE), 600 * MIB).unwrap_err();
    assert_eq!(e.errno(), 28, "{e}");
    bytes.truncate(bytes.len() - 512);
    bytes.resize(bytes.len() + (3 << 20), 0xee);
    bytes.extend(&footer);
    let large = MemStorage::new(bytes, true);
    let before = contents(&large);
    grow(&large, &empty(), 600, &|_| ()).unwrap();
    assert!(contents(&large) == before);
    assert_sound(&large);
}

#[test]
fn a_failed_resize_takes_itself_back() {
    // The journal has room for the metadata, and not for the data.
    struct Full(MemStorage);
    impl Storage for Full {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0.read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
            if offset + buf.len() as u64 > 16384 {
                return Err(std::io::Error::from_raw_os_error(28));
            }
            self.0.write_at(offset, buf)
        }
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }
        fn is_device(&self) -> bool {
            false
        }
    }
    let bytes = example(None);
    let image = file(&bytes);
    let e = grow(&image, &Full(empty()), 600, &|_| ()).unwrap_err();
    assert_eq!(e.errno(), 28);
    assert!(image.into_inner() == bytes);
}

/// Everything up to a power cut at operation `left`: image and journal as they are found after it.
fn cut(bytes: &[u8], device: bool, left: u64, seed: u64) -> Option<(Vec<u8>, Vec<u8>)> {
    let power = Power::new(left, seed);
    let (image, journal) = (Fragile::new(bytes, device, &power), Fragile::new(&[], false, &power));
    let done = grow(&image, &journal, 600, &|_| ());
    assert_eq!(done.is_err(), power.off(), "{done:?}");
    done.is_err().then(|| (image.after_cut(), journal.after_cut()))
}

#[test]
fn after_a_power_cut_at_any_operation_the_revert_gives_the_old_image_or_the_new_one() {
    for (parent, device) in [(None, false), (Some("./t1.vhd"), false), (None, true)] {
        let mut bytes = example(parent);
        if device {
            let footer = bytes.split_off(bytes.len() - 512);
            bytes.resize(bytes.len() + (3 << 20), 0xee);
            bytes.extend(&footer);
        }
        let old = file(&bytes);
        let before = contents(&old);
        let (mut backs, mut news) = (0, 0);
        for left in 0.. {
            let Some((image, journal)) = cut(&bytes, device, left, left) else { break };
            let (image, journal) = (MemStorage::new(image, device), file(&journal));
            match undo(&image, &journal) {
                Ok(()) => {}
                // The journal was never written: then the image was never touched.
                Err(e) => assert!([22, 32].contains(&e.errno()), "cut {left}: {e}"),
            }
            assert!(contents(&image) == before, "cut {left}");
            assert_sound(&image);
            match open_rw(&image).unwrap().sectors * 512 {
                size if size == 10 * MIB && device => backs += 1,
                size if size == 10 * MIB => {
                    assert!(image.into_inner() == bytes, "cut {left}: byte for byte");
                    backs += 1;
                }
                size if size == 600 * MIB => news += 1,
                size => panic!("cut {left}: {size}"),
            }
        }
        assert!(backs > 20 && news > 1, "{backs} went back, {news} forward");
    }
}

#[test]
fn a_revert_that_loses_power_can_be_repeated() {
    let bytes = example(Some("./t1.vhd"));
    let before = contents(&file(&bytes));
    let mut tried = 0;
    // Cuts in the middle of the resize: while data moves, and while metadata is written.
    for left in [24, 28, 32, 36, 40] {
        let (image, journal) = cut(&bytes, false, left, left).unwrap();
        for again in 0.. {
            let power = Power::new(again, again);
            let image = Fragile::new(&image, false, &power);
            let journal = Fragile::new(&journal, false, &power);
            let done = undo(&image, &journal);
            let (image, journal) = match done {
                Ok(()) => (image.bytes(), journal.bytes()),
                Err(_) => (image.after_cut(), journal.after_cut()),
            };
            let (image, journal) = (file(&image), file(&journal));
            undo(&image, &journal).unwrap();
            assert!(contents(&image) == before);
            assert!(image.into_inner() == bytes, "cuts {left} and {again}");
            tried += 1;
            if done.is_ok() {
                break;
            }
        }
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn a_journal_of_another_image_or_a_damaged_one_changes_nothing() {
    let bytes = example(None);
    let (image, journal) = cut(&bytes, false, 24, 1).unwrap();
    let mut other = build(10, &[], None);
    for at in [0, -512] {
        let len = other.len() as i64;
        poke(&mut other, if at < 0 { len + at + 68 } else { at + 68 }, &[9; 16]);
        crate::common::seal(&mut other, at);
    }
    let storage = file(&other);
    let e = undo(&storage, &file(&journal)).unwrap_err();
    assert_eq!(e.errno(), 22, "{e}");
    assert!(storage.into_inner() == other);
    let mut damaged = journal;
    damaged[600] ^= 1;
    let storage = file(&image);
    assert_eq!(undo(&storage, &file(&damaged)).unwrap_err().errno(), 22);
    assert!(storage.into_inner() == image);
}
