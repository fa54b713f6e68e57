//! The NBD protocol's numbers and its fixed-size messages, all big-endian: what the server
//! (`frontend::nbd`) and the client (`disk::remote`) share.
//!
//! Source: the public protocol document of the NetworkBlockDevice project (doc/proto.md); what the
//! original does differently is in control-socket.md §6.
#![forbid(unsafe_code)]
// Fields and numbers are called as they are there.
#![allow(missing_docs, reason = "the names are those of doc/proto.md")]

/// "NBDMAGIC", first word of every greeting.
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", second word of the newstyle greeting, first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second word of the oldstyle greeting.
pub const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First word of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the server's and the client's: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// No 124 zeros after EXPORT_NAME.
pub const NO_ZEROES: u16 = 1 << 1;

/// Options of the negotiation.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod answer {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = 0x8000_0001;
    pub const ERR_POLICY: u32 = 0x8000_0002;
    pub const ERR_INVALID: u32 = 0x8000_0003;
    pub const ERR_TLS_REQD: u32 = 0x8000_0005;
    pub const ERR_UNKNOWN: u32 = 0x8000_0006;
    pub const ERR_SHUTDOWN: u32 = 0x8000_0007;
    pub const ERR_BLOCK_SIZE_REQD: u32 = 0x8000_0008;
    pub const ERR_TOO_BIG: u32 = 0x8000_0009;
}

/// Pieces of information in a reply to INFO and GO.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod feature {
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod flag {
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of structured reply chunks.
pub mod chunk {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = 0x8001;
    pub const ERROR_OFFSET: u16 = 0x8002;
}

/// Name of the only metadata context.
pub const ALLOCATION: &[u8] = b"base:allocation";
/// Its number once selected.
pub const ALLOCATION_ID: u32 = 1;
/// State of a hole that reads as zeros in `base:allocation`: NBD_STATE_HOLE | NBD_STATE_ZERO.
pub const STATE_HOLE_ZERO: u32 = 3;

/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 28;
/// Longest read or write, and the maximum block size that is announced.
pub const REQUEST_DATA_MAX: u32 = 32 << 20;

/// Error numbers on the wire.
pub mod error {
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// The wire's number for a positive errno; anything it has no number for is EIO.
pub fn error_of(errno: i32) -> u32 {
    match errno {
        libc::EPERM | libc::EROFS | libc::EACCES => error::EPERM,
        libc::ENOMEM => error::ENOMEM,
        libc::EINVAL => error::EINVAL,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => error::ENOSPC,
        libc::EOVERFLOW => error::EOVERFLOW,
        libc::EOPNOTSUPP => error::ENOTSUP,
        libc::ESHUTDOWN => error::ESHUTDOWN,
        _ => error::EIO,
    }
}

/// The errno for a number on the wire that is not 0. Numbers that the protocol does not have are
/// EIO; the original sends negative ones (control-socket.md §6.4).
pub fn errno_of(number: u32) -> i32 {
    match (number as i32).unsigned_abs() {
        error::EPERM => libc::EPERM,
        error::ENOMEM => libc::ENOMEM,
        error::EINVAL => libc::EINVAL,
        error::ENOSPC => libc::ENOSPC,
        error::EOVERFLOW => libc::EOVERFLOW,
        error::ENOTSUP => libc::EOPNOTSUPP,
        error::ESHUTDOWN => libc::ESHUTDOWN,
        _ => libc::EIO,
    }
}

/// Bytes of a simple reply, without data.
pub const SIMPLE_BYTES: usize = 16;

/// A simple reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimpleReply {
    /// 0 is success.
    pub error: u32,
    pub cookie: u64,
}

impl SimpleReply {
    /// The reply in 16 bytes; `None` if its magic is wrong.
    pub fn parse(raw: &[u8; SIMPLE_BYTES]) -> Option<SimpleReply> {
        (u32_at(raw, 0) == SIMPLE_MAGIC)
            .then(|| SimpleReply { error: u32_at(raw, 4), cookie: u64_at(raw, 8) })
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub bytes: u32,
}

impl RequestHead {
    /// The header in 28 bytes; `None` if its magic is wrong.
    pub fn parse(raw: &[u8; REQUEST_BYTES]) -> Option<RequestHead> {
        if u32_at(raw, 0) != REQUEST_MAGIC {
            return None;
        }
        let word = u32_at(raw, 4);
        Some(RequestHead {
            flags: (word >> 16) as u16,
            command: word as u16,
            cookie: u64_at(raw, 8),
            offset: u64_at(raw, 16),
            bytes: u32_at(raw, 24),
        })
    }

    /// The 28 bytes of it.
    pub fn bytes(&self) -> [u8; REQUEST_BYTES] {
        let mut raw = [0; REQUEST_BYTES];
        raw[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        raw[4..6].copy_from_slice(&self.flags.to_be_bytes());
        raw[6..8].copy_from_slice(&self.command.to_be_bytes());
        raw[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        raw[16..24].copy_from_slice(&self.offset.to_be_bytes());
        raw[24..].copy_from_slice(&self.bytes.to_be_bytes());
        raw
    }
}

/// Big-endian u32 at a byte position that lies inside `raw`.
pub fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(raw[at..at + 4].try_into().expect("four bytes"))
}

/// Big-endian u64 at a byte position that lies inside `raw`.
pub fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(raw[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes of the longest header of a reply (ERROR_OFFSET: 34).
const HEAD_BYTES: usize = 36;

/// The header of a reply, built in place.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    raw: [u8; HEAD_BYTES],
    used: u8,
}

impl Head {
    /// No bytes.
    pub const EMPTY: Head = Head { raw: [0; HEAD_BYTES], used: 0 };

    /// A simple reply; `error` 0 is success.
    pub fn simple(cookie: u64, error: u32) -> Head {
        Head::EMPTY.u32(SIMPLE_MAGIC).u32(error).u64(cookie)
    }

    /// A chunk of a structured reply up to its payload, which has `bytes` bytes.
    fn chunk(cookie: u64, kind: u16, last: bool, bytes: u32) -> Head {
        Head::EMPTY.u32(CHUNK_MAGIC).u16(u16::from(last)).u16(kind).u64(cookie).u32(bytes)
    }

    /// An empty chunk that ends a reply.
    pub fn none(cookie: u64) -> Head {
        Head::chunk(cookie, chunk::NONE, true, 0)
    }

    /// Announces `bytes` bytes of data that belong at `offset` of the disk.
    pub fn data(cookie: u64, last: bool, offset: u64, bytes: u32) -> Head {
        Head::chunk(cookie, chunk::OFFSET_DATA, last, bytes + 8).u64(offset)
    }

    /// `bytes` zeros at `offset` of the disk.
    pub fn hole(cookie: u64, last: bool, offset: u64, bytes: u32) -> Head {
        Head::chunk(cookie, chunk::OFFSET_HOLE, last, 12).u64(offset).u32(bytes)
    }

    /// The whole request failed.
    pub fn error(cookie: u64, error: u32) -> Head {
        Head::chunk(cookie, chunk::ERROR, true, 6).u32(error).u16(0)
    }

    /// The part of the request at `offset` of the disk failed.
    pub fn error_at(cookie: u64, last: bool, error: u32, offset: u64) -> Head {
        Head::chunk(cookie, chunk::ERROR_OFFSET, last, 14).u32(error).u16(0).u64(offset)
    }

    /// Announces `count` extents of `base:allocation`, 8 bytes each.
    pub fn status(cookie: u64, count: u32) -> Head {
        Head::chunk(cookie, chunk::BLOCK_STATUS, true, 4 + count * 8).u32(ALLOCATION_ID)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.raw[..usize::from(self.used)]
    }

    fn put(mut self, more: &[u8]) -> Head {
        let from = usize::from(self.used);
        self.raw[from..from + more.len()].copy_from_slice(more);
        self.used += more.len() as u8;
        self
    }

    fn u16(self, value: u16) -> Head {
        self.put(&value.to_be_bytes())
    }

    fn u32(self, value: u32) -> Head {
        self.put(&value.to_be_bytes())
    }

    fn u64(self, value: u64) -> Head {
        self.put(&value.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let head = RequestHead { flags: 2, command: 6, cookie: 1 << 40, offset: 3 << 33, bytes: 5 };
        assert_eq!(RequestHead::parse(&head.bytes()), Some(head));
        let simple = Head::simple(7, 5);
        let reply = SimpleReply::parse(simple.bytes().try_into().unwrap());
        assert_eq!(reply, Some(SimpleReply { error: 5, cookie: 7 }));
        assert_eq!(SimpleReply::parse(&[0; SIMPLE_BYTES]), None);
    }

    #[test]
    fn numbers_on_the_wire_become_the_errnos_they_were() {
        for errno in [libc::EPERM, libc::ENOSPC, libc::EINVAL, libc::EIO, libc::EOPNOTSUPP] {
            assert_eq!(errno_of(error_of(errno)), errno);
            assert_eq!(errno_of(errno.wrapping_neg() as u32), errno, "as the original sends it");
        }
        assert_eq!((errno_of(11), errno_of(u32::MAX - 3)), (libc::EIO, libc::EIO));
        assert_eq!(errno_of(1 << 31), libc::EIO);
    }
}
