//! New images, looked at by qemu.
mod common;

use std::fs::File;
use std::path::Path;

use common::{disk, io, made, ran, run, word};
use image::MemStorage;
use qcow2::create::{Options, Preallocation};
use qcow2::header::Backing;
use qcow2::layout::Shape;
use qcow2::{check, create, open};

fn options(size: u64) -> Options {
    Options::new(size)
}

fn shape(cluster_bits: u32, refcount_order: u32, extended: bool) -> Shape {
    Shape { cluster_bits, refcount_order, extended }
}

/// Makes one; qemu finds no fault with it, can write it and reads it back.
fn works(dir: &Path, options: &Options) {
    let path = dir.join("new.qcow2");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.expect("a file");
    create(&file, &path, options).expect("it is made");
    let said = ran("qemu-img", &["check", word(&path)]);
    assert_eq!(said.code, 0, "{options:?}: {}{}", said.out, said.err);
    let report = check(&file, &path, &mut |_| ()).expect("checked");
    assert!(report.is_clean(), "{options:?}");
    let opened = open(&file, &path).expect("it is an image");
    assert_eq!((opened.header.size, opened.header.hidden), (options.size, Some(0)), "{options:?}");
    let before = disk(&path);
    assert_eq!(before.len() as u64, options.size);
    assert!(options.backing.is_some() || before.iter().all(|byte| *byte == 0), "{options:?}");
    io(&path, &["write -P 5 100k 300k", "read -P 5 100k 300k", "discard 0 64k"]);
    run("qemu-img", &["check", word(&path)]);
}

#[test]
fn every_kind_is_made_over_what_was_there() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("new.qcow2"), vec![0xff; 3 << 20]).expect("written");
    for shape in [
        Shape::default(),
        shape(9, 4, false),
        shape(9, 6, false),
        shape(10, 0, false),
        shape(12, 1, false),
        shape(21, 5, false),
        shape(16, 3, false),
        shape(14, 4, true),
        shape(16, 2, true),
    ] {
        for size in [512 << 10, 24 << 20, (24 << 20) + 512] {
            works(dir.path(), &Options { shape, ..options(size) });
        }
        let preallocation = Preallocation::Metadata;
        works(dir.path(), &Options { shape, preallocation, ..options(8 << 20) });
        let preallocation = Preallocation::Full;
        works(dir.path(), &Options { shape, preallocation, ..options((8 << 20) + 1024) });
    }
    works(dir.path(), &Options { version: 2, ..options(9 << 20) });
    works(dir.path(), &Options { lazy: true, ..options(9 << 20) });
    let preallocation = Preallocation::Falloc;
    works(dir.path(), &Options { version: 2, preallocation, ..options(9 << 20) });
}

#[test]
fn what_is_below_is_found_by_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    made(dir.path(), "base.qcow2", "", &["write -P 3 0 24M"]);
    std::fs::write(dir.path().join("base.raw"), vec![9; 24 << 20]).expect("written");
    for (name, format) in [("base.qcow2", "qcow2"), ("base.raw", "raw")] {
        for (version, cluster_bits) in [(2, 16), (3, 16), (3, 9), (3, 10)] {
            let backing = Backing { name: name.into(), format: Some(format.into()) };
            let backing = Some(backing);
            let options = Options {
                version,
                shape: shape(cluster_bits, 4, false),
                backing,
                ..options(24 << 20)
            };
            works(dir.path(), &options);
            let path = dir.path().join("new.qcow2");
            let said = run("qemu-img", &["info", word(&path)]);
            assert!(said.contains(&format!("backing file: {name}")), "{said}");
            assert!(said.contains(&format!("backing file format: {format}")), "{said}");
            assert!(disk(&path)[23 << 20] == if format == "raw" { 9 } else { 3 });
        }
    }
}

#[test]
fn old_bytes_of_a_device_are_not_the_disks() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    for (version, extended) in [(2, false), (3, false), (3, true)] {
        for preallocation in [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc] {
            let device = MemStorage::new(vec![0xff; 12 << 20], true);
            let shape = shape(16, 4, extended);
            let options = Options { version, shape, preallocation, ..options(8 << 20) };
            create(&device, &path, &options).expect("it is made");
            std::fs::write(&path, device.into_inner()).expect("written");
            run("qemu-img", &["check", word(&path)]);
            assert!(disk(&path).iter().all(|byte| *byte == 0), "{options:?}");
        }
    }
    let device = MemStorage::new(vec![0xff; 128 << 10], true);
    let error = create(&device, &path, &options(8 << 20)).expect_err("it is too small");
    assert!(error.errno() == 28 && error.to_string().contains("device is smaller"), "{error}");
    assert!(device.into_inner().iter().all(|byte| *byte == 0xff), "nothing was changed");
}

#[test]
fn what_does_not_go_together_is_said_before_anything_is_done() {
    let storage = MemStorage::new(vec![7; 4096], false);
    let name = Path::new("/sr/x.qcow2");
    let base = options(1 << 30);
    let backing = Some(Backing { name: b"b".to_vec(), format: None });
    let long = Some(Backing { name: vec![b'n'; 1024], format: None });
    let small = Some(Backing { name: vec![b'n'; 500], format: None });
    let preallocation = Preallocation::Metadata;
    for (options, errno, says) in [
        (Options { shape: shape(8, 4, false), ..base.clone() }, 22, "between 512 and 2048k"),
        (Options { shape: shape(16, 7, false), ..base.clone() }, 22, "may not exceed 64 bits"),
        (Options { shape: shape(12, 4, true), ..base.clone() }, 22, "at least 16384 bytes"),
        (Options { version: 2, lazy: true, ..base.clone() }, 22, "Lazy refcounts"),
        (Options { version: 2, shape: shape(16, 4, true), ..base.clone() }, 22, "Extended L2"),
        (Options { version: 2, shape: shape(16, 5, false), ..base.clone() }, 22, "than 16 bits"),
        (Options { backing, preallocation, ..base.clone() }, 22, "Backing file and prealloc"),
        (Options { backing: long, ..base.clone() }, 22, "name too long"),
        (Options { backing: small, shape: shape(9, 4, false), ..base }, 22, "too long for its"),
        (Options { shape: shape(9, 4, false), ..options(130 << 30) }, 27, "larger cluster size"),
        (options(u64::MAX / 512 * 512), 27, "larger cluster size"),
    ] {
        let error = create(&storage, name, &options).expect_err(says);
        let text = error.to_string();
        assert_eq!(error.errno(), errno, "{text}");
        assert!(text.starts_with("/sr/x.qcow2 is not made: ") && text.contains(says), "{text}");
    }
    assert_eq!(storage.into_inner(), vec![7; 4096]);
}

#[test]
fn sixteen_tebibytes_are_made_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("large.qcow2");
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let bytes = 16_381 << 30;
    create(&file.expect("a file"), &path, &options(bytes)).expect("it is made");
    io(&path, &[&format!("write -P 1 {} 64k", bytes - 65536)]);
    run("qemu-img", &["check", word(&path)]);
}

#[test]
fn sizes_are_measured_to_the_byte() {
    let mut compared = 0;
    for (text, shape) in [
        ("cluster_size=65536", Shape::default()),
        ("cluster_size=512,refcount_bits=64", shape(9, 6, false)),
        ("cluster_size=4096,refcount_bits=1", shape(12, 0, false)),
        ("cluster_size=2M,refcount_bits=8", shape(21, 3, false)),
        ("cluster_size=16k,extended_l2=on", shape(14, 4, true)),
    ] {
        let sizes = [512u64, 1 << 20, (1 << 30) + 512, 100 << 30, 17_589_500_641_280, 1 << 50];
        for size in sizes {
            let bytes = size.to_string();
            let words = ["measure", "-O", "qcow2", "-o", text, "--size", &bytes];
            let said = ran("qemu-img", &words);
            let full =
                said.out.lines().find_map(|line| line.strip_prefix("fully allocated size: "));
            let full = full.map(|number| number.parse().expect("a number"));
            assert_eq!(shape.full_bytes(size), full, "{text} {size}: {}", said.err);
            compared += 1;
        }
    }
    assert_eq!(compared, 30);
}
