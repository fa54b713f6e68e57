//! Nothing is allocated between open and drop.
use std::os::unix::net::UnixStream;
use std::time::Duration;

use disk::probe::AnyDisk;
use host::arena::Buf;
use request::disk::{Disk, Kind};
use test_support::sys::wait_readable;

use super::support::{BLOCK, DEPTH, LOST, block, direct, directory, give, on_each, op};
use crate::counting;

/// The full depth of all kinds, by `wait`.
fn turns(disk: &mut AnyDisk, wait: impl Fn(&mut AnyDisk)) {
    for _ in 0..50 {
        for tag in 0..DEPTH {
            let at = u64::from(tag * BLOCK);
            disk.push(
                tag,
                match tag % 8 {
                    0 => op(Kind::Sync, 0, Buf::NONE),
                    1 => op(Kind::Grow { bytes: 4096 }, at, Buf::NONE),
                    2 => op(Kind::Zero { bytes: 4096, punch: true }, at, Buf::NONE),
                    3..6 => op(Kind::Write, at, block(tag)),
                    _ => op(Kind::Read, at, block(tag)),
                },
            );
        }
        let mut left = DEPTH;
        while left > 0 {
            wait(disk);
            while let Some((_, result)) = disk.reap() {
                assert!(result.is_ok());
                left -= 1;
            }
        }
    }
}

fn allocations(work: impl FnOnce()) -> u64 {
    counting::calls();
    counting::watch(true);
    work();
    counting::watch(false);
    counting::calls()
}

#[test]
fn pushing_submitting_and_reaping_allocate_nothing() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        file.set_len(1 << 20).unwrap();
        give(&mut disk, &[&file]);
        let polled = allocations(|| {
            turns(&mut disk, |disk| {
                disk.submit().unwrap();
                assert!(disk.has_finished() || wait_readable(&disk.wake_fd(), LOST));
            });
        });
        assert_eq!(polled, 0);
        let (quiet, _other) = UnixStream::pair().unwrap();
        let watch = super::wait::epoll(&[std::os::fd::AsRawFd::as_raw_fd(&quiet)]);
        let watch = std::os::fd::AsRawFd::as_raw_fd(&watch);
        if disk.submit_and_wait(watch, Duration::ZERO).is_some() {
            let slept = allocations(|| {
                turns(&mut disk, |disk| disk.submit_and_wait(watch, LOST).unwrap().unwrap());
            });
            assert_eq!(slept, 0);
        }
    });
}

#[test]
fn the_counter_counts() {
    assert_ne!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 0);
}
