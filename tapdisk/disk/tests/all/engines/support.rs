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

/// Sleeps in poll(2) until `fd` is readable; false when the wakeup was lost.
pub fn readable(fd: RawFd, timeout: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let ms = i32::try_from(timeout.as_millis()).unwrap();
    loop {
        // SAFETY: one structure, which outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, ms) } {
            -1 => {
                assert_eq!(std::io::Error::last_os_error().kind(), std::io::ErrorKind::Interrupted)
            }
            count => return count == 1,
        }
    }
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
        assert!(readable(disk.wake_fd(), LOST), "a wakeup was lost: {} of {count}", all.len());
    }
}

/// One operation and its result.
pub fn one(disk: &mut AnyDisk, operation: Op) -> Result<u32, i32> {
    disk.push(77, operation);
    let done = finish(disk, 1);
    assert_eq!(done[0].0, 77);
    done[0].1
}

/// Whether the test may do what needs root; says aloud when it may not.
pub fn root(what: &str) -> bool {
    // SAFETY: reads the user's id.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("SKIPPED, needs root: {what}");
    }
    root
}

/// A seeded generator (splitmix64), so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
