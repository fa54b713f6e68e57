//! Damaged images: corpus groups D and E, in memory, and what a clean close mends.

use crate::common::{
    Block, apply, build, checked, fault, file, open_ro, open_rw, poke, seal, seal_header,
};
use image::MemStorage;
use vhd_rs::bat::UNUSED;
use vhd_rs::{BatmapState, CheckOptions, FooterAt, closing};

fn two_blocks() -> Vec<u8> {
    build(10, &[(0, Block::Some(vec![(0, 0x11)])), (2, Block::Full)], None)
}

fn empty() -> Vec<u8> {
    build(10, &[], None)
}

#[test]
fn no_image_at_all_has_its_errno() {
    assert_eq!(open_ro(&file(&[])).unwrap_err().errno(), 32, "empty");
    assert_eq!(open_ro(&file(&[1; 100])).unwrap_err().errno(), 5, "too short");
    assert_eq!(open_ro(&file(&[0; 1 << 20])).unwrap_err().errno(), 22, "raw");
}

#[test]
fn a_lost_trailing_footer_is_restored_at_close() {
    let good = two_blocks();
    for damage in [[0; 512], [0xC7; 512]] {
        let mut bytes = good.clone();
        poke(&mut bytes, -512, &damage);
        assert_eq!(fault(&bytes), "primary footer invalid: invalid cookie");
        let lenient = CheckOptions { ignore_footer: true, ..CheckOptions::default() };
        assert!(checked(&file(&bytes), &lenient).is_valid());
        let storage = file(&bytes);
        let opened = open_rw(&storage).unwrap();
        assert_eq!(opened.footer_found, FooterAt::Copy);
        apply(&storage, &closing(&opened, &opened.bat, &opened.full));
        assert!(storage.into_inner() == good);
    }
}

#[test]
fn a_511_byte_footer_is_accepted() {
    let mut bytes = two_blocks();
    bytes.pop();
    assert_eq!(open_ro(&file(&bytes)).unwrap().footer_found, FooterAt::Trailing511);
    assert_eq!(fault(&bytes), "");
}

#[test]
fn footer_faults_are_named() {
    let cases: [(usize, &[u8], &str); 8] = [
        (12, &[0, 2, 0, 0], "invalid file format version"),
        (11, &[0], "invalid 'reserved' feature"),
        (11, &[6], "invalid extra features"),
        (24, &[0xff; 4], "creation time in future"),
        (35, &[4], "unsupported tap creator version"),
        (84, &[2], "invalid 'saved' state"),
        (85, &[2], "invalid 'hidden' state"),
        (300, &[2], "invalid 'reserved' bits"),
    ];
    for (at, new, why) in cases {
        let mut bytes = empty();
        for base in [0, -512] {
            poke(&mut bytes, base + i64::try_from(at).unwrap(), new);
            if base < 0 {
                let at = i64::try_from(at).unwrap();
                poke(&mut bytes, base + at, new)
            }
            seal(&mut bytes, base);
        }
        assert_eq!(fault(&bytes), format!("primary footer invalid: {why}"));
    }
}

#[test]
fn header_faults_are_named() {
    let cases: [(i64, &[u8], &str); 4] = [
        (536, &[0, 2, 0, 0], "header is invalid: invalid header version"),
        (528, &[0, 0, 0, 0, 0, 0, 6, 4], "header is invalid: invalid table offset"),
        (540, &[0, 0, 0, 3], "error reading bat: -22"),
        (544, &[0, 0, 0, 3], "header is invalid: invalid block size"),
    ];
    for (at, new, why) in cases {
        let mut bytes = empty();
        poke(&mut bytes, at, new);
        seal_header(&mut bytes);
        assert_eq!(fault(&bytes), why);
        assert_eq!(open_rw(&file(&bytes)).unwrap_err().errno(), 22, "{why}");
    }
}

#[test]
fn what_the_driver_must_refuse_is_refused() {
    let refused = |at: i64, new: &[u8]| {
        let mut bytes = empty();
        for base in [0, -512] {
            poke(&mut bytes, base + at, new);
            seal(&mut bytes, base);
        }
        open_ro(&file(&bytes)).unwrap_err().errno()
    };
    assert_eq!(refused(0, b"v_poison"), 22);
    assert_eq!(refused(32, &[0, 1, 0, 4]), 22, "tap newer than 1.3");
    assert_eq!(refused(32, &[0, 0, 0, 1]), 22, "tap 0.1");
    assert_eq!(refused(48, &[0; 8]), 22, "no size");
    assert_eq!(refused(48, &(2041_u64 << 30).to_be_bytes()), 27, "above 2040 GiB");
    assert_eq!(refused(60, &[0, 0, 0, 5]), 22, "no such type");
    for table in [0_u64, 512, 1024, u64::MAX - 100, 1 << 40] {
        let mut bytes = empty();
        poke(&mut bytes, 528, &table.to_be_bytes());
        seal_header(&mut bytes);
        assert_eq!(open_ro(&file(&bytes)).unwrap_err().errno(), 22, "table at {table}");
    }
}

#[test]
fn bad_table_entries_refuse_writers_and_become_bad_blocks_for_readers() {
    let cases: [(u32, &str, Option<i32>, &[u32]); 3] = [
        (2, "block 1 (offset 0x2) clobbers headers", Some(22), &[1]),
        (7 + 8, "block 0 (offset 0x7) clobbers block 1 (offset 0xf)", Some(22), &[1]),
        (1 << 20, "block 1 (offset 0x100000) clobbers footer", None, &[1]),
    ];
    for (entry, text, refused, bad) in cases {
        let mut bytes = two_blocks();
        poke(&mut bytes, 1540, &entry.to_be_bytes());
        assert_eq!(fault(&bytes), text);
        assert_eq!(open_rw(&file(&bytes)).err().map(|e| e.errno()), refused);
        let opened = open_ro(&file(&bytes)).unwrap();
        assert_eq!((opened.bad_blocks.as_slice(), opened.bat[1]), (bad, entry));
    }
}

#[test]
fn close_does_not_make_the_file_reach_to_a_dangling_entry() {
    let mut bytes = two_blocks();
    let len = bytes.len() as u64;
    poke(&mut bytes, 1540, &(1_u32 << 30).to_be_bytes());
    let opened = open_rw(&file(&bytes)).unwrap();
    let done = closing(&opened, &opened.bat, &opened.full);
    assert_eq!(done.truncate, Some(len));
}

#[test]
fn a_damaged_batmap_is_ignored_and_rewritten() {
    let good = two_blocks();
    for (at, new) in [(2560, 0xff_u8), (2048, b'X'), (2071, 9)] {
        let mut bytes = good.clone();
        poke(&mut bytes, at, &[new]);
        assert!(fault(&bytes).starts_with("batmap is invalid"), "{}", fault(&bytes));
        let storage = file(&bytes);
        let opened = open_rw(&storage).unwrap();
        assert!(matches!(opened.batmap, BatmapState::Damaged { .. }));
        assert_eq!(opened.full, [0]);
        apply(&storage, &closing(&opened, &opened.bat, &[0x20]));
        assert!(storage.into_inner() == good);
    }
}

/// Corpus B08: qemu puts a block where the batmap was.
#[test]
fn a_batmap_is_not_written_over_a_block() {
    let mut bytes = empty();
    bytes.resize(4 * 512 + 4097 * 512 + 512, 0);
    poke(&mut bytes, 1536, &4_u32.to_be_bytes());
    let copy = bytes[..512].to_vec();
    poke(&mut bytes, 2048, &[0xff; 512]);
    poke(&mut bytes, -512, &copy);
    let opened = open_rw(&file(&bytes)).unwrap();
    assert_eq!((opened.bad_blocks.len(), opened.end_of_headers), (0, 2048));
    let done = closing(&opened, &opened.bat, &opened.full);
    assert_eq!(done.writes.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [2048 + 4097 * 512, 0]);
}

#[test]
fn a_block_marked_full_but_absent_is_a_fault_and_is_not_believed() {
    let mut bytes = two_blocks();
    poke(&mut bytes, 1536 + 8, &UNUSED.to_be_bytes());
    assert_eq!(fault(&bytes), "batmap shows unallocated block 2 full");
    assert_eq!(open_ro(&file(&bytes)).unwrap().full, [0]);
}

#[test]
fn the_trailing_footer_wins_where_no_block_lies() {
    let mut bytes = two_blocks();
    poke(&mut bytes, -512 + 85, &[1]);
    seal(&mut bytes, -512);
    assert_eq!(open_ro(&file(&bytes)).unwrap().footer.hidden, 1);
    assert_eq!(fault(&bytes), "primary and backup footers do not match");
}

#[test]
fn the_early_hidden_flag_needs_no_new_checksum() {
    let mut bytes = empty();
    for base in [0, -512] {
        poke(&mut bytes, base + 32, &[0, 1, 0, 1]);
        seal(&mut bytes, base);
        poke(&mut bytes, base + 85, &[1]);
    }
    assert_eq!(open_ro(&file(&bytes)).unwrap().footer.hidden, 1);
    assert_eq!(fault(&bytes), "");
}

#[test]
fn small_blocks_are_honoured() {
    let mut bytes = empty();
    poke(&mut bytes, 544, &(1_u32 << 20).to_be_bytes());
    poke(&mut bytes, 540, &10_u32.to_be_bytes());
    seal_header(&mut bytes);
    let opened = open_ro(&file(&bytes)).unwrap();
    assert_eq!((opened.bat.len(), opened.block_bytes(), opened.bitmap_bytes()), (10, 1 << 20, 512));
}

#[test]
fn a_device_has_its_footer_in_the_last_sector() {
    let mut bytes = two_blocks();
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.resize(5 << 20, 0);
    poke(&mut bytes, -512, &footer);
    let storage = MemStorage::new(bytes, true);
    let opened = open_rw(&storage).unwrap();
    let done = closing(&opened, &opened.bat, &opened.full);
    assert_eq!((done.writes[0].0, done.truncate), ((5 << 20) - 512, None));
}
