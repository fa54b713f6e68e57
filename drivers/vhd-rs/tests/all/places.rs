//! Where new blocks go.

use std::path::Path;

use crate::common::{Block, build, open_rw};
use image::blocking::Writer;
use image::{MemStorage, Storage};
use vhd_rs::bat::UNUSED;
use vhd_rs::driver::Vhd;

/// On a device all room is used again: also that before the first block, which a block given back
/// in an earlier session has left.
#[test]
fn room_before_the_first_block_is_used_again() {
    let mut bytes = build(10, &[(0, Block::Full), (1, Block::Full)], None);
    let footer = bytes.split_off(bytes.len() - 512);
    // There is room for these two, and for no other.
    bytes.extend(footer);
    let storage = MemStorage::new(bytes, true);
    let mut table = [0; 8];
    storage.read_exact_at(1536, &mut table).unwrap();
    let first = table[..4].to_vec();
    storage.write_at(1536, &UNUSED.to_be_bytes()).unwrap();

    let mut opened = open_rw(&storage).unwrap();
    vhd_rs::heal(&storage, Path::new("x.vhd"), &mut opened, 512).unwrap();
    let mut image = Vhd::new(opened);
    let mut writer = Writer::new(&mut image, &storage).unwrap();
    writer.write(4 * 4096, &[7; 512]).unwrap();
    writer.close().unwrap();
    storage.read_exact_at(1536 + 16, &mut table[..4]).unwrap();
    assert_eq!(table[..4], first, "the third block lies where the first one was");
}
