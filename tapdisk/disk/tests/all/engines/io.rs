//! Reading, writing, flushing and their errors.
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use host::arena::Buf;
use request::disk::{Disk, FileId, Kind, Op};
use test_support::places::root;
use test_support::rng::Rng;

use super::support::{BLOCK, DEPTH, block, direct, directory, finish, give, on_each, one, op};

#[test]
fn what_was_written_is_read() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        give(&mut disk, &[&file]);
        disk.arena().slice_mut(block(0)).fill(0xa5);
        assert_eq!(one(&mut disk, op(Kind::Write, 8192, block(0))), Ok(BLOCK));
        assert_eq!(one(&mut disk, op(Kind::Sync, 0, Buf::NONE)), Ok(0));
        assert_eq!(one(&mut disk, op(Kind::Read, 8192, block(1))), Ok(BLOCK));
        assert!(disk.arena().slice(block(1)).iter().all(|&byte| byte == 0xa5));
        assert_eq!(one(&mut disk, op(Kind::Read, 0, block(2))), Ok(BLOCK));
        assert!(disk.arena().slice(block(2)).iter().all(|&byte| byte == 0));
    });
}

#[test]
fn a_read_at_the_end_is_short() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        file.set_len(u64::from(BLOCK) + 512).unwrap();
        give(&mut disk, &[&file]);
        let two = Buf { offset: 0, bytes: 2 * BLOCK };
        assert_eq!(one(&mut disk, op(Kind::Read, 0, two)), Ok(BLOCK + 512));
        assert_eq!(one(&mut disk, op(Kind::Read, 3 * u64::from(BLOCK), two)), Ok(0));
    });
}

#[test]
fn errors_come_back_as_errno_and_the_others_still_run() {
    on_each(|mut disk| {
        let dir = directory();
        let path = dir.path().join("disk");
        let file = direct(&path);
        file.set_len(1 << 20).unwrap();
        let mut options = OpenOptions::new();
        let reader = options.read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        give(&mut disk, &[&file, &reader]);
        let odd = Buf { offset: 1, bytes: 511 };
        disk.push(1, op(Kind::Read, 0, block(1)));
        disk.push(2, Op { file: FileId(1), ..op(Kind::Write, 0, block(2)) });
        disk.push(3, op(Kind::Write, 4096, odd));
        disk.push(4, op(Kind::Sync, 0, Buf::NONE));
        disk.push(5, op(Kind::Grow { bytes: 0 }, 0, Buf::NONE));
        disk.push(6, op(Kind::Read, u64::MAX - 4095, block(3)));
        disk.push(7, op(Kind::Write, 8192, block(4)));
        let results: HashMap<_, _> = finish(&mut disk, 7).into_iter().collect();
        assert_eq!(results[&1], Ok(BLOCK));
        assert_eq!(results[&2], Err(libc::EBADF));
        assert_eq!(results[&3], Err(libc::EINVAL));
        assert_eq!(results[&4], Ok(0));
        assert_eq!(results[&5], Err(libc::EINVAL));
        assert_eq!(results[&6], Err(libc::EINVAL));
        assert_eq!(results[&7], Ok(BLOCK));
    });
}

#[test]
fn a_flush_of_what_cannot_be_flushed_fails() {
    on_each(|mut disk| {
        let event = disk::worker::EventFd::new().unwrap();
        disk.set_files(&[event.raw()]).unwrap();
        assert_eq!(one(&mut disk, op(Kind::Sync, 0, Buf::NONE)), Err(libc::EINVAL));
    });
}

#[test]
fn more_files_than_promised_are_refused_and_the_old_ones_stay() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        file.set_len(1 << 20).unwrap();
        give(&mut disk, &[&file]);
        let fd = file.as_raw_fd();
        let error = disk.set_files(&[fd; 5]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert_eq!(one(&mut disk, op(Kind::Read, 0, block(0))), Ok(BLOCK));
    });
}

#[test]
fn files_are_replaced() {
    on_each(|mut disk| {
        let dir = directory();
        let files: Vec<File> =
            ["a", "b"].iter().map(|name| direct(&dir.path().join(name))).collect();
        for (index, file) in files.iter().enumerate() {
            give(&mut disk, &[file]);
            disk.arena().slice_mut(block(0)).fill(index as u8 + 1);
            assert_eq!(one(&mut disk, op(Kind::Write, 0, block(0))), Ok(BLOCK));
        }
        give(&mut disk, &[&files[1], &files[0]]);
        for expected in [2, 1] {
            let read = Op { file: FileId(2 - expected), ..op(Kind::Read, 0, block(1)) };
            assert_eq!(one(&mut disk, read), Ok(BLOCK));
            assert!(disk.arena().slice(block(1)).iter().all(|&byte| byte == expected));
        }
    });
}

/// A thousand operations, as many in flight as fit, against a model in memory. Blocks in flight are
/// not touched by a second operation, as the engine above promises.
#[test]
fn a_thousand_random_operations_agree_with_a_model() {
    for seed in [1, 2, 3] {
        eprintln!("seed {seed}");
        on_each(|mut disk| {
            let dir = directory();
            let file = direct(&dir.path().join("disk"));
            file.set_len(64 * u64::from(BLOCK)).unwrap();
            give(&mut disk, &[&file]);
            random_operations(&mut disk, &mut Rng::new(seed));
        });
    }
}

fn random_operations(disk: &mut disk::probe::AnyDisk, random: &mut Rng) {
    let mut model = [0_u8; 64];
    let mut left = 1000;
    while left > 0 {
        let count = (1 + random.below(u64::from(DEPTH)) as u32).min(left);
        left -= count;
        let mut places: Vec<u64> = (0..64).collect();
        let mut expected = HashMap::new();
        for slot in 0..count {
            let place = places.swap_remove(random.below(places.len() as u64) as usize);
            let (kind, fill) = random_kind(random);
            disk.arena().slice_mut(block(slot)).fill(fill.unwrap_or(0xee));
            if let Some(fill) = fill {
                model[place as usize] = fill;
            }
            let buf =
                if matches!(kind, Kind::Read | Kind::Write) { block(slot) } else { Buf::NONE };
            disk.push(1000 + slot, op(kind, place * u64::from(BLOCK), buf));
            expected.insert(1000 + slot, (kind, place, slot));
        }
        for (tag, result) in finish(disk, count as usize) {
            let (kind, place, slot) = expected.remove(&tag).expect("each tag once");
            match kind {
                Kind::Read => {
                    assert_eq!(result, Ok(BLOCK));
                    let read = disk.arena().slice(block(slot));
                    assert!(read.iter().all(|&byte| byte == model[place as usize]));
                }
                Kind::Write => assert_eq!(result, Ok(BLOCK)),
                _ => assert_eq!(result, Ok(0)),
            }
        }
        assert!(expected.is_empty());
    }
}

/// An operation on one block, and what the block is filled with by it.
fn random_kind(random: &mut Rng) -> (Kind, Option<u8>) {
    let bytes = u64::from(BLOCK);
    match random.below(10) {
        0..4 => (Kind::Read, None),
        4..7 => (Kind::Write, Some(random.below(256) as u8)),
        7 => (Kind::Sync, None),
        8 => (Kind::Zero { bytes, punch: random.below(2) == 0 }, Some(0)),
        _ => (Kind::Grow { bytes }, None),
    }
}

#[test]
fn a_full_disk_says_so() {
    if !root("a_full_disk_says_so mounts a tmpfs") {
        return;
    }
    on_each(|mut disk| {
        let dir = directory();
        let mount = dir.path();
        let options = ["-t", "tmpfs", "-o", "size=64k", "none"];
        let mounted = Command::new("mount").args(options).arg(mount).status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED, tmpfs cannot be mounted here: a_full_disk_says_so");
            return;
        }
        let file = File::options().read(true).write(true).create_new(true).open(mount.join("disk"));
        let file = file.unwrap();
        give(&mut disk, &[&file]);
        let grown = one(&mut disk, op(Kind::Grow { bytes: 1 << 20 }, 0, Buf::NONE));
        assert_eq!(one(&mut disk, op(Kind::Grow { bytes: 65536 }, 0, Buf::NONE)), Ok(0));
        let written = one(&mut disk, op(Kind::Write, 65536, block(0)));
        disk.set_files(&[]).unwrap();
        drop((disk, file));
        let unmounted = Command::new("umount").arg("-l").arg(mount).status().unwrap();
        assert!(unmounted.success());
        assert_eq!(grown, Err(libc::ENOSPC));
        assert_eq!(written, Err(libc::ENOSPC));
    });
}
