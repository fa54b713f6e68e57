//! Which footer is believed (docs/footers.md): every row of the table, forgeries by guests, and
//! what an open for writing mends.

use crate::common::{Block, MIB, build, fault, open_ro, open_rw, poke, seal};
use image::{MemStorage, Storage};
use std::path::Path;
use vhd_rs::bat::UNUSED;
use vhd_rs::{CheckOptions, DiskType, Footer, FooterAt, Header, OpenOptions, Opened, heal, open};

fn two_blocks() -> Vec<u8> {
    build(10, &[(0, Block::Some(vec![(0, 0x11)])), (2, Block::Full)], None)
}

fn fixed(mib: u64) -> Vec<u8> {
    let mut bytes = vec![0; (mib * MIB) as usize];
    bytes.extend(Footer::new(DiskType::Fixed, mib * MIB, [7; 16], 0).encode());
    bytes
}

/// What is believed, by kind, size and place; of a file, or of a device.
fn believed(bytes: &[u8], device: bool) -> Result<(DiskType, u64, FooterAt), i32> {
    let o = OpenOptions { read_only: true, ..OpenOptions::default() };
    let storage = MemStorage::new(bytes.to_vec(), device);
    open(&storage, Path::new("x.vhd"), &o)
        .map(|o| (o.kind, o.footer.current_bytes, o.footer_found))
        .map_err(|e| e.errno())
}

fn footer_at(bytes: &[u8], at: i64) -> Footer {
    let len = bytes.len() as i64;
    let at = (if at < 0 { len + at } else { at }) as usize;
    Footer::parse(&bytes[at..at + 512]).expect("a footer")
}

/// A whole differencing image in a guest's first sectors: footer, header with a locator, and a
/// table whose block lies upon the real footer.
fn forged_copy(bytes: &mut [u8], disk: u64) {
    let footer = Footer::new(DiskType::Differencing, disk, [9; 16], 0);
    let mut header = Header::new(1536, (disk / (2 * MIB)) as u32, 2 << 20);
    header.locators[0].code = vhd_rs::locator::MACX;
    header.locators[0].offset = 2048;
    header.locators[0].space = 512;
    header.locators[0].length = 12;
    let upon = (bytes.len() - 512 - (2 << 20)) as u32 / 512;
    poke(bytes, 0, &footer.encode());
    poke(bytes, 512, &header.encode());
    poke(bytes, 1536, &vhd_rs::bat::encode([upon].into_iter().chain([UNUSED; 7])));
    poke(bytes, 2048, b"file:///etc/");
}

#[test]
fn a_fixed_disk_stays_fixed_whatever_its_guest_writes_at_byte_0() {
    let mut file = fixed(16);
    forged_copy(&mut file, 16 * MIB);
    assert_eq!(believed(&file, false), Ok((DiskType::Fixed, 16 * MIB, FooterAt::Trailing)));
    // A footer of 511 bytes, and a device that is larger than the disk.
    let mut short = file.clone();
    short.pop();
    assert_eq!(believed(&short, false), Ok((DiskType::Fixed, 16 * MIB, FooterAt::Trailing511)));
    let footer = file.split_off(file.len() - 512);
    file.resize((20 * MIB) as usize, 0);
    poke(&mut file, -512, &footer);
    assert_eq!(believed(&file, true), Ok((DiskType::Fixed, 16 * MIB, FooterAt::Trailing)));
    // In a file room between disk and footer is nobody's doing: refused, for both could be forged.
    assert_eq!(believed(&file, false), Err(22));
    // Nor do the ways that look at byte 0 only (`-b`, `scan -f`).
    let storage = MemStorage::new(file.clone(), true);
    assert!(vhd_rs::locate::headers_of_copy(&storage, Path::new("x"), 0).is_err());
    assert!(vhd_rs::scan::facts(&storage, Path::new("x"), vhd_rs::scan::Look::Fast).is_err());
    // Without a copy there is no doubt.
    poke(&mut file, 0, &[0; 512]);
    assert_eq!(believed(&file, false), Ok((DiskType::Fixed, 16 * MIB, FooterAt::Trailing)));
}

#[test]
fn a_fixed_footer_that_does_not_fit_the_file_is_a_guests_sector() {
    let good = two_blocks();
    let mut crashed = good.clone();
    crashed.truncate(good.len() - 512);
    let larger = Footer::new(DiskType::Fixed, 64 * MIB, [8; 16], 0);
    poke(&mut crashed, -512, &larger.encode());
    assert_eq!(believed(&crashed, false), Ok((DiskType::Dynamic, 10 * MIB, FooterAt::Copy)));
    assert_eq!(fault(&crashed), "primary and backup footers do not match");
    // The guest's last block lies upon the last sector: repair is asked to say which.
    let nested = Footer::new(DiskType::Fixed, MIB, [8; 16], 0);
    poke(&mut crashed, -512, &nested.encode());
    assert_eq!(believed(&crashed, false), Err(22));
}

/// Everything in the last block is the guest's: header, table and locators as well.
#[test]
fn a_dynamic_footer_in_the_guests_last_sector_is_not_believed() {
    for (entry, what) in [(None, "referenced"), (Some(UNUSED), "not referenced")] {
        let mut bytes = two_blocks();
        bytes.truncate(bytes.len() - 512);
        if let Some(entry) = entry {
            poke(&mut bytes, 1536 + 8, &entry.to_be_bytes());
        }
        let base = bytes.len() - 4096;
        let mut evil = Footer::decode(&bytes[..512]);
        evil.data_offset = base as u64;
        evil.creator = *b"abcd";
        let mut header = Header::new(base as u64 + 1024, 8, 2 << 20);
        header.parent_uuid = [1; 16];
        poke(&mut bytes, base as i64, &header.encode());
        poke(&mut bytes, base as i64 + 1024, &[0xff; 512]);
        poke(&mut bytes, -512, &evil.encode());
        let opened = open_ro(&crate::common::file(&bytes)).unwrap();
        assert_eq!(
            (opened.footer_found, opened.footer.data_offset),
            (FooterAt::Copy, 512),
            "{what}"
        );
        // The copy is lost as well: still nothing that a guest chose is followed.
        poke(&mut bytes, 0, &[0; 512]);
        assert_eq!(believed(&bytes, false), Err(22), "{what}, without a copy");
        // With the real header's place, upon a block: not believed; behind the data: only what no
        // guest gains from.
        evil.data_offset = 512;
        poke(&mut bytes, -512, &evil.encode());
        let got = believed(&bytes, false);
        assert_eq!(got.is_err(), entry.is_none(), "{what}: {got:?}");
    }
}

#[test]
fn a_guest_cannot_choose_size_or_kind_behind_the_data() {
    let mut bytes = two_blocks();
    bytes.truncate(bytes.len() - 512);
    poke(&mut bytes, 1536 + 8, &UNUSED.to_be_bytes());
    let mut evil = Footer::decode(&bytes[..512]);
    evil.current_bytes = 4 * MIB;
    poke(&mut bytes, -512, &evil.encode());
    assert_eq!(believed(&bytes, false), Ok((DiskType::Dynamic, 10 * MIB, FooterAt::Copy)));
    evil.kind = DiskType::Differencing;
    poke(&mut bytes, -512, &evil.encode());
    assert_eq!(believed(&bytes, false), Ok((DiskType::Dynamic, 10 * MIB, FooterAt::Copy)));
}

/// What our tools and the original's leave between their two writes, and damage to the copy.
#[test]
fn the_trailing_footer_is_heard_where_the_data_end() {
    let tools: [(i64, &[u8]); 4] = [
        (48, &(4 * MIB).to_be_bytes()), // size
        (68, b"0123456789abcdef"),      // unique id: a null one was replaced
        (60, &[0, 0, 0, 4]),            // kind
        (0, b"v_poison"),               // a resize that stopped before its last write
    ];
    for (at, new) in tools {
        let mut bytes = two_blocks();
        poke(&mut bytes, at, new);
        seal(&mut bytes, 0);
        let opened = open_ro(&crate::common::file(&bytes)).unwrap();
        assert_eq!(opened.footer, footer_at(&bytes, -512), "byte {at}");
        // The same where more than the data lies before it: then byte 0 decides.
        let footer = bytes.split_off(bytes.len() - 512);
        bytes.extend([0; 8192]);
        bytes.extend(footer);
        let o = OpenOptions { read_only: true, ..OpenOptions::default() };
        let opened = open(&crate::common::file(&bytes), Path::new("x"), &o).unwrap();
        assert_eq!(opened.footer, footer_at(&bytes, 0), "byte {at}");
    }
    for (at, new) in [(0, [0; 8]), (64, [1; 8])] {
        let mut bytes = two_blocks();
        poke(&mut bytes, at, &new);
        assert_eq!(believed(&bytes, false), Ok((DiskType::Dynamic, 10 * MIB, FooterAt::Trailing)));
    }
}

/// The flag is set at byte 0 only beside a running disk, and first at the end otherwise.
#[test]
fn an_image_is_hidden_if_either_footer_says_so() {
    for at in [0, -512] {
        let mut bytes = two_blocks();
        poke(&mut bytes, at + 85, &[1]);
        seal(&mut bytes, at);
        assert_eq!(open_ro(&crate::common::file(&bytes)).unwrap().footer.hidden, 1);
        let (bytes, _) = healed(&bytes, false, 512);
        assert_eq!((footer_at(&bytes, 0).hidden, footer_at(&bytes, -512).hidden), (1, 1));
    }
}

#[test]
fn half_a_resize_is_refused_wherever_its_footer_stands() {
    let mut bytes = two_blocks();
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.extend([0; 8192]);
    bytes.extend(footer);
    poke(&mut bytes, -512, b"v_poison");
    seal(&mut bytes, -512);
    assert_eq!(open_rw(&crate::common::file(&bytes)).unwrap_err().errno(), 22);
}

fn healed(bytes: &[u8], device: bool, unit: u64) -> (Vec<u8>, Opened) {
    let storage = MemStorage::new(bytes.to_vec(), device);
    let mut opened = open_rw(&storage).unwrap();
    heal(&storage, Path::new("x.vhd"), &mut opened, unit).unwrap();
    let bytes = storage.into_inner();
    assert_eq!(opened.file_bytes, bytes.len() as u64);
    (bytes, opened)
}

#[test]
fn an_open_for_writing_makes_both_footers_whole() {
    // Without marks: those are another test's.
    let good = healed(&two_blocks(), false, 512).0;
    assert!(healed(&good, false, 512).0 == good, "nothing is written where nothing is wrong");
    for (at, new) in [(0, &b"X"[..]), (-512, b"X"), (-512, &[0xc7; 512])] {
        let mut bytes = good.clone();
        poke(&mut bytes, at, new);
        assert!(healed(&bytes, false, 512).0 == good, "byte {at}");
    }
    let mut short = good.clone();
    short.pop();
    assert!(healed(&short, false, 512).0 == good, "511 bytes");
    // What a killed process has left: space ahead, a block that no entry points at, no footer at
    // all.
    let footer = &good[good.len() - 512..];
    let data = &good[..good.len() - 512];
    for tail in [vec![0; 8192], vec![0x77; 4096], footer.to_vec(), Vec::new()] {
        assert!(healed(&[data, &tail, footer].concat(), false, 512).0 == good, "space ahead");
        assert!(healed(&[data, &tail].concat(), false, 512).0 == good, "no footer");
    }
    // A unit that the last block and the footer would share.
    let (bytes, _) = healed(&good, false, 4096);
    assert!(bytes == good, "blocks that end with a page share none");
}

#[test]
fn a_footer_that_would_share_a_large_sector_with_data_goes_to_its_end() {
    let mut bytes = build(10, &[], None);
    bytes.resize(5 * 512 + 4097 * 512, 0x31);
    poke(&mut bytes, 1536, &5_u32.to_be_bytes());
    poke(&mut bytes, 512 * 5, &[0xff; 512]);
    let (bytes, opened) = healed(&bytes, false, 4096);
    assert_eq!((bytes.len() % 4096, opened.end_of_data % 4096), (0, 3072));
    assert_eq!(footer_at(&bytes, -512), footer_at(&bytes, 0));
}

#[test]
fn a_device_gets_its_footer_back_unless_a_block_lies_there() {
    let mut bytes = healed(&two_blocks(), false, 512).0;
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.resize(5 << 20, 0);
    let (mended, _) = healed(&bytes, true, 512);
    assert!(mended[mended.len() - 512..] == footer);
    // The original lets a block end with the device: its last sector is the guest's.
    bytes.truncate(4_202_496);
    let (same, _) = healed(&bytes, true, 512);
    assert!(same == bytes);
}

/// Checksum and map lie in two sectors, and each step between them is an image that `check` takes.
#[test]
fn marks_go_when_an_image_is_written_and_come_back_with_its_close() {
    let marked = two_blocks();
    let (bytes, opened) = healed(&marked, false, 512);
    assert_eq!((&bytes[2560..2561], opened.full[0]), (&[0][..], 0x20), "only memory has them");
    assert_eq!(bytes[2048 + 24..2048 + 28], [0xff; 4]);
    assert_eq!(open_ro(&crate::common::file(&bytes)).unwrap().full, [0]);

    // Killed at each moment of both.
    let mut half = marked.clone();
    half[2048..2560].copy_from_slice(&bytes[2048..2560]);
    let closing = vhd_rs::closing(&opened, &opened.bat, &opened.full);
    assert!(closing.last.len() == 1, "the checksum waits for the map");
    for (what, bytes) in [("header without marks", &half), ("map without marks", &bytes)] {
        let report = vhd_rs::check(
            &crate::common::file(bytes),
            Path::new("x.vhd"),
            &CheckOptions::default(),
        );
        assert_eq!(report.unwrap().fault, None, "{what}");
        assert_eq!(open_ro(&crate::common::file(bytes)).unwrap().full, [0], "{what}");
    }
    let storage = crate::common::file(&bytes);
    crate::common::apply(&storage, &closing);
    assert!(storage.into_inner() == marked, "a close brings them back");

    // Nobody made it whole before it was written: the marks go first all the same.
    let opened = open_rw(&crate::common::file(&marked)).unwrap();
    let closing = vhd_rs::closing(&opened, &opened.bat, &[0]);
    let places = |writes: &[(u64, Vec<u8>)]| writes.iter().map(|(at, _)| *at).collect::<Vec<_>>();
    assert_eq!(places(&closing.writes)[1..], [0, 2048]);
    assert_eq!(places(&closing.last), [2560, 2048]);
}

#[test]
fn a_wild_entry_makes_no_file_reach_to_it() {
    let good = two_blocks();
    let mut bytes = good.clone();
    poke(&mut bytes, 1540, &(1_u32 << 30).to_be_bytes());
    poke(&mut bytes, -512, &[0; 512]);
    let storage = crate::common::file(&bytes);
    vhd_rs::edit::repair(&storage, Path::new("x.vhd"), false, [1; 16]).unwrap();
    assert_eq!(Storage::len(&storage).unwrap(), good.len() as u64);
    vhd_rs::edit::set_hidden(&crate::common::file(&bytes), Path::new("x.vhd"), 1).unwrap();
    let storage = crate::common::file(&bytes);
    let mut opened = open_rw(&storage).unwrap();
    heal(&storage, Path::new("x.vhd"), &mut opened, 512).unwrap();
    assert_eq!(Storage::len(&storage).unwrap(), good.len() as u64);
}

/// A parent that cannot be read ends a fill; what was filled stays, and the image is whole.
#[test]
fn a_fill_that_fails_leaves_a_whole_image() {
    let dir = tempfile::tempdir().unwrap();
    let (parent, child) = (dir.path().join("p.vhd"), dir.path().join("c.vhd"));
    let blocks = [(0, Block::Full), (1, Block::Full), (2, Block::Full)];
    let bytes = build(8, &blocks, None);
    std::fs::write(&parent, &bytes).unwrap();
    vhd_rs::files::snapshot(&child, &parent, &<_>::default()).unwrap();
    std::fs::write(&parent, &bytes[..bytes.len() - 1_000_000]).unwrap();
    let file = vhd_rs::lock::open_to_change(&child, vhd_rs::lock::Others::Refuse).unwrap();
    vhd_rs::fill::fill(&file, &child, None).unwrap_err();
    let bytes = std::fs::read(&child).unwrap();
    let now = CheckOptions { ignore_times: true, ..CheckOptions::default() };
    assert_eq!(crate::common::checked(&crate::common::file(&bytes), &now).fault, None);
    assert_eq!(bytes.len() as u64, open_ro(&file).unwrap().end_of_data + 512);
    let filled = open_ro(&file).unwrap().bat.iter().filter(|entry| **entry != UNUSED).count();
    assert_eq!(filled, 2);
}

/// A writer that was stopped while a file grew: whatever it had done, the file ends with its
/// footer.
#[test]
fn a_stopped_writer_leaves_a_file_that_ends_with_its_footer() {
    use image::blocking::Writer;
    let storage = crate::common::file(&build(64, &[], None));
    let mut image = vhd_rs::driver::Vhd::new(open_rw(&storage).unwrap());
    let mut writer = Writer::new(&mut image, &storage).unwrap();
    for block in 0..32 {
        writer.write(block * 4096 + 4095, &[0x5a; 512]).unwrap();
        let mut end = [0; 512];
        storage.read_exact_at(storage.len().unwrap() - 512, &mut end).unwrap();
        let mut copy = [0; 512];
        storage.read_exact_at(0, &mut copy).unwrap();
        assert_eq!(end, copy, "after block {block}");
    }
    drop(writer);
    let bytes = storage.into_inner();
    assert_eq!(fault(&bytes), "");
    assert_eq!(open_ro(&crate::common::file(&bytes)).unwrap().bat.len(), 32);
}
