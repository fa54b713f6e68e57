//! The storage manager's own conduct: the sequences of commands that it runs, and what it reads
//! from their output.
use std::process::Command;

use tests::rig::places::{LoopDevice, root};
use tests::rig::vhdgen::{Gen, id};
use tests::rig::{MIB, Served, files, programs, run};

use super::Bench;

/// As SM reads `query --debug -vsaf[p]`: MiB, bytes, parent, hidden, allocated blocks.
fn vhd_info(b: &Bench, name: &str) -> (u64, u64, Option<String>, u8, u64) {
    let out = b.ok(&format!("query --debug -vsafp -n {name}"));
    let lines: Vec<&str> = out.split('\n').collect();
    let parent = (!lines[2].contains("no parent")).then(|| lines[2].to_string());
    let hidden = lines[3].replace("hidden: ", "").parse().unwrap();
    (
        lines[0].parse().unwrap(),
        lines[1].parse().unwrap(),
        parent,
        hidden,
        lines[4].parse().unwrap(),
    )
}

/// A disk that is written to as a VBD while the tool works on its chain.
fn served<'a>(b: &'a Bench, name: &str) -> Served<'a> {
    b.0.serve(&b.0.name("vhd", name), &[])
}

#[test]
fn a_snapshot_of_a_running_disk() {
    let b = Bench::new();
    b.ok("create --debug -n base.vhd -s 64");
    let disk = served(&b, "base.vhd");
    disk.client().fill(0, 3 * MIB, 0x11).unwrap();

    disk.pause();
    b.ok("snapshot --debug -n leaf.vhd -p base.vhd");
    b.ok("set --debug -n base.vhd -f hidden -v 1");
    disk.unpause(&["-a", &b.0.name("vhd", "leaf.vhd")]);

    let mut client = disk.client();
    client.expect(0, 3 * MIB, 0x11);
    client.fill(MIB, MIB, 0x22).unwrap();
    // While it runs: the parent is sound, the leaf is looked at through the copy of its footer.
    b.ok("check --debug -n base.vhd");
    let (mib, _, parent, hidden, blocks) = vhd_info(&b, "leaf.vhd");
    assert_eq!((mib, parent, hidden, blocks), (64, Some(format!("{}/base.vhd", b.home())), 0, 1));
    assert_eq!(vhd_info(&b, "base.vhd").3, 1);
    let tree = b.ok("scan -f -c -p -m *.vhd");
    let lines: Vec<&str> = tree.lines().collect();
    assert!(
        lines[0].starts_with("vhd=base.vhd ") && lines[1].starts_with("   vhd=leaf.vhd "),
        "{tree}"
    );
    disk.destroy();
    b.ok("check --debug -n leaf.vhd -p");
}

#[test]
fn a_disk_that_runs_is_not_changed_behind_its_back() {
    let b = Bench::new();
    b.ok("create -n base.vhd -s 64");
    b.ok("snapshot -n leaf.vhd -p base.vhd -e");
    keeps_others_off(&b, "base.vhd", "leaf.vhd");
}

#[test]
fn nor_is_one_on_a_device() {
    let b = Bench::new();
    if !root("loop devices with VHDs") {
        return;
    }
    let [base, leaf] = ["base.img", "leaf.img"].map(|name| {
        files::sparse(&b.path(name), 72 * MIB);
        LoopDevice::over(&b.path(name), 512)
    });
    b.ok(&format!("create -n {} -s 64", base.name()));
    b.ok(&format!("snapshot -n {} -p {} -e", leaf.name(), base.name()));
    // A link is the same image, as LVM's names are links.
    let link = b.path("leaf");
    std::os::unix::fs::symlink(leaf.path(), &link).unwrap();
    keeps_others_off(&b, &base.name(), link.to_str().unwrap());
}

/// Serves a leaf, and has `vhd-util` change it and its parent meanwhile.
#[track_caller]
fn keeps_others_off(b: &Bench, base: &str, leaf: &str) {
    let disk = served(b, leaf);
    disk.client().fill(0, MIB, 0x11).unwrap();
    let keep = b.bytes(leaf);
    // What may be changed beside it is in `beside`.
    for line in [
        "set -f marker -v 1",
        "repair",
        "modify -z",
        "resize -s 128 -f",
        "resize -s 128 -j j",
        "fill",
        "create -s 10",
        &format!("snapshot -p {base}"),
        "coalesce",
        "compact",
    ] {
        let refused = b.run(&format!("{line} -n {leaf}")).exits(16);
        // Those who move or drop blocks want it for themselves, so readers keep them off as well.
        let why = match line {
            "compact" | "modify -z" | "resize -s 128 -j j" | "create -s 10" => {
                "has this image open"
            }
            _ if line.starts_with("snapshot") => "has this image open",
            _ => "is writing this image",
        };
        assert!(refused.err.contains(why) && refused.err.contains(leaf), "{line}: {refused:?}");
        assert!(b.bytes(leaf) == keep, "{line} changed it");
    }
    assert!(!b.path("j").exists());
    // Who only reads, and who works on what the disk only reads, is not kept off.
    b.ok(&format!("query -n {leaf} -vsafp"));
    b.ok(&format!("check -n {leaf} -i"));
    b.ok(&format!("set -n {base} -f hidden -v 1"));
    // The way around, by its name.
    b.ok(&format!("set --ignore-lock -n {leaf} -f marker -v 9"));
    assert_eq!(b.ok(&format!("query -n {leaf} -m")), "marker: 9");
    disk.pause();
    b.ok(&format!("set -n {leaf} -f hidden -v 0"));
    disk.unpause(&[]);
    disk.client().expect(0, MIB, 0x11);
    disk.destroy();
    b.ok(&format!("set -n {leaf} -f hidden -v 0"));
}

/// A chain of three under a running disk: a, b and c, each with a MiB of its own.
fn chain(b: &Bench) -> Served<'_> {
    b.ok("create -n a.vhd -s 64");
    let disk = served(b, "a.vhd");
    disk.client().fill(0, MIB, 0x0a).unwrap();
    for (n, name, parent) in [(1, "b.vhd", "a.vhd"), (2, "c.vhd", "b.vhd")] {
        disk.pause();
        b.ok(&format!("snapshot --debug -n {name} -p {parent}"));
        b.ok(&format!("set --debug -n {parent} -f hidden -v 1"));
        disk.unpause(&["-a", &b.0.name("vhd", name)]);
        disk.client().fill(n * MIB, MIB, 0x0a + n as u8).unwrap();
    }
    disk
}

fn expect_chain(disk: &Served<'_>) {
    let mut client = disk.client();
    (0..3).for_each(|n| client.expect(n * MIB, MIB, 0x0a + n as u8));
}

#[test]
fn an_inner_image_is_coalesced_under_a_running_disk() {
    let b = Bench::new();
    let disk = chain(&b);
    // The parent's contents change below a disk that does not see it.
    let out = b.run("coalesce --debug -n b.vhd").ok();
    assert_eq!(out.out, "Coalesced 2048 sectors");
    expect_chain(&disk);
    disk.pause();
    b.ok("modify --debug -n c.vhd -p a.vhd");
    disk.unpause(&[]);
    std::fs::remove_file(b.path("b.vhd")).unwrap();
    expect_chain(&disk);
    disk.destroy();
    assert_eq!(b.ok("query --debug -d -n c.vhd"), "chain depth: 2");
    b.ok("check --debug -n c.vhd -p");
}

#[test]
fn a_leaf_is_coalesced_and_the_disk_goes_on_with_its_parent() {
    let b = Bench::new();
    let disk = chain(&b);
    disk.pause();
    assert_eq!(b.run("coalesce --debug -n c.vhd").ok().out, "Coalesced 2048 sectors");
    b.ok("set --debug -n b.vhd -f hidden -v 0");
    std::fs::remove_file(b.path("c.vhd")).unwrap();
    disk.unpause(&["-a", &b.0.name("vhd", "b.vhd")]);
    expect_chain(&disk);
    disk.client().fill(10 * MIB, MIB, 0x77).unwrap();
    disk.destroy();
    b.ok("check --debug -n b.vhd -p");
    // What a failed coalesce is followed by.
    b.ok("repair --debug -n b.vhd");
    b.ok("check --debug -n b.vhd -p");
}

/// Runs `vhd-util` with a variable of the tests of storage managers; it ends at that point as by a
/// crash.
fn stopped_at(b: &Bench, point: &str, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let mut command: Command = b.0.command(&programs().vhd_util);
    let variable = format!("VHD_UTIL_TEST_FAIL_{point}");
    let outcome = run(command.args(words).env(&variable, "x"), b"").exits(22);
    assert_eq!(outcome.out, format!("Failing at {variable}\n"));
}

#[test]
fn a_reparent_that_stops_is_done_again() {
    for point in ["REPARENT_BEGIN", "REPARENT_LOCATOR", "REPARENT_END"] {
        let b = Bench::new();
        Gen::new(10 * MIB).id(1).write(&b.path("long-name-of-a-parent.vhd"));
        Gen::new(10 * MIB).id(2).sectors(0, &[(0, 0x22)]).write(&b.path("q.vhd"));
        let child = Gen::child(10 * MIB, "long-name-of-a-parent.vhd", id(1));
        child.sectors(1, &[(1, 0x33)]).write(&b.path("c.vhd"));
        stopped_at(&b, point, "modify -n c.vhd -p q.vhd");
        b.ok("query -n c.vhd -vsf");
        b.ok("modify -n c.vhd -p q.vhd");
        assert_eq!(b.ok("query -n c.vhd -p"), format!("{}/q.vhd", b.home()), "{point}");
        b.ok("check -n c.vhd -p");
        assert_eq!((b.sector("c.vhd", 0), b.sector("c.vhd", 4097)), (0x22, 0x33));
    }
}

const RESIZE_POINTS: [&str; 4] =
    ["RESIZE_BEGIN", "RESIZE_DATA_MOVED", "RESIZE_METADATA_MOVED", "RESIZE_END"];

#[test]
fn g11_a_resize_that_stops_at_any_step_is_taken_back_byte_for_byte() {
    for point in RESIZE_POINTS {
        let b = Bench::new();
        Gen::new(10 * MIB).id(5).sectors(0, &[(0, 0x11)]).full(2, 0x5a).write(&b.path("e.vhd"));
        let keep = b.bytes("e.vhd");
        stopped_at(&b, point, "resize -n e.vhd -s 600 -j e.jrn");
        assert!(b.path("e.jrn").exists());
        let size = if point == "RESIZE_END" { "600" } else { "10" };
        assert_eq!(b.ok("query -n e.vhd -v"), size, "{point}: looking is allowed");
        b.fails(22, "set -n e.vhd -f hidden -v 1");
        let refused = b.0.try_serve(&b.0.name("vhd", "e.vhd"), &[]);
        assert!(refused.is_err(), "{point}: no disk is made of it");
        b.ok("revert -n e.vhd -j e.jrn");
        assert!(b.bytes("e.vhd") == keep, "{point}");
        assert!(!b.path("e.jrn").exists(), "{point}: the journal is gone");
        b.ok("resize -n e.vhd -s 600 -j e.jrn");
        assert_eq!((b.sector("e.vhd", 0), b.sector("e.vhd", 8192)), (0x11, 0x5a));
        b.ok("check -n e.vhd");
        assert!(!b.path("e.jrn").exists());
    }
}

#[test]
fn a_paused_disk_is_resized_and_opened_anew() {
    let b = Bench::new();
    b.ok("create -n d.vhd -s 16 -S 64");
    let disk = served(&b, "d.vhd");
    disk.client().fill(15 * MIB, MIB, 0x44).unwrap();
    disk.destroy();
    assert_eq!(b.ok("query --debug -S -n d.vhd"), "64");
    b.ok("resize --debug -n d.vhd -s 64 -f");
    b.ok("resize --debug -n d.vhd -s 8200 -j jvhd_d");
    let disk = served(&b, "d.vhd");
    let mut client = disk.client();
    assert_eq!(client.size, 8200 * MIB);
    client.expect(15 * MIB, MIB, 0x44);
    client.fill(8199 * MIB, MIB, 0x55).unwrap();
    client.expect(16 * MIB, MIB, 0);
    disk.destroy();
    b.ok("check --debug -n d.vhd");
}

#[test]
fn hundreds_of_images_are_scanned_while_one_of_them_is_written() {
    let b = Bench::new();
    b.ok("create -n base.vhd -s 64");
    for n in 0..300 {
        b.ok(&format!("snapshot -n leaf-{n:03}.vhd -p base.vhd -e"));
    }
    let disk = served(&b, "leaf-150.vhd");
    let mut client = disk.client();
    for round in 0..4 {
        client.fill(round * 4 * MIB, 2 * MIB, 0x66).unwrap();
        let out = b.ok("scan -f -m *.vhd -a");
        assert_eq!(out.lines().count(), 301);
        for line in out.lines() {
            // As SM reads it: split at blanks, then at the equals sign.
            let words: Vec<(&str, &str)> =
                line.split(' ').map(|word| word.split_once('=').unwrap()).collect();
            let value = |key| words.iter().find(|(k, _)| *k == key).unwrap().1;
            assert_eq!((value("capacity"), value("hidden")), ("67108864", "0"));
            let child = value("vhd").starts_with("leaf-");
            assert_eq!(value("parent"), if child { "base.vhd" } else { "none" });
        }
    }
    disk.destroy();
}

#[test]
fn new_images_need_no_more_than_the_manager_estimates() {
    // Empty: 3 KiB and 4 bytes a block, rounded to a sector, and a bit a block, rounded to a page.
    let b = Bench::new();
    b.ok("create -n p.vhd -s 2");
    for mib in [2, 10, 1024, 8194, 102_400, 2_088_960] {
        let blocks = mib / 2_u64;
        let estimate = 3072 + (blocks * 4).next_multiple_of(512) + 512;
        let estimate = (estimate + blocks.div_ceil(8)).next_multiple_of(4096);
        b.ok(&format!("create -n a.vhd -s {mib}"));
        assert!(b.size("a.vhd") <= estimate, "{mib} MiB: {} > {estimate}", b.size("a.vhd"));
    }
}

#[test]
fn what_cannot_be_written_is_refused_with_its_number_and_left_as_it_was() {
    let b = Bench::new();
    Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x11)]).write(&b.path("x.vhd"));
    let good = b.bytes("x.vhd");
    // Truncated in many places, and random bytes: every command ends with a number, none by a
    // signal, and those that fail have changed nothing.
    let mut noise = vec![0u8; 8192];
    let mut state = 1u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    let mut cases: Vec<Vec<u8>> =
        [0, 1, 100, 511, 512, 700, 1024, 1536, 2000, 2560, 3072, 3600, 4096, 100_000]
            .iter()
            .map(|len| good[..*len].to_vec())
            .collect();
    cases.push(noise);
    for bytes in cases {
        for line in [
            "query -n y.vhd -vspfmdaS",
            "check -n y.vhd -i -b",
            "read -n y.vhd -p -B -a -e 0 -c 8",
            "scan -M -a y.vhd",
            "set -n y.vhd -f hidden -v 1",
            "set -n y.vhd -f marker -v 1",
            "repair -n y.vhd",
            "modify -n y.vhd -s 9000448",
            "modify -n y.vhd -z",
            "modify -n y.vhd -p x.vhd",
            "resize -n y.vhd -s 20 -f",
            "resize -n y.vhd -s 600 -j j",
            "fill -n y.vhd -b",
            "fill -n y.vhd",
            "copy -n y.vhd -N z.vhd",
            "key -s -n y.vhd -H 0000000000000000000000000000000000000000000000000000000000000000",
            "key -p -n y.vhd",
            "snapshot -n z.vhd -p y.vhd",
            "revert -n y.vhd -j x.vhd",
        ] {
            std::fs::write(b.path("y.vhd"), &bytes).unwrap();
            let outcome = b.run(line);
            assert!(outcome.code < 128, "{} bytes: {outcome:?}", bytes.len());
            if outcome.code != 0 {
                let said = format!("{}{}", outcome.out, outcome.err);
                assert!(!said.is_empty(), "{} bytes: {outcome:?}", bytes.len());
                assert!(b.bytes("y.vhd") == bytes, "{} bytes: {line} changed it", bytes.len());
                assert!(!b.path("j").exists(), "a journal is left: {outcome:?}");
            }
            for left in ["z.vhd", "j"] {
                let _ = std::fs::remove_file(b.path(left));
            }
        }
    }
}
