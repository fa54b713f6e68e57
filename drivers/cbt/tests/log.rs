//! A log as a daemon uses it: opened for a disk, marked, read by others.
use cbt::{CbtError, Change, Header, Log, LogFile, Uuid, bitmap, coalesce, create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A new log for a disk of so many bytes.
    fn log(&self, name: &str, disk: u64) -> PathBuf {
        create(&self.path(name), disk).unwrap();
        self.path(name)
    }
}

fn bits(name: &Path) -> Vec<u64> {
    let file = LogFile::open(name, false).unwrap();
    let map = file.bitmap().unwrap();
    (0..map.len() as u64 * 8).filter(|b| bitmap::is_set(&map, *b)).collect()
}

#[test]
fn exactly_the_touched_blocks_are_marked() {
    let d = Dir::new();
    let disk: u64 = 40 << 20;
    let sectors = disk / 512;
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    for round in 0..200 {
        let name = d.log("a.log", disk);
        let log = Log::open(&name, sectors).unwrap();
        let start = random(sectors);
        let count = random([2, 200, sectors][round % 3]).min(sectors - start);
        log.mark(start, count);
        let touched = |block: &u64| {
            (block * 128..(block + 1) * 128).any(|s| (start..start + count).contains(&s))
        };
        let wanted: Vec<u64> = (0..640).filter(touched).collect();
        assert_eq!(bits(&name), wanted, "{count} sectors from {start}");
        assert!((0..700).all(|b| log.is_marked(b) == wanted.contains(&b)));
    }
}

#[test]
fn marks_add_up_and_leave_the_header_alone() {
    let d = Dir::new();
    let name = d.log("a.log", 10 << 20);
    let change = Change { child: Some(Uuid([9; 16])), consistent: Some(1), ..Change::default() };
    LogFile::open(&name, true).unwrap().set(&change).unwrap();
    let before = std::fs::read(&name).unwrap();
    let (one, two) = (Log::open(&name, 20480).unwrap(), Log::open(&name, 20480).unwrap());
    one.mark(0, 1);
    two.mark(20479, 1);
    one.mark(129, 1);
    two.mark(7, 0);
    one.sync().unwrap();
    assert_eq!(bits(&name), [0, 1, 159]);
    assert_eq!(std::fs::read(&name).unwrap()[..48], before[..48]);
}

#[test]
fn marks_survive_a_process_that_dies_without_a_word() {
    let d = Dir::new();
    let name = d.log("a.log", 1 << 20);
    let log = Log::open(&name, 2048).unwrap();
    log.mark(300, 1);
    std::mem::forget(log);
    assert_eq!(bits(&name), [2]);
}

#[test]
#[should_panic(expected = "a write lies on the disk")]
fn a_mark_beyond_the_disk_is_a_broken_invariant() {
    let d = Dir::new();
    let log = Log::open(&d.log("a.log", 1 << 20), 2047).unwrap();
    log.mark(2047, 1);
}

#[test]
fn a_log_that_does_not_cover_the_disk_is_refused() {
    let d = Dir::new();
    let name = d.log("a.log", 10 << 20);
    let refused = |sectors| {
        let e = Log::open(&name, sectors).unwrap_err();
        assert_eq!(e.errno(), 22, "{e}");
        e.to_string()
    };
    assert!(Log::open(&name, 20480).is_ok());
    assert!(refused(20481).contains("covers 10485760 bytes, but the disk has 10486272"));
    refused(u64::MAX);
    // A header that promises more than the file has.
    let file = File::options().write(true).open(&name).unwrap();
    file.write_all_at(&Header { disk_bytes: u64::MAX, ..Header::default() }.encode(), 0).unwrap();
    assert!(Log::open(&name, 20480).is_ok());
    assert!(refused(20481).contains("covers 10485760 bytes"));
    refused(u64::MAX / 512);
    for length in [67, 48, 47, 0] {
        file.set_len(length).unwrap();
        refused(20480);
    }
    assert!(matches!(LogFile::open(&name, false), Err(CbtError::Short { has: 0, needs: 48, .. })));
}

#[test]
fn a_log_longer_than_its_disk_is_used() {
    let d = Dir::new();
    let name = d.log("a.log", 10 << 20);
    File::options().write(true).open(&name).unwrap().set_len(4 << 20).unwrap();
    let log = Log::open(&name, 16000).unwrap();
    log.mark(0, 16000);
    assert_eq!(bits(&name), (0..125).collect::<Vec<_>>());
}

#[test]
fn what_is_no_log_has_its_errno() {
    let d = Dir::new();
    let errno = |path: &str| Log::open(&PathBuf::from(path), 1).unwrap_err().errno();
    assert_eq!(errno("/nonexistent/x.log"), 2);
    assert_eq!(errno("/dev/null"), 22);
    assert_eq!(errno(d.0.path().to_str().unwrap()), 21);
    assert_eq!(create(&PathBuf::from("/dev/null"), 1).unwrap_err().errno(), 22);
    assert_eq!(create(&d.path("x"), (512 << 40) + 1).unwrap_err().errno(), 27);
    assert!(!d.path("x").exists());
}

#[test]
fn coalescing_keeps_both_sides_marks() {
    let d = Dir::new();
    let (parent, child) = (d.log("p.log", 1 << 40), d.log("c.log", (1 << 40) + 1));
    Log::open(&parent, 1 << 31).unwrap().mark((1 << 31) - 1, 1);
    Log::open(&child, 1 << 31).unwrap().mark(0, 1);
    coalesce(&parent, &child).unwrap();
    assert_eq!(bits(&child), [0, (1 << 24) - 1]);
    assert_eq!(bits(&parent), [(1 << 24) - 1]);
    let refused = coalesce(&child, &parent).unwrap_err();
    assert!(matches!(refused, CbtError::ParentLarger { .. }), "{refused}");
}

#[test]
fn growing_keeps_marks_and_adds_zeros_even_over_old_bytes() {
    let d = Dir::new();
    let name = d.log("a.log", 1 << 20);
    Log::open(&name, 2048).unwrap().mark(2047, 1);
    let file = File::options().write(true).open(&name).unwrap();
    // As on a volume, which is longer than the log and has its history.
    file.write_all_at(&[0xff; 100], 50).unwrap();
    let mut log = LogFile::open(&name, true).unwrap();
    let grow = |bytes| Change { disk_bytes: Some(bytes), ..Change::default() };
    log.set(&grow(10 << 20)).unwrap();
    assert_eq!(bits(&name), [15]);
    let e = log.set(&grow(5)).unwrap_err();
    assert_eq!((e.errno(), bits(&name)), (22, vec![15]));
}

#[test]
fn a_log_made_anew_under_a_daemon_does_not_kill_it() {
    let d = Dir::new();
    let name = d.log("a.log", 1 << 40);
    let log = Log::open(&name, 1 << 31).unwrap();
    log.mark(0, 1 << 31);
    create(&name, 1 << 40).unwrap();
    assert_eq!(bits(&name), []);
    log.mark((1 << 31) - 1, 1);
    assert_eq!(bits(&name), [(1 << 24) - 1]);
}
