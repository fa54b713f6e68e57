//! The 48 bytes before the bitmap.
use crate::Uuid;
use crate::bitmap;

/// Bytes before the bitmap.
pub const HEADER_BYTES: usize = 48;

/// What a log says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The log of the snapshot before, or none.
    pub parent: Uuid,
    /// The log of the snapshot after, or none.
    pub child: Uuid,
    /// 0 while a daemon may be marking blocks, 1 after it ended in order. Storage managers keep it;
    /// a daemon never touches it. Any number is stored.
    pub consistent: i32,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
}

impl Header {
    /// Reads a header; every 48 bytes are one.
    pub fn decode(b: &[u8; HEADER_BYTES]) -> Header {
        Header {
            parent: Uuid(part(b, 0)),
            child: Uuid(part(b, 16)),
            consistent: i32::from_le_bytes(part(b, 32)),
            disk_bytes: u64::from_le_bytes(part(b, 40)),
        }
    }

    /// The header's bytes; those between the fields are zero.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        b[..16].copy_from_slice(&self.parent.0);
        b[16..32].copy_from_slice(&self.child.0);
        b[32..36].copy_from_slice(&self.consistent.to_le_bytes());
        b[40..].copy_from_slice(&self.disk_bytes.to_le_bytes());
        b
    }

    /// Bytes of a file with this header and its bitmap.
    pub fn file_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + bitmap::bytes(self.disk_bytes)
    }
}

/// `N` bytes at a place that lies inside, as every caller's constants do.
fn part<const N: usize>(b: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| b[at + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_format_has_them() {
        let header = Header {
            parent: Uuid([1; 16]),
            child: Uuid([2; 16]),
            consistent: -3,
            disk_bytes: 10 << 20,
        };
        let mut wanted = [[1; 16], [2; 16], [0; 16]].concat();
        wanted[32..36].copy_from_slice(&[0xfd, 0xff, 0xff, 0xff]);
        wanted[42] = 0xa0;
        assert_eq!(header.encode()[..], wanted);
        assert_eq!(Header::decode(&header.encode()), header);
        assert_eq!(header.file_bytes(), 68);
    }

    #[test]
    fn the_gap_between_the_fields_is_ignored_and_written_as_zero() {
        let all = [0xff; HEADER_BYTES];
        let again = Header::decode(&all).encode();
        assert_eq!(again[36..40], [0; 4]);
        assert_eq!((&again[..36], &again[40..]), (&all[..36], &all[40..]));
    }
}
