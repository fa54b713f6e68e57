//! What alignment the operations on an open file must have.
#![allow(unsafe_code)]
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::{SECTOR, UNIT_MAX};
use crate::files::is_direct;
use host::sys;

/// The alignment in bytes that offset and length of operations on `file` must have: the logical
/// sector of a block device; of a file with O_DIRECT what its file system says (statx, Linux 6.1)
/// or else the logical sector of the device below it; 512 for all that goes through the page cache
/// or says nothing. Control path: waits.
pub fn alignment_of(file: &File) -> u32 {
    let Ok(meta) = file.metadata() else { return SECTOR };
    let told = if meta.file_type().is_block_device() {
        sys::device_sector(file).ok()
    } else if is_direct(file.as_raw_fd()) {
        offset_align(file).or_else(|| sector_below(meta.dev()))
    } else {
        None
    };
    // A file system without O_DIRECT says 0.
    told.filter(|bytes| bytes.is_power_of_two()).map_or(SECTOR, |bytes| bytes.max(SECTOR))
}

/// `stx_dio_offset_align` of statx(2). The system call itself: dom0's C library is older than
/// statx.
fn offset_align(file: &File) -> Option<u32> {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is empty and ends, the kernel fills the structure; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    // SAFETY: plain numbers, and zero before the call.
    let answer = unsafe { answer.assume_init() };
    let there = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    there.then_some(answer.stx_dio_offset_align)
}

/// The logical sector of the block device that a file system is on, for kernels before 6.1. A
/// partition's queue is that of its disk.
fn sector_below(device: u64) -> Option<u32> {
    let disk = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let read = |queue: &str| std::fs::read_to_string(format!("{disk}/{queue}/logical_block_size"));
    let text = read("queue").or_else(|_| read("../queue")).ok()?;
    text.trim().parse().ok().filter(|bytes| *bytes <= UNIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_the_page_cache_needs_no_alignment() {
        assert_eq!(alignment_of(&tempfile::tempfile().unwrap()), SECTOR);
        assert_eq!(alignment_of(&File::open("/dev/null").unwrap()), SECTOR);
        assert_eq!(sector_below(0), None);
    }
}
