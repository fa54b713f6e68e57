//! Images that are written through the blocking executor: what they hold is compared with a model,
//! and what they are with what qemu-img says of them.
use std::path::Path;
use std::process::Command;

use image::blocking::{Layer, Writer, read};
use image::{MemStorage, Span, Storage};
use qcow2::{Qcow2, open, ready};

const BYTES: u64 = 6 << 20;
const SECTORS: u64 = BYTES / 512;

/// xorshift64*: enough for a test, and seeded.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }
}

/// What qemu-img says, and how it ends.
fn img(words: &[&str]) -> (String, Option<i32>) {
    let output = Command::new("qemu-img").args(words).output().expect("qemu-img (qemu-utils)");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.code())
}

/// A new image over `below.raw` beside it, with what `commands` write into it.
fn made(path: &Path, options: &str, commands: &[&str]) {
    let (shown, size) = (path.display().to_string(), BYTES.to_string());
    let over = ["-b", "below.raw", "-F", "raw", &shown, &size];
    let words = [&["create", "-q", "-f", "qcow2", "-o", options][..], &over].concat();
    let (said, code) = img(&words);
    assert_eq!(code, Some(0), "{said}");
    for command in commands {
        let io = Command::new("qemu-io").args(["-f", "qcow2", "-c", command, &shown]).output();
        let io = io.expect("qemu-io");
        assert!(io.status.success(), "{command}: {}", String::from_utf8_lossy(&io.stderr));
    }
}

/// The image in these bytes, to be written.
fn to_write(storage: &MemStorage, path: &Path) -> Qcow2 {
    let opened = open(storage, path).expect("an image");
    Qcow2::to_write(ready(storage, path, opened).expect("it may be written"))
}

/// What qemu says of it, and reads.
fn check(path: &Path, storage: MemStorage, model: &[u8], options: &str) -> MemStorage {
    let device = storage.is_device();
    let bytes = storage.into_inner();
    std::fs::write(path, &bytes).expect("written");
    let (shown, raw) = (path.display().to_string(), path.with_extension("raw"));
    let (said, code) = img(&["check", "-f", "qcow2", &shown]);
    assert_eq!(code, Some(0), "{options}: {said}");
    let to = raw.display().to_string();
    let (said, code) = img(&["convert", "-f", "qcow2", "-O", "raw", &shown, &to]);
    assert_eq!(code, Some(0), "{options}: {said}");
    let theirs = std::fs::read(raw).expect("it was made");
    assert!(theirs == model, "{options}: qemu reads something else");
    MemStorage::new(bytes, device)
}

/// Changes of all kinds, and what they make of the model.
fn change(writer: &mut Writer<'_>, model: &mut [u8], dice: &mut Dice) {
    let longest = [8, 40, 300, 2000][dice.roll(4) as usize];
    let count = 1 + dice.roll(longest);
    let mut start = dice.roll(SECTORS - count + 1);
    if dice.roll(3) == 0 {
        start = start / 128 * 128;
    }
    let span = Span { start, count: count as u32 };
    let part = &mut model[start as usize * 512..][..span.bytes()];
    match dice.roll(8) {
        0 | 1 => {
            part.fill(0);
            writer.zero(span, false, dice.roll(2) == 0).expect("zeroed");
        }
        _ => {
            let value = 1 + dice.roll(255) as u8;
            part.fill(value);
            writer.write(start, part).expect("written");
        }
    }
}

fn contents(chain: &[Layer<'_>]) -> Vec<u8> {
    let mut all = vec![0xcc; BYTES as usize];
    read(chain, Span { start: 0, count: SECTORS as u32 }, &mut all).expect("it reads");
    all
}

const KINDS: [&str; 10] = [
    "cluster_size=65536",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=8192,refcount_bits=64",
    "cluster_size=16384,refcount_bits=2",
    "cluster_size=2M",
    "extended_l2=on,cluster_size=16384",
    "extended_l2=on,cluster_size=65536,refcount_bits=8",
    "extended_l2=on,cluster_size=2M",
];

fn histories(device: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.qcow2");
    for (i, options) in KINDS.iter().enumerate() {
        let mut dice = Dice(0x1234_5678 + i as u64);
        let packs = options.contains("65536") || options.contains("0.10");
        let packed = ["write -c -P 5 0 64k", "write -c -P 6 128k 64k", "write -P 7 64k 64k"];
        // What lies below: a raw image of other data in a half of it.
        let mut below = vec![0; BYTES as usize];
        below.chunks_mut(3000).step_by(2).enumerate().for_each(|(i, c)| c.fill(128 | i as u8));
        std::fs::write(dir.path().join("below.raw"), &below).expect("written");
        made(&path, options, if packs && !options.contains("ext") { &packed } else { &[] });
        let mut bytes = std::fs::read(&path).expect("it was made");
        if device {
            bytes.resize(bytes.len().next_multiple_of(2 << 20) + (20 << 20), 0xee);
        }
        let raw = raw::Raw::new(SECTORS, false);
        let below_file = MemStorage::new(below.clone(), false);
        let parent = || Layer { image: &raw, storage: &below_file };
        let mut storage = MemStorage::new(bytes, device);
        let mut model = {
            let image = to_write(&storage, &path);
            contents(&[Layer { image: &image, storage: &storage }, parent()])
        };
        let opened = open(&storage, &path).expect("an image");
        assert!(opened.header.version == 2 || opened.header.dirty, "{options}: it is marked");
        for life in 0..4 {
            // The first time it was not closed before: it is marked, and repaired.
            let mut image = to_write(&storage, &path);
            let mut writer = Writer::new(&mut image, &storage).expect("a writer");
            writer = writer.over(vec![parent()]);
            for _ in 0..60 {
                change(&mut writer, &mut model, &mut dice);
            }
            writer.close().expect("closed");
            let chain = [Layer { image: &image, storage: &storage }, parent()];
            let found = contents(&chain);
            let differs = found.iter().zip(&model).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{options}, life {life}");
            assert!(!open(&storage, &path).expect("an image").header.dirty, "{options}: clean");
            drop(image);
            storage = check(&path, storage, &model, options);
        }
    }
}

#[test]
fn files_of_every_kind_hold_what_was_written_and_qemu_finds_no_fault_in_them() {
    histories(false);
}

#[test]
fn so_do_devices_full_of_old_bytes() {
    histories(true);
}

/// Clusters of 512 bytes: qemu's table counts 8 MiB of them.
#[test]
fn a_disk_can_be_filled_that_its_table_could_not_count() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("x.qcow2");
    for options in ["cluster_size=512", "compat=0.10,cluster_size=512"] {
        std::fs::write(dir.path().join("below.raw"), [0; 512]).expect("written");
        let shown = path.display().to_string();
        let (said, code) = img(&["create", "-q", "-f", "qcow2", "-o", options, &shown, "24M"]);
        assert_eq!(code, Some(0), "{said}");
        let storage = MemStorage::new(std::fs::read(&path).expect("it was made"), false);
        let mut image = to_write(&storage, &path);
        let mut writer = Writer::new(&mut image, &storage).expect("a writer");
        let data: Vec<u8> = (0..1u32 << 20).map(|i| (i / 512 % 251) as u8 | 1).collect();
        for mib in 0..24 {
            writer.write(mib * 2048, &data).expect("there is room");
        }
        writer.close().expect("closed");
        check(&path, storage, &data.repeat(24), options);
    }
}
