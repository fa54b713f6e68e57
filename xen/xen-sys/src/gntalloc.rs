//! `/dev/xen/gntalloc`: pages of ours that another domain may use. Back ends do not need it; test
//! front ends in dom0 do.
use std::mem::{offset_of, size_of};

use crate::ioc;

/// Where the device is.
pub const PATH: &str = "/dev/xen/gntalloc";

/// Allocates and grants pages; [`AllocGref`], followed by room for further references.
pub const IOCTL_ALLOC_GREF: u64 = ioc(b'G', 5, size_of::<AllocGref>());
/// Takes grants back; [`DeallocGref`].
pub const IOCTL_DEALLOC_GREF: u64 = ioc(b'G', 6, size_of::<DeallocGref>());

/// The other domain may write (`GNTALLOC_FLAG_WRITABLE`).
pub const FLAG_WRITABLE: u16 = 1;

/// Argument of [`IOCTL_ALLOC_GREF`] for one page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AllocGref {
    /// Who may use the pages.
    pub domid: u16,
    /// [`FLAG_WRITABLE`].
    pub flags: u16,
    /// Pages.
    pub count: u32,
    /// Out: the offset to map.
    pub index: u64,
    /// Out: the references, one a page.
    pub grefs: [u32; 1],
}

/// Argument of [`IOCTL_DEALLOC_GREF`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeallocGref {
    /// What allocating gave.
    pub index: u64,
    /// Pages.
    pub count: u32,
}

const _: () = {
    assert!(size_of::<AllocGref>() == 24 && offset_of!(AllocGref, flags) == 2);
    assert!(offset_of!(AllocGref, count) == 4 && offset_of!(AllocGref, index) == 8);
    assert!(offset_of!(AllocGref, grefs) == 16);
    assert!(size_of::<DeallocGref>() == 16 && offset_of!(DeallocGref, count) == 8);
    assert!(IOCTL_ALLOC_GREF == 0x18_4705 && IOCTL_DEALLOC_GREF == 0x10_4706);
};
