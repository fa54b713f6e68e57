//! Changed-block logs where storage managers on LVM keep them: on a block device of 4 MiB; and on a
//! file system that is full.
use cbt::{Change, Log, LogFile, bitmap, coalesce, create};
use std::os::unix::fs::FileExt;
use tests::rig::MIB;
use tests::rig::places::{LoopDevice, SmallFileSystem, root};

/// A 2040 GiB disk, the largest VHD.
const DISK: u64 = 2040 << 30;

/// Blocks marked in a log.
fn marked(name: &std::path::Path) -> Vec<u64> {
    let log = LogFile::open(name, false).expect("a log");
    let map = log.bitmap().expect("a bitmap");
    bitmap::runs(&map, log.header().disk_bytes).flat_map(|(at, n)| at..at + n).collect()
}

#[test]
fn a_log_on_a_block_device() {
    if !root("a loop device with a changed-block log") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let device = |name: &str| {
        let path = dir.path().join(name);
        // A volume has its history.
        std::fs::write(&path, vec![0xa5; 4 << 20]).unwrap();
        LoopDevice::over(&path, 512)
    };
    let (one, two) = (device("one"), device("two"));
    create(one.path(), 10 * MIB).unwrap();
    assert!(marked(one.path()).is_empty());
    let log = Log::open(one.path(), 20480).unwrap();
    log.mark(20479, 1);
    log.sync().unwrap();
    assert!(Log::open(one.path(), DISK / 512).is_err_and(|e| e.errno() == 22));
    drop(log);
    let grow = |bytes| Change { disk_bytes: Some(bytes), ..Change::default() };
    LogFile::open(one.path(), true).unwrap().set(&grow(DISK)).unwrap();
    assert_eq!(marked(one.path()), [159]);
    let beyond = LogFile::open(one.path(), true).unwrap().set(&grow(2 * DISK));
    assert!(beyond.is_err_and(|e| e.errno() == 28));
    create(two.path(), DISK).unwrap();
    Log::open(two.path(), DISK / 512).unwrap().mark(DISK / 512 - 1, 1);
    coalesce(one.path(), two.path()).unwrap();
    assert_eq!(marked(two.path()), [159, DISK / (64 << 10) - 1]);
}

#[test]
fn a_log_with_holes_on_a_full_file_system_is_refused_and_does_not_kill() {
    if !root("a small file system for a full disk") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _small = SmallFileSystem::mount(&dir.path().join("m"), 2 * MIB);
    let name = dir.path().join("m/a.log");
    let header = cbt::Header { disk_bytes: DISK, ..cbt::Header::default() };
    let file = std::fs::File::create(&name).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    file.set_len(header.file_bytes()).unwrap();
    let refused = Log::open(&name, DISK / 512).unwrap_err();
    assert_eq!(refused.errno(), 28, "{refused}");
    assert_eq!(create(&dir.path().join("m/b.log"), DISK).unwrap_err().errno(), 28);
    assert!(!dir.path().join("m/b.log").exists());
}
