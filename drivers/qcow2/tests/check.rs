//! `check` and `repair` beside `qemu-img check`, on images that are well and images that are not.
mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use common::{Dice, disk, io, made, poke, ran, run, word, word64};
use qcow2::{Header, Report, Said, What, check, repair};

/// What qemu-img says: its exit code and its numbers.
fn theirs(path: &Path) -> (i32, Report, String) {
    let said = ran("qemu-img", &["check", "-f", "qcow2", "--output=json", word(path)]);
    let number = |key: &str| {
        let at = said.out.find(&format!("\"{key}\": "));
        let text = at.map(|at| said.out[at..].split(": ").nth(1).unwrap_or_default());
        let digits = text.map(|text| text.split([',', '\n']).next().unwrap_or_default().trim());
        digits.map_or(0, |digits| digits.parse().expect("a number"))
    };
    let report = Report {
        corruptions: number("corruptions"),
        leaks: number("leaks"),
        total: number("total-clusters"),
        allocated: number("allocated-clusters"),
        fragmented: number("fragmented-clusters"),
        compressed: number("compressed-clusters"),
        end: number("image-end-offset"),
        ..Report::default()
    };
    (said.code, report, said.err)
}

fn ours(path: &Path) -> (Report, Vec<String>) {
    let file = File::open(path).expect("an image");
    let mut lines = Vec::new();
    let mut said = |said: Said<'_>| {
        if let Said::Line(line) = said {
            lines.push(line.to_owned());
        }
    };
    let report = check(&file, path, &mut said).expect("it can be checked");
    (report, lines)
}

fn mended(path: &Path, what: What) -> Report {
    let file = File::options().read(true).write(true).open(path).expect("an image");
    repair(&file, path, what, &mut |_| ()).expect("it can be repaired")
}

/// The same verdict and the same numbers; with `lines` the same sentences.
fn agree(path: &Path, lines: bool) -> Report {
    let (code, report, err) = theirs(path);
    let (mine, said) = ours(path);
    // qemu-img says nothing of the clusters of a disk that has none.
    let shown = Report { total: if report.total == 0 { 0 } else { mine.total }, ..mine };
    assert_eq!(shown, report, "{}: {err}\n{said:?}", path.display());
    let verdict = match () {
        () if mine.corruptions > 0 => 2,
        () if mine.leaks > 0 => 3,
        () => 0,
    };
    assert_eq!(verdict, code, "{err}");
    if lines {
        let theirs: Vec<&str> = err.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(said, theirs);
    }
    mine
}

const KINDS: [&str; 14] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=1024,refcount_bits=1",
    "cluster_size=4096,refcount_bits=2",
    "refcount_bits=4",
    "refcount_bits=8",
    "cluster_size=2097152,refcount_bits=32",
    "extended_l2=on,cluster_size=16384",
    "extended_l2=on,cluster_size=65536,preallocation=metadata",
    "lazy_refcounts=on",
    "preallocation=metadata,cluster_size=8192",
    "cluster_size=131072",
];

fn commands(dice: &mut Dice, packs: bool) -> Vec<String> {
    // qemu packs whole clusters only, and the disk is of them.
    let packed =
        (0..if packs { 30 } else { 0 }).map(|i| format!("write -c -P {i} {}k 64k", i * 192));
    let mut all: Vec<String> = packed.collect();
    for _ in 0..60 {
        let (at, count) = (dice.roll(40_000), 1 + dice.roll(300));
        let (at, bytes) = (at * 512, count * 512);
        all.push(match dice.roll(8) {
            0 => format!("write -z {at} {bytes}"),
            1 => format!("write -z -u {at} {bytes}"),
            2 => format!("discard {at} {bytes}"),
            _ => format!("write -P {} {at} {bytes}", 1 + dice.roll(200)),
        });
    }
    all
}

fn make(dir: &Path, number: usize, options: &str) -> PathBuf {
    let mut dice = Dice(number as u64 * 7 + 3);
    let packs = options.is_empty() || options.contains("refcount_bits=8");
    let all = commands(&mut dice, packs);
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    made(dir, &format!("{number}.qcow2"), options, &all)
}

fn header(path: &Path) -> Header {
    Header::read(path, &std::fs::read(path).expect("an image")).expect("a header")
}

#[test]
fn healthy_images_of_every_kind_are_healthy() {
    let dir = tempfile::tempdir().expect("a directory");
    for (number, options) in KINDS.into_iter().enumerate() {
        let empty = made(dir.path(), "empty.qcow2", options, &[]);
        agree(&empty, true);
        let path = make(dir.path(), number, options);
        let report = agree(&path, true);
        assert!(report.is_clean() && report.allocated > 0, "{options}");
        let before = std::fs::read(&path).expect("an image");
        assert_eq!(mended(&path, What::All), report);
        assert!(before == std::fs::read(&path).expect("an image"), "{options}: nothing to do");
    }
}

#[test]
fn what_snapshots_use_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    for options in ["", "cluster_size=4096,refcount_bits=4", "extended_l2=on,cluster_size=16384"] {
        let path = made(dir.path(), "s.qcow2", options, &["write -P 1 0 9M"]);
        for name in ["first", "second one"] {
            run("qemu-img", &["snapshot", "-c", name, word(&path)]);
            io(&path, &["write -P 2 1M 3M", "discard 5M 1M"]);
        }
        assert!(agree(&path, true).is_clean());
        // One of many uses is not counted.
        let before = disk(&path);
        let bytes = std::fs::read(&path).expect("an image");
        let blocks = word64(&bytes, header(&path).table_at);
        let counts = &bytes[blocks as usize..][..64];
        let at = counts.iter().position(|byte| byte & 0x0f > 1).expect("a count of more than one");
        poke(&path, blocks + at as u64, &[counts[at] - 1]);
        assert!(agree(&path, true).corruptions > 0);
        let report = mended(&path, What::All);
        assert!(report.is_clean() && report.corruptions_fixed > 0, "{report:?}");
        assert!(agree(&path, true).is_clean());
        assert!(before == disk(&path));
    }
}

#[test]
fn bitmaps_that_count_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "b.qcow2", "", &["write 0 1M"]);
    run("qemu-img", &["bitmap", "--add", word(&path), "one"]);
    run("qemu-img", &["bitmap", "--add", "-g", "512", word(&path), "two"]);
    io(&path, &["write 3M 2M"]);
    assert!(agree(&path, true).is_clean());
    // Without their bit they are what somebody forgot.
    let autoclear = word64(&std::fs::read(&path).expect("an image"), 88);
    assert_eq!(autoclear, 1);
    poke(&path, 88, &0u64.to_be_bytes());
    let (report, _) = ours(&path);
    assert!(report.leaks > 0 && report.corruptions == 0);
}

/// Where the first entry of an L2 table with a cluster is.
fn entry(path: &Path) -> u64 {
    let (bytes, header) = (std::fs::read(path).expect("an image"), header(path));
    let tables = (0..u64::from(header.l1_entries)).map(|i| word64(&bytes, header.l1_at + i * 8));
    let tables = tables.map(|word| word & 0x00ff_ffff_ffff_fe00).filter(|table| *table != 0);
    let here = |word: u64| word >> 62 == 2 && word & 0x00ff_ffff_ffff_fe00 != 0;
    let each = header.entry_bytes();
    let mut all = tables.flat_map(|table| (0..header.entries()).map(move |i| table + i * each));
    all.find(|at| here(word64(&bytes, *at))).expect("an entry")
}

/// Ways to damage an image of one kind.
fn damages(path: &Path) -> Vec<(&'static str, u64, Vec<u8>)> {
    let (bytes, header) = (std::fs::read(path).expect("an image"), header(path));
    let cluster = header.cluster();
    let at = entry(path);
    let l1_at = (header.l1_at..).step_by(8).find(|at| word64(&bytes, *at) != 0);
    let l1_at = l1_at.expect("a table");
    let (word, l1) = (word64(&bytes, at), word64(&bytes, l1_at));
    let block = word64(&bytes, header.table_at);
    let number = |n: u64| n.to_be_bytes().to_vec();
    let mut all = vec![
        ("a flag is missing", at, number(word & !(1 << 63))),
        ("a flag of the L1 is missing", l1_at, number(l1 & !(1 << 63))),
        ("a cluster is forgotten", at, number(0)),
        ("all counts of a few clusters are gone", block, vec![0; 8]),
        ("counts are too high", block + 8, vec![0xff; 2]),
        ("a table of counts without a block", header.table_at, number(0)),
        ("unknown bits", at, number(word | 1 << 57 | 2)),
        ("no cluster's place", at, number(word | 512)),
        ("behind the end of the file", at, number(1 << 63 | 1 << 45)),
        ("an entry points at the L1", at, number(1 << 63 | header.l1_at)),
        ("an entry points at the counts", at, number(1 << 63 | block)),
    ];
    if cluster == 512 {
        all.retain(|(what, ..)| *what != "no cluster's place");
    }
    if header.refcount_order > 4 || header.refcount_order == 0 {
        all.retain(|(what, ..)| *what != "counts are too high");
    }
    all
}

#[test]
fn damaged_images_get_the_verdict_of_qemu_and_are_repaired_without_loss() {
    let dir = tempfile::tempdir().expect("a directory");
    for (number, options) in KINDS.into_iter().enumerate() {
        let good = make(dir.path(), number, options);
        for (what, at, bytes) in damages(&good) {
            let path = dir.path().join("bad.qcow2");
            std::fs::copy(&good, &path).expect("copied");
            poke(&path, at, &bytes);
            let shown = format!("{options}: {what}");
            println!("{shown}");
            let found = agree(&path, true);
            assert!(!found.is_clean(), "{shown}");
            let readable = ran("qemu-img", &["convert", "-O", "raw", word(&path), "/dev/null"]);
            let before = (readable.code == 0).then(|| disk(&path));
            let report = mended(&path, What::All);
            let after = agree(&path, true);
            assert_eq!(
                (report.corruptions, report.leaks),
                (after.corruptions, after.leaks),
                "{shown}"
            );
            assert!(before.is_none_or(|before| before == disk(&path)), "{shown}: data");
            // What qemu repairs, we do; but for one entry, which it takes for zeros.
            let other = dir.path().join("theirs.qcow2");
            std::fs::copy(&good, &other).expect("copied");
            poke(&other, at, &bytes);
            let code = ran("qemu-img", &["check", "-q", "-r", "all", word(&other)]).code;
            let spared = what == "no cluster's place" && options.contains("preallocation");
            assert!(code != 0 || after.is_clean() || spared, "{shown}: {after:?}");
        }
    }
}

/// A file may end in the cluster before the one that a table ends in; that one is counted, too.
#[test]
fn a_table_behind_the_end_of_its_file_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "short.qcow2", "cluster_size=512", &[]);
    let header = header(&path);
    // Eight entries more than whole clusters, and the file ends before the cluster with those.
    let entries = header.l1_entries + 8;
    let behind = header.l1_at + u64::from(header.l1_entries) * 8;
    let block = word64(&std::fs::read(&path).expect("an image"), header.table_at);
    poke(&path, 36, &entries.to_be_bytes());
    let good = std::fs::read(&path).expect("an image");
    std::fs::write(&path, &good[..behind as usize - 300]).expect("written");
    assert_eq!(agree(&path, true).corruptions, 1);
    assert!(mended(&path, What::All).is_clean());
    assert!(agree(&path, true).is_clean());
    poke(&path, block + behind / 512 * 2, &[0, 1]);
    assert!(agree(&path, true).is_clean());
    // More than a cluster is missing: what the table is in is not free because of that.
    std::fs::write(&path, &good[..behind as usize - 700]).expect("written");
    let report = mended(&path, What::All);
    assert!(report.corruptions > 0 && report.leaks > 0 && report.leaks_fixed == 0, "{report:?}");
}
