//! Offline commands beside a disk that runs: what a storage manager does to its leaf and its
//! parents goes, what would destroy them does not (docs/locks.md has the table).
use std::sync::atomic::{AtomicBool, Ordering};

use tests::rig::places::{LoopDevice, root};
use tests::rig::{Engine, MIB, Rig, Served, files};

use super::Bench;

/// base ◄ middle ◄ leaf, in one folder, and the leaf is served.
fn chain(b: &Bench) -> Served<'_> {
    b.ok("create --debug -n base.vhd -s 1024");
    b.ok("snapshot --debug -n middle.vhd -p base.vhd -e");
    b.ok("snapshot --debug -n leaf.vhd -p middle.vhd -e");
    b.0.serve(&b.0.name("vhd", "leaf.vhd"), &[])
}

/// The command is refused, and says by whom the image is held.
#[track_caller]
fn refused(b: &Bench, line: &str, holder: i32) {
    let outcome = b.run(line).exits(16);
    let who = format!("tapdisk {holder}");
    assert!(outcome.err.contains(&who), "{outcome:?}");
}

/// What the garbage collector does before it pauses and unpauses the disk. Header and first part of
/// the table lie in one page: neither may take back what the other writes.
#[test]
fn the_leaf_of_a_running_disk_is_relinked_while_it_adds_blocks() {
    for engine in [Engine::Uring, Engine::Aio] {
        let b = Bench(Rig::new(engine));
        let disk = chain(&b);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut client = disk.client();
            let done = &done;
            scope.spawn(move || {
                for block in 0..150 {
                    client.fill(block * 2 * MIB, 4096, (block % 250) as u8 + 1).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut turns = 0;
            while turns < 4 || !done.load(Ordering::Relaxed) {
                let parent = if turns % 2 == 0 { "base.vhd" } else { "middle.vhd" };
                b.ok(&format!("modify --debug -p {parent} -n leaf.vhd"));
                b.ok(&format!("set --debug -n leaf.vhd -f hidden -v {}", turns % 2));
                turns += 1;
            }
        });
        b.ok("modify --debug -p base.vhd -n leaf.vhd");
        b.ok("set --debug -n leaf.vhd -f hidden -v 1");
        assert!(b.ok("query --debug -n leaf.vhd -p").ends_with("/base.vhd"));
        // The disk takes the new parent with its next images.
        disk.pause();
        assert_eq!(b.ok("query --debug -n leaf.vhd -f"), "hidden: 1", "a pause keeps the flag");
        b.ok("check --debug -n leaf.vhd");
        disk.unpause(&[]);
        b.ok("set --debug -n leaf.vhd -f hidden -v 0");
        let mut client = disk.client();
        for block in 0..150 {
            client.expect(block * 2 * MIB, 4096, (block % 250) as u8 + 1);
        }
        drop(client);
        disk.destroy();
        assert_eq!(b.ok("query --debug -n leaf.vhd -f"), "hidden: 0");
        b.ok("check --debug -n leaf.vhd -p");
    }
}

#[test]
fn what_a_running_disk_writes_itself_nobody_else_changes() {
    let b = Bench::new();
    let disk = chain(&b);
    disk.client().fill(0, MIB, 1).unwrap();
    let journal = b.path("j").display().to_string();
    for line in [
        "set --debug -n leaf.vhd -f marker -v 1",
        "modify --debug -z -n leaf.vhd",
        "modify --debug -s 9999872 -n leaf.vhd",
        "repair --debug -n leaf.vhd",
        "fill --debug -n leaf.vhd -b -f 0 -t 1",
        "resize --debug -f -s 2048 -n leaf.vhd",
        &format!("resize --debug -s 2048 -j {journal} -n leaf.vhd"),
        "coalesce --debug -n leaf.vhd",
        "compact -n leaf.vhd",
        "convert -n leaf.vhd -N flat.raw -O raw",
        "snapshot --debug -n next.vhd -p leaf.vhd",
        "create --debug -n leaf.vhd -s 10",
    ] {
        refused(&b, line, disk.pid);
    }
    assert!(!b.path("flat.raw").exists() && !b.path("next.vhd").exists());
    disk.client().expect(0, MIB, 1);
    disk.destroy();
    b.ok("check --debug -n leaf.vhd -p");
}

/// A whole disk, which `copy` takes.
#[test]
fn a_disk_at_work_is_not_copied() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    let disk = b.0.serve(&b.0.name("vhd", "a.vhd"), &[]);
    refused(&b, "copy -n a.vhd -N b.vhd", disk.pid);
    assert!(!b.path("b.vhd").exists());
    disk.pause();
    b.ok("copy -n a.vhd -N b.vhd");
    disk.destroy();
}

/// A storage manager fills a cache of a base while it puts more leaves over it, by exactly this
/// command.
#[test]
fn a_leaf_is_put_over_a_cache_that_is_being_filled() {
    let b = Bench::new();
    let disk = chain(&b);
    let made = b.run("snapshot --debug -n next.vhd -p leaf.vhd -S 2097152 -e").ok();
    assert!(made.err.contains(&format!("tapdisk {} is writing", disk.pid)), "{made:?}");
    disk.destroy();
}

/// What lies below a running disk is coalesced, hidden, relinked and measured; its blocks do not
/// move.
#[test]
fn parents_below_a_running_disk_are_changed_but_not_moved() {
    let b = Bench::new();
    let disk = chain(&b);
    disk.client().fill(0, MIB, 7).unwrap();
    let size = b.ok("query --debug -s -n middle.vhd");
    for line in [
        "set --debug -n middle.vhd -f hidden -v 1",
        "modify --debug -p base.vhd -n middle.vhd",
        &format!("modify --debug -s {size} -n middle.vhd"),
        "repair --debug -n middle.vhd",
        "resize --debug -f -s 1024 -n middle.vhd",
        "coalesce --debug -n middle.vhd",
        "snapshot --debug -n other.vhd -p middle.vhd -e",
    ] {
        b.ok(line);
    }
    let journal = b.path("j").display().to_string();
    for line in [
        &format!("resize --debug -s 4096 -j {journal} -n middle.vhd"),
        "modify --debug -z -n middle.vhd",
        "compact -n middle.vhd",
    ] {
        refused(&b, line, disk.pid);
    }
    disk.client().expect(0, MIB, 7);
    disk.destroy();
    b.ok("check --debug -n leaf.vhd -p");
}

/// On storage with units of 4096 bytes a header cannot be written without the table behind it.
#[test]
fn on_large_sectors_the_disk_is_to_be_paused() {
    if !root("a loop device with sectors of 4096 bytes") {
        return;
    }
    let b = Bench::new();
    let volume = |name: &str| {
        files::sparse(&b.path(name), 64 * MIB);
        LoopDevice::over(&b.path(name), 4096)
    };
    let (base, leaf) = (volume("base"), volume("leaf"));
    b.ok(&format!("create -n {} -s 32", base.name()));
    b.ok(&format!("snapshot -n {} -p {}", leaf.name(), base.name()));
    let disk = b.0.serve(&format!("vhd:{}", leaf.name()), &[]);
    let relink = format!("modify -p {} -n {}", base.name(), leaf.name());
    let outcome = b.run(&relink).exits(16);
    assert!(outcome.err.contains("tap-ctl pause"), "{outcome:?}");
    disk.pause();
    b.ok(&relink);
    disk.unpause(&[]);
    disk.destroy();
}

/// Volumes are devices: the same as with files, through other locks.
#[test]
fn a_leaf_on_a_device_is_relinked_while_it_runs() {
    if !root("VHDs on loop devices") {
        return;
    }
    let b = Bench::new();
    let volume = |name: &str| {
        files::sparse(&b.path(name), 64 * MIB);
        LoopDevice::over(&b.path(name), 512)
    };
    let (base, leaf) = (volume("base"), volume("leaf"));
    b.ok(&format!("create -n {} -s 32", base.name()));
    b.ok(&format!("snapshot -n {} -p {}", leaf.name(), base.name()));
    let disk = b.0.serve(&format!("vhd:{}", leaf.name()), &[]);
    disk.client().fill(0, MIB, 1).unwrap();
    b.ok(&format!("modify -p {} -n {}", base.name(), leaf.name()));
    b.ok(&format!("set -n {} -f hidden -v 1", leaf.name()));
    refused(&b, &format!("repair -n {}", leaf.name()), disk.pid);
    disk.client().fill(4 * MIB, MIB, 2).unwrap();
    disk.pause();
    disk.unpause(&[]);
    disk.client().expect(4 * MIB, MIB, 2);
    disk.destroy();
    assert_eq!(b.ok(&format!("query -n {} -f", leaf.name())), "hidden: 1");
    b.ok(&format!("check -n {} -p", leaf.name()));
}

/// `tap-ctl create` of what another tapdisk writes: status 0 and the minor as ever, and a word to
/// the person who did it.
#[test]
fn tap_ctl_says_who_has_the_image() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    let image = b.0.name("vhd", "a.vhd");
    let first = b.0.serve(&image, &[]);
    first.client().fill(0, MIB, 1).unwrap();
    let created = b.0.tap_ctl(&["create", "-a", &image]).ok();
    let who = format!("tapdisk {}", first.pid);
    assert!(created.err.contains(&who) && created.err.contains("a.vhd"), "{created:?}");
    assert_eq!(created.out.lines().count(), 1, "{created:?}");
    let minor = created.out.trim_end().rsplit('-').next().unwrap().to_owned();
    let pid = b.0.pid_of(minor.parse().unwrap()).unwrap().to_string();
    let disk = ["-p", &pid, "-m", &minor];
    let doctor = b.0.tap_ctl(&["doctor", "-p", &pid]);
    assert!(doctor.out.contains("images-alone") && doctor.out.contains(&who), "{doctor:?}");
    let stats = b.0.tap_ctl(&[&["stats"], &disk[..]].concat()).ok();
    assert!(stats.out.contains("\"waits\""), "{stats:?}");
    let listed = b.0.tap_ctl(&["list", "-m", &minor]).ok();
    assert!(listed.out.contains("state=0 args=vhd:"), "{listed:?}");
    b.0.tap_ctl(&[&["destroy"], &disk[..]].concat()).ok();
    first.client().expect(0, MIB, 1);
    first.destroy();
}
