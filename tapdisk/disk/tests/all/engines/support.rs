//! Engines, files and small loops for the tests.
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use disk::aio::Aio;
use disk::probe::AnyDisk;
use disk::uring::Uring;
use host::arena::{Arena, Buf};
use request::disk::{Disk, FileId, Kind, Op, Tag};
use test_support::sys::wait_readable;

/// Operations in flight of the engines under test.
pub const DEPTH: u32 = 32;
/// Size of a block in the tests, fit for O_DIRECT everywhere.
pub const BLOCK: u32 = 4096;
/// A test that waits this long has lost a wakeup.
pub const LOST: Duration = Duration::from_secs(20);

/// Runs `body` on each engine, by name.
pub fn on_each(body: impl Fn(AnyDisk)) {
    for disk in [uring(), aio()] {
        eprintln!("engine {}", disk.name());
        body(disk);
    }
}

pub fn uring() -> AnyDisk {
    AnyDisk::Uring(Uring::open(arena(), DEPTH, 4).expect("io_uring opens"))
}

pub fn aio() -> AnyDisk {
    AnyDisk::Aio(Aio::open(arena(), DEPTH, 4).expect("Linux AIO opens"))
}

fn arena() -> Arena {
    Arena::new((DEPTH * BLOCK) as usize).expect("memory")
}

/// A directory on the disk that the tree is built on (O_DIRECT works there; tmpfs may refuse it).
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory for the test")
}

/// A new file for reading and writing past the page cache.
pub fn direct(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_DIRECT);
    options.open(path).expect("the filesystem has O_DIRECT")
}

/// Gives the engine these files.
pub fn give(disk: &mut AnyDisk, files: &[&File]) {
    let fds: Vec<RawFd> = files.iter().map(|file| file.as_raw_fd()).collect();
    disk.set_files(&fds).expect("the kernel takes the files");
}

/// The `index`th block of the arena.
pub fn block(index: u32) -> Buf {
    Buf { offset: index * BLOCK, bytes: BLOCK }
}

pub fn op(kind: Kind, at: u64, buf: Buf) -> Op {
    Op { file: FileId(0), kind, at, buf }
}

/// Submits and waits for `count` results, by `wake_fd`.
pub fn finish(disk: &mut AnyDisk, count: usize) -> Vec<(Tag, Result<u32, i32>)> {
    let mut all = Vec::new();
    loop {
        disk.submit().expect("submit");
        while let Some(done) = disk.reap() {
            all.push(done);
        }
        assert!(all.len() <= count, "more results than operations: {all:?}");
        if all.len() == count {
            return all;
        }
        assert!(
            wait_readable(&disk.wake_fd(), LOST),
            "a wakeup was lost: {} of {count}",
            all.len()
        );
    }
}

/// One operation and its result.
pub fn one(disk: &mut AnyDisk, operation: Op) -> Result<u32, i32> {
    disk.push(77, operation);
    let done = finish(disk, 1);
    assert_eq!(done[0].0, 77);
    done[0].1
}
