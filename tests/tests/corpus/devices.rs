//! VHDs on block devices, and volumes of LVM: what lies where, inflating and deflating, scans of
//! inactive volumes.
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;

use tests::rig::places::{LoopDevice, SmallFileSystem, root};
use tests::rig::vhdgen::Gen;
use tests::rig::{MIB, files, programs, run, tool};

use super::Bench;

/// A device over a file of `mib`.
fn device(b: &Bench, name: &str, mib: u64) -> LoopDevice {
    files::sparse(&b.path(name), mib * MIB);
    LoopDevice::over(&b.path(name), 512)
}

#[test]
fn an_image_on_a_device_keeps_its_footer_in_the_last_sector() {
    let b = Bench::new();
    if !root("loop devices with VHDs") {
        return;
    }
    let (parent, child) = (device(&b, "p.img", 32), device(&b, "c.img", 8));
    let (p, c) = (parent.name(), child.name());
    b.ok(&format!("create -n {p} -s 24 -S 2048"));
    b.ok(&format!("snapshot -n {c} -p {p} -S 2048 -e"));
    b.ok(&format!("set -n {p} -f hidden -v 1"));
    assert_eq!(files::bytes_at(&b.path("p.img"), 32 * MIB - 512, 8), b"conectix");
    assert_eq!(b.ok(&format!("query -n {c} -p")), p);
    b.ok(&format!("check -n {c} -p"));
    b.ok(&format!("fill -n {p}"));
    b.ok(&format!("check -n {p}"));
    assert_eq!(b.ok(&format!("query -n {p} -a")), "12");
    // The child has room for three blocks, and not for twelve.
    b.fails(28, &format!("fill -n {c} -b"));
    b.ok(&format!("check -n {c}"));
    b.ok(&format!("fill -n {c} -b -f 0 -t 4096"));
    b.ok(&format!("check -n {c}"));
    b.ok(&format!("resize -n {c} -s 2048 -f"));
    b.ok(&format!("check -n {c}"));
    let lines = b.ok(&format!("scan -f {p} {c}"));
    let base = |name: &str| name.rsplit('/').next().unwrap().to_string();
    let size = |mib: u64| mib * MIB;
    let want = format!(
        "vhd={} capacity={} size={} hidden=1 parent=none\nvhd={} capacity={} size={} hidden=0 parent={}",
        base(&p),
        size(24),
        size(32),
        base(&c),
        size(2048),
        size(8),
        base(&p),
    );
    assert_eq!(lines, want);
}

#[test]
fn inflate_and_deflate_write_the_footer_where_the_device_will_end() {
    let b = Bench::new();
    if !root("a loop device that grows and shrinks") {
        return;
    }
    let lv = device(&b, "lv.img", 8);
    let name = lv.name();
    b.ok(&format!("create -n {name} -s 1024"));
    // lvextend, zero the last sector, modify -s.
    fs::File::options().write(true).open(b.path("lv.img")).unwrap().set_len(16 * MIB).unwrap();
    run(Command::new(tool("losetup")).args(["-c", &name]), b"").ok();
    b.ok(&format!("modify --debug -n {name} -s {}", 16 * MIB));
    b.ok(&format!("check --debug -n {name}"));
    b.fails(28, &format!("modify -n {name} -s {}", 32 * MIB));
    // query -s, modify -s, lvreduce.
    let least: u64 = b.ok(&format!("query -s -n {name}")).parse().unwrap();
    let end = least.next_multiple_of(4 * MIB);
    b.ok(&format!("modify --debug -n {name} -s {end}"));
    fs::File::options().write(true).open(b.path("lv.img")).unwrap().set_len(end).unwrap();
    run(Command::new(tool("losetup")).args(["-c", &name]), b"").ok();
    b.ok(&format!("check --debug -n {name}"));
    assert_eq!(b.ok(&format!("scan -f {name}")).split(' ').nth(2), Some(&*format!("size={end}")));
}

#[test]
fn a_resize_on_a_device_stops_and_is_taken_back() {
    let b = Bench::new();
    if !root("a loop device with a VHD that is resized") {
        return;
    }
    for point in ["RESIZE_BEGIN", "RESIZE_DATA_MOVED", "RESIZE_METADATA_MOVED", "RESIZE_END"] {
        let (lv, journal) = (device(&b, "lv.img", 16), device(&b, "j.img", 6));
        let (name, log) = (lv.name(), journal.name());
        b.ok(&format!("create -n {name} -s 8"));
        b.ok(&format!("fill -n {name} -b -f 0 -t 8191"));
        let keep = fs::read(b.path("lv.img")).unwrap();
        let line = format!("resize -n {name} -s 4096 -j {log}");
        let variable = format!("VHD_UTIL_TEST_FAIL_{point}");
        let mut command = b.0.command(&programs().vhd_util);
        run(command.args(line.split(' ')).env(variable, "1"), b"").exits(22);
        b.fails(22, &format!("set -n {name} -f hidden -v 1"));
        b.ok(&format!("revert -n {name} -j {log}"));
        b.ok(&format!("revert -n {name} -j {log}"));
        b.ok(&format!("check -n {name}"));
        assert_eq!(b.ok(&format!("query -n {name} -va")), "8\n2");
        let now = fs::read(b.path("lv.img")).unwrap();
        // Space that nobody used may differ; metadata and blocks may not.
        assert!(
            now[..3072] == keep[..3072] && now[3584..4_206_080] == keep[3584..4_206_080],
            "{point}"
        );
        b.ok(&line);
        b.ok(&format!("check -n {name}"));
        assert_eq!(b.ok(&format!("query -n {name} -va")), "4096\n2");
    }
}

#[test]
fn a_full_disk_leaves_images_as_they_were() {
    let b = Bench::new();
    if !root("a small file system") {
        return;
    }
    let _small = SmallFileSystem::mount(&b.path("m"), 6 * MIB);
    Gen::new(10 * MIB).id(1).full(0, 0x5a).write(&b.path("m/x.vhd"));
    fs::write(b.path("m/ballast"), vec![1; 3 << 20]).unwrap();
    let keep = b.bytes("m/x.vhd");
    b.fails(28, "resize -n m/x.vhd -s 600 -j m/j");
    assert!(b.bytes("m/x.vhd") == keep && !b.path("m/j").exists());
    b.fails(28, "copy -n m/x.vhd -N m/y.vhd");
    b.fails(28, "create -n m/y.vhd -s 10 -r");
    b.fails(28, "create -n m/y.vhd -s 10 -S 2097152");
    assert!(!b.path("m/y.vhd").exists());
    b.fails(28, "fill -n m/x.vhd");
    b.ok("check -n m/x.vhd -i");
    assert_eq!(b.sector("m/x.vhd", 0), 0x5a);
}

#[test]
fn an_image_on_a_read_only_file_system_is_looked_at_and_not_changed() {
    let b = Bench::new();
    if !root("a file system that becomes read-only") {
        return;
    }
    let small = SmallFileSystem::mount(&b.path("m"), 6 * MIB);
    Gen::new(10 * MIB).id(1).full(0, 0x5a).write(&b.path("m/x.vhd"));
    let mount = b.path("m").display().to_string();
    run(Command::new(tool("mount")).args(["-o", "remount,ro", &mount]), b"").ok();
    for line in [
        "set -n m/x.vhd -f hidden -v 1",
        "repair -n m/x.vhd",
        "modify -n m/x.vhd -z",
        "resize -n m/x.vhd -s 600 -j j",
        "fill -n m/x.vhd",
        "create -n m/y.vhd -s 2",
    ] {
        let refused = b.run(line).exits(30);
        assert!(refused.err.contains("m/") || refused.out.contains("m/"), "{refused:?}");
    }
    assert_eq!(b.ok("query -n m/x.vhd -va"), "10\n1");
    b.ok("check -n m/x.vhd -b");
    assert_eq!(b.ok("scan -f m/x.vhd").split(' ').next(), Some("vhd=x.vhd"));
    assert_eq!(b.sector("m/x.vhd", 0), 0x5a);
    drop(small);
}

/// Programs that answer like LVM about two volumes on one physical volume; the second one lies in
/// two pieces.
fn lvm(b: &Bench, physical: &str) {
    let script = |name: &str, lines: &str| {
        let check =
            "[ \"$9\" = VG-x ] || { echo \"Volume group \\\"$9\\\" not found\" >&2; exit 5; }";
        let text = format!("#!/bin/sh\n{check}\ncat <<END\n{lines}END\n");
        fs::write(b.path(name), text).unwrap();
        fs::set_permissions(b.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    };
    fs::create_dir(b.path("bin")).unwrap();
    script("bin/vgs", &format!("  4194304|{physical}|1048576\n"));
    let rows = [
        ("VHD-1-a", 4 * MIB, "linear", 0, 4 * MIB, "0"),
        ("VHD-2-b", 8 * MIB, "linear", 0, 4 * MIB, "3"),
        ("VHD-2-b", 8 * MIB, "linear", 4 * MIB, 4 * MIB, "1"),
        ("LV-raw", 4 * MIB, "linear", 0, 4 * MIB, "2"),
        ("VHD-thin", 4 * MIB, "thin", 0, 4 * MIB, "0"),
    ];
    let rows = rows.map(|(name, size, kind, start, length, extent)| {
        format!("  {name}|{size}|{kind}|{start}|{length}|{physical}({extent})\n")
    });
    script("bin/lvs", &rows.concat());
}

fn scan_lvm(b: &Bench, line: &str) -> tests::rig::Outcome {
    let path = format!("{}:{}", b.path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = b.0.command(&programs().vhd_util);
    run(command.args(line.split(' ')).env("PATH", path), b"")
}

#[test]
fn inactive_volumes_are_scanned_on_their_physical_volume() {
    let b = Bench::new();
    files::sparse(&b.path("pv"), 17 * MIB);
    Gen::new(10 * MIB).id(1).write(&b.path("one.vhd"));
    // The locators of the second one lie in its second piece.
    b.ok("create -n VG--x-VHD--1--a -s 10");
    b.ok("snapshot -n two.vhd -p VG--x-VHD--1--a -S 2097152 -e");
    let pv = fs::File::options().write(true).open(b.path("pv")).unwrap();
    pv.write_all_at(&b.bytes("one.vhd"), MIB).unwrap();
    let two = b.bytes("two.vhd");
    let (first, second) = two.split_at(4 << 20);
    pv.write_all_at(first, MIB + 12 * MIB).unwrap();
    pv.write_all_at(second, MIB + 4 * MIB).unwrap();
    lvm(&b, &b.path("pv").display().to_string());

    let one = "vhd=VHD-1-a capacity=10485760 size=4194304 hidden=0 parent=none\n";
    let two = "vhd=VHD-2-b capacity=10485760 size=8388608 hidden=0 parent=VHD-1-a\n";
    let raw = "vhd=LV-raw capacity=4194304 size=4194304 hidden=1 parent=none\n";
    assert_eq!(scan_lvm(&b, "scan -f -l VG-x -m VHD-*").ok().out, format!("{one}{two}"));
    assert_eq!(scan_lvm(&b, "scan -f -c -l VG-x -m *").ok().out, format!("{one}{two}{raw}"));
    assert_eq!(scan_lvm(&b, "scan -f -a -l VG-x -m VHD-2*").ok().out, format!("{two}{one}"));
    let tree = scan_lvm(&b, "scan -p -a -l VG-x -m VHD-2*").ok().out;
    assert_eq!(tree, format!("{one}   {two}"));
    let missing = scan_lvm(&b, "scan -f -c -l VG-y -m VHD-*").exits(22);
    assert!(missing.out.is_empty() && missing.err.contains("scan failed: -22"), "{missing:?}");
}
