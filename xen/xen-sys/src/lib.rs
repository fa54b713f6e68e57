//! The ABI between a user-space block back end, the kernel's Xen devices and a guest: layouts and
//! numbers, each asserted at compile time, and the arithmetic of rings. No system call is made here
//! and nothing is unsafe; crate `xen` builds on it.
//!
//! | module | what | source of the facts |
//! |---|---|---|
//! | [`gntdev`] | `/dev/xen/gntdev`: map, unmap, grant copy | Linux `include/uapi/xen/gntdev.h`, Xen `public/grant_table.h` |
//! | [`gntalloc`] | `/dev/xen/gntalloc`: pages granted to others, for front ends in tests | Linux `include/uapi/xen/gntalloc.h` |
//! | [`evtchn`] | `/dev/xen/evtchn`: bind, unbind, notify | Linux `include/uapi/xen/evtchn.h` |
//! | [`blkif`] | requests and responses of the native, x86_32 and x86_64 protocols | Xen `public/io/blkif.h`, Linux `drivers/block/xen-blkback/common.h` |
//! | [`ring`] | the shared header and the index arithmetic | Xen `public/io/ring.h` |
#![forbid(unsafe_code)]

pub mod blkif;
pub mod evtchn;
pub mod gntalloc;
pub mod gntdev;
pub mod ring;

/// Bytes of a page that is granted. Xen's grants are of 4 KiB, whatever the kernel's pages are.
pub const PAGE_BYTES: usize = 4096;

/// `_IOC(_IOC_NONE, type, number, size)` of Linux `include/uapi/asm-generic/ioctl.h`: all calls of
/// the Xen devices are declared without a direction.
const fn ioc(kind: u8, number: u8, bytes: usize) -> u64 {
    (bytes as u64) << 16 | (kind as u64) << 8 | number as u64
}
