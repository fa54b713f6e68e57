//! The footer: 512 bytes at the end of every image and, unless it is fixed, once more at offset 0.
//!
//! Opening asks for little (cookie and checksum, §2.1); the strict list is in [`mod@crate::check`].
use crate::bytes::{checksum, put, take, u8_at, u32_at, u64_at};
use crate::geometry::Geometry;

/// Bytes of a footer.
pub const FOOTER_BYTES: usize = 512;
/// Cookie of a footer.
pub const COOKIE: [u8; 8] = *b"conectix";
/// Cookie while a journaled resize runs (§13).
pub const POISON: [u8; 8] = *b"v_poison";
/// Seconds from the epoch of Unix to 2000-01-01 00:00:00 UTC, the epoch of VHD time stamps.
pub const EPOCH_2000: u64 = 946_684_800;
/// Creator application of XenServer's tools.
pub const TAP: [u8; 4] = *b"tap\0";
/// The creator version this crate writes, and the newest it opens for I/O (§2.2).
pub const TAP_VERSION: u32 = 0x0001_0003;
/// Largest disk: 2040 GiB (§8.1).
pub const DISK_BYTES_MAX: u64 = 2040 << 30;

const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;

/// The type of a disk (§1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// Type 0.
    None,
    /// All bytes, then a footer.
    Fixed,
    /// Blocks allocated as they are written.
    Dynamic,
    /// Dynamic over a parent.
    Differencing,
    /// Reserved values of the published format.
    Other(u32),
}

impl DiskType {
    /// From the field of a footer.
    pub fn from_code(code: u32) -> DiskType {
        match code {
            0 => DiskType::None,
            2 => DiskType::Fixed,
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => DiskType::Other(other),
        }
    }

    /// For the field of a footer.
    pub fn code(self) -> u32 {
        match self {
            DiskType::None => 0,
            DiskType::Fixed => 2,
            DiskType::Dynamic => 3,
            DiskType::Differencing => 4,
            DiskType::Other(code) => code,
        }
    }

    /// Whether it has a header and a block allocation table.
    pub fn is_dynamic(self) -> bool {
        matches!(self, DiskType::Dynamic | DiskType::Differencing)
    }
}

/// Why 512 bytes are not a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterFault {
    /// Neither `conectix` nor `v_poison`.
    Cookie,
    /// The bytes do not add up.
    Checksum,
}

/// A footer. Fields nobody interprets are kept, so that rewriting one changes only what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// [`COOKIE`] or [`POISON`].
    pub cookie: [u8; 8],
    /// Feature bits; 2 is always set.
    pub features: u32,
    /// File format version, 0x00010000.
    pub version: u32,
    /// Byte offset of the dynamic header; all ones for fixed disks.
    pub data_offset: u64,
    /// Time of creation, seconds since 2000.
    pub timestamp: u32,
    /// Creator application.
    pub creator: [u8; 4],
    /// Creator version.
    pub creator_version: u32,
    /// Creator host OS.
    pub creator_os: u32,
    /// Size at creation, bytes.
    pub original_bytes: u64,
    /// Size of the disk, bytes: the only authority.
    pub current_bytes: u64,
    /// Geometry.
    pub geometry: Geometry,
    /// Disk type.
    pub kind: DiskType,
    /// Checksum as stored.
    pub checksum: u32,
    /// Unique id, in text order.
    pub uuid: [u8; 16],
    /// Saved state.
    pub saved: u8,
    /// XenServer: a parent without a virtual disk of its own.
    pub hidden: u8,
    /// The rest.
    pub reserved: [u8; 426],
}

impl Footer {
    /// A new footer of creator `tap` with all other fields at what the original writes.
    pub fn new(kind: DiskType, bytes: u64, uuid: [u8; 16], timestamp: u32) -> Footer {
        Footer {
            cookie: COOKIE,
            features: 2,
            version: 0x0001_0000,
            data_offset: if kind == DiskType::Fixed { u64::MAX } else { FOOTER_BYTES as u64 },
            timestamp,
            creator: TAP,
            creator_version: TAP_VERSION,
            creator_os: 0,
            original_bytes: bytes,
            current_bytes: bytes,
            geometry: Geometry::of(bytes / 512),
            kind,
            checksum: 0,
            uuid,
            saved: 0,
            hidden: 0,
            reserved: [0; 426],
        }
    }

    /// The fields, whatever they hold. A slice of 511 bytes counts as ending in a zero (§2.3).
    pub fn decode(bytes: &[u8]) -> Footer {
        Footer {
            cookie: take(bytes, 0),
            features: u32_at(bytes, 8),
            version: u32_at(bytes, 12),
            data_offset: u64_at(bytes, 16),
            timestamp: u32_at(bytes, 24),
            creator: take(bytes, 28),
            creator_version: u32_at(bytes, 32),
            creator_os: u32_at(bytes, 36),
            original_bytes: u64_at(bytes, 40),
            current_bytes: u64_at(bytes, 48),
            geometry: Geometry::from_word(u32_at(bytes, 56)),
            kind: DiskType::from_code(u32_at(bytes, 60)),
            checksum: u32_at(bytes, CHECKSUM_AT),
            uuid: take(bytes, 68),
            saved: u8_at(bytes, 84),
            hidden: u8_at(bytes, HIDDEN_AT),
            reserved: take(bytes, 86),
        }
    }

    /// The fields, if the bytes are a footer at all.
    ///
    /// # Errors
    /// Cookie or checksum (§2.1).
    pub fn parse(bytes: &[u8]) -> Result<Footer, FooterFault> {
        let footer = Footer::decode(bytes);
        if footer.cookie != COOKIE && footer.cookie != POISON {
            return Err(FooterFault::Cookie);
        }
        if footer.computed_checksum() == footer.checksum || footer.legacy_hidden() {
            return Ok(footer);
        }
        Err(FooterFault::Checksum)
    }

    /// The bytes, with a fresh checksum.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut out = self.raw();
        let sum = checksum(&out, Some(CHECKSUM_AT));
        put(&mut out, CHECKSUM_AT, &sum.to_be_bytes());
        out
    }

    /// The checksum these fields should have.
    pub fn computed_checksum(&self) -> u32 {
        checksum(&self.raw(), Some(CHECKSUM_AT))
    }

    /// Whether a XenServer tool made the image.
    pub fn by_tap(&self) -> bool {
        self.creator.starts_with(b"tap")
    }

    /// Whether a journaled resize was interrupted.
    pub fn poisoned(&self) -> bool {
        self.cookie == POISON
    }

    /// Early tools set the hidden byte without a new checksum (§2.1, corpus D22).
    fn legacy_hidden(&self) -> bool {
        if !self.early_tap() || self.hidden == 0 {
            return false;
        }
        let mut raw = self.raw();
        put(&mut raw, HIDDEN_AT, &[0]);
        checksum(&raw, Some(CHECKSUM_AT)) == self.checksum
    }

    /// Creators whose hidden byte is taken from the copy at offset 0 (§2.3).
    pub fn early_tap(&self) -> bool {
        self.by_tap() && matches!(self.creator_version, 0x0000_0001 | 0x0001_0001)
    }

    /// The bytes, with the checksum as it stands.
    pub(crate) fn raw(&self) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        put(&mut out, 0, &self.cookie);
        put(&mut out, 8, &self.features.to_be_bytes());
        put(&mut out, 12, &self.version.to_be_bytes());
        put(&mut out, 16, &self.data_offset.to_be_bytes());
        put(&mut out, 24, &self.timestamp.to_be_bytes());
        put(&mut out, 28, &self.creator);
        put(&mut out, 32, &self.creator_version.to_be_bytes());
        put(&mut out, 36, &self.creator_os.to_be_bytes());
        put(&mut out, 40, &self.original_bytes.to_be_bytes());
        put(&mut out, 48, &self.current_bytes.to_be_bytes());
        put(&mut out, 56, &self.geometry.word().to_be_bytes());
        put(&mut out, 60, &self.kind.code().to_be_bytes());
        put(&mut out, CHECKSUM_AT, &self.checksum.to_be_bytes());
        put(&mut out, 68, &self.uuid);
        put(&mut out, 84, &[self.saved, self.hidden]);
        put(&mut out, 86, &self.reserved);
        out
    }
}
