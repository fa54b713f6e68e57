//! The dynamic header: 1024 bytes that say where the block allocation table and the parent are.
use crate::bytes::{checksum, put, take, u32_at, u64_at};
use crate::locator::Locator;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 1024;
/// Block size of every image in use; the field is honoured all the same.
pub const BLOCK_BYTES: u32 = 2 << 20;
/// Smallest block size that is served.
pub const BLOCK_BYTES_MIN: u32 = 64 << 10;
/// Parent locators of a header.
pub const LOCATORS: usize = 8;

const COOKIE: [u8; 8] = *b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
const NAME_AT: usize = 64;
const LOCATORS_AT: usize = 576;
const LOCATOR_BYTES: usize = 24;

/// Why 1024 bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Not `cxsparse`.
    Cookie,
    /// The bytes do not add up.
    Checksum,
    /// Not 1.0.
    Version,
    /// Not all ones.
    DataOffset,
    /// Not a power of two from 64 KiB to 2 MiB.
    BlockSize,
    /// A locator of a platform nobody knows.
    Locator(usize),
}

impl HeaderFault {
    /// Whether the header is whole, so that reading it again changes nothing.
    pub fn adds_up(self) -> bool {
        !matches!(self, HeaderFault::Cookie | HeaderFault::Checksum)
    }

    /// The field that is wrong, and its offset in the header.
    pub fn field(self) -> (&'static str, u64) {
        match self {
            HeaderFault::Cookie => ("header cookie", 0),
            HeaderFault::Checksum => ("header checksum", 36),
            HeaderFault::Version => ("header version", 24),
            HeaderFault::DataOffset => ("header data offset", 8),
            HeaderFault::BlockSize => ("header block size", 32),
            HeaderFault::Locator(n) => {
                ("header locator platform code", (LOCATORS_AT + n * LOCATOR_BYTES) as u64)
            }
        }
    }
}

/// A header. Fields nobody interprets are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// `cxsparse`.
    pub cookie: [u8; 8],
    /// All ones.
    pub data_offset: u64,
    /// Byte offset of the block allocation table.
    pub table_offset: u64,
    /// Header version.
    pub version: u32,
    /// Entries of the table; at least the blocks of the disk.
    pub max_entries: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Checksum as stored.
    pub checksum: u32,
    /// Unique id of the parent; zeros on a differencing disk mean a raw parent.
    pub parent_uuid: [u8; 16],
    /// Modification time of the parent, seconds since 2000.
    pub parent_timestamp: u32,
    /// Reserved.
    pub reserved: u32,
    /// Base name of the parent, UTF-16BE, as stored.
    pub parent_name: [u8; 512],
    /// Where the parent may be.
    pub locators: [Locator; LOCATORS],
    /// Reserved.
    pub reserved_end: [u8; 256],
}

impl Header {
    /// The header of a disk without parent.
    pub fn new(table_offset: u64, max_entries: u32, block_bytes: u32) -> Header {
        Header {
            cookie: COOKIE,
            data_offset: u64::MAX,
            table_offset,
            version: VERSION,
            max_entries,
            block_bytes,
            checksum: 0,
            parent_uuid: [0; 16],
            parent_timestamp: 0,
            reserved: 0,
            parent_name: [0; 512],
            locators: [Locator::default(); LOCATORS],
            reserved_end: [0; 256],
        }
    }

    /// The fields, whatever they hold.
    pub fn decode(bytes: &[u8]) -> Header {
        Header {
            cookie: take(bytes, 0),
            data_offset: u64_at(bytes, 8),
            table_offset: u64_at(bytes, 16),
            version: u32_at(bytes, 24),
            max_entries: u32_at(bytes, 28),
            block_bytes: u32_at(bytes, 32),
            checksum: u32_at(bytes, CHECKSUM_AT),
            parent_uuid: take(bytes, 40),
            parent_timestamp: u32_at(bytes, 56),
            reserved: u32_at(bytes, 60),
            parent_name: take(bytes, NAME_AT),
            locators: std::array::from_fn(|n| {
                Locator::decode(&take::<LOCATOR_BYTES>(bytes, LOCATORS_AT + n * LOCATOR_BYTES))
            }),
            reserved_end: take(bytes, 768),
        }
    }

    /// The fields, if the bytes are a header this crate can serve.
    ///
    /// # Errors
    /// The first field that rules it out.
    pub fn parse(bytes: &[u8]) -> Result<Header, HeaderFault> {
        let header = Header::decode(bytes);
        match header.fault() {
            Some(fault) => Err(fault),
            None => Ok(header),
        }
    }

    /// The first thing wrong with it, in the order of the strict list.
    pub fn fault(&self) -> Option<HeaderFault> {
        let block = self.block_bytes;
        if self.cookie != COOKIE {
            Some(HeaderFault::Cookie)
        } else if self.computed_checksum() != self.checksum {
            Some(HeaderFault::Checksum)
        } else if self.version != VERSION {
            Some(HeaderFault::Version)
        } else if self.data_offset != u64::MAX {
            Some(HeaderFault::DataOffset)
        } else if !block.is_power_of_two() || !(BLOCK_BYTES_MIN..=BLOCK_BYTES).contains(&block) {
            Some(HeaderFault::BlockSize)
        } else {
            self.locators.iter().position(|l| !l.code_known()).map(HeaderFault::Locator)
        }
    }

    /// What a header whose bytes add up has that nothing here can serve; `None` for a damaged one.
    pub fn unsupported(&self, fault: HeaderFault) -> Option<String> {
        let (major, minor) = (self.version >> 16, self.version & 0xffff);
        match fault {
            HeaderFault::Cookie | HeaderFault::Checksum => None,
            HeaderFault::Version => Some(format!("is {major}.{minor}; only 1.0 is supported")),
            HeaderFault::DataOffset => {
                let at = self.data_offset;
                Some(format!("is {at:#x}; nothing that follows a header is supported"))
            }
            HeaderFault::BlockSize => {
                let bytes = self.block_bytes;
                let which = "powers of two from 64 KiB to 2 MiB are supported";
                Some(format!("is {bytes} bytes; {which}"))
            }
            HeaderFault::Locator(n) => {
                let code = self.locators.get(n).map_or(0, |l| l.code);
                Some(format!("is {code:#010x}; locators of this kind are not supported"))
            }
        }
    }

    /// The bytes, with a fresh checksum.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = self.raw();
        let sum = checksum(&out, Some(CHECKSUM_AT));
        put(&mut out, CHECKSUM_AT, &sum.to_be_bytes());
        out
    }

    /// The checksum these fields should have.
    pub fn computed_checksum(&self) -> u32 {
        checksum(&self.raw(), Some(CHECKSUM_AT))
    }

    /// Bytes of the table, rounded up to a sector.
    pub fn table_bytes(&self) -> u64 {
        (u64::from(self.max_entries) * 4).next_multiple_of(512)
    }

    /// Where the batmap header lies: behind the table, rounded up to a sector (§7.1).
    pub fn batmap_at(&self) -> Option<u64> {
        let end = self.table_offset.checked_add(u64::from(self.max_entries) * 4)?;
        end.checked_next_multiple_of(512)
    }

    /// Bytes of a block's sector bitmap, rounded up to a sector.
    pub fn bitmap_bytes(&self) -> u64 {
        u64::from(self.block_bytes / 512).div_ceil(8).next_multiple_of(512)
    }

    /// Blocks of a disk of that many bytes; the last may be partial.
    pub fn blocks(&self, disk_bytes: u64) -> u64 {
        disk_bytes.div_ceil(u64::from(self.block_bytes.max(1)))
    }

    /// Base name of the parent, empty if there is none; what is not UTF-16 is replaced, and
    /// what would steer a terminal written out.
    pub fn parent_name_text(&self) -> String {
        let units = self.parent_name.chunks_exact(2).map(|c| u16::from_be_bytes(take(c, 0)));
        let units: Vec<u16> = units.take_while(|u| *u != 0).collect();
        show::line(String::from_utf16_lossy(&units).as_bytes()).into_owned()
    }

    /// Sets the base name of the parent; false if it is longer than 255 UTF-16 units.
    #[must_use]
    pub fn set_parent_name(&mut self, name: &str) -> bool {
        let bytes: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        self.parent_name = [0; 512];
        put(&mut self.parent_name, 0, &bytes);
        bytes.len() <= 510
    }

    fn raw(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put(&mut out, 0, &self.cookie);
        put(&mut out, 8, &self.data_offset.to_be_bytes());
        put(&mut out, 16, &self.table_offset.to_be_bytes());
        put(&mut out, 24, &self.version.to_be_bytes());
        put(&mut out, 28, &self.max_entries.to_be_bytes());
        put(&mut out, 32, &self.block_bytes.to_be_bytes());
        put(&mut out, CHECKSUM_AT, &self.checksum.to_be_bytes());
        put(&mut out, 40, &self.parent_uuid);
        put(&mut out, 56, &self.parent_timestamp.to_be_bytes());
        put(&mut out, 60, &self.reserved.to_be_bytes());
        put(&mut out, NAME_AT, &self.parent_name);
        for (n, locator) in self.locators.iter().enumerate() {
            put(&mut out, LOCATORS_AT + n * LOCATOR_BYTES, &locator.encode());
        }
        put(&mut out, 768, &self.reserved_end);
        out
    }
}
