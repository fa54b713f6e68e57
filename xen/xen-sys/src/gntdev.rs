//! `/dev/xen/gntdev`: pages that another domain has granted are mapped, or copied from and to.
use std::mem::{offset_of, size_of};

use crate::ioc;

/// Where the device is.
pub const PATH: &str = "/dev/xen/gntdev";

/// Makes grants mappable; [`MapGrantRef`], followed by further references.
pub const IOCTL_MAP_GRANT_REF: u64 = ioc(b'G', 0, size_of::<MapGrantRef>());
/// Forgets what was mapped; [`UnmapGrantRef`].
pub const IOCTL_UNMAP_GRANT_REF: u64 = ioc(b'G', 1, size_of::<UnmapGrantRef>());
/// Copies between our memory and granted pages; [`GrantCopy`].
pub const IOCTL_GRANT_COPY: u64 = ioc(b'G', 8, size_of::<GrantCopy>());

/// A granted page, for mapping.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantRef {
    /// Who granted it.
    pub domid: u32,
    /// Its reference in that domain's grant table.
    pub gref: u32,
}

/// Argument of [`IOCTL_MAP_GRANT_REF`], with room for the pages of the largest ring (order 3).
/// The kernel declares one reference and reads `count` of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapGrantRefs {
    /// Head and first reference.
    pub first: MapGrantRef,
    /// References after the first.
    pub rest: [GrantRef; MAP_MAX - 1],
}

/// References that [`MapGrantRefs`] holds.
pub const MAP_MAX: usize = 8;

/// Argument of [`IOCTL_MAP_GRANT_REF`] as the kernel declares it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapGrantRef {
    /// How many references follow.
    pub count: u32,
    /// Unused.
    pub pad: u32,
    /// Out: the offset to map.
    pub index: u64,
    /// The first reference.
    pub refs: [GrantRef; 1],
}

/// Argument of [`IOCTL_UNMAP_GRANT_REF`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct UnmapGrantRef {
    /// What mapping gave.
    pub index: u64,
    /// How many pages.
    pub count: u32,
    /// Unused.
    pub pad: u32,
}

/// Argument of [`IOCTL_GRANT_COPY`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GrantCopy {
    /// How many segments.
    pub count: u32,
    /// The first of them.
    pub segments: *mut CopySegment,
}

/// One side of a copy: an address of ours, or a place in a granted page, by the flags of its
/// segment. The kernel declares a union of a pointer and [`Foreign`]; both have eight bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopySide(pub [u8; 8]);

/// A place in a granted page.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// The page's reference.
    pub gref: u32,
    /// Byte in the page.
    pub offset: u16,
    /// Who granted it.
    pub domid: u16,
}

/// A copy of up to a page. Neither side may cross a page of the other domain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopySegment {
    /// From.
    pub source: CopySide,
    /// To.
    pub dest: CopySide,
    /// Bytes.
    pub len: u16,
    /// [`SOURCE_GREF`] or [`DEST_GREF`]; copies between two places of ours are refused.
    pub flags: u16,
    /// Out: [`STATUS_OKAY`], or what is wrong.
    pub status: i16,
}

/// The source is a granted page (`GNTCOPY_source_gref`).
pub const SOURCE_GREF: u16 = 1;
/// The destination is a granted page (`GNTCOPY_dest_gref`).
pub const DEST_GREF: u16 = 2;

/// The copy was made (`GNTST_okay`).
pub const STATUS_OKAY: i16 = 0;
/// Anything else (`GNTST_general_error`).
pub const STATUS_GENERAL_ERROR: i16 = -1;
/// No such domain (`GNTST_bad_domain`).
pub const STATUS_BAD_DOMAIN: i16 = -2;
/// No such reference (`GNTST_bad_gntref`).
pub const STATUS_BAD_GNTREF: i16 = -3;
/// The domain did not grant that (`GNTST_permission_denied`).
pub const STATUS_PERMISSION_DENIED: i16 = -8;
/// The range leaves the page (`GNTST_bad_copy_arg`).
pub const STATUS_BAD_COPY_ARG: i16 = -10;

impl CopySide {
    /// An address of ours.
    pub fn local(address: usize) -> CopySide {
        CopySide((address as u64).to_ne_bytes())
    }

    /// A place in a granted page.
    pub fn foreign(place: Foreign) -> CopySide {
        let mut raw = [0; 8];
        raw[..4].copy_from_slice(&place.gref.to_ne_bytes());
        raw[4..6].copy_from_slice(&place.offset.to_ne_bytes());
        raw[6..].copy_from_slice(&place.domid.to_ne_bytes());
        CopySide(raw)
    }
}

const _: () = {
    assert!(size_of::<GrantRef>() == 8 && offset_of!(GrantRef, gref) == 4);
    assert!(size_of::<MapGrantRef>() == 24);
    assert!(offset_of!(MapGrantRef, index) == 8 && offset_of!(MapGrantRef, refs) == 16);
    assert!(size_of::<MapGrantRefs>() == 24 + 8 * (MAP_MAX - 1));
    assert!(offset_of!(MapGrantRefs, rest) == 24);
    assert!(size_of::<UnmapGrantRef>() == 16 && offset_of!(UnmapGrantRef, count) == 8);
    assert!(size_of::<Foreign>() == 8 && size_of::<CopySide>() == 8);
    assert!(offset_of!(Foreign, offset) == 4 && offset_of!(Foreign, domid) == 6);
    assert!(size_of::<CopySegment>() == 24 && offset_of!(CopySegment, dest) == 8);
    assert!(offset_of!(CopySegment, len) == 16 && offset_of!(CopySegment, flags) == 18);
    assert!(offset_of!(CopySegment, status) == 20);
    // A 32-bit kernel has other pointers; a local address would lie in the first four bytes.
    assert!(size_of::<usize>() == 8 && cfg!(target_endian = "little"));
    assert!(size_of::<GrantCopy>() == 16 && offset_of!(GrantCopy, segments) == 8);
    assert!(IOCTL_MAP_GRANT_REF == 0x18_4700);
    assert!(IOCTL_UNMAP_GRANT_REF == 0x10_4701);
    assert!(IOCTL_GRANT_COPY == 0x10_4708);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_of_a_copy_lie_where_the_kernel_reads_them() {
        assert_eq!(CopySide::local(0x1122_3344_5566_7788).0[0], 0x88);
        let place = Foreign { gref: 0x0403_0201, offset: 0x0605, domid: 0x0807 };
        assert_eq!(CopySide::foreign(place).0, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
