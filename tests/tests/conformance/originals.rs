//! Images that the original made (blktap 4.0.8), kept in tests/tests/data: what they hold is known,
//! since the recording says how each was written.
use std::fs;

use tests::both_engines;
use tests::rig::{MIB, Rig, files};

use super::refused::refused_with;

fn unpack(rig: &Rig, names: &[&str]) {
    for name in names {
        files::unpack(&format!("{name}.vhd.gz"), &rig.path(&format!("{name}.vhd")));
    }
}

/// The chain of the recording, with the names that its locators have.
fn chain(rig: &Rig) {
    fs::create_dir(rig.path("sub")).unwrap();
    for (from, to) in [
        ("base", "base"),
        ("mid", "mid"),
        ("leaf", "leaf"),
        ("empty", "empty"),
        ("sub-kid", "sub/kid"),
    ] {
        files::unpack(&format!("chain-{from}.vhd.gz"), &rig.path(&format!("{to}.vhd")));
    }
}

/// What `base` holds.
const BASE: [(u64, u64, u8); 6] = [
    (0, 4 * MIB, 0x11),
    (4 * MIB, 2 * MIB, 0),
    (6 * MIB, 4096, 0x12),
    (6 * MIB + 4096, 6 * MIB - 4096, 0),
    (12 * MIB, 512, 0x13),
    (12 * MIB + 512, 4 * MIB - 512, 0),
];

/// What the disk of `leaf`, and of `empty` above it, holds.
const LEAF: [(u64, u64, u8); 10] = [
    (0, MIB, 0x11),
    (MIB, 4096, 0x33),
    (MIB + 4096, 61440, 0x22),
    (MIB + 65536, 3 * MIB - 65536, 0x11),
    (4 * MIB, 2 * MIB, 0),
    (6 * MIB, 4096, 0x12),
    (8 * MIB, 2 * MIB, 0x23),
    (12 * MIB, 512, 0x13),
    (12 * MIB + 512, 3 * MIB - 512, 0),
    (15 * MIB, MIB, 0x34),
];

#[track_caller]
fn holds(rig: &Rig, name: &str, parts: &[(u64, u64, u8)]) {
    let served = rig.serve(&rig.name("vhd", name), &["-R"]);
    let mut disk = served.client();
    assert_eq!(disk.size, 16 * MIB);
    for (at, bytes, byte) in parts {
        disk.expect(*at, *bytes, *byte);
    }
    served.destroy();
}

/// Writes into a fresh image of the original; its own check stays content.
#[track_caller]
fn takes_writes(rig: &Rig, name: &str) {
    let served = rig.serve(&rig.name("vhd", name), &[]);
    let mut disk = served.client();
    let size = disk.size;
    disk.fill(512, 512, 0x61).unwrap();
    disk.fill(3 * MIB / 2, MIB, 0x62).unwrap();
    disk.fill(size - 512, 512, 0x63).unwrap();
    served.destroy();
    let served = rig.serve(&rig.name("vhd", name), &["-R"]);
    let mut disk = served.client();
    disk.expect(512, 512, 0x61);
    disk.expect(3 * MIB / 2, MIB, 0x62);
    disk.expect(size - 512, 512, 0x63);
    served.destroy();
    rig.vhd_util(&["check", "-n", name]).ok();
}

both_engines! {
    fn the_chain(rig) {
        chain(rig);
        holds(rig, "base.vhd", &BASE);
        holds(rig, "leaf.vhd", &LEAF);
        holds(rig, "empty.vhd", &LEAF);
        holds(rig, "sub/kid.vhd", &BASE);
        let bytes = || ["base.vhd", "mid.vhd", "leaf.vhd"].map(|name| fs::read(rig.path(name)));
        let below = bytes().map(Result::unwrap);
        takes_writes(rig, "empty.vhd");
        assert!(below == bytes().map(Result::unwrap));
        takes_writes(rig, "sub/kid.vhd");
    }

    fn empty_images(rig) {
        unpack(rig, &["dynamic-16M", "dynamic-16M-S64M", "fixed-4M"]);
        for (name, size) in [("dynamic-16M", 16), ("dynamic-16M-S64M", 16), ("fixed-4M", 4)] {
            let name = format!("{name}.vhd");
            let served = rig.serve(&rig.name("vhd", &name), &["-R"]);
            assert_eq!(served.client().size, size * MIB);
            served.client().expect(0, size * MIB, 0);
            served.destroy();
            takes_writes(rig, &name);
        }
    }

    fn snapshots(rig) {
        unpack(rig, &["base", "snapshot-of-base", "snapshot-of-raw"]);
        files::sparse(&rig.path("raw.img"), 16 * MIB);
        let both = [("snapshot-of-base.vhd", "base.vhd"), ("snapshot-of-raw.vhd", "raw.img")];
        for (name, parent) in both {
            let parent = &rig.path(parent);
            let before = fs::read(parent).unwrap();
            takes_writes(rig, name);
            assert!(fs::read(parent).unwrap() == before, "{name} has changed its parent");
        }
    }

    /// Images with a key are refused without one: the original serves noise.
    fn encrypted_images(rig) {
        unpack(rig, &["keyhash", "encrypted-256", "encrypted-512"]);
        for name in ["keyhash.vhd", "encrypted-256.vhd", "encrypted-512.vhd"] {
            refused_with(rig, &rig.name("vhd", name), &[], 22, &[name, "encrypted"]);
            refused_with(rig, &rig.name("vhd", name), &["-R"], 22, &[name, "encrypted"]);
        }
    }
}
