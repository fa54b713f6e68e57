//! Headers and tables that lie: refused with the field and what to do, or an error of that place
//! alone; never a panic, and no allocation that the image chooses.
use std::path::Path;
use std::process::Command;

use image::blocking::{Layer, read};
use image::{MemStorage, Span};
use qcow2::{Error, Opened, Qcow2, open};

fn made(options: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x").display().to_string();
    let words = ["create", "-q", "-f", "qcow2", "-o", options, path.as_str(), "64M"];
    let done = Command::new("qemu-img").args(words).status();
    assert!(done.expect("qemu-img (package qemu-utils)").success());
    let io = ["-f", "qcow2", "-c", "write -P 7 1M 1M", "-c", "write -z 4M 1M", path.as_str()];
    let done = Command::new("qemu-io").args(io).output().expect("qemu-io");
    assert!(done.status.success());
    std::fs::read(path).expect("it was just made")
}

fn opened(bytes: &[u8]) -> Result<Opened, Error> {
    open(&MemStorage::new(bytes.to_vec(), false), Path::new("/sr/x.qcow2"))
}

/// A word of the header is changed.
fn with(bytes: &[u8], at: usize, word: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + word.len()].copy_from_slice(word);
    bytes
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let good = made("compat=1.1");
    opened(&good).expect("it is good");
    let bit = |bit: u32| 1u64.checked_shl(bit).unwrap_or(0).to_be_bytes();
    for (at, word, errno, says) in [
        (0, &b"QFI\0"[..], 22, "is no qcow2 image"),
        (4, &[0, 0, 0, 1], 95, "is qcow version 1"),
        (4, &[0, 0, 0, 4], 95, "is qcow version 4"),
        (20, &[0, 0, 0, 8], 22, "cluster_bits 8, not 9 to 21"),
        (20, &[0, 0, 0, 22], 22, "cluster_bits 22"),
        (24, &[0xff; 8], 22, "too few for its size"),
        (24, &[0; 8], 22, "a size of 0 bytes, less than a sector"),
        (32, &[0, 0, 0, 1], 95, "is encrypted (AES)"),
        (32, &[0, 0, 0, 2], 95, "is encrypted (LUKS)"),
        (32, &[0, 0, 0, 9], 95, "crypt_method of 9"),
        (36, &[0, 0, 0, 0], 22, "l1_size of 0, too few"),
        (36, &[0xff; 4], 22, "l1_size of 4294967295, more than 32 MiB"),
        (40, &[0, 0, 0, 0, 0, 0, 2, 0], 22, "l1_table_offset of 0x200"),
        (40, &[0xff; 8], 22, "l1_table_offset of 0xffff"),
        (48, &[0; 8], 22, "refcount_table_offset of 0x0"),
        (56, &[0; 4], 22, "refcount_table_clusters 0"),
        (56, &[0xff; 4], 22, "refcount_table_clusters 4294967295"),
        (60, &[0xff; 4], 22, "nb_snapshots 4294967295"),
        (72, &bit(2)[..], 95, "keeps its data in another file"),
        (72, &bit(17)[..], 95, "needs feature bit 17, which is not known"),
        (96, &[0, 0, 0, 7], 22, "refcount_order of 7"),
        (100, &[0, 0, 0, 100], 22, "header_length of 100"),
        (104, &[1], 22, "compression_type 1, which its feature bits do not say"),
        (8, &[0, 0, 0, 0, 0, 0, 2, 0, 0xff, 0xff, 0xff, 0xff], 22, "a backing name of 4294967295"),
        (8, &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9], 22, "a backing name with a zero byte"),
    ] {
        let error = opened(&with(&good, at, word)).expect_err(says);
        assert_eq!(error.errno(), errno, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("/sr/x.qcow2 ") && text.contains(says), "{text}");
    }
    let zstd = with(&with(&good, 72, &bit(3)), 104, &[1]);
    assert!(opened(&zstd).expect_err("zstd").to_string().contains("packed with zstd"));
}

/// Reads all of an image in pieces; how many of them are errors.
fn walk(bytes: &[u8]) -> u32 {
    let Ok(opened) = opened(bytes) else { return 0 };
    let image = Qcow2::new(opened);
    let storage = MemStorage::new(bytes.to_vec(), false);
    let chain = [Layer { image: &image, storage: &storage }];
    let mut buf = vec![0; 64 << 10];
    let piece = |at: u64| read(&chain, Span { start: at, count: 128 }, &mut buf.clone()).is_err();
    let failed = (0..(64 << 20) / 512).step_by(128).filter(|at| piece(*at)).count() as u32;
    buf.fill(0);
    failed
}

#[test]
fn a_table_that_lies_is_an_error_of_its_place_alone() {
    let good = made("compat=1.1");
    assert_eq!(walk(&good), 0);
    let l1 = u64::from_be_bytes(good[40..48].try_into().expect("eight bytes")) as usize;
    let l2 = u64::from_be_bytes(good[l1..l1 + 8].try_into().expect("eight bytes"));
    let l2 = (l2 & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = l2 + 16 * 8;
    // The second MiB is where data is; 16 pieces of it, and the first of them is changed.
    for word in [
        0x8000_0000_0000_0200u64, // not on a cluster
        0x8000_0000_0000_0102,    // unknown bits
        0xc000_0000_0005_0000,    // packed, and counted once
        0x4fff_ffff_ffff_ffff,    // packed behind the file
        0x4000_0000_0005_0000,    // packed, and no stream
    ] {
        assert_eq!(walk(&with(&good, entry, &word.to_be_bytes())), 1, "{word:#x}");
    }
    // Behind the file's end are zeros.
    assert_eq!(walk(&with(&good, entry, &0x8000_0000_7fff_0000u64.to_be_bytes())), 0);
    for word in [0x8000_0000_0000_0200u64, 0x8000_00ff_ff00_0000] {
        assert_eq!(walk(&with(&good, l1, &word.to_be_bytes())), 1024, "{word:#x}");
    }
    let extended = made("extended_l2=on,cluster_size=65536");
    let l1 = u64::from_be_bytes(extended[40..48].try_into().expect("eight bytes")) as usize;
    let l2 = u64::from_be_bytes(extended[l1..l1 + 8].try_into().expect("eight bytes"));
    let both = (l2 & 0x00ff_ffff_ffff_fe00) as usize + 16 * 16 + 8;
    assert_eq!(walk(&with(&extended, both, &[0xff; 8])), 1, "there and zero at once");
}

#[test]
fn no_bytes_make_it_panic_or_go_on_for_ever() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut roll = |sides: usize| {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % sides
    };
    for options in ["compat=1.1", "extended_l2=on,cluster_size=16384", "cluster_size=512"] {
        let good = made(options);
        for _ in 0..60 {
            let mut bytes = good.clone();
            for _ in 0..1 + roll(8) {
                // Most of them where numbers are.
                let at = if roll(2) == 0 { roll(120) } else { roll(bytes.len().min(400 << 10)) };
                bytes[at] = [0, 0xff, 1, 0x80, roll(256) as u8][roll(5)];
            }
            let _ = walk(&bytes);
        }
    }
}
