//! What an older or busier kernel does, tried on this one. The rest is in tests/disk_engines.
use std::os::fd::AsRawFd;

use super::*;
use crate::disk::FileId;
use crate::pool::Buf;

const DEPTH: u32 = 1024;

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
    disk.set_files(&[file.as_raw_fd()]).unwrap();
    let depth = disk.depth;
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
    // An eventfd has no flush: refused by the kernel, tried by the lane, and refused again.
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
    disk.set_files(&[file.as_raw_fd()]).unwrap();
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
        disk.set_files(&[file.as_raw_fd()]).unwrap();
        for tag in 0..8 {
            let kind = if tag % 2 == 0 { Kind::Sync } else { Kind::Grow { bytes: 512 } };
            disk.push(tag, op(kind, tag));
        }
        disk.submit().unwrap();
    }
}
