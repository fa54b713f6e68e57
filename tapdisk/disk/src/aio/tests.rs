//! What an older or busier kernel does, tried on this one. The rest is in tests/disk_engines.
use std::os::fd::{AsRawFd, FromRawFd};

use super::*;
use host::arena::Buf;
use request::disk::FileId;

const DEPTH: u32 = 1024;

/// The ring takes data of the page cache as well, if nobody else does.
fn use_ring_for(disk: &mut Aio, fd: RawFd) {
    disk.set_files(&[fd]).unwrap();
    disk.cache_workers = None;
}

fn open(depth: u32) -> Aio {
    Aio::open(Arena::new(depth as usize * 512).unwrap(), depth, 2).unwrap()
}

/// Waits for `count` results; sleeps only where the engine says it may.
fn finish(disk: &mut Aio, count: usize) -> Vec<Done> {
    let mut all = Vec::new();
    loop {
        disk.submit().unwrap();
        all.extend(std::iter::from_fn(|| disk.reap()));
        if all.len() == count {
            return all;
        }
        let mut poll = libc::pollfd { fd: disk.wake_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, which outlives the call.
        assert!(unsafe { libc::poll(&raw mut poll, 1, 20_000) } != 0, "a wakeup was lost");
    }
}

fn op(kind: Kind, index: u32) -> Op {
    let buf = Buf { offset: index * 512, bytes: 512 };
    Op { file: FileId(0), kind, at: u64::from(index) * 512, buf }
}

/// A full depth of writes, a flush, and reads of it.
fn exercise(disk: &mut Aio) {
    let file = tempfile::tempfile().unwrap();
    use_ring_for(disk, file.as_raw_fd());
    let depth = disk.flight.depth();
    for round in 0..5_u8 {
        for index in 0..depth {
            disk.arena().slice_mut(op(Kind::Write, index).buf).fill(round ^ index as u8);
            disk.push(index, op(Kind::Write, index));
        }
        let mut tags: Vec<Tag> = finish(disk, depth as usize)
            .into_iter()
            .inspect(|done| assert_eq!(done.1, Ok(512)))
            .map(|done| done.0)
            .collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..depth));
        disk.push(7, Op { buf: Buf::NONE, ..op(Kind::Sync, 0) });
        assert_eq!(finish(disk, 1), [(7, Ok(0))]);
        disk.push(8, Op { buf: op(Kind::Read, 0).buf, ..op(Kind::Read, 3) });
        assert_eq!(finish(disk, 1), [(8, Ok(512))]);
        assert!(disk.arena().slice(op(Kind::Read, 0).buf).iter().all(|&byte| byte == round ^ 3));
    }
}

#[test]
fn an_unknown_ring_is_asked_with_a_system_call() {
    let mut disk = open(100);
    assert!(disk.context.mapped, "this kernel's ring is known");
    disk.context.mapped = false;
    exercise(&mut disk);
}

#[test]
fn a_flush_the_kernel_refuses_goes_to_the_lane() {
    let mut disk = open(8);
    disk.sync_in_lane = true;
    exercise(&mut disk);
    // An eventfd has no flush: refused by the kernel, tried by the worker, and refused again.
    disk.sync_in_lane = false;
    let event = EventFd::new().unwrap();
    disk.set_files(&[event.raw()]).unwrap();
    disk.push(1, op(Kind::Sync, 0));
    assert_eq!(finish(&mut disk, 1), [(1, Err(libc::EINVAL))]);
    assert!(disk.sync_in_lane);
}

/// EAGAIN and half-taken submissions: a context far smaller than the depth.
#[test]
fn a_kernel_that_takes_a_part_gets_the_rest_later() {
    let mut disk = open(DEPTH);
    disk.context = Context::new(1).unwrap();
    exercise(&mut disk);
}

#[test]
fn what_the_kernel_does_not_take_wakes_the_caller() {
    let mut disk = open(8);
    let file = tempfile::tempfile().unwrap();
    use_ring_for(&mut disk, file.as_raw_fd());
    disk.push(1, op(Kind::Write, 0));
    disk.wake_if_stuck();
    let mut poll = libc::pollfd { fd: disk.wake_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 1);
    assert_eq!(finish(&mut disk, 1), [(1, Ok(512))]);
    disk.submit().unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0, "quiet again");
}

#[test]
fn dropping_with_operations_in_flight_waits_for_them() {
    for _ in 0..20 {
        let mut disk = open(8);
        let file = tempfile::tempfile().unwrap();
        use_ring_for(&mut disk, file.as_raw_fd());
        for tag in 0..8 {
            let kind = if tag % 2 == 0 { Kind::Sync } else { Kind::Grow { bytes: 512 } };
            disk.push(tag, op(kind, tag));
        }
        disk.submit().unwrap();
    }
}

/// Through the page cache: what is there comes at once, also without anything in flight; the rest
/// from the threads; writes as well.
#[test]
fn what_goes_through_the_page_cache_is_read_and_written_beside_the_ring() {
    use std::os::unix::fs::FileExt;
    let mut disk = open(64);
    let file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..64 * 512).map(|at| (at / 512) as u8).collect();
    file.write_all_at(&bytes, 0).unwrap();
    disk.set_files(&[file.as_raw_fd()]).unwrap();
    assert!(disk.cache_workers.is_some());
    for always_waits in [false, true] {
        disk.always_waits = always_waits;
        for index in 0..64 {
            disk.arena().slice_mut(op(Kind::Read, index).buf).fill(0xff);
            disk.push(index, op(Kind::Read, index));
            assert!(always_waits || disk.has_finished() || disk.always_waits, "it is in memory");
        }
        let done = finish(&mut disk, 64);
        assert!(done.iter().all(|done| done.1 == Ok(512)), "{done:?}");
        for index in 0..64 {
            let got = disk.arena().slice(op(Kind::Read, index).buf);
            assert!(got.iter().all(|byte| *byte == index as u8), "{index}");
        }
    }
    disk.arena().slice_mut(op(Kind::Write, 3).buf).fill(0x33);
    disk.push(1, op(Kind::Write, 3));
    disk.push(2, Op { at: 1 << 30, ..op(Kind::Read, 5) });
    let mut done = finish(&mut disk, 2);
    done.sort_unstable();
    assert_eq!(done, [(1, Ok(512)), (2, Ok(0))], "behind the end there is nothing");
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 3 * 512).unwrap();
    assert_eq!(sector, [0x33; 512]);
    // Without such files there are no threads for them, nor for what stands in for a remote layer.
    disk.set_files(&[EventFd::new().unwrap().raw()]).unwrap();
    assert!(disk.cache_workers.is_none());
    disk.set_files(&[]).unwrap();
    assert!(disk.cache_workers.is_none());
}

/// The server's way: an edge-triggered poll, each of whose wake-ups is taken at once.
#[test]
fn wakeups_taken_at_once_are_neither_lost_nor_told_for_ever() {
    let mut disk = open(8);
    let file = tempfile::tempfile().unwrap();
    use_ring_for(&mut disk, file.as_raw_fd());
    // SAFETY: takes and gives numbers; one structure, which outlives the call.
    let epoll = unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let edge = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events: edge, u64: 1 };
        let wake = disk.wake_fd();
        assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, wake, &raw mut event), 0);
        std::os::fd::OwnedFd::from_raw_fd(epoll)
    };
    let told = |ms| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event, which outlives the call.
        unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, ms) == 1 }
    };
    for mapped in [true, false] {
        disk.context.mapped = mapped;
        for round in 0..500_u32 {
            let count = round % 8 + 1;
            (0..count).for_each(|tag| disk.push(tag, op(Kind::Write, tag)));
            let mut all = 0;
            loop {
                disk.submit().unwrap();
                all += std::iter::from_fn(|| disk.reap()).count();
                if all == count as usize {
                    break;
                }
                assert!(told(20_000), "a wakeup was lost: {all} of {count}");
                disk.woken();
            }
        }
        // Signals of results that were taken before them may be told once more.
        while told(50) {
            disk.woken();
            disk.submit().unwrap();
        }
        assert!(!told(50) && disk.reap().is_none());
    }
}
