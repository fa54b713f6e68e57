//! Group G: the commands.
use tests::rig::vhdgen::{Gen, id, poke_footers};
use tests::rig::{MIB, files};

use super::Bench;

fn family(b: &Bench) {
    Gen::new(10 * MIB).id(1).sectors(1, &[(1, 0x33)]).write(&b.path("p.vhd"));
    let child = Gen::child(10 * MIB, "p.vhd", id(1));
    child.sectors(1, &[(2, 0x44)]).write(&b.path("c.vhd"));
}

#[test]
fn g01_a_query_answers_in_its_own_order() {
    let b = Bench::new();
    family(&b);
    let home = b.home();
    let all = format!("10\n2105856\n{home}/p.vhd\nhidden: 0\nmarker: 0\nchain depth: 2\n1\n10");
    assert_eq!(b.ok("query -n c.vhd -Samdfpsv"), all);
    assert_eq!(b.ok("query -n p.vhd -p"), "p.vhd has no parent");
}

#[test]
fn g02_exit_codes_and_debug_anywhere() {
    let b = Bench::new();
    for (code, line) in [(0, ""), (0, "nosuch"), (22, "create"), (22, "query"), (0, "query -h")] {
        b.fails(code, line);
    }
    assert_eq!(b.fails(2, "query -n missing.vhd -v"), "error opening missing.vhd: -2\n");
    b.ok("create --debug -n a.vhd -s 2");
    assert_eq!(b.ok("query -n a.vhd --debug -v"), "2");
    assert_eq!(b.ok("query -n --debug a.vhd -v"), "2");
}

#[test]
fn g04_another_parent_in_place() {
    let b = Bench::new();
    family(&b);
    Gen::new(10 * MIB).id(2).write(&b.path("q.vhd"));
    b.ok("modify -n c.vhd -p q.vhd");
    assert_eq!(b.ok("query -n c.vhd -p"), format!("{}/q.vhd", b.home()));
    assert_eq!(files::bytes_at(&b.path("c.vhd"), 552, 16), id(2));
    b.ok("check -n c.vhd");
    let keep = b.bytes("c.vhd");
    let missing = b.fails(2, "modify -n c.vhd -p nope.vhd");
    assert_eq!(missing, "failed to set parent to 'nope.vhd': -2\n");
    b.fails(22, "modify -n p.vhd -p q.vhd");
    assert!(b.bytes("c.vhd") == keep);
}

#[test]
fn g05_a_raw_parent_in_place() {
    let b = Bench::new();
    family(&b);
    files::sparse(&b.path("raw.img"), 10 * MIB);
    b.ok("modify -n c.vhd -p raw.img -m");
    assert_eq!(b.ok("query -n c.vhd -pd"), format!("{}/raw.img\nchain depth: 2", b.home()));
    b.ok("check -n c.vhd");
}

#[test]
fn g07_another_end() {
    let b = Bench::new();
    family(&b);
    let size = b.size("p.vhd") + 4096;
    b.ok(&format!("modify -n p.vhd -s {size}"));
    assert_eq!(b.size("p.vhd"), size);
    b.ok("check -n p.vhd");
    let low = b.fails(22, "modify -n p.vhd -s 4096");
    assert_eq!(low, "failed to set physical size to 4096: -22\n");
}

#[test]
fn g08_resizing_within_the_metadata() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10 -S 100");
    b.ok("resize -n a.vhd -s 60 -f");
    assert_eq!(b.ok("query -n a.vhd -v"), "60");
    b.ok("check -n a.vhd");
    b.fails(22, "resize -n a.vhd -s 102 -f");
    let less = b.fails(22, "resize -n a.vhd -s 20 -f");
    assert_eq!(less, "a.vhd: size (20971520) < curr size (62914560)\n");
    b.ok("resize -n a.vhd -s 100 -f");
    Gen::new(10 * MIB).foreign(b"gen ").write(&b.path("g.vhd"));
    let foreign = b.fails(22, "resize -n g.vhd -s 20 -f");
    assert_eq!(foreign, "g.vhd not created by xen; resize not supported\n");
    b.fails(22, "resize -n a.vhd -s 101 -f");
}

#[test]
fn g10_journals_that_are_in_the_way_or_missing() {
    let b = Bench::new();
    Gen::new(10 * MIB).write(&b.path("d.vhd"));
    std::fs::write(b.path("ex.jrn"), "x\n").unwrap();
    let keep = b.bytes("d.vhd");
    assert_eq!(b.fails(17, "resize -n d.vhd -s 600 -j ex.jrn"), "creating journal failed: -17\n");
    b.run("resize -n d.vhd -s 4 -j s.jrn")
        .exits(38)
        .mentions("dynamic shrink not fully implemented");
    b.fails(22, "resize -n d.vhd -s 20");
    assert_eq!(b.fails(2, "revert -n d.vhd -j none.jrn"), "opening journal failed: -2\n");
    b.ok("check -n d.vhd");
    assert!(b.bytes("d.vhd") == keep && b.bytes("ex.jrn") == b"x\n" && !b.path("s.jrn").exists());
}

#[test]
fn g16_a_bad_image_ends_a_scan_unless_told_otherwise() {
    let b = Bench::new();
    for name in ["a.vhd", "c.vhd"] {
        Gen::new(2 * MIB).write(&b.path(name));
    }
    std::fs::write(b.path("b.vhd"), vec![b'x'; 100_000]).unwrap();
    let a = "vhd=a.vhd capacity=2097152 size=3584 hidden=0 parent=none\n";
    let bad = "vhd=b.vhd scan-error=-22 error-message='opening file'\n";
    assert_eq!(b.fails(22, "scan -m *.vhd"), format!("{a}{bad}"));
    let c = "vhd=c.vhd capacity=2097152 size=3584 hidden=0 parent=none\n";
    assert_eq!(b.fails(0, "scan -c -m *.vhd"), format!("{a}{bad}{c}"));
    let none = "vhd=n.vhd scan-error=-2 error-message='failure scanning target'\n";
    assert_eq!(b.fails(2, "scan -m n.vhd"), none, "G15: a name without wildcards");
    assert_eq!(b.fails(0, "scan -m n*.vhd"), "");
}

#[test]
fn g17_a_scan_as_a_tree() {
    let b = Bench::new();
    let child = |size: u64, parent: &str, name: &str| {
        Gen::child(size * MIB, parent, id(1)).write(&b.path(name));
    };
    Gen::new(10 * MIB).id(1).write(&b.path("base.vhd"));
    poke_footers(&b.path("base.vhd"), 85, &[1]);
    child(10, "base.vhd", "l1.vhd");
    child(20, "base.vhd", "l2.vhd");
    Gen::new(10 * MIB).write(&b.path("z.vhd"));
    child(10, "nope.vhd", "o.vhd");
    let tree = "vhd=base.vhd capacity=10485760 size=3584 hidden=1 parent=none\n   \
        vhd=l1.vhd capacity=10485760 size=5120 hidden=0 parent=base.vhd\n   \
        vhd=l2.vhd capacity=20971520 size=5120 hidden=0 parent=base.vhd\n\
        vhd=o.vhd capacity=10485760 size=5120 hidden=0 parent=nope.vhd (not found in scan)\n\
        vhd=z.vhd capacity=10485760 size=3584 hidden=0 parent=none";
    assert_eq!(b.ok("scan -c -p -m *.vhd"), tree);
}

#[test]
fn g19_a_copy_has_the_contents_and_does_not_overwrite() {
    let b = Bench::new();
    family(&b);
    b.ok("copy -n p.vhd -N q.vhd");
    assert_eq!(b.ok("query -n q.vhd -va"), "10\n1");
    let read = |name: &str| b.run(&format!("read -n {name} -r 0 -c 20480")).ok().bytes;
    assert!(read("p.vhd") == read("q.vhd"));
    let keep = b.bytes("q.vhd");
    b.run("copy -n p.vhd -N q.vhd").exits(22).mentions("already exists");
    assert!(b.bytes("q.vhd") == keep);
}

#[test]
fn g20_looking_into_an_image() {
    let b = Bench::new();
    family(&b);
    let at = "logical sector 4097: block number: 1, sector offset: 1, file offset: 4608";
    assert_eq!(b.ok("read -n p.vhd -t 4097 -c 1"), at);
    let nowhere = "logical sector 0: block number: 0, sector offset: 0, file offset: not allocated";
    assert_eq!(b.ok("read -n p.vhd -t 0"), nowhere);
    assert_eq!(b.ok("read -n p.vhd -b 1 -x"), "block: 0x1: offset: 0xe00");
    b.fails(34, "read -n p.vhd -r 20480 -c 1");
    let past = b.run("read -n p.vhd -b 99").exits(34);
    assert!(past.err.contains("past end of file"), "{past:?}");
    assert!(b.ok("read -n p.vhd -p").contains("Disk type           : Dynamic hard disk"));
}

#[test]
fn g22_2040_gib_is_the_largest_disk() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 2088960");
    assert_eq!(b.ok("query -n a.vhd -v"), "2088960");
    b.fails(22, "create -n b.vhd -s 2088962");
    b.fails(22, "resize -n a.vhd -s 2088962 -j j");
    assert!(!b.path("b.vhd").exists() && !b.path("j").exists());
}
