//! `tap-ctl commit`: an image goes into its parent while a client reads and writes.
use std::fs;
use std::time::{Duration, Instant};

use tests::both_engines;
use tests::rig::nbd::{Client, Verb};
use tests::rig::places::{SmallFileSystem, root};
use tests::rig::{MIB, Rig, Served, qemu_img};

const SIZE: u64 = 64 * MIB;

/// base ← a1 ← a2 ← leaf of a format, each with data of its own; what the disk holds.
fn family(rig: &Rig, format: &str) -> Vec<u8> {
    let mut model = vec![0; SIZE as usize];
    for (i, name) in ["base", "a1", "a2", "leaf"].into_iter().enumerate() {
        let below = i.checked_sub(1).map(|below| ["base", "a1", "a2"][below]);
        overlay(rig, format, name, below);
        let served = rig.serve(&rig.name(format, name), &[]);
        let mut disk = served.client();
        for piece in 0..40u64 {
            let at = (piece * (7 + 4 * i as u64) * 131_072 + 512 * piece) % (SIZE - 2 * MIB);
            let bytes = 512 * (1 + (piece * 37 + 11 * i as u64) % 700);
            write(&mut disk, &mut model, at, bytes, 1 + (i as u64 * 40 + piece) as u8);
        }
        if i > 0 {
            // Zeros over what lies below.
            zero(&mut disk, &mut model, i as u64 * 3 * MIB, 1_310_720);
        }
        disk.flush().unwrap();
        served.destroy();
    }
    model
}

/// A new image over another, or over nothing.
fn overlay(rig: &Rig, format: &str, name: &str, below: Option<&str>) {
    match (format, below) {
        ("qcow2", None) => {
            qemu_img(&rig.work(), &["create", "-q", "-f", "qcow2", name, "64M"]);
        }
        ("qcow2", Some(below)) => {
            let words = ["create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", name];
            qemu_img(&rig.work(), &words);
        }
        (_, None) => drop(rig.vhd_util(&["create", "-n", name, "-s", "64"]).ok()),
        (_, Some(below)) => drop(rig.vhd_util(&["snapshot", "-n", name, "-p", below]).ok()),
    }
}

fn write(disk: &mut Client, model: &mut [u8], at: u64, bytes: u64, value: u8) {
    let part = &mut model[at as usize..][..bytes as usize];
    part.fill(value);
    disk.write(at, part).unwrap();
}

fn zero(disk: &mut Client, model: &mut [u8], at: u64, bytes: u64) {
    model[at as usize..][..bytes as usize].fill(0);
    disk.command(Verb::Zero, 0, at, bytes).unwrap();
}

fn commit(served: &Served<'_>, rig: &Rig, name: &str) {
    let path = rig.path(name).display().to_string();
    let begun = served.tell("commit", &["-a", &path]).ok();
    assert!(begun.out.is_empty(), "{begun:?}");
}

/// Asks until it is no more under way.
fn wait(served: &Served<'_>) -> (String, i32) {
    let since = Instant::now();
    loop {
        let found = served.tell("query", &[]);
        if found.code != 0 || !found.out.contains("'running'") {
            return (found.out, found.code);
        }
        assert!(since.elapsed() < Duration::from_secs(60), "{found:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What an image names as its parent.
fn parent(rig: &Rig, format: &str, name: &str) -> String {
    if format == "vhd" {
        let said = rig.vhd_util(&["query", "-n", name, "-p"]).ok().out;
        return said.trim_end().rsplit('/').next().unwrap_or_default().to_owned();
    }
    let image = fs::read(rig.path(name)).unwrap();
    let at = u64::from_be_bytes(image[8..16].try_into().unwrap()) as usize;
    let bytes = u32::from_be_bytes(image[16..20].try_into().unwrap()) as usize;
    String::from_utf8_lossy(&image[at..at + bytes]).into_owned()
}

fn is_whole(rig: &Rig, format: &str, name: &str) {
    match format {
        "vhd" => drop(rig.vhd_util(&["check", "-n", name]).ok()),
        _ => drop(qemu_img(&rig.work(), &["check", "-q", "-f", "qcow2", name])),
    }
}

fn forget(rig: &Rig, names: &[&str]) {
    names.iter().for_each(|name| fs::remove_file(rig.path(name)).unwrap());
}

both_engines! {
    /// The direct parent has it in the end, the overlay names that parent, and nobody has noticed.
    fn an_inner_image_goes_into_its_parent_under_load(rig) {
        for format in ["qcow2", "vhd"] {
            let mut model = family(rig, format);
            let base = fs::read(rig.path("base")).unwrap();
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            let mut disk = served.client();
            let none = served.tell("query", &[]).ok();
            assert_eq!(none.out, "Commit status 'undefined' (0/0)\n");
            commit(&served, rig, "a2");
            for i in 0..200u64 {
                let at = (i * 1_237_504) % (SIZE - MIB);
                write(&mut disk, &mut model, at, 512 * (1 + i % 90), 200 + (i % 50) as u8);
                disk.expect(at, 512, 200 + (i % 50) as u8);
            }
            assert!(disk.dump() == model, "{format}: while it is under way, or just over");
            let over = format!("Commit status 'concluded' ({SIZE}/{SIZE})\n");
            assert_eq!(wait(&served), (over.clone(), 0), "{}", rig.log());
            assert_eq!(served.tell("query", &[]).ok().out, over, "it stays so");
            assert!(disk.dump() == model, "{format}: after it");
            assert_eq!(parent(rig, format, "leaf"), "a1");
            assert!(base == fs::read(rig.path("base")).unwrap(), "only the parent is written");
            let stats = served.stats();
            assert_eq!(stats["images"].as_array().map(Vec::len), Some(3), "{stats}");
            fs::remove_file(rig.path("a2")).unwrap();
            served.pause();
            is_whole(rig, format, "a1");
            served.unpause(&[]);
            assert!(disk.dump() == model, "{format}: without it");
            // The next one, into the lowest.
            commit(&served, rig, "a1");
            assert_eq!(wait(&served).0, over);
            write(&mut disk, &mut model, MIB, MIB, 9);
            served.destroy();
            for name in ["leaf", "base"] {
                is_whole(rig, format, name);
                fs::remove_file(rig.path("a1")).ok();
            }
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            assert!(served.client().dump() == model, "{format}: at the end");
            served.destroy();
            forget(rig, &["base", "leaf"]);
        }
    }

    /// As a storage manager does it at any time: pause, the leaf gets another name and an overlay
    /// of the old one, unpause.
    fn it_goes_on_over_a_snapshot(rig) {
        for format in ["qcow2", "vhd"] {
            let mut model = family(rig, format);
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            let mut disk = served.client();
            commit(&served, rig, "a2");
            served.pause();
            fs::rename(rig.path("leaf"), rig.path("old")).unwrap();
            overlay(rig, format, "leaf", Some("old"));
            served.unpause(&[]);
            write(&mut disk, &mut model, 5 * MIB, 3 * MIB, 77);
            assert_eq!(wait(&served).1, 0, "{}", rig.log());
            assert!(disk.dump() == model, "{format}");
            assert_eq!(parent(rig, format, "leaf"), "old");
            assert_eq!(parent(rig, format, "old"), "a1");
            served.destroy();
            ["a1", "old", "leaf"].into_iter().for_each(|name| is_whole(rig, format, name));
            forget(rig, &["base", "a1", "a2", "old", "leaf"]);
        }
    }

    /// One that is cancelled is an error each time it is asked for; another may follow.
    fn one_that_is_cancelled_writes_nothing_more(rig) {
        for format in ["qcow2", "vhd"] {
            let model = family(rig, format);
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            commit(&served, rig, "a2");
            let cancelled = served.tell("cancel", &["-w"]).ok();
            assert!(cancelled.out.is_empty(), "{cancelled:?}");
            let a1 = fs::read(rig.path("a1")).unwrap();
            let (said, code) = wait(&served);
            if code == 0 {
                // It was quicker.
                assert!(said.contains("concluded"), "{said}");
            } else {
                assert_eq!((code, said.as_str()), (libc::ECANCELED, ""));
                assert_eq!(parent(rig, format, "leaf"), "a2");
                is_whole(rig, format, "a1");
                assert!(served.client().dump() == model, "{format}");
                assert!(a1 == fs::read(rig.path("a1")).unwrap(), "nothing is written any more");
                commit(&served, rig, "a2");
                assert_eq!(wait(&served).1, 0);
            }
            assert_eq!(parent(rig, format, "leaf"), "a1");
            assert!(served.client().dump() == model, "{format}");
            served.destroy();
            forget(rig, &["base", "a1", "a2", "leaf"]);
        }
    }

    /// A tapdisk that is killed meanwhile leaves the chain as it was; the next commit completes.
    fn a_kill_meanwhile_loses_nothing(rig) {
        for format in ["qcow2", "vhd"] {
            let model = family(rig, format);
            for _ in 0..3 {
                let served = rig.serve(&rig.name(format, "leaf"), &[]);
                commit(&served, rig, "a2");
                served.crash();
            }
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            assert!(served.client().dump() == model, "{format}");
            if parent(rig, format, "leaf") == "a2" {
                commit(&served, rig, "a2");
                assert_eq!(wait(&served).1, 0, "{}", rig.log());
            }
            assert!(served.client().dump() == model, "{format}");
            served.destroy();
            ["a1", "leaf"].into_iter().for_each(|name| is_whole(rig, format, name));
            forget(rig, &["base", "a1", "a2", "leaf"]);
        }
    }

    fn what_cannot_be_committed_is_refused_by_name(rig) {
        family(rig, "qcow2");
        fs::write(rig.path("other"), [0; 512]).unwrap();
        let served = rig.serve(&rig.name("qcow2", "leaf"), &[]);
        let refused = |name: &str, errno: i32, says: &str| {
            let path = rig.path(name).display().to_string();
            let refused = served.tell("commit", &["-a", &path]).exits(errno);
            assert!(refused.err.contains(says), "{refused:?}");
        };
        refused("base", libc::EINVAL, "has no parent");
        refused("other", libc::ENOENT, "no image of this disk");
        refused("gone", libc::ENOENT, "gone");
        assert_eq!(served.tell("query", &[]).ok().out, "Commit status 'undefined' (0/0)\n");
        // Nobody may be committed under somebody else's feet.
        overlay(rig, "qcow2", "sibling", Some("a1"));
        let sibling = rig.serve(&rig.name("qcow2", "sibling"), &[]);
        refused("a2", libc::EBUSY, "in use by another disk");
        sibling.destroy();
        overlay(rig, "qcow2", "sibling", Some("a2"));
        let sibling = rig.serve(&rig.name("qcow2", "sibling"), &[]);
        refused("leaf", libc::EBUSY, "in use by another disk");
        assert_eq!(served.client().read(0, 512).unwrap().len(), 512, "the disk goes on");
        sibling.destroy();
        served.pause();
        refused("a2", libc::EBADF, "paused");
        served.unpause(&[]);
        served.tell("cancel", &[]).ok();
        served.destroy();
    }

    /// The leaf goes into its parent while it is written. Afterwards either is the disk: a storage
    /// manager gives base the leaf's name, or does not get to it.
    fn the_leaf_goes_into_its_parent_under_load(rig) {
        let both = |format| [(format, true), (format, false)];
        for (format, renamed) in [both("qcow2"), both("vhd")].concat() {
            let mut model = family(rig, format);
            let a1 = fs::read(rig.path("a1")).unwrap();
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            let mut disk = served.client();
            commit(&served, rig, "leaf");
            let over = format!("Commit status 'concluded' ({SIZE}/{SIZE})\n");
            for i in 0..200u64 {
                let at = (i * 1_237_504) % (SIZE - MIB);
                write(&mut disk, &mut model, at, 512 * (1 + i % 90), 200 + (i % 50) as u8);
                disk.expect(at, 512, 200 + (i % 50) as u8);
                if i % 20 == 0 {
                    zero(&mut disk, &mut model, (i * 3_000_320) % (SIZE - MIB), 300_032);
                }
            }
            assert_eq!(wait(&served), (over.clone(), 0), "{}", rig.log());
            assert!(disk.dump() == model, "{format}: after it");
            assert!(a1 == fs::read(rig.path("a1")).unwrap(), "only the parent is written");
            // Changes go to both from now on, so nobody may take the chain away meanwhile.
            write(&mut disk, &mut model, 7 * MIB, 2 * MIB, 55);
            zero(&mut disk, &mut model, 8 * MIB, MIB / 2);
            let path = rig.path("a2").display().to_string();
            let refused = served.tell("commit", &["-a", &path]).exits(libc::EBUSY);
            assert!(refused.err.contains("pause and unpause it"), "{refused:?}");
            disk.flush().unwrap();
            if renamed {
                fs::rename(rig.path("a2"), rig.path("leaf")).unwrap();
            }
            served.pause();
            served.unpause(&[]);
            assert_eq!(served.tell("query", &[]).ok().out, over, "it stays so");
            assert!(disk.dump() == model, "{format}: renamed {renamed}");
            write(&mut disk, &mut model, 11 * MIB, MIB, 56);
            served.destroy();
            is_whole(rig, format, "leaf");
            assert_eq!(parent(rig, format, "leaf"), if renamed { "a1" } else { "a2" });
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            assert!(served.client().dump() == model, "{format}: renamed {renamed}, at the end");
            served.destroy();
            forget(rig, &["base", "a1", "leaf"]);
            fs::remove_file(rig.path("a2")).ok();
        }
    }

    /// The leaf's commit over a pause, a kill, a cancellation; and on a disk that is closed.
    fn the_leafs_commit_meets_pauses_kills_and_the_end(rig) {
        for format in ["qcow2", "vhd"] {
            let mut model = family(rig, format);
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            let mut disk = served.client();
            commit(&served, rig, "leaf");
            served.pause();
            served.unpause(&[]);
            write(&mut disk, &mut model, 3 * MIB, MIB, 81);
            assert_eq!(wait(&served).1, 0, "{}", rig.log());
            assert!(disk.dump() == model, "{format}: over a pause");
            served.pause();
            served.unpause(&[]);
            commit(&served, rig, "leaf");
            served.tell("cancel", &["-w"]).ok();
            let (said, code) = wait(&served);
            assert!(code == libc::ECANCELED || said.contains("concluded"), "{said} {code}");
            write(&mut disk, &mut model, 4 * MIB, MIB, 82);
            served.pause();
            // Another leaf: the commit of the one that was is over.
            served.unpause(&[]);
            commit(&served, rig, "leaf");
            write(&mut disk, &mut model, 5 * MIB, MIB, 83);
            disk.flush().unwrap();
            served.crash();
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            assert!(served.client().dump() == model, "{format}: after a kill");
            commit(&served, rig, "leaf");
            served.destroy();
            ["a2", "leaf"].into_iter().for_each(|name| is_whole(rig, format, name));
            let served = rig.serve(&rig.name(format, "leaf"), &[]);
            assert!(served.client().dump() == model, "{format}: closed meanwhile");
            served.destroy();
            forget(rig, &["base", "a1", "a2", "leaf"]);
        }
    }

    /// A base that fails ends the commit and nothing else.
    fn a_base_without_room_costs_the_commit_alone(rig) {
        if !root("a small file system for a base without room") {
            return;
        }
        let small = SmallFileSystem::mount(&rig.path("small"), 6 * MIB);
        overlay(rig, "vhd", "small/base", None);
        overlay(rig, "vhd", "leaf2", Some("small/base"));
        let mut model = vec![0; SIZE as usize];
        let served = rig.serve(&rig.name("vhd", "leaf2"), &["-t", "2"]);
        let mut disk = served.client();
        write(&mut disk, &mut model, MIB, 24 * MIB, 5);
        commit(&served, rig, "leaf2");
        for i in 0..40u64 {
            write(&mut disk, &mut model, i * MIB, 300_032, 100 + i as u8);
        }
        assert_eq!(wait(&served), (String::new(), libc::ENOSPC), "{}", rig.log());
        assert!(disk.dump() == model, "the disk has not noticed");
        served.pause();
        served.unpause(&[]);
        assert!(disk.dump() == model);
        served.destroy();
        drop(small);
    }

    /// A storage manager makes the parent as large as the leaf first, without a pause; nobody who
    /// reads it notices.
    fn a_parent_grows_under_a_running_disk(rig) {
        let mut model = family(rig, "qcow2");
        let served = rig.serve(&rig.name("qcow2", "leaf"), &[]);
        let mut disk = served.client();
        let resize = |name: &str, size: &str| {
            let tool = tests::rig::programs().tap_ctl.with_file_name("qcow2-util");
            let path = rig.path(name).display().to_string();
            tests::rig::run(rig.command(&tool).args(["resize", "-f", "qcow2", &path, size]), b"")
        };
        assert_eq!(resize("a2", "80M").ok().out, "Image resized.\n");
        assert!(disk.dump() == model, "nobody has noticed");
        write(&mut disk, &mut model, SIZE - MIB, MIB, 9);
        // An L1 that moves would be noticed, and so would a leaf that grows; so is what is written.
        for (name, size) in [("a2", "8000G"), ("leaf", "80M")] {
            let refused = resize(name, size).exits(1);
            assert!(refused.err.contains("has this image open"), "{name} {size}: {refused:?}");
        }
        commit(&served, rig, "leaf");
        assert_eq!(wait(&served).1, 0, "{}", rig.log());
        assert!(disk.dump() == model);
        served.destroy();
        ["a2", "leaf"].into_iter().for_each(|name| is_whole(rig, "qcow2", name));
    }
}
