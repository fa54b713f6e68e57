//! Packets: a header of 16 bytes and a payload of at most 4096, in native byte order.
//!
//! ```text
//!  0      4            8                12      16                       ≤ 4112
//!  │ type │ request id │ transaction id │ length │ payload, NUL-separated │
//! ```

use std::fmt;

/// Size of the header, in bytes.
pub const HEADER_BYTES: usize = 16;
/// Longest payload, in bytes (XENSTORE_PAYLOAD_MAX).
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path, in bytes (XENSTORE_ABS_PATH_MAX).
pub const ABS_PATH_MAX: usize = 3072;
/// Longest relative path, in bytes (XENSTORE_REL_PATH_MAX).
pub const REL_PATH_MAX: usize = 2048;

/// Packet types (enum xsd_sockmsg_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the header's names")]
pub enum Kind {
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    DirectoryPart = 22,
}

impl Kind {
    const ALL: [Kind; 16] = [
        Kind::Directory,
        Kind::Read,
        Kind::GetPerms,
        Kind::Watch,
        Kind::Unwatch,
        Kind::TransactionStart,
        Kind::TransactionEnd,
        Kind::GetDomainPath,
        Kind::Write,
        Kind::Mkdir,
        Kind::Rm,
        Kind::SetPerms,
        Kind::WatchEvent,
        Kind::Error,
        Kind::IsDomainIntroduced,
        Kind::DirectoryPart,
    ];

    /// The kind with this number, if a client knows it.
    pub fn from_number(number: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// A verb, for sentences.
    pub fn verb(self) -> &'static str {
        match self {
            Kind::Directory | Kind::DirectoryPart => "list",
            Kind::Read => "read",
            Kind::GetPerms => "read the permissions of",
            Kind::Watch => "watch",
            Kind::Unwatch => "unwatch",
            Kind::TransactionStart => "start a transaction",
            Kind::TransactionEnd => "end a transaction",
            Kind::GetDomainPath => "find the path of domain",
            Kind::Write => "write",
            Kind::Mkdir => "make",
            Kind::Rm => "remove",
            Kind::SetPerms => "set the permissions of",
            Kind::WatchEvent => "receive a watch event",
            Kind::Error => "receive an error",
            Kind::IsDomainIntroduced => "look for domain",
        }
    }
}

/// A packet as it came, its length checked and nothing else.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Number of a [`Kind`], or not.
    pub kind: u32,
    /// Chosen by the client and repeated in the reply.
    pub id: u32,
    /// Transaction; 0: none.
    pub tx: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Packet {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload.len());
        for word in [self.kind, self.id, self.tx, length] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packet { kind, id, tx, payload } = self;
        write!(f, "type {kind} id {id} tx {tx} \"{}\"", payload.escape_ascii())
    }
}

/// A header announced more than [`PAYLOAD_MAX`] bytes. What follows cannot be found any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// The length announced.
    pub length: u32,
}

/// Makes packets of a stream of bytes. Holds at most one packet and what was fed beyond it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Add bytes that were received.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete packet.
    ///
    /// # Errors
    /// A length that no packet can have; the stream is of no use afterwards.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, TooLong> {
        let Some(header) = self.bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [kind, id, tx, length] = words(header);
        if length as usize > PAYLOAD_MAX {
            return Err(TooLong { length });
        }
        let end = HEADER_BYTES + length as usize;
        let Some(payload) = self.bytes.get(HEADER_BYTES..end) else { return Ok(None) };
        let payload = payload.to_vec();
        self.bytes.drain(..end);
        Ok(Some(Packet { kind, id, tx, payload }))
    }

    /// Bytes of a packet that is not complete.
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }
}

fn words(header: &[u8; HEADER_BYTES]) -> [u32; 4] {
    let (words, _) = header.as_chunks::<4>();
    [0, 1, 2, 3].map(|i| words.get(i).map_or(0, |word| u32::from_ne_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: &[u8]) -> Packet {
        Packet { kind: 2, id: 7, tx: 9, payload: payload.to_vec() }
    }

    #[test]
    fn the_header_is_type_id_transaction_length() {
        let bytes = packet(b"ab").encode();
        let want: Vec<u8> = [2u32, 7, 9, 2].iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!(bytes[..16], want);
        assert_eq!(&bytes[16..], b"ab");
    }

    #[test]
    fn packets_come_in_any_pieces() {
        let stream = [packet(b"first").encode(), packet(b"").encode()].concat();
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for byte in stream {
            decoder.feed(&[byte]);
            got.extend(decoder.next_packet().expect("sound"));
        }
        assert_eq!(got, [packet(b"first"), packet(b"")]);
        assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_kept() {
        for length in [4097u32, u32::MAX] {
            let mut decoder = Decoder::default();
            decoder.feed(&[2u32, 0, 0, length].map(u32::to_ne_bytes).concat());
            assert_eq!(decoder.next_packet(), Err(TooLong { length }));
        }
        let longest = packet(&[b'x'; PAYLOAD_MAX]);
        let mut decoder = Decoder::default();
        decoder.feed(&longest.encode());
        assert_eq!(decoder.next_packet(), Ok(Some(longest)));
    }

    #[test]
    fn every_kind_has_its_number() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind as u32), Some(kind));
        }
        for number in [0, 8, 18, 20, 23, u32::MAX] {
            assert_eq!(Kind::from_number(number), None);
        }
    }
}
