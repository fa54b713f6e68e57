//! Group D: footers and headers that are damaged, old, new, or not what they should be.
use tests::rig::vhdgen::{Gen, Layout, poke_footer, poke_footers, poke_header};
use tests::rig::{MIB, files};

use super::{Bench, with};

fn image(b: &Bench) -> Layout {
    Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).full(2, 0x5a).write(&b.path("x.vhd"))
}

fn empty(b: &Bench) {
    Gen::new(10 * MIB).write(&b.path("x.vhd"));
}

/// Overwrites the trailing footer from a byte of it on.
fn poke_end(b: &Bench, field: u64, bytes: &[u8]) {
    files::poke(&b.path("x.vhd"), b.size("x.vhd") - 512 + field, bytes);
}

/// A check that fails with 22 and says so, and leaves the file as it was.
#[track_caller]
fn faulty(b: &Bench, what: &str) {
    let keep = b.bytes("x.vhd");
    b.run("check -n x.vhd").exits(22).mentions(what).mentions("appears invalid; dumping metadata");
    assert!(b.bytes("x.vhd") == keep);
}

#[test]
fn d01_a_lost_trailing_footer_comes_back_exactly() {
    let b = Bench::new();
    image(&b);
    let good = b.bytes("x.vhd");
    poke_end(&b, 0, &[0; 512]);
    assert_eq!(b.ok("query -n x.vhd -vsfa"), "10\n4203008\nhidden: 0\n2");
    faulty(&b, "primary footer invalid: invalid cookie");
    assert_eq!(b.ok("check -n x.vhd -i"), "x.vhd is valid");
    b.ok("repair -n x.vhd");
    assert!(b.bytes("x.vhd") == good);
}

#[test]
fn d02_the_trailing_footer_of_a_running_disk_is_no_obstacle() {
    let b = Bench::new();
    image(&b);
    poke_end(&b, 0, &[0xc7; 512]);
    assert_eq!(b.ok("query -n x.vhd -v"), "10");
    b.ok("check -n x.vhd -i");
    b.qemu_img("info -f vpc x.vhd");
}

#[test]
fn d04_without_any_footer_nothing_is_guessed() {
    let b = Bench::new();
    empty(&b);
    files::poke(&b.path("x.vhd"), 0, &[0; 512]);
    poke_end(&b, 0, &[0; 512]);
    assert_eq!(b.fails(22, "query -n x.vhd -v"), "error opening x.vhd: -22\n");
    b.fails(22, "repair -n x.vhd");
}

#[test]
fn d05_a_trailing_footer_with_a_wrong_checksum_is_passed_over() {
    let b = Bench::new();
    empty(&b);
    poke_end(&b, 64, &[0; 4]);
    b.ok("query -n x.vhd -v");
    faulty(&b, "primary footer invalid: invalid checksum");
    b.ok("check -n x.vhd -i");
}

#[test]
fn d06_a_truncated_file_is_restored_by_repair() {
    let b = Bench::new();
    image(&b);
    let good = b.bytes("x.vhd");
    std::fs::write(b.path("x.vhd"), &good[..good.len() - 512]).unwrap();
    b.ok("repair -n x.vhd");
    assert!(b.bytes("x.vhd") == good);
}

#[test]
fn d07_a_footer_of_511_bytes_is_a_footer() {
    let b = Bench::new();
    image(&b);
    let bytes = b.bytes("x.vhd");
    std::fs::write(b.path("x.vhd"), &bytes[..bytes.len() - 1]).unwrap();
    b.ok("query -n x.vhd -v");
    b.ok("check -n x.vhd");
}

#[test]
fn d08_of_two_footers_that_differ_the_trailing_one_counts() {
    let b = Bench::new();
    empty(&b);
    poke_footer(&b.path("x.vhd"), b.size("x.vhd") - 512, 85, &[1]);
    assert_eq!(b.ok("query -n x.vhd -f"), "hidden: 1");
    faulty(&b, "primary and backup footers do not match");
    b.ok("check -n x.vhd -i");
}

#[test]
fn d10_to_d13_faults_of_the_header() {
    let b = Bench::new();
    empty(&b);
    files::poke(&b.path("x.vhd"), 512, b"XXXXXXXX");
    faulty(&b, "header is invalid: invalid cookie");
    for (field, bytes, what) in [
        (24, &[0, 2, 0, 0][..], "header is invalid: invalid header version"),
        (16, &1540_u64.to_be_bytes()[..], "header is invalid: invalid table offset"),
    ] {
        empty(&b);
        poke_header(&b.path("x.vhd"), field, bytes);
        faulty(&b, what);
    }
}

#[test]
fn d14_a_table_smaller_than_the_disk() {
    let b = Bench::new();
    empty(&b);
    poke_header(&b.path("x.vhd"), 28, &3_u32.to_be_bytes());
    assert_eq!(b.fails(22, "query -n x.vhd -va"), "10\nerror reading bat: -22\n");
    faulty(&b, "error reading bat: -22");
}

#[test]
fn d16_and_d20_fields_that_only_the_check_objects_to() {
    let b = Bench::new();
    for (field, bytes, what) in [
        (12, &[0, 2, 0, 0][..], "invalid file format version"),
        (84, &[2], "invalid 'saved' state"),
        (85, &[2], "invalid 'hidden' state"),
        (300, &[2], "invalid 'reserved' bits"),
        (8, &[0, 0, 0, 0], "invalid 'reserved' feature"),
        (8, &[0, 0, 0, 6], "invalid extra features"),
        (68, &[0; 16], "invalid (NULL) uuid"),
    ] {
        empty(&b);
        poke_footers(&b.path("x.vhd"), field, bytes);
        faulty(&b, &format!("primary footer invalid: {what}"));
        b.ok("query -n x.vhd -v");
    }
    empty(&b);
    poke_footers(&b.path("x.vhd"), 85, &[2]);
    assert_eq!(b.ok("query -n x.vhd -f"), "hidden: 2");
}

#[test]
fn d17_a_creation_time_in_the_future() {
    let b = Bench::new();
    let stamp = |time: u32| with(Gen::new(10 * MIB), |g| g.time = time).write(&b.path("x.vhd"));
    stamp(0xff00_0000);
    faulty(&b, "creation time in future");
    b.ok("check -n x.vhd -t");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    stamp(u32::try_from(now.as_secs() - 946_684_800 + 1500).unwrap());
    b.ok("check -n x.vhd");
}

#[test]
fn d19_newer_and_ancient_creators() {
    let b = Bench::new();
    let by = |version| {
        with(Gen::new(10 * MIB), |g| g.creator.1 = version).write(&b.path("x.vhd"));
    };
    by(0x0001_0004);
    faulty(&b, "unsupported tap creator version");
    b.ok("query -n x.vhd -v");
    by(1);
    b.fails(22, "query -n x.vhd -v");
}

#[test]
fn d21_a_poisoned_image_is_only_looked_at() {
    let b = Bench::new();
    image(&b);
    poke_footers(&b.path("x.vhd"), 0, b"v_poison");
    let keep = b.bytes("x.vhd");
    b.ok("query -n x.vhd -vsfa");
    b.ok("read -n x.vhd -p");
    b.ok("scan -f x.vhd");
    for line in [
        "check -n x.vhd",
        "set -n x.vhd -f hidden -v 1",
        "set -n x.vhd -f marker -v 1",
        "repair -n x.vhd",
        "modify -n x.vhd -z",
        "modify -n x.vhd -s 9000448",
        "fill -n x.vhd",
        "fill -n x.vhd -b",
        "resize -n x.vhd -s 20 -f",
        "resize -n x.vhd -s 20 -j j",
        "snapshot -n c.vhd -p x.vhd",
        "copy -n x.vhd -N c.vhd",
        "key -p -n x.vhd",
    ] {
        b.fails(22, line);
        assert!(b.bytes("x.vhd") == keep, "{line} changed it");
    }
    assert!(!b.path("c.vhd").exists() && !b.path("j").exists());
}

#[test]
fn d22_an_early_hidden_flag_has_no_checksum_of_its_own() {
    let b = Bench::new();
    let early = with(Gen::new(10 * MIB), |g| (g.creator.1, g.batmap) = (0x0001_0001, false));
    early.write(&b.path("x.vhd"));
    files::poke(&b.path("x.vhd"), 85, &[1]);
    poke_end(&b, 85, &[1]);
    assert_eq!(b.ok("query -n x.vhd -f"), "hidden: 1");
    b.ok("check -n x.vhd");
}

#[test]
fn d23_an_image_of_today_without_a_batmap() {
    let b = Bench::new();
    let bare = with(Gen::new(10 * MIB), |g| g.batmap = false);
    bare.sectors(0, &[(0, 0x11)]).write(&b.path("x.vhd"));
    assert_eq!(b.ok("query -n x.vhd -va"), "10\n1");
    assert_eq!(b.sector("x.vhd", 0), 0x11);
    b.ok("query -n x.vhd -s");
}
