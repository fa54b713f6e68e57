//! What an older or stricter kernel gives, tried on this one. The rest is in tests/disk_engines.
use std::os::fd::AsRawFd;

use super::*;
use host::arena::Buf;
use request::disk::FileId;

const DEPTH: u32 = 8;

fn on(builder: &Builder) -> Option<Uring> {
    let ring = build(builder, DEPTH).ok()?;
    let arena = Arena::new(65536).unwrap();
    Some(Uring::on_ring(ring, EventFd::new().unwrap(), arena, DEPTH, 2).unwrap())
}

/// Waits for `count` results, in poll or inside the engine.
fn finish(disk: &mut Uring, count: usize, watch: Option<RawFd>) -> Vec<Done> {
    let mut all = Vec::new();
    while all.len() < count {
        match watch {
            Some(fd) => disk.submit_and_wait(fd, Duration::from_secs(20)).unwrap().unwrap(),
            None => disk.submit().unwrap(),
        }
        let before = all.len();
        all.extend(std::iter::from_fn(|| disk.reap()));
        let mut poll = libc::pollfd { fd: disk.wake_fd(), events: libc::POLLIN, revents: 0 };
        if before == all.len() && watch.is_none() {
            // SAFETY: one structure, which outlives the call.
            let woken = unsafe { libc::poll(&raw mut poll, 1, 20_000) };
            assert!(woken != 0, "a wakeup was lost");
        }
        assert!(watch.is_none() || before < all.len(), "a wakeup was lost");
    }
    all
}

/// Writes and reads a temporary file; results may come in any order within a batch.
fn exercise(disk: &mut Uring, watch: Option<RawFd>) {
    let file = tempfile::tempfile().unwrap();
    disk.set_files(&[file.as_raw_fd()]).unwrap();
    let block = |index: u32| Buf { offset: index * 4096, bytes: 4096 };
    let op = |kind, buf: Buf| Op { file: FileId(0), kind, at: u64::from(buf.offset), buf };
    for _ in 0..100 {
        for tag in 0..DEPTH {
            disk.arena().slice_mut(block(tag)).fill(tag as u8 + 1);
            disk.push(tag, op(Kind::Write, block(tag)));
        }
        assert!(finish(disk, DEPTH as usize, watch).iter().all(|done| done.1 == Ok(4096)));
        disk.push(1, op(Kind::Sync, Buf::NONE));
        assert_eq!(finish(disk, 1, watch), [(1, Ok(0))]);
        disk.push(2, Op { buf: block(0), ..op(Kind::Read, block(5)) });
        assert_eq!(finish(disk, 1, watch), [(2, Ok(4096))]);
        assert!(disk.arena().slice(block(0)).iter().all(|&byte| byte == 6));
    }
}

#[test]
fn rings_of_older_kernels_work_and_wake() {
    for (age, builder) in builders().iter().enumerate() {
        match on(builder) {
            Some(mut disk) => exercise(&mut disk, None),
            None => eprintln!("SKIPPED, this kernel is older than ring {age}"),
        }
    }
}

#[test]
fn rings_of_older_kernels_sleep_inside() {
    // SAFETY: no memory is passed; the test keeps the descriptor.
    let watch = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    for (age, builder) in builders().iter().enumerate() {
        match on(builder) {
            Some(mut disk) => exercise(&mut disk, Some(watch)),
            None => eprintln!("SKIPPED, this kernel is older than ring {age}"),
        }
    }
}

#[test]
fn unregistered_memory_and_files_work() {
    let mut disk = Uring::open(Arena::new(65536).unwrap(), DEPTH, 2).unwrap();
    (disk.memory_registered, disk.files_registered) = (false, false);
    exercise(&mut disk, None);
}

#[test]
fn a_depth_beyond_the_ring_is_refused() {
    for depth in [32767, u32::MAX] {
        let error = Uring::open(Arena::new(4096).unwrap(), depth, 1).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
}

#[test]
fn dropping_with_operations_in_flight_is_harmless() {
    for _ in 0..20 {
        let mut disk = Uring::open(Arena::new(65536).unwrap(), DEPTH, 2).unwrap();
        let file = tempfile::tempfile().unwrap();
        disk.set_files(&[file.as_raw_fd()]).unwrap();
        let buf = Buf { offset: 0, bytes: 4096 };
        for tag in 0..DEPTH {
            let kind = if tag % 2 == 0 { Kind::Sync } else { Kind::Write };
            disk.push(tag, Op { file: FileId(0), kind, at: 0, buf });
        }
        disk.submit().unwrap();
    }
}
