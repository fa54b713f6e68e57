//! Images whose blocks lie upon each other, upon metadata or beyond the end: what is read of them,
//! and what is named.

use crate::common::{Block, MIB, build, open_ro, open_rw, poke, seal_header};
use std::fs;
use std::path::Path;
use vhd_rs::OpenOptions;
use vhd_rs::chain::Chain;
use vhd_rs::coalesce::compact::compact;
use vhd_rs::coalesce::convert::{Converted, Format, Options, convert};
use vhd_rs::rescue::Why;
use vhd_rs::{Opened, edit, files, fill, lock, modify, open, resize};

const PER_BLOCK: u64 = 4096;

/// Four blocks one sector too close: each one's last sector is the next one's bitmap.
fn too_close() -> Vec<u8> {
    let mut bytes = build(8, &[], None);
    let footer = bytes.split_off(bytes.len() - 512);
    for block in 0..4_u32 {
        let lba = 8 + block * 4096;
        poke(&mut bytes, 1536 + 4 * i64::from(block), &lba.to_be_bytes());
    }
    bytes.resize((8 + 4 * 4096 + 1) * 512, 0);
    for block in 0..4 {
        let at = (8 + block * 4096) * 512;
        bytes[at..at + 512].fill(0xff);
        bytes[at + 512..at + 512 * 4096].fill(0x11 + block as u8);
    }
    bytes[(8 + 4 * 4096) * 512..].fill(0x14);
    bytes.extend(footer);
    bytes
}

fn lost(opened: &Opened) -> Vec<(u64, u32, Why)> {
    opened.lost.iter().map(|lost| (lost.sector, lost.count, lost.why)).collect()
}

/// Every sector that can be read is `fill` of its block; the others fail. How many fail.
fn read_all(name: &Path, fill: impl Fn(u64) -> u8) -> u64 {
    let chain = Chain::open(name).unwrap();
    let (mut failed, mut buf) = (0, [0; 512]);
    for sector in 0..chain.sectors() {
        match chain.read(sector, &mut buf) {
            Ok(()) => assert_eq!(buf, [fill(sector / PER_BLOCK); 512], "sector {sector}"),
            Err(e) => {
                assert_eq!(e.errno(), 5);
                failed += 1;
            }
        }
    }
    failed
}

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("o.vhd");
    std::fs::write(&name, bytes).unwrap();
    (dir, name)
}

fn converted(name: &Path) -> (Converted, Vec<u8>) {
    let new = name.with_extension("raw");
    let options = Options { format: Format::Raw, others: lock::Others::Refuse, ..<_>::default() };
    let converted = convert(name, &new, &options, &mut |_| {}).unwrap();
    (converted, std::fs::read(&new).unwrap())
}

#[test]
fn blocks_that_share_a_sector_are_read_but_for_that() {
    let bytes = too_close();
    assert_eq!(open_rw(&crate::common::file(&bytes)).unwrap_err().errno(), 22, "never written");
    let opened = open_ro(&crate::common::file(&bytes)).unwrap();
    assert_eq!(opened.bad_blocks, []);
    let want: Vec<_> = (0..3).map(|b| (b * PER_BLOCK + 4095, 1, Why::Block)).collect();
    assert_eq!(lost(&opened), want);
    let (_dir, name) = on_disk(&bytes);
    assert_eq!(read_all(&name, |block| 0x11 + block as u8), 3);
    let (converted, raw) = converted(&name);
    assert_eq!(converted.missing.len(), 3);
    let said = converted.missing[0].1.to_string();
    assert_eq!(said, "sectors 4095 to 4095 of the disk lie where another block lies too");
    assert!(raw[..4095 * 512].iter().all(|b| *b == 0x11));
    assert_eq!(raw[4095 * 512..4096 * 512], [0; 512]);
    assert!(raw[4096 * 512..8191 * 512].iter().all(|b| *b == 0x12));
    assert!(std::fs::read(&name).unwrap() == bytes, "reading changes nothing");
}

#[test]
fn a_shared_bitmap_that_says_less_than_all_loses_its_block() {
    let mut bytes = too_close();
    poke(&mut bytes, (8 + 4096) * 512, &[0xff, 0, 0xff]);
    let opened = open_ro(&crate::common::file(&bytes)).unwrap();
    assert_eq!(opened.bad_blocks, [1]);
    assert_eq!(lost(&opened)[1], (PER_BLOCK, 4096, Why::Block));
    let (_dir, name) = on_disk(&bytes);
    assert_eq!(read_all(&name, |block| 0x11 + block as u8), 4096 + 2);
}

#[test]
fn a_block_before_the_table_or_a_locator_is_read_where_it_lies_upon_neither() {
    // The table lies behind the first block.
    let mut bytes = build(4, &[(0, Block::Full), (1, Block::Full)], None);
    let footer = bytes.split_off(bytes.len() - 512);
    let table: Vec<u8> = bytes[1536..2048].to_vec();
    let at = bytes.len() as u64;
    bytes.extend(table);
    bytes.extend([0; 4096]);
    for at in [32, 48] {
        let copy = vhd_rs::Footer { creator: *b"qem2", ..vhd_rs::Footer::decode(&footer) };
        assert!(at > 0);
        bytes[..512].copy_from_slice(&copy.encode());
    }
    poke(&mut bytes, 528, &at.to_be_bytes());
    seal_header(&mut bytes);
    let copy = bytes[..512].to_vec();
    bytes.extend(copy);
    assert_eq!(open_rw(&crate::common::file(&bytes)).unwrap_err().errno(), 22);
    let opened = open_ro(&crate::common::file(&bytes)).unwrap();
    assert_eq!((opened.bad_blocks.len(), lost(&opened)), (0, vec![]));
    let (_dir, name) = on_disk(&bytes);
    assert_eq!(read_all(&name, |_| 0x5a), 0);
    // The same with the table in the middle of the second block.
    let entries = bytes[at as usize..at as usize + 8].to_vec();
    let inside = at - MIB;
    poke(&mut bytes, inside as i64, &entries);
    poke(&mut bytes, 528, &inside.to_be_bytes());
    seal_header(&mut bytes);
    let opened = open_ro(&crate::common::file(&bytes)).unwrap();
    assert_eq!(lost(&opened), [(2 * PER_BLOCK - 2048, 1, Why::Metadata)]);
    let (_dir, name) = on_disk(&bytes);
    assert_eq!(read_all(&name, |_| 0x5a), 1);
    assert_eq!(converted(&name).0.missing.len(), 1);
}

#[test]
fn a_file_that_is_cut_is_read_up_to_there_and_repair_can_say_what_is_gone() {
    let good = build(8, &[(0, Block::Full), (1, Block::Some(vec![(0, 0x77), (4000, 0x77)]))], None);
    let cut = &good[..good.len() - 512 - 1_000_000];
    let opened = open_ro(&crate::common::file(cut)).unwrap();
    assert_eq!(lost(&opened), [(PER_BLOCK + 4000, 1, Why::Cut)], "only what was there is gone");
    let (_dir, name) = on_disk(cut);
    let (converted, raw) = converted(&name);
    let said = converted.missing[0].1.to_string();
    assert_eq!(said, "sectors 8096 to 8096 of the disk are gone with the end of the file");
    assert!(raw[..4096 * 512].iter().all(|b| *b == 0x5a));
    assert_eq!(raw[4096 * 512..4097 * 512], [0x77; 512]);
    let file = crate::common::file(cut);
    assert_eq!(vhd_rs::edit::lost(&file, &name, false).unwrap().len(), 1);
    vhd_rs::edit::repair(&file, &name, false, [1; 16]).unwrap();
    assert_eq!(vhd_rs::edit::lost(&file, &name, false).unwrap(), []);
    assert_eq!(vhd_rs::edit::lost(&crate::common::file(&good), &name, false).unwrap(), []);
}

#[test]
fn what_is_cut_off_does_not_become_zeros_without_a_word() {
    let good = build(8, &[(0, Block::Full), (1, Block::Some(vec![(0, 0x77), (4000, 0x77)]))], None);
    let cut = &good[..good.len() - 512 - 1_000_000];
    let gone = "sectors 8096 to 8096 of the disk are gone with the end of the file";
    let (_dir, name) = on_disk(cut);
    let file = lock::open_to_change(&name, lock::Others::Refuse).unwrap();
    let opened = open(&file, &name, &OpenOptions { for_io: true, ..Default::default() }).unwrap();
    let named: Vec<String> = opened.cut.iter().map(ToString::to_string).collect();
    assert_eq!(named, [gone], "who opens it for writing is told");
    let bytes = good.len() as u64;
    let refused = [
        modify::set_physical_size(&file, &name, bytes).unwrap_err(),
        fill::fill(&file, &name, None).unwrap_err(),
        fill::mark(&file, &name, None).unwrap_err(),
    ];
    for error in refused {
        assert!(error.errno() == 5 && error.to_string().contains(gone), "{error}");
    }
    edit::set_hidden(&file, &name, 1).unwrap();
    let mut now = fs::read(&name).unwrap();
    assert_eq!(now.len(), cut.len(), "hidden, and no longer");
    assert_eq!(open_ro(&crate::common::file(&now)).unwrap().footer.hidden, 1);
    now[..512].copy_from_slice(&cut[..512]);
    assert!(now == cut, "nothing else was changed");
    drop(file);
    let error = compact(&name, lock::Others::Refuse, &mut |_| ()).unwrap_err();
    assert!(error.errno() == 5 && error.to_string().contains(gone), "{error}");
    // Under clear bits nothing is missed.
    let (_dir, name) = on_disk(&good[..good.len() - 512 - 1000]);
    let file = lock::open_to_change(&name, lock::Others::Refuse).unwrap();
    assert_eq!(open(&file, &name, &OpenOptions::default()).unwrap().cut, []);
}

#[test]
fn an_image_that_is_cut_is_not_resized() {
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join("x.vhd");
    files::create(&name, 4 << 20, Some(16 << 20), false).unwrap();
    let mut bytes = fs::read(&name).unwrap();
    bytes.truncate(bytes.len() - 512);
    let entry = bytes.len() as u32 / 512;
    poke(&mut bytes, 1536, &entry.to_be_bytes());
    bytes.extend([0xff; 512]);
    bytes.extend(vec![0x77; MIB as usize]);
    fs::write(&name, &bytes).unwrap();
    let file = lock::open_to_change(&name, lock::Others::Refuse).unwrap();
    let error = resize::fast(&file, &name, 8 << 20).unwrap_err();
    assert!(error.errno() == 5 && error.to_string().contains("sectors 2048 to 4095"), "{error}");
    assert!(fs::read(&name).unwrap() == bytes);
}

#[test]
fn an_entry_that_points_at_nothing_is_named_and_the_rest_is_read() {
    let mut bytes = build(8, &[(0, Block::Full), (1, Block::Full)], None);
    poke(&mut bytes, 1540, &(1_u32 << 30).to_be_bytes());
    let opened = open_ro(&crate::common::file(&bytes)).unwrap();
    assert_eq!(opened.bad_blocks, [1]);
    let (_dir, name) = on_disk(&bytes);
    assert_eq!(read_all(&name, |block| if block == 0 { 0x5a } else { 0 }), 4096);
    let (converted, _) = converted(&name);
    let said = converted.missing[0].1.to_string();
    assert_eq!(
        said,
        "sectors 4096 to 8191 of the disk belong to a table entry that points at nothing"
    );
}

/// A child hides what is lost below it.
#[test]
fn only_what_no_child_has_is_missing() {
    let (dir, parent) = on_disk(&too_close());
    let child = dir.path().join("c.vhd");
    vhd_rs::files::snapshot(&child, &parent, &<_>::default()).unwrap();
    let file = lock::open_to_change(&child, lock::Others::Refuse).unwrap();
    let o = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut image = vhd_rs::driver::Vhd::new(vhd_rs::open(&file, &child, &o).unwrap());
    let mut writer = image::blocking::Writer::new(&mut image, &file).unwrap();
    writer.write(4095, &[0x22; 512]).unwrap();
    writer.close().unwrap();
    drop(file);
    let (converted, raw) = converted(&child);
    let sectors: Vec<u64> = converted.missing.iter().map(|(_, lost)| lost.sector).collect();
    assert_eq!(sectors, [2 * PER_BLOCK - 1, 3 * PER_BLOCK - 1]);
    assert_eq!(raw[4095 * 512..4096 * 512], [0x22; 512]);
    // A coalesce out of such an image is refused: it must not lose what it cannot read.
    let grand = vhd_rs::coalesce::coalesce(&parent, &<_>::default(), &mut |_| {});
    assert_eq!(grand.unwrap_err().error.errno(), 22, "it has no parent at all");
}
