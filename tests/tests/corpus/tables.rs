//! Group E: the block allocation table, bitmaps, the batmap.
use tests::rig::vhdgen::Gen;
use tests::rig::{MIB, files};

use super::{Bench, with};

const TABLE: u64 = 1536;

fn one_block(b: &Bench) {
    Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).write(&b.path("x.vhd"));
}

fn entry(b: &Bench, block: u64, lba: u32) {
    files::poke(&b.path("x.vhd"), TABLE + 4 * block, &lba.to_be_bytes());
}

#[test]
fn e01_a_block_beyond_the_end_of_the_file_is_an_error_and_never_zeros() {
    let b = Bench::new();
    one_block(&b);
    entry(&b, 1, 1 << 20);
    b.run("check -n x.vhd").exits(22).mentions("block 1 (offset 0x100000) clobbers footer");
    assert_eq!(b.sector("x.vhd", 0), 0x11);
    let read = b.run("read -n x.vhd -r 4096");
    assert!(read.code != 0 && read.code < 128 && read.bytes.is_empty(), "{read:?}");
}

#[test]
fn e02_and_e04_blocks_upon_metadata_and_upon_each_other() {
    let b = Bench::new();
    Gen::new(10 * MIB).write(&b.path("x.vhd"));
    entry(&b, 0, 2);
    b.run("check -n x.vhd").exits(22).mentions("block 0 (offset 0x2) clobbers headers");
    let layout =
        Gen::new(10 * MIB).sectors(0, &[(0, 1)]).sectors(1, &[(0, 2)]).write(&b.path("x.vhd"));
    entry(&b, 1, layout.blocks[0].1 + 8);
    b.run("check -n x.vhd").exits(22).mentions("clobbers block");
    b.run("check -n x.vhd -B").ok();
}

#[test]
fn e05_entries_beyond_the_disk_are_ignored() {
    let b = Bench::new();
    let roomy = with(Gen::new(10 * MIB), |g| g.entries = Some(50));
    roomy.sectors(0, &[(0, 0x11)]).write(&b.path("x.vhd"));
    entry(&b, 20, 2);
    b.ok("check -n x.vhd");
    assert_eq!(b.ok("query -n x.vhd -vSa"), "10\n1\n100");
}

#[test]
fn e07_a_wrong_batmap_is_only_a_wrong_hint() {
    let b = Bench::new();
    Gen::new(10 * MIB).full(2, 0x5a).write(&b.path("x.vhd"));
    files::poke(&b.path("x.vhd"), 2560, &[0xff]);
    b.run("check -n x.vhd").exits(22).mentions("batmap is invalid");
    b.ok("query -n x.vhd -va");
    assert_eq!(b.sector("x.vhd", 8192), 0x5a);
}

#[test]
fn e08_the_bitmap_decides_for_each_sector() {
    let b = Bench::new();
    Gen::new(10 * MIB).sectors(0, &[(0, 0x11), (5, 0x22)]).write(&b.path("x.vhd"));
    files::poke(&b.path("x.vhd"), (8 + 6) * 512, &[0x99; 512]);
    assert_eq!((b.sector("x.vhd", 5), b.sector("x.vhd", 6)), (0x22, 0));
    let bits = "block 0: sec: 4: 0\nblock 0: sec: 5: 1\nblock 0: sec: 6: 0";
    assert_eq!(b.ok("read -n x.vhd -i 4 -c 3"), bits);
    assert_eq!(files::bytes_at(&b.path("x.vhd"), 3584, 1), [0x84]);
    // Unlike the original, the first byte of a sector is looked at too.
    files::poke(&b.path("x.vhd"), (8 + 6) * 512, &[0; 512]);
    b.ok("check -n x.vhd -b");
    files::poke(&b.path("x.vhd"), (8 + 6) * 512, &[1]);
    b.run("check -n x.vhd -b").exits(22).mentions("block 0, sector 6");
}

#[test]
fn e09_setting_the_marker_leaves_the_batmap_alone() {
    let b = Bench::new();
    Gen::new(10 * MIB).full(2, 0x5a).write(&b.path("x.vhd"));
    let before = b.run("read -n x.vhd -a").ok().bytes;
    b.ok("set -n x.vhd -f marker -v 7");
    assert!(b.run("read -n x.vhd -a").ok().bytes == before && before[0] == 0x20);
    b.ok("check -n x.vhd");
}

#[test]
fn e10_the_sign_of_a_marker() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 2");
    b.ok("set -n a.vhd -f marker -v 200");
    assert_eq!(b.ok("query -n a.vhd -m"), "marker: -56");
    let line = "vhd=a.vhd capacity=2097152 size=3584 hidden=0 marker=200 keyhash= parent=none";
    assert_eq!(b.ok("scan -M -f -m a.vhd"), line);
}

#[test]
fn e11_a_batmap_just_above_8_gib_has_both_sectors_and_passes_our_check() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 8194");
    let head = files::bytes_at(&b.path("a.vhd"), 1536 + 16896, 24);
    assert!(&head[..8] == b"tdbatmap" && head[8..16] == 18944_u64.to_be_bytes());
    assert_eq!(
        (&head[16..20], &head[20..]),
        (&2_u32.to_be_bytes()[..], &0x10002_u32.to_be_bytes()[..])
    );
    b.ok("check -n a.vhd");
}

#[test]
fn e12_a_partial_last_block_is_in_the_allocation_map() {
    let b = Bench::new();
    Gen::new(9 * MIB).sectors(4, &[(0, 1)]).write(&b.path("x.vhd"));
    assert_eq!(b.run("read -n x.vhd -B").ok().bytes, [0x08]);
    entry(&b, 4, 1 << 20);
    b.run("check -n x.vhd").exits(22).mentions("block 4");
}

#[test]
fn e13_fill_b_allocates_and_keeps_what_is_there() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    b.ok("fill -n a.vhd -b");
    assert_eq!(b.ok("query -n a.vhd -as"), "10506752\n5");
    b.fails(22, "fill -n a.vhd -f 0");
    one_block(&b);
    b.ok("fill -n x.vhd -b");
    assert_eq!((b.sector("x.vhd", 0), b.sector("x.vhd", 1)), (0x11, 0));
    assert_eq!(b.ok("query -n x.vhd -a"), "5");
    b.ok("check -n x.vhd");
    b.fails(34, "fill -n x.vhd -b -t 20480");
}
