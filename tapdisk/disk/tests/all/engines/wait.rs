//! Waking up: by `wake_fd`, and in `submit_and_wait` beside an epoll descriptor.
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use disk::probe::{AnyDisk, EngineKind, choose, named};
use disk::uring::NUMBERS_MAX;
use host::arena::{Arena, Buf};
use request::disk::{Disk, Kind};
use test_support::rng::Rng;
use test_support::sys::wait_readable;

use super::support::{
    BLOCK, DEPTH, LOST, block, direct, directory, finish, give, on_each, one, op, uring,
};

fn prepared(disk: &mut AnyDisk) -> (tempfile::TempDir, File) {
    let dir = directory();
    let file = direct(&dir.path().join("disk"));
    file.set_len(1 << 20).unwrap();
    give(disk, &[&file]);
    (dir, file)
}

/// An epoll descriptor that watches `fds`, level-triggered.
pub fn epoll(fds: &[RawFd]) -> OwnedFd {
    // SAFETY: no memory is passed.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    for &fd in fds {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: one structure, which outlives the call.
        let added =
            unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        assert_eq!(added, 0);
    }
    epoll
}

fn sleep(disk: &mut AnyDisk, watch: &OwnedFd, timeout: Duration) {
    let waited = disk.submit_and_wait(watch.as_raw_fd(), timeout).expect("io_uring can");
    waited.expect("the kernel waits");
}

/// Sleeps until there is a result.
fn result(disk: &mut AnyDisk, watch: &OwnedFd) -> (u32, Result<u32, i32>) {
    let start = Instant::now();
    loop {
        if let Some(done) = disk.reap() {
            return done;
        }
        assert!(start.elapsed() < LOST, "a wakeup was lost");
        sleep(disk, watch, LOST);
    }
}

#[test]
fn nothing_in_flight_does_not_wake() {
    on_each(|mut disk| {
        let (_dir, _file) = prepared(&mut disk);
        assert!(!wait_readable(&disk.wake_fd(), Duration::ZERO));
        for _ in 0..100 {
            assert_eq!(one(&mut disk, op(Kind::Read, 0, block(0))), Ok(BLOCK));
        }
        // The last signal may come after its result; from then on there is quiet.
        let start = Instant::now();
        while wait_readable(&disk.wake_fd(), Duration::from_millis(20)) {
            disk.submit().unwrap();
            assert!(start.elapsed() < LOST, "the wake descriptor stays readable");
        }
        assert!(disk.reap().is_none());
    });
}

#[test]
fn the_full_depth_comes_back_many_times() {
    on_each(|mut disk| {
        let (_dir, _file) = prepared(&mut disk);
        for _ in 0..50 {
            for tag in 0..DEPTH {
                let kind = if tag % 3 == 0 { Kind::Write } else { Kind::Read };
                disk.push(tag, op(kind, u64::from(tag * BLOCK), block(tag)));
            }
            let mut tags: Vec<u32> = finish(&mut disk, DEPTH as usize)
                .into_iter()
                .inspect(|(_, result)| assert_eq!(*result, Ok(BLOCK)))
                .map(|(tag, _)| tag)
                .collect();
            tags.sort_unstable();
            assert!(tags.into_iter().eq(0..DEPTH));
        }
    });
}

#[test]
#[should_panic(expected = "no more in flight than the depth")]
fn one_more_than_the_depth_is_a_broken_promise() {
    let mut disk = uring();
    let (_dir, _file) = prepared(&mut disk);
    for tag in 0..=DEPTH {
        disk.push(tag, op(Kind::Sync, 0, Buf::NONE));
    }
}

/// The mio server has edge-triggered epoll: each wakeup is told once. Random batches, and only
/// submit and reap after a wakeup.
#[test]
fn an_edge_triggered_epoll_loses_no_wakeup() {
    on_each(|mut disk| {
        let (_dir, _file) = prepared(&mut disk);
        let watch = epoll(&[]);
        let edge = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events: edge, u64: 1 };
        let (ctl, wake) = (libc::EPOLL_CTL_ADD, disk.wake_fd());
        // SAFETY: one structure, which outlives the call.
        assert_eq!(unsafe { libc::epoll_ctl(watch.as_raw_fd(), ctl, wake, &raw mut event) }, 0);
        let mut random = Rng::new(9);
        let (mut pushed, mut reaped) = (0, 0);
        while reaped < 3000 {
            let room = u64::from(DEPTH - (pushed - reaped));
            for _ in 0..random.below(room + 1).min(u64::from(3000 - pushed)) {
                disk.push(pushed, random_read(&mut random, pushed));
                pushed += 1;
            }
            disk.submit().unwrap();
            let before = reaped;
            while disk.reap().is_some() {
                reaped += 1;
            }
            if reaped == before && pushed > reaped {
                assert!(wait_readable(&watch, LOST), "lost: {reaped} of {pushed}");
                // SAFETY: room for one event, which outlives the call.
                unsafe { libc::epoll_wait(watch.as_raw_fd(), &raw mut event, 1, 0) };
            }
        }
    });
}

fn random_read(random: &mut Rng, tag: u32) -> request::disk::Op {
    match random.below(8) {
        0 => op(Kind::Sync, 0, Buf::NONE),
        1 => op(Kind::Grow { bytes: 4096 }, 0, Buf::NONE),
        _ => op(Kind::Read, random.below(256) * 4096, block(tag % DEPTH)),
    }
}

#[test]
fn linux_aio_leaves_the_waiting_to_the_caller() {
    let mut disk = super::support::aio();
    let watch = epoll(&[disk.wake_fd()]);
    assert!(disk.submit_and_wait(watch.as_raw_fd(), Duration::ZERO).is_none());
    let (_dir, _file) = prepared(&mut disk);
    disk.push(3, op(Kind::Read, 0, block(0)));
    disk.submit().unwrap();
    assert!(disk.has_finished() || wait_readable(&watch, LOST));
    assert_eq!(finish(&mut disk, 1), [(3, Ok(BLOCK))]);
}

/// Two ends of a non-blocking socket that keeps messages apart.
fn pair() -> [OwnedFd; 2] {
    let mut fds = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors, which nobody else owns.
    unsafe {
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

#[test]
fn numbers_are_read_and_acknowledged_in_the_call_that_sleeps() {
    let mut disk = uring();
    let watch = epoll(&[]);
    let watch = watch.as_raw_fd();
    let [ours, theirs] = pair();
    let mut theirs = std::fs::File::from(theirs);
    assert!(
        disk.read_events(ours.as_raw_fd()),
        "this kernel has Linux 5.17's completions on failure only"
    );
    assert!(!disk.read_events(ours.as_raw_fd()), "one is enough");
    // Nothing is read, and the poll stays where it is.
    disk.submit_and_wait(watch, Duration::ZERO).unwrap().unwrap();
    assert_eq!(disk.take_events(), [0u32; 0]);
    for numbers in [[7u32, 9], [5, 1 << 31]] {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        theirs.write_all(&bytes).unwrap();
        disk.submit_and_wait(watch, LOST).unwrap().unwrap();
        assert_eq!(disk.take_events(), numbers);
        assert_eq!(disk.take_events(), [0u32; 0], "once");
    }
    // What is told goes out with the next sleep, and does not end it.
    assert!(disk.acknowledge(3) && disk.acknowledge(4));
    let begun = Instant::now();
    disk.submit_and_wait(watch, Duration::from_millis(50)).unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let mut bytes = [0; 64];
    assert_eq!(theirs.read(&mut bytes).unwrap(), 8);
    assert_eq!(bytes[..8], [3u32.to_ne_bytes(), 4u32.to_ne_bytes()].concat());
    // As many as there is room for.
    assert!((0..NUMBERS_MAX as u32).all(|n| disk.acknowledge(n)) && !disk.acknowledge(0));
    disk.submit_and_wait(watch, Duration::ZERO).unwrap().unwrap();
    assert_eq!(theirs.read(&mut [0; 256]).unwrap(), 4 * NUMBERS_MAX);
    // The other end is gone: nothing is read, and no call spins or fails.
    drop(theirs);
    disk.submit_and_wait(watch, LOST).unwrap().unwrap();
    assert_eq!(disk.take_events(), [0u32; 0]);
}

#[test]
fn sleeping_ends_with_the_time() {
    let mut disk = uring();
    let (_dir, _file) = prepared(&mut disk);
    let (reader, _writer) = UnixStream::pair().unwrap();
    let watch = epoll(&[reader.as_raw_fd()]);
    let start = Instant::now();
    sleep(&mut disk, &watch, Duration::from_millis(30));
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert!(!disk.take_watch_ready());
    assert!(disk.reap().is_none());
}

#[test]
fn sleeping_ends_with_a_result_in_one_system_call() {
    let mut disk = uring();
    let (_dir, _file) = prepared(&mut disk);
    let (reader, _writer) = UnixStream::pair().unwrap();
    let watch = epoll(&[reader.as_raw_fd()]);
    disk.push(5, op(Kind::Read, 0, block(0)));
    assert_eq!(result(&mut disk, &watch), (5, Ok(BLOCK)));
    let AnyDisk::Uring(ring) = &disk else { panic!("io_uring") };
    assert_eq!(ring.enters(), 1);
    assert!(!disk.take_watch_ready());
}

#[test]
fn a_watched_descriptor_ends_the_sleep_until_it_is_emptied() {
    let mut disk = uring();
    let (_dir, _file) = prepared(&mut disk);
    let (mut reader, mut writer) = UnixStream::pair().unwrap();
    let watch = epoll(&[reader.as_raw_fd()]);
    writer.write_all(b"ab").unwrap();
    // Nobody empties it: it is told again and again, by level, not by edge.
    for _ in 0..5 {
        sleep(&mut disk, &watch, LOST);
        assert!(disk.take_watch_ready());
        assert!(!disk.take_watch_ready(), "told once a sleep");
    }
    reader.read_exact(&mut [0; 2]).unwrap();
    // One poll was not armed again yet, so this is quiet.
    sleep(&mut disk, &watch, Duration::from_millis(10));
    assert!(!disk.take_watch_ready());
}

#[test]
fn a_writer_in_another_thread_is_never_missed() {
    let mut disk = uring();
    let (_dir, _file) = prepared(&mut disk);
    let (mut reader, mut writer) = UnixStream::pair().unwrap();
    let (mut back, mut forth) = UnixStream::pair().unwrap();
    let watch = epoll(&[reader.as_raw_fd()]);
    let other = std::thread::spawn(move || {
        for _ in 0..2000 {
            writer.write_all(b"x").unwrap();
            back.read_exact(&mut [0]).unwrap();
        }
    });
    let (mut told, mut read, mut in_flight) = (0, 0, false);
    while told < 2000 {
        if !in_flight {
            disk.push(told, op(Kind::Read, 0, block(0)));
            in_flight = true;
        }
        let start = Instant::now();
        sleep(&mut disk, &watch, LOST);
        assert!(start.elapsed() < LOST, "a wakeup was lost after {told}");
        while disk.reap().is_some() {
            (read, in_flight) = (read + 1, false);
        }
        if disk.take_watch_ready() && wait_readable(&reader, Duration::ZERO) {
            reader.read_exact(&mut [0]).unwrap();
            forth.write_all(b"y").unwrap();
            told += 1;
        }
    }
    other.join().unwrap();
    assert!(read > 0);
}

#[test]
fn the_engine_is_chosen_by_name_or_by_what_works() {
    assert_eq!(named("uring").unwrap(), EngineKind::Uring);
    assert_eq!(named("aio").unwrap(), EngineKind::Aio);
    let text = named("posix").unwrap_err().to_string();
    assert!(text.contains("posix") && text.contains("uring or aio"), "{text}");
    if std::env::var_os("TAPDISK_ENGINE").is_some() {
        eprintln!("SKIPPED, TAPDISK_ENGINE is set: the_engine_is_chosen_by_name_or_by_what_works");
        return;
    }
    let arena = || Arena::new(65536).unwrap();
    let chosen = choose(arena(), 16, 1, Some(EngineKind::Aio)).unwrap();
    assert_eq!(chosen.disk.name(), "linux-aio");
    let best = choose(arena(), 16, 1, None).unwrap();
    assert!(best.why.contains(best.disk.name()), "{}", best.why);
    let many = choose(arena(), 1 << 20, 1, Some(EngineKind::Aio));
    let text = many.err().expect("a million is above fs.aio-max-nr").to_string();
    assert!(text.contains("fs.aio-max-nr"), "{text}");
}
