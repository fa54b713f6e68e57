//! Larger disks and other parents, looked at by qemu; the map beside `qemu-img map`.
mod common;

use std::fs::File;
use std::path::Path;

use common::{disk, io, made, poke, run, word};
use image::{MemStorage, Storage};
use qcow2::edit::set_backing;
use qcow2::header::Backing;
use qcow2::map::{Kind, Map};
use qcow2::resize::grow;
use qcow2::{Header, open};

fn file(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("an image")
}

fn backing(name: &str, format: Option<&str>) -> Backing {
    Backing { name: name.into(), format: format.map(Into::into) }
}

const KINDS: [&str; 8] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=2M",
    "extended_l2=on,cluster_size=16384",
    "refcount_bits=8,lazy_refcounts=on",
];

#[test]
fn a_disk_becomes_larger_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in KINDS {
        let path = made(dir.path(), "g.qcow2", options, &["write -P 1 0 3M", "write -P 2 23M 1M"]);
        let before = disk(&path);
        // From one table to many, over what a cluster of the L1 and the old counts hold.
        for bytes in [25 << 20, (25 << 20) + 512, 300 << 20, (2 << 30) + 1024] {
            grow(&file(&path), &path, bytes, 0).unwrap_or_else(|e| panic!("{options}: {e}"));
            run("qemu-img", &["check", word(&path)]);
            let info = run("qemu-img", &["info", word(&path)]);
            assert!(info.contains(&format!("({bytes} bytes)")), "{info}");
            let last = format!("write -P 3 {} 512", bytes - 512);
            io(&path, &["read -P 0 24M 1M", &last]);
            io(&path, &[&last.replace("write -P 3", "write -z")]);
            if bytes < 1 << 30 {
                let after = disk(&path);
                assert!(after[..before.len()] == before, "{options} {bytes}");
                assert!(after[before.len()..].iter().all(|byte| *byte == 0), "{options} {bytes}");
            }
        }
        let error = grow(&file(&path), &path, 1 << 20, 0).expect_err("smaller");
        assert!(error.to_string().contains("does not become smaller"), "{error}");
        let error = grow(&file(&path), &path, u64::MAX / 512 * 512, 0).expect_err("too large");
        assert_eq!(error.errno(), 27, "{error}");
    }
}

#[test]
fn a_longer_parent_does_not_come_to_light() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("p.raw"), vec![0xee; 40 << 20]).expect("written");
    for options in KINDS {
        let path = dir.path().join("c.qcow2");
        let mut words = vec!["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "p.raw"];
        if !options.is_empty() {
            words.extend(["-o", options]);
        }
        let size = ((10 << 20) + 512).to_string();
        words.extend([word(&path), &size]);
        run("qemu-img", &words);
        io(&path, &["write -P 1 0 1M", "write -P 2 10M 512"]);
        let before = disk(&path);
        grow(&file(&path), &path, 50 << 20, 40 << 20).unwrap_or_else(|e| panic!("{options}: {e}"));
        run("qemu-img", &["check", word(&path)]);
        let after = disk(&path);
        assert!(after[..before.len()] == before, "{options}");
        assert!(after[before.len()..].iter().all(|byte| *byte == 0), "{options}");
    }
}

#[test]
fn on_a_device_a_larger_table_finds_a_gap_and_old_bytes_are_not_its_entries() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "d.qcow2", "cluster_size=4096", &["write -P 1 0 3M"]);
    let mut bytes = std::fs::read(&path).expect("an image");
    let header = Header::read(&path, &bytes).expect("a header");
    let end = (header.l1_at + u64::from(header.l1_entries) * 8) as usize;
    bytes[end..(header.l1_at as usize + 4096)].fill(0xff);
    bytes.resize(6 << 20, 0xee);
    for size in [28 << 20, 4 << 30] {
        let device = MemStorage::new(bytes.clone(), true);
        grow(&device, &path, size, 0).expect("it grows");
        std::fs::write(&path, device.into_inner()).expect("written");
        run("qemu-img", &["check", word(&path)]);
        io(&path, &["read -P 1 0 3M", "read -P 0 3M 21M", "read -P 0 27M 512"]);
    }
}

#[test]
fn another_parent_is_one_change_of_the_header() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["one", "two", "a much longer name of a parent than the others have"] {
        made(dir.path(), name, "", &["write -P 5 0 1M"]);
    }
    for options in ["", "compat=0.10", "cluster_size=512", "extended_l2=on,cluster_size=16384"] {
        let path = made(dir.path(), "x.qcow2", options, &["write -P 1 3M 1M"]);
        // What SM adds, and an extension that nobody knows.
        let before = disk(&path);
        let long = "a much longer name of a parent than the others have";
        for (name, format) in [
            ("one", Some("qcow2")),
            ("two", Some("raw")),
            (long, Some("qcow2")),
            ("one", None),
            (long, Some("qcow2")),
            ("two", Some("qcow2")),
        ] {
            let new = backing(name, format);
            set_backing(&file(&path), &path, Some(&new)).unwrap_or_else(|e| panic!("{e}"));
            let opened = open(&file(&path), &path).expect("an image");
            assert_eq!(opened.header.backing, Some(new));
            let info = run("qemu-img", &["info", word(&path)]);
            assert!(info.contains(&format!("backing file: {name}")), "{info}");
            let said = format.map(|format| format!("backing file format: {format}\n"));
            assert!(said.is_none_or(|said| info.contains(&said)), "{info}");
            run("qemu-img", &["check", word(&path)]);
        }
        set_backing(&file(&path), &path, None).expect("changed");
        assert!(disk(&path) == before, "{options}");
        let info = run("qemu-img", &["info", word(&path)]);
        assert!(!info.contains("backing"), "{info}");
    }
}

#[test]
fn what_is_not_known_of_a_header_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "x.qcow2", "", &[]);
    // Behind the table of names: the hidden byte, and something else.
    let hidden = [&b"vate"[..], &[0, 0, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let other = [&b"test"[..], &[0, 0, 0, 3, 7, 8, 9, 0, 0, 0, 0, 0]].concat();
    poke(&path, 504, &[hidden.clone(), other.clone()].concat());
    for new in [Some(backing("one", Some("qcow2"))), Some(backing("two", None)), None] {
        set_backing(&file(&path), &path, new.as_ref()).expect("changed");
        let bytes = std::fs::read(&path).expect("an image");
        let header = Header::read(&path, &bytes).expect("a header");
        assert_eq!((header.hidden, &header.backing), (Some(1), &new));
        let has = |part: &[u8]| bytes[..4096].windows(part.len()).any(|all| all == part);
        assert!(has(&hidden) && has(&other) && has(b"lazy refcounts"));
        let end = bytes[..4096].windows(other.len()).position(|all| all == other).expect("there");
        let zeros = &bytes[end + other.len()..][..24];
        assert!(zeros.iter().all(|byte| *byte == 0), "room for what the storage manager adds");
    }
    let long = backing(&"n".repeat(1024), None);
    assert!(set_backing(&file(&path), &path, Some(&long)).is_err());
    let small = made(dir.path(), "s.qcow2", "cluster_size=512", &[]);
    let before = std::fs::read(&small).expect("an image");
    let long = backing(&"n".repeat(500), Some("raw"));
    let error = set_backing(&file(&small), &small, Some(&long)).expect_err("no room");
    assert!(error.to_string().contains("first cluster is full"), "{error}");
    assert!(before == std::fs::read(&small).expect("an image"));
}

/// Old state or new one, whatever reached the disk of the last change.
#[test]
fn a_crash_while_the_parent_changes_leaves_one_of_the_two() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "x.qcow2", "", &[]);
    let (one, two) = (backing("one", Some("qcow2")), backing("/long/name/two", Some("raw")));
    set_backing(&file(&path), &path, Some(&one)).expect("changed");
    let old = std::fs::read(&path).expect("an image");
    set_backing(&file(&path), &path, Some(&two)).expect("changed");
    let new = std::fs::read(&path).expect("an image");
    let differ = |i: &usize| old[i * 512..(i + 1) * 512] != new[i * 512..(i + 1) * 512];
    let sectors: Vec<usize> = (0..8).filter(differ).collect();
    assert!(sectors.len() > 1 && sectors[0] == 0, "{sectors:?}");
    // All but the first are written before it.
    for subset in 0..1 << (sectors.len() - 1) {
        let mut bytes = old.clone();
        for (bit, sector) in sectors[1..].iter().enumerate() {
            if subset >> bit & 1 == 1 {
                bytes[sector * 512..][..512].copy_from_slice(&new[sector * 512..][..512]);
            }
        }
        let header = Header::read(&path, &bytes).expect("a header");
        assert_eq!(header.backing.as_ref(), Some(&one), "{subset:b}");
    }
}

/// `qemu-img map --output=json` of an image without a parent, as extents.
fn theirs(path: &Path) -> Vec<(u64, u64, String)> {
    let text = run("qemu-img", &["map", "--output=json", word(path)]);
    let number = |line: &str, key: &str| {
        let rest = line.split(&format!("\"{key}\": ")).nth(1)?;
        rest.split([',', '}']).next()?.trim().parse::<u64>().ok()
    };
    let what = |line: &str| match () {
        () if line.contains("\"compressed\": true") => "packed".into(),
        () if line.contains("\"present\": false") => "below".into(),
        () if line.contains("\"zero\": true") => format!("zero {:?}", number(line, "offset")),
        () => format!("data {:?}", number(line, "offset")),
    };
    let range = |line: &str| (number(line, "start"), number(line, "length"));
    let lines = text.lines().filter_map(|line| match range(line) {
        (Some(start), Some(bytes)) => Some((start, bytes, what(line))),
        _ => None,
    });
    let mut all: Vec<(u64, u64, String)> = Vec::new();
    for (start, bytes, what) in lines {
        // What is not there of a cluster that is, qemu tells apart.
        match all.last_mut() {
            Some(last) if last.2 == what && what == "below" => last.1 += bytes,
            _ => all.push((start, bytes, what)),
        }
    }
    all
}

#[test]
fn maps_are_those_of_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in KINDS {
        let mut commands =
            vec!["write -P 1 1M 2M", "write -z 4M 1M", "write -z -u 6M 1M", "write 20M 3M"];
        commands.extend(["write -P 1 2500k 600k", "discard 21M 1M", "write -z 22M 512"]);
        if options.is_empty() {
            commands.extend(["write -c 10M 64k", "write -c 10304k 64k"]);
        }
        let path = made(dir.path(), "m.qcow2", options, &commands);
        let storage = file(&path);
        let opened = open(&storage, &path).expect("an image");
        let mut map = Map::new(&storage, &path, &opened);
        let mut mine: Vec<(u64, u64, String)> = Vec::new();
        let (mut at, mut follows) = (0, None);
        while at < opened.header.size {
            let extent = map.at(at).expect("a map");
            let (what, next) = match extent.kind {
                Kind::Data { at } => (format!("data {:?}", Some(at)), Some(at + extent.bytes)),
                Kind::Zero { at } => (format!("zero {at:?}"), at.map(|at| at + extent.bytes)),
                Kind::Packed => ("packed".into(), None),
                Kind::Below => ("below".into(), None),
            };
            // Tables end where extents do not.
            let goes_on = |last: &str| match follows {
                Some(at) => what.ends_with(&format!("Some({at})")) && last[..4] == what[..4],
                None => last == what,
            };
            match mine.last_mut().filter(|last| goes_on(&last.2)) {
                Some(last) => last.1 += extent.bytes,
                None => mine.push((extent.start, extent.bytes, what)),
            }
            (at, follows) = (at + extent.bytes, next);
        }
        assert_eq!(mine, theirs(&path), "{options}");
        assert!(storage.len().is_ok());
    }
}
