//! Space: growing, zeroing, punching and discarding, on files and on a loop device.
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::probe::AnyDisk;
use host::arena::Buf;
use request::disk::{Disk, Kind};
use test_support::places::root;

use super::support::{BLOCK, block, direct, directory, finish, give, on_each, one, op};

const MIB: u64 = 1 << 20;
/// What the filesystem may take for its own notes about holes (an extent block), counted as the
/// file's.
const NOTES: u64 = 65536;

/// Whether everything from `at` on reads as `byte`, past every cache.
fn reads_as(disk: &mut AnyDisk, at: u64, bytes: u64, byte: u8) -> bool {
    let step = u64::from(BLOCK);
    (at..at + bytes).step_by(BLOCK as usize).all(|place| {
        assert!(bytes.is_multiple_of(step));
        disk.arena().slice_mut(block(0)).fill(!byte);
        assert_eq!(one(disk, op(Kind::Read, place, block(0))), Ok(BLOCK));
        disk.arena().slice(block(0)).iter().all(|&read| read == byte)
    })
}

fn fill(disk: &mut AnyDisk, bytes: u64, byte: u8) {
    disk.arena().slice_mut(block(0)).fill(byte);
    for at in (0..bytes).step_by(BLOCK as usize) {
        assert_eq!(one(disk, op(Kind::Write, at, block(0))), Ok(BLOCK));
    }
    assert_eq!(one(disk, op(Kind::Sync, 0, Buf::NONE)), Ok(0));
}

fn space(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn growing_takes_space_and_leaves_the_length_alone() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        give(&mut disk, &[&file]);
        assert_eq!(one(&mut disk, op(Kind::Grow { bytes: MIB }, MIB, Buf::NONE)), Ok(0));
        assert_eq!(file.metadata().unwrap().len(), 0);
        assert!(space(&file) >= MIB);
        assert_eq!(one(&mut disk, op(Kind::Write, 2 * MIB, block(0))), Ok(BLOCK));
        assert_eq!(file.metadata().unwrap().len(), 2 * MIB + u64::from(BLOCK));
        assert!(reads_as(&mut disk, MIB, 16384, 0));
    });
}

#[test]
fn punching_gives_space_back_and_zeroing_keeps_it() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        give(&mut disk, &[&file]);
        fill(&mut disk, MIB, 0x77);
        let full = space(&file);
        let quarter = MIB / 4;
        let zero = |punch| Kind::Zero { bytes: quarter, punch };
        assert_eq!(one(&mut disk, op(zero(false), 0, Buf::NONE)), Ok(0));
        assert!(space(&file) >= full, "zeroing keeps the space");
        assert!(reads_as(&mut disk, 0, quarter, 0));
        assert_eq!(one(&mut disk, op(zero(true), quarter, Buf::NONE)), Ok(0));
        assert!(space(&file) + quarter <= full + NOTES, "punching gives it back");
        assert!(reads_as(&mut disk, quarter, quarter, 0));
        let discard = Kind::Discard { bytes: quarter };
        assert_eq!(one(&mut disk, op(discard, 2 * quarter, Buf::NONE)), Ok(0));
        assert!(space(&file) + 2 * quarter <= full + NOTES, "and so does a discard");
        assert!(reads_as(&mut disk, 3 * quarter, quarter, 0x77));
        assert_eq!(file.metadata().unwrap().len(), MIB, "the size stays");
    });
}

#[test]
fn zeros_behind_the_end_do_not_make_a_file_longer() {
    on_each(|mut disk| {
        let dir = directory();
        let file = direct(&dir.path().join("disk"));
        give(&mut disk, &[&file]);
        for punch in [true, false] {
            assert_eq!(one(&mut disk, op(Kind::Zero { bytes: MIB, punch }, 0, Buf::NONE)), Ok(0));
        }
        assert_eq!(file.metadata().unwrap().len(), 0);
    });
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`, said aloud, where there are no loop devices.
    fn attach(file: &Path) -> Option<Loop> {
        let tried = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match tried {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap();
                Some(Loop(PathBuf::from(path.trim())))
            }
            other => {
                eprintln!("SKIPPED, no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap();
        assert!(detached.success());
    }
}

/// Runs `body` with a loop device over a file of 1 MiB.
fn on_each_loop(name: &str, body: impl Fn(&mut AnyDisk, &File)) {
    if !root(name) {
        return;
    }
    on_each(|mut disk| {
        let dir = directory();
        let path = dir.path().join("backing");
        let backing = File::create(&path).unwrap();
        backing.set_len(MIB).unwrap();
        let Some(device) = Loop::attach(&path) else { return };
        let file = direct(&device.0);
        give(&mut disk, &[&file]);
        body(&mut disk, &backing);
        disk.set_files(&[]).unwrap();
    });
}

#[test]
fn a_block_device_zeroes_and_discards() {
    on_each_loop("a_block_device_zeroes_and_discards", |disk, backing| {
        fill(disk, MIB, 0x55);
        let full = space(backing);
        let bytes = MIB / 4;
        assert_eq!(one(disk, op(Kind::Discard { bytes }, 0, Buf::NONE)), Ok(0));
        assert!(space(backing) + bytes <= full + NOTES, "the discard reached the file");
        let keep = Kind::Zero { bytes, punch: false };
        assert_eq!(one(disk, op(keep, bytes, Buf::NONE)), Ok(0));
        assert!(reads_as(disk, bytes, bytes, 0));
        let punch = Kind::Zero { bytes, punch: true };
        assert_eq!(one(disk, op(punch, 2 * bytes, Buf::NONE)), Ok(0));
        assert!(reads_as(disk, 2 * bytes, bytes, 0));
        assert!(reads_as(disk, 3 * bytes, bytes, 0x55));
    });
}

#[test]
fn a_block_device_refuses_to_grow_and_odd_discards() {
    on_each_loop("a_block_device_refuses_to_grow_and_odd_discards", |disk, _| {
        let grow = Kind::Grow { bytes: MIB };
        assert_eq!(one(disk, op(grow, 0, Buf::NONE)), Err(libc::EOPNOTSUPP));
        let odd = Kind::Discard { bytes: 100 };
        assert_eq!(one(disk, op(odd, 0, Buf::NONE)), Err(libc::EINVAL));
    });
}

#[test]
fn discards_and_reads_of_a_block_device_run_at_full_depth() {
    on_each_loop("discards_and_reads_of_a_block_device_run_at_full_depth", |disk, _| {
        let bytes = u64::from(BLOCK);
        for _ in 0..20 {
            for tag in 0..32 {
                let at = u64::from(tag) * bytes;
                match tag % 2 {
                    0 => disk.push(tag, op(Kind::Discard { bytes }, at, Buf::NONE)),
                    _ => disk.push(tag, op(Kind::Read, at, block(tag))),
                }
            }
            let mut tags: Vec<_> = finish(disk, 32)
                .into_iter()
                .inspect(|(tag, result)| {
                    assert_eq!(*result, Ok(if tag % 2 == 0 { 0 } else { BLOCK }));
                })
                .map(|(tag, _)| tag)
                .collect();
            tags.sort_unstable();
            assert!(tags.into_iter().eq(0..32));
        }
    });
}
