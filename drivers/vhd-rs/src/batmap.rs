//! XenServer's batmap: one bit per block, set when every sector of the block is present, so that
//! its bitmap need not be read. A hint: a clear bit is always safe, a wrong set bit is corruption.
//!
//! Map and checksum lie in different sectors, so no single write changes both. A checksum of a map
//! without marks therefore says that there are none, whatever the map holds: the marks go with it
//! in one sector, and come back with it when the new map is on the disk.
//! ```text
//!   opened for writing  checksum "no marks" ─► (a flush) ─► zeros into the map
//!   closed              new map             ─► (a flush) ─► its checksum
//! ```
//! The zeros are for other programs, which compare: to them, too, the image is right while it is in
//! use.
//!
//! ```
//! use vhd_rs::{BatmapState, OpenOptions, batmap, files, fill, lock, open};
//!
//! let dir = tempfile::tempdir()?;
//! let name = dir.path().join("disk.vhd");
//! files::create(&name, 8 << 20, None, false)?;
//! let file = lock::open_to_change(&name, lock::Others::Refuse)?;
//! fill::mark(&file, &name, Some(0..=4095))?; // the first block, all of it
//!
//! let opened = open(&file, &name, &OpenOptions::default())?;
//! assert!(matches!(opened.batmap, BatmapState::Valid { .. }));
//! assert!(batmap::is_full(&opened.full, 0) && !batmap::is_full(&opened.full, 1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
use crate::bytes::{checksum, checksum_signed, put, take, u8_at, u32_at, u64_at};

/// Bytes of a batmap header.
pub const BATMAP_HEADER_BYTES: usize = 512;
/// Largest map: one bit for each of the entries a table may have.
pub const MAP_SECTORS_MAX: u32 = (crate::bat::ENTRIES_MAX / 8 / 512) + 1;

const COOKIE: [u8; 8] = *b"tdbatmap";
/// Version whose checksum sums signed bytes.
const VERSION_SIGNED: u32 = 0x0001_0001;
/// The version that is written.
const VERSION: u32 = 0x0001_0002;
/// The checksum of a map without marks, in any version.
const NO_MARKS: u32 = u32::MAX;

/// The hash that tells whether a key fits an encrypted image (§7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// 32 bytes hashed before the key.
    pub nonce: [u8; 32],
    /// SHA-256 of nonce and key.
    pub hash: [u8; 32],
}

impl KeyHash {
    /// As the attribute of an image without batmap holds it: a flag, the nonce, the hash.
    pub fn encode(&self) -> Vec<u8> {
        [&[1][..], &self.nonce, &self.hash].concat()
    }

    /// From such bytes; `None` if they are none or the flag is clear.
    pub fn parse(bytes: &[u8]) -> Option<KeyHash> {
        let (flag, rest) = bytes.split_first()?;
        let (nonce, hash) = rest.split_first_chunk::<32>()?;
        let hash = hash.try_into().ok()?;
        (*flag != 0).then_some(KeyHash { nonce: *nonce, hash })
    }
}

/// Why there is no valid batmap where one belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatmapFault {
    /// Not `tdbatmap`.
    Cookie,
    /// Newer than 1.2.
    Version,
    /// No sectors, or more than any table needs.
    Size,
    /// The map lies outside the file or upon other metadata.
    Place,
    /// The map does not add up.
    Checksum,
}

impl BatmapFault {
    /// The reason as `vhd-util check` words it.
    pub fn text(self) -> &'static str {
        match self {
            BatmapFault::Cookie => "invalid cookie",
            BatmapFault::Version => "unsupported version",
            BatmapFault::Size => "invalid size",
            BatmapFault::Place => "invalid map location",
            BatmapFault::Checksum => "invalid checksum",
        }
    }
}

/// The header before a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatmapHeader {
    /// `tdbatmap`.
    pub cookie: [u8; 8],
    /// Byte offset of the map.
    pub map_offset: u64,
    /// Sectors of the map.
    pub map_sectors: u32,
    /// Version.
    pub version: u32,
    /// Checksum of the map, as stored.
    pub checksum: u32,
    /// A byte nobody uses any more (§7.2).
    pub marker: u8,
    /// 1 if the image is encrypted.
    pub key_flag: u8,
    /// Nonce of the key hash.
    pub nonce: [u8; 32],
    /// Key hash.
    pub hash: [u8; 32],
}

impl BatmapHeader {
    /// A header for the map behind it.
    pub fn new(header_at: u64, max_entries: u32) -> BatmapHeader {
        BatmapHeader {
            cookie: COOKIE,
            map_offset: header_at.saturating_add(BATMAP_HEADER_BYTES as u64),
            map_sectors: map_sectors(max_entries),
            version: VERSION,
            checksum: 0,
            marker: 0,
            key_flag: 0,
            nonce: [0; 32],
            hash: [0; 32],
        }
    }

    /// The fields, whatever they hold.
    pub fn decode(bytes: &[u8]) -> BatmapHeader {
        BatmapHeader {
            cookie: take(bytes, 0),
            map_offset: u64_at(bytes, 8),
            map_sectors: u32_at(bytes, 16),
            version: u32_at(bytes, 20),
            checksum: u32_at(bytes, 24),
            marker: u8_at(bytes, 28),
            key_flag: u8_at(bytes, 29),
            nonce: take(bytes, 30),
            hash: take(bytes, 62),
        }
    }

    /// The fields, if they describe a batmap.
    ///
    /// # Errors
    /// Cookie, version or size.
    pub fn parse(bytes: &[u8]) -> Result<BatmapHeader, BatmapFault> {
        let header = BatmapHeader::decode(bytes);
        if header.cookie != COOKIE {
            Err(BatmapFault::Cookie)
        } else if header.version > VERSION {
            Err(BatmapFault::Version)
        } else if header.map_sectors == 0 || header.map_sectors > MAP_SECTORS_MAX {
            Err(BatmapFault::Size)
        } else {
            Ok(header)
        }
    }

    /// The bytes, with the checksum as it stands.
    pub fn encode(&self) -> [u8; BATMAP_HEADER_BYTES] {
        let mut out = [0; BATMAP_HEADER_BYTES];
        put(&mut out, 0, &self.cookie);
        put(&mut out, 8, &self.map_offset.to_be_bytes());
        put(&mut out, 16, &self.map_sectors.to_be_bytes());
        put(&mut out, 20, &self.version.to_be_bytes());
        put(&mut out, 24, &self.checksum.to_be_bytes());
        put(&mut out, 28, &[self.marker, self.key_flag]);
        put(&mut out, 30, &self.nonce);
        put(&mut out, 62, &self.hash);
        out
    }

    /// The key hash, if the image is encrypted.
    pub fn key_hash(&self) -> Option<KeyHash> {
        (self.key_flag != 0).then_some(KeyHash { nonce: self.nonce, hash: self.hash })
    }

    /// Takes over a key hash.
    pub fn set_key_hash(&mut self, key: &KeyHash) {
        self.key_flag = 1;
        self.nonce = key.nonce;
        self.hash = key.hash;
    }

    /// Whether no block is marked, whatever the map holds.
    pub fn says_nothing(&self) -> bool {
        self.checksum == NO_MARKS
    }

    /// The same header without marks.
    pub(crate) fn without_marks(&self) -> BatmapHeader {
        BatmapHeader { checksum: NO_MARKS, ..self.clone() }
    }

    /// Byte after the map.
    pub fn map_end(&self) -> u64 {
        self.map_offset.saturating_add(u64::from(self.map_sectors) * 512)
    }

    /// Whether `map` counts as nothing, or has the stored checksum, over the range the original
    /// sums (§7.1) or over all of it: writers differ just above multiples of 8 GiB (corpus E11).
    pub fn matches(&self, map: &[u8], disk_bytes: u64, block_bytes: u32) -> bool {
        let some = summed_bytes(disk_bytes, block_bytes).min(map.len());
        let sums = [map.get(..some).unwrap_or(map), map];
        self.says_nothing() || sums.iter().any(|map| self.sum(map) == self.checksum)
    }

    /// The checksum the original would store for `map`.
    pub fn checksum_of(&self, map: &[u8], disk_bytes: u64, block_bytes: u32) -> u32 {
        let some = summed_bytes(disk_bytes, block_bytes).min(map.len());
        self.sum(map.get(..some).unwrap_or(map))
    }

    fn sum(&self, map: &[u8]) -> u32 {
        match self.version {
            VERSION_SIGNED => checksum_signed(map),
            _ => checksum(map, None),
        }
    }
}

/// Sectors of a map for that many table entries.
pub fn map_sectors(max_entries: u32) -> u32 {
    max_entries.div_ceil(8).div_ceil(512).max(1)
}

/// Bytes of a map that the checksum covers: the number of *whole* map bytes, rounded up to a
/// sector, at least one. One sector short just above multiples of 8 GiB, and kept for
/// compatibility.
pub fn summed_bytes(disk_bytes: u64, block_bytes: u32) -> usize {
    let whole = disk_bytes / (8 * u64::from(block_bytes.max(1)));
    usize::try_from(whole.div_ceil(512).max(1) * 512).unwrap_or(usize::MAX)
}

/// Whether the bit of a block is set.
pub fn is_full(map: &[u8], block: u32) -> bool {
    let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at)).copied().unwrap_or(0);
    byte & (0x80 >> (block % 8)) != 0
}

/// Sets the bit of a block; beyond the map nothing happens.
pub fn set_full(map: &mut [u8], block: u32) {
    if let Some(byte) = usize::try_from(block / 8).ok().and_then(|at| map.get_mut(at)) {
        *byte |= 0x80 >> (block % 8);
    }
}

/// Clears the bit of a block; beyond the map nothing happens.
pub fn clear_full(map: &mut [u8], block: u32) {
    if let Some(byte) = usize::try_from(block / 8).ok().and_then(|at| map.get_mut(at)) {
        *byte &= !(0x80 >> (block % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_checksum_stops_one_sector_short_above_8_gib() {
        assert_eq!(summed_bytes(10 * MIB, 2 << 20), 512);
        assert_eq!(summed_bytes(8192 * MIB, 2 << 20), 512);
        assert_eq!(summed_bytes(8194 * MIB, 2 << 20), 512, "E11");
        assert_eq!(summed_bytes(8208 * MIB, 2 << 20), 1024);
        assert_eq!(map_sectors(4097), 2);
    }

    #[test]
    fn both_ranges_are_accepted() {
        let mut map = vec![0; 1024];
        set_full(&mut map, 4096);
        let mut header = BatmapHeader::new(2048, 4097);
        for sum in [checksum(&map[..512], None), checksum(&map, None)] {
            header.checksum = sum;
            assert!(header.matches(&map, 8194 * MIB, 2 << 20));
        }
        header.checksum ^= 1;
        assert!(!header.matches(&map, 8194 * MIB, 2 << 20));
    }

    #[test]
    fn version_1_1_sums_signed_bytes() {
        let mut header = BatmapHeader::new(2048, 8);
        header.version = VERSION_SIGNED;
        let mut map = vec![0; 512];
        map[0] = 0xff;
        header.checksum = 0;
        assert!(header.matches(&map, 16 * MIB, 2 << 20), "NOT of -1");
    }

    #[test]
    fn a_header_without_marks_fits_any_map() {
        for version in [VERSION_SIGNED, VERSION] {
            let header = BatmapHeader { version, ..BatmapHeader::new(2048, 8) }.without_marks();
            assert!(header.says_nothing() && header.matches(&[0x20; 512], 16 * MIB, 2 << 20));
            let sum = header.checksum_of(&[0; 512], 16 * MIB, 2 << 20);
            assert_eq!(sum, header.checksum, "which is that of an empty map");
        }
    }

    #[test]
    fn headers_survive_a_round_trip() {
        let mut header = BatmapHeader::new(2048, 8);
        header.marker = 200;
        header.set_key_hash(&KeyHash { nonce: [1; 32], hash: [2; 32] });
        let bytes = header.encode();
        assert_eq!(BatmapHeader::parse(&bytes), Ok(header));
        assert_eq!(BatmapHeader::parse(&[0; 512]), Err(BatmapFault::Cookie));
    }
}
