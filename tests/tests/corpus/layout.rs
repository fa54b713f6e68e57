//! Group C: the bytes that create and snapshot write.
use tests::rig::files;

use super::Bench;

#[test]
fn c01_the_byte_map_of_an_empty_10_mib_image() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    let d = b.bytes("a.vhd");
    assert_eq!(d.len(), 3584);
    assert!(d[..512] == d[3072..] && &d[..8] == b"conectix" && &d[512..520] == b"cxsparse");
    assert_eq!(
        (&d[16..24], &d[528..536]),
        (&[0, 0, 0, 0, 0, 0, 2, 0][..], &[0, 0, 0, 0, 0, 0, 6, 0][..])
    );
    assert!(d[1536..1556].iter().all(|byte| *byte == 0xff));
    assert!(d[1556..2048].iter().all(|byte| *byte == 0));
    assert!(&d[2048..2056] == b"tdbatmap" && d[2056..2064] == 2560_u64.to_be_bytes());
    assert!(d[2064..2068] == 1_u32.to_be_bytes() && d[2068..2072] == 0x10002_u32.to_be_bytes());
    assert!(d[2560..3072].iter().all(|byte| *byte == 0));
}

#[test]
fn c02_geometries_of_many_sizes() {
    let b = Bench::new();
    for (mib, word) in [
        (2, 0x003C_0411),
        (4, 0x0078_0411),
        (10, 0x012D_0411),
        (34, 0x008C_101F),
        (100, 0x03EB_0C11),
        (504, 0x0400_103F),
        (1024, 0x0820_103F),
        (2048, 0x1041_103F),
        (8192, 0x4104_103F),
        (130_048, 0xFEFE_10FF),
        (131_072, 0xFFFF_10FF),
        (2_088_960, 0xFFFF_10FF_u32),
    ] {
        b.ok(&format!("create -n a.vhd -s {mib}"));
        assert_eq!(b.u32("a.vhd", 56), word, "{mib} MiB");
    }
}

#[test]
fn c04_metadata_with_room_for_2_tib() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10 -S 2097152");
    assert_eq!(b.u32("a.vhd", 540), 1_048_576);
    let table = files::bytes_at(&b.path("a.vhd"), 1536, 4 << 20);
    assert!(table.iter().all(|byte| *byte == 0xff));
    let map = files::bytes_at(&b.path("a.vhd"), 4_195_840, 20);
    assert!(&map[..8] == b"tdbatmap" && map[8..16] == 4_196_352_u64.to_be_bytes());
    assert_eq!(map[16..], 256_u32.to_be_bytes());
    assert_eq!(b.size("a.vhd"), 4_327_936);
}

#[test]
fn c05_header_and_locators_of_a_snapshot() {
    let b = Bench::new();
    b.ok("create -n p.vhd -s 10");
    b.ok("snapshot -n c.vhd -p p.vhd -e");
    let (p, c) = (b.bytes("p.vhd"), b.bytes("c.vhd"));
    assert_eq!(c[60..64], 4_u32.to_be_bytes());
    assert_eq!(c[552..568], p[68..84]);
    let name: Vec<u8> = "p.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(c[576..586] == name && c[586..1088].iter().all(|byte| *byte == 0));
    let wide: Vec<u8> = ".\\p.vhd".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (slot, code, at, text) in [
        (0, b"MacX", 3072_usize, &b"file://./p.vhd"[..]),
        (1, b"W2ku", 3584, &wide),
        (2, b"W2ru", 4096, &wide),
    ] {
        let entry = &c[1088 + 24 * slot..][..24];
        assert_eq!(&entry[..4], code);
        // Space in bytes, then the length of the text.
        assert_eq!((&entry[4..8], &entry[8..12]), (&[0, 0, 2, 0][..], &[0, 0, 0, 14][..]));
        assert_eq!(entry[16..], (at as u64).to_be_bytes());
        assert!(c[at..at + 14] == *text && c[at + 14..at + 512].iter().all(|byte| *byte == 0));
    }
    assert!(c[1088 + 72..1088 + 192].iter().all(|byte| *byte == 0));
    assert_eq!(c.len(), 5120);
}

#[test]
fn c07_links_are_followed_before_a_parent_is_stored() {
    let b = Bench::new();
    std::fs::create_dir(b.path("d")).unwrap();
    b.ok("create -n d/p.vhd -s 10");
    std::os::unix::fs::symlink("d/p.vhd", b.path("ln.vhd")).unwrap();
    b.ok("snapshot -n c.vhd -p ln.vhd -e");
    assert_eq!(b.ok("query -n c.vhd -pu"), "./d/p.vhd");
}

#[test]
fn c08_the_parents_time_stamp_is_its_modification_time() {
    let b = Bench::new();
    b.ok("create -n p.vhd -s 10");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    std::fs::File::options().write(true).open(b.path("p.vhd")).unwrap().set_modified(time).unwrap();
    b.ok("snapshot -n c.vhd -p p.vhd -e");
    assert_eq!(b.u32("c.vhd", 568), 753_315_200);
}

#[test]
fn c10_an_id_of_zeros_marks_a_raw_parent_which_counts_in_the_depth() {
    let b = Bench::new();
    std::fs::write(b.path("raw.img"), vec![0x77; 10 << 20]).unwrap();
    b.ok("snapshot -n c.vhd -p raw.img -m");
    assert_eq!(files::bytes_at(&b.path("c.vhd"), 552, 16), [0; 16]);
    assert_eq!(b.ok("query -n c.vhd -vpd"), format!("10\n{}/raw.img\nchain depth: 2", b.home()));
    assert_eq!(b.sector("c.vhd", 20479), 0x77);
    b.ok("check -n c.vhd -p");
}

#[test]
fn c11_blocks_are_placed_so_that_their_data_begins_on_a_page() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    b.ok("fill -n a.vhd");
    for block in 0..5 {
        assert_eq!(b.u32("a.vhd", 1536 + 4 * u64::from(block)), 7 + 4104 * block);
    }
    b.ok("check -n a.vhd");
    assert_eq!(b.run("read -n a.vhd -a").ok().bytes[0], 0xf8);
}

#[test]
fn c12_a_parent_whose_name_is_not_ascii_is_stored_and_found() {
    // The original refuses it with EILSEQ.
    let b = Bench::new();
    b.ok("create -n zürich-日本.vhd -s 10");
    b.ok("snapshot -n c.vhd -p zürich-日本.vhd -e");
    assert_eq!(b.ok("query -n c.vhd -p"), format!("{}/zürich-日本.vhd", b.home()));
    assert_eq!(b.ok("scan -f c.vhd").split(' ').next_back(), Some("parent=zürich-日本.vhd"));
}

#[test]
fn c13_create_empties_an_existing_file_and_removes_what_it_cannot_finish() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 100");
    b.ok("create -n a.vhd -s 2");
    assert_eq!(b.ok("query -n a.vhd -v"), "2");
    let missing = b.run("create -n nodir/a.vhd -s 2").exits(2);
    assert!(missing.err.contains("failed to create: -2"), "{missing:?}");
}
