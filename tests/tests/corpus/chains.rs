//! Group F: chains.
use tests::rig::vhdgen::{Gen, Locator, id};
use tests::rig::{MIB, files};

use super::{Bench, with};

#[test]
fn f01_three_levels_with_one_sector_from_each() {
    let b = Bench::new();
    let all = [(1, 0x31), (2, 0x31), (3, 0x31)];
    Gen::new(10 * MIB).id(1).sectors(1, &all).write(&b.path("g.vhd"));
    let p = Gen::child(10 * MIB, "g.vhd", id(1)).id(2);
    p.sectors(1, &[(2, 0x32), (3, 0x32)]).write(&b.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(2)).id(3).sectors(1, &[(3, 0x33)]).write(&b.path("c.vhd"));
    let sectors = [4096, 4097, 4098, 4099, 0].map(|sector| b.sector("c.vhd", sector));
    assert_eq!(sectors, [0, 0x31, 0x32, 0x33, 0]);
    assert_eq!(b.ok("query -n c.vhd -d"), "chain depth: 3");
    let home = b.home();
    let valid = format!("c.vhd is valid\n{home}/p.vhd is valid\n{home}/g.vhd is valid");
    assert_eq!(b.ok("check -n c.vhd -p"), valid);
}

#[test]
fn f02_a_set_bit_over_zeros_hides_the_parent() {
    let b = Bench::new();
    Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&b.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(1)).sectors(0, &[(0, 0)]).write(&b.path("c.vhd"));
    assert_eq!(b.sector("c.vhd", 0), 0);
}

#[test]
fn f04_a_parent_with_another_id() {
    let b = Bench::new();
    Gen::new(10 * MIB).id(9).sectors(1, &[(1, 0x33)]).write(&b.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(1)).write(&b.path("c.vhd"));
    let parent = format!("invalid parent {}/p.vhd: invalid parent uuid", b.home());
    b.run("check -n c.vhd").exits(22).mentions(&parent);
    b.ok("check -n c.vhd -I");
    b.ok("query -n c.vhd -p");
}

#[test]
fn f05_circles_end_with_an_error_everywhere() {
    let b = Bench::new();
    Gen::child(10 * MIB, "b.vhd", id(2)).id(1).write(&b.path("a.vhd"));
    Gen::child(10 * MIB, "a.vhd", id(1)).id(2).write(&b.path("b.vhd"));
    assert_eq!(b.ok("query -n a.vhd -p"), format!("{}/b.vhd", b.home()));
    assert_eq!(b.ok("scan -f -a -m a.vhd").lines().count(), 2);
    assert_eq!(b.ok("scan -a -p a.vhd b.vhd").lines().count(), 2);
    let keep = (b.bytes("a.vhd"), b.bytes("b.vhd"));
    for line in [
        "query -n a.vhd -d",
        "check -n a.vhd -p",
        "read -n a.vhd -r 0",
        "snapshot -n c.vhd -p a.vhd",
        "fill -n a.vhd",
    ] {
        let outcome = b.run(line);
        assert!([40, 22].contains(&outcome.code), "{outcome:?}");
    }
    assert!((b.bytes("a.vhd"), b.bytes("b.vhd")) == keep && !b.path("c.vhd").exists());
    // The way out.
    Gen::new(10 * MIB).id(3).write(&b.path("root.vhd"));
    b.ok("modify -n b.vhd -p root.vhd");
    assert_eq!(b.ok("query -n a.vhd -d"), "chain depth: 3");
}

#[test]
fn f07_locators_are_tried_in_order_until_one_leads_to_a_file() {
    let b = Bench::new();
    Gen::new(10 * MIB).id(1).write(&b.path("p.vhd"));
    let layout = Gen::child(10 * MIB, "p.vhd", id(1)).write(&b.path("c.vhd"));
    files::poke(&b.path("c.vhd"), layout.locators[0], b"file://./q.vhd");
    assert_eq!(b.ok("query -n c.vhd -p"), format!("{}/p.vhd", b.home()));
    assert_eq!(b.ok("query -n c.vhd -pu"), "./q.vhd");
    assert!(b.ok("read -n c.vhd -p").contains("decoded name : ./q.vhd"));
}

#[test]
fn f08_only_a_windows_locator_with_a_drive_and_space_in_sectors() {
    let b = Bench::new();
    std::fs::create_dir(b.path("d")).unwrap();
    Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&b.path("d/p.vhd"));
    let path = format!("C:{}/d/p.vhd", b.home()).replace('/', "\\");
    let bytes = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let locators = Some(vec![Locator { code: *b"W2ku", space: Some(1), bytes }]);
    let child = with(Gen::child(10 * MIB, "p.vhd", id(1)), |g| g.locators = locators);
    child.foreign(b"win ").write(&b.path("c.vhd"));
    assert_eq!(b.ok("query -n c.vhd -p"), format!("{}/d/p.vhd", b.home()));
    assert_eq!(b.sector("c.vhd", 0), 0x31);
}

#[test]
fn f10_room_smaller_than_the_parent_is_refused() {
    let b = Bench::new();
    b.ok("create -n p.vhd -s 10");
    b.fails(22, "snapshot -n c.vhd -p p.vhd -S 4");
    assert!(!b.path("c.vhd").exists());
}

#[test]
fn f11_a_snapshot_skips_empty_parents_unless_told_otherwise() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    b.ok("snapshot -n b.vhd -p a.vhd");
    b.ok("snapshot -n c.vhd -p b.vhd");
    assert_eq!(b.ok("query -n c.vhd -pu"), "./a.vhd");
    b.ok("snapshot -n d.vhd -p b.vhd -e");
    assert_eq!(b.ok("query -n d.vhd -pu"), "./b.vhd");
}

#[test]
fn f13_over_a_raw_parent_the_size_is_exact() {
    let b = Bench::new();
    files::sparse(&b.path("raw.img"), 3 * MIB + 512);
    b.ok("snapshot -n c.vhd -p raw.img -m");
    assert_eq!(files::bytes_at(&b.path("c.vhd"), 48, 8), (3 * MIB + 512).to_be_bytes());
}

#[test]
fn f14_a_snapshot_onto_itself_or_an_ancestor_is_refused_untouched() {
    let b = Bench::new();
    Gen::new(10 * MIB).id(1).full(0, 0x5a).write(&b.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(1)).full(1, 0x5b).write(&b.path("c.vhd"));
    let keep = (b.bytes("p.vhd"), b.bytes("c.vhd"));
    b.fails(22, "snapshot -n p.vhd -p p.vhd");
    b.fails(22, "snapshot -n p.vhd -p c.vhd");
    std::os::unix::fs::symlink("p.vhd", b.path("l.vhd")).unwrap();
    b.fails(22, "snapshot -n l.vhd -p p.vhd");
    assert!((b.bytes("p.vhd"), b.bytes("c.vhd")) == keep);
}
