//! One bit for each block of 64 KiB; block b is bit b % 8 of byte b / 8, the least significant
//! first.

/// Bytes of the disk that one bit stands for.
pub const BLOCK_BYTES: u64 = 64 << 10;

/// Sectors of 512 bytes that one bit stands for.
pub const BLOCK_SECTORS: u64 = BLOCK_BYTES / 512;

/// Blocks of a disk; the last one may be partial.
pub fn blocks(disk_bytes: u64) -> u64 {
    disk_bytes.div_ceil(BLOCK_BYTES)
}

/// Bytes of a disk's bitmap: at most 2^45.
pub fn bytes(disk_bytes: u64) -> u64 {
    blocks(disk_bytes).div_ceil(8)
}

/// Whether a block is marked; blocks beyond the bitmap are not.
pub fn is_set(map: &[u8], block: u64) -> bool {
    let byte = usize::try_from(block / 8).ok().and_then(|at| map.get(at));
    byte.is_some_and(|byte| byte & 1 << (block % 8) != 0)
}

/// The marked blocks of a disk as runs of (first block, blocks); bits beyond the disk do not count.
pub fn runs(map: &[u8], disk_bytes: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let end = blocks(disk_bytes).min(map.len() as u64 * 8);
    let mut at = 0;
    std::iter::from_fn(move || {
        let first = next(map, at, end, true)?;
        at = next(map, first, end, false).unwrap_or(end);
        Some((first, at - first))
    })
}

/// The first block from `at` on whose bit is `wanted`.
fn next(map: &[u8], mut at: u64, end: u64, wanted: bool) -> Option<u64> {
    let skip = if wanted { 0x00 } else { 0xff };
    while at < end {
        let byte = usize::try_from(at / 8).ok().and_then(|i| map.get(i)).copied()?;
        if byte == skip {
            at = (at / 8 + 1) * 8;
        } else if (byte & 1 << (at % 8) != 0) == wanted {
            return Some(at);
        } else {
            at += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_twice() {
        let known =
            [(0, 0), (1, 1), (524_288, 1), (524_289, 2), (10 << 20, 20), (1 << 41, 1 << 22)];
        for (disk, map) in known {
            assert_eq!(bytes(disk), map, "{disk}");
        }
        assert_eq!(bytes(u64::MAX), 1 << 45);
    }

    #[test]
    fn runs_are_those_of_single_bits() {
        let map = [0x85, 0xff, 0x03, 0x00, 0x00, 0x80];
        let disk = 48 * BLOCK_BYTES;
        let found: Vec<_> = runs(&map, disk).collect();
        assert_eq!(found, [(0, 1), (2, 1), (7, 11), (47, 1)]);
        for block in 0..60 {
            let inside = found.iter().any(|(first, n)| (*first..first + n).contains(&block));
            assert_eq!(is_set(&map, block), inside, "{block}");
        }
        assert_eq!(runs(&map, 9 * BLOCK_BYTES + 1).last(), Some((7, 3)));
        assert_eq!(runs(&[], disk).next(), None);
    }
}
