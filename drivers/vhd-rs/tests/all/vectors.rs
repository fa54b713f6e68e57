//! The byte vectors of the format description (§15), typed in from there.

use crate::common::{Block, build, fault, file, open_ro};
use vhd_rs::{BatmapState, DiskType, Footer, Header};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn footer(hex: &str) -> Vec<u8> {
    let mut out = bytes(hex);
    out.resize(512, 0);
    out
}

/// §15.1 and §15.2 by qemu-img, §15.3 fixed.
const QEMU: [(&str, DiskType, u64, u32); 3] = [
    (
        "636f6e6563746978 00000002 00010000 0000000000000200 3295b916 71656d32 00050003 5769326b
         0000000000a00000 0000000000a00000 ffff10ff 00000003 ffffeb6d
         00dd1a4f2250468f8273c3d5cee8d5cb",
        DiskType::Dynamic,
        10_485_760,
        0xffff_eb6d,
    ),
    (
        "636f6e6563746978 00000002 00010000 0000000000000200 3295b916 71656d75 00050003 5769326b
         0000000000503800 0000000000503800 00970411 00000003 ffffedd1
         c8fed32262304a6f9e0e63ea726ba4da",
        DiskType::Dynamic,
        5_257_216,
        0xffff_edd1,
    ),
    (
        "636f6e6563746978 00000002 00010000 ffffffffffffffff 3295b916 71656d32 00050003 5769326b
         0000000000100000 0000000000100000 ffff10ff 00000002 ffffe52d
         b30d241296be48b48288deff15ef2f7b",
        DiskType::Fixed,
        1_048_576,
        0xffff_e52d,
    ),
];

#[test]
fn footers_of_qemu_are_read_and_written_alike() {
    for (hex, kind, size, sum) in QEMU {
        let raw = footer(hex);
        let parsed = Footer::parse(&raw).unwrap();
        assert_eq!((parsed.kind, parsed.current_bytes, parsed.checksum), (kind, size, sum));
        assert!(!parsed.by_tap());
        assert_eq!(parsed.encode()[..], raw);
    }
}

#[test]
fn a_header_of_qemu_is_read_and_written_alike() {
    let mut raw = bytes(
        "6378737061727365 ffffffffffffffff 0000000000000600 00010000 00000005 00200000 fffff472",
    );
    raw.resize(1024, 0);
    let header = Header::parse(&raw).unwrap();
    assert_eq!((header.table_offset, header.max_entries), (1536, 5));
    assert_eq!(header.encode()[..], raw);
}

#[test]
fn a_tap_image_is_the_one_of_15_4() {
    let image = build(10, &[(0, Block::Some(vec![(0, 0x11), (9, 0x12)])), (2, Block::Full)], None);
    assert_eq!(image.len(), 4_203_008);
    assert_eq!(image[..512], image[4_203_008 - 512..]);
    let expect = footer(
        "636f6e6563746978 00000002 00010000 0000000000000200 00000000 74617000 00010003 00000000
         0000000000a00000 0000000000a00000 012d0411 00000003 fffff65a
         11111111222233334444555555555555",
    );
    assert_eq!(image[..512], expect);
    assert_eq!(image[0x224..0x228], bytes("fffff472"));
    let table = bytes("00000007 ffffffff 0000100f ffffffff ffffffff 00000000");
    assert_eq!(image[0x600..0x618], table);
    let batmap = bytes("7464626174 6d6170 0000000000000a00 00000001 00010002 ffffffdf 00");
    assert_eq!(image[0x800..0x81d], batmap);
    assert_eq!(image[0xa00..0xa02], [0x20, 0]);
    assert_eq!(image[0xe00..0xe03], [0x80, 0x40, 0]);
    assert_eq!(image[0x1000], 0x11);
    assert_eq!(fault(&image), "");
}

#[test]
fn a_differencing_image_is_the_one_of_15_5() {
    let image = build(10, &[(1, Block::Some(vec![(2, 0x33)]))], Some("./t1.vhd"));
    assert_eq!(image.len(), 2_105_856);
    assert_eq!(image[0x224..0x238], bytes("ffffea48 11111111222233334444555555555555"));
    assert_eq!(image[0x240..0x24c], bytes("0074 0031 002e 0076 0068 0064"));
    let locators = bytes(
        "4d616358 00000200 0000000f 00000000 0000000000000c00
         57326b75 00000200 00000010 00000000 0000000000000e00
         57327275 00000200 00000010 00000000 0000000000001000",
    );
    assert_eq!(image[0x440..0x488], locators);
    assert_eq!(image[0x604..0x608], bytes("0000000f"));
    assert_eq!(&image[0xc00..0xc0f], b"file://./t1.vhd");
    assert_eq!(image[0xe00..0xe10], bytes("2e005c007400310 02e0076006800 6400"));
    assert_eq!(image[0x1000..0x1200], image[0xe00..0x1000]);
    assert_eq!(image[0x1e00], 0x20);
    let opened = open_ro(&file(&image)).unwrap();
    let parent = opened.parent.unwrap();
    assert_eq!(parent.uuid, Some(crate::common::UUID));
    assert_eq!(parent.candidates[0], std::path::Path::new("./t1.vhd"));
    assert!(matches!(opened.batmap, BatmapState::Valid { .. }));
}
