//! Images that qemu made, read and compared with what qemu reads.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::blocking::{Layer, read};
use image::{Image, Span};
use qcow2::{Qcow2, open};

const BYTES: u64 = 24 << 20;

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{program} (package qemu-utils): {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = said.lines().find(|line| line.contains("failed"));
    let status = output.status;
    assert!(status.success(), "{program} {words:?}: {failed:?} {text}");
}

fn qemu_io(format: &str, path: &Path, commands: &[String]) {
    let mut words = vec!["-f".to_owned(), format.to_owned()];
    words.extend(commands.iter().flat_map(|command| ["-c".to_owned(), command.clone()]));
    words.push(path.display().to_string());
    run("qemu-io", &words.iter().map(String::as_str).collect::<Vec<_>>());
}

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

/// Writes, zeros and discards of sectors here and there.
fn changes(dice: &mut Dice, count: u32, packs: bool) -> Vec<String> {
    // Packed ones first, each once: qemu packs no cluster that is there.
    let packed = (0..if packs { 40 } else { 0 }).map(|i| i * 9 * 65536);
    let pack = |at: u64| format!("write -c -P {} {at} 65536", 1 + at / 65536 % 255);
    let mut all: Vec<String> = packed.map(pack).collect();
    for _ in 0..count {
        let sectors = 1 + dice.roll(300);
        let start = dice.roll(BYTES / 512 - sectors) * 512;
        let bytes = sectors * 512;
        all.push(match dice.roll(10) {
            0 => format!("write -z {start} {bytes}"),
            1 => format!("write -z -u {start} {bytes}"),
            2 => format!("discard {start} {bytes}"),
            _ => format!("write -P {} {start} {bytes}", 1 + dice.roll(255)),
        });
    }
    all
}

struct Made {
    path: PathBuf,
    format: &'static str,
}

/// The disk of a chain as we read it, leaf first.
fn ours(chain: &[Made]) -> Vec<u8> {
    let mut images: Vec<(Box<dyn Image>, File)> = Vec::new();
    for Made { path, format } in chain {
        let file = File::open(path).expect("it was just made");
        let image: Box<dyn Image> = match *format {
            "qcow2" => Box::new(Qcow2::new(open(&file, path).expect("an image"))),
            _ => Box::new(raw::Raw::new(file.metadata().expect("a file").len() / 512, false)),
        };
        images.push((image, file));
    }
    let layers: Vec<Layer<'_>> =
        images.iter().map(|(image, storage)| Layer { image: &**image, storage }).collect();
    let span = Span { start: 0, count: layers[0].image.sectors() as u32 };
    let mut disk = vec![0xcc; span.bytes()];
    read(&layers, span, &mut disk).expect("it reads");
    disk
}

/// As qemu does.
fn theirs(dir: &Path, leaf: &Made) -> Vec<u8> {
    let raw = dir.join("theirs.raw");
    let (from, to) = (leaf.path.display().to_string(), raw.display().to_string());
    run("qemu-img", &["convert", "-f", leaf.format, "-O", "raw", &from, &to]);
    std::fs::read(raw).expect("it was just made")
}

/// Makes an image and changes it.
fn make(dir: &Path, name: &str, options: &str, below: Option<&Made>, dice: &mut Dice) -> Made {
    let path = dir.join(name);
    let shown = path.display().to_string();
    let size = BYTES.to_string();
    let mut words = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        words.extend(["-o", options]);
    }
    let parent = below.map(|made| (made.path.display().to_string(), made.format));
    if let Some((parent, format)) = &parent {
        words.extend(["-b", parent.as_str(), "-F", format]);
    }
    words.extend([shown.as_str(), size.as_str()]);
    run("qemu-img", &words);
    let packs = !options.contains("cluster_size") || options.contains("65536");
    qemu_io("qcow2", &path, &changes(dice, 60, packs && !options.contains("extended")));
    Made { path, format: "qcow2" }
}

#[test]
fn every_kind_of_image_reads_as_qemu_reads_it() {
    let dir = tempfile::tempdir().expect("a directory");
    for (i, options) in [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4096,refcount_bits=1",
        "cluster_size=2097152,refcount_bits=64",
        "extended_l2=on,cluster_size=16384",
        "extended_l2=on,cluster_size=131072",
        "lazy_refcounts=on",
        "extended_l2=on,preallocation=metadata",
    ]
    .into_iter()
    .enumerate()
    {
        let mut dice = Dice(i as u64 + 1);
        let raw = Made { path: dir.path().join(format!("{i}.raw")), format: "raw" };
        // Shorter than its children: zeros beyond its end.
        let bytes: Vec<u8> = (0..BYTES / 2 / 512).flat_map(|s| [s as u8 | 1; 512]).collect();
        std::fs::write(&raw.path, bytes).expect("written");
        let base = make(dir.path(), &format!("{i}.base"), options, Some(&raw), &mut dice);
        let leaf = make(dir.path(), &format!("{i}.leaf"), options, Some(&base), &mut dice);
        let want = theirs(dir.path(), &leaf);
        assert!(want.iter().any(|byte| *byte != 0), "there is something to compare");
        let found = ours(&[leaf, base, raw]);
        let differs = found.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!(differs.map(|at| at / 512), None, "{options}: the first sector that differs");
        assert_eq!(found.len(), want.len());
    }
}
