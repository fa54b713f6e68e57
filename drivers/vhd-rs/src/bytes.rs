//! Big-endian fields in byte slices. Reading never panics: what is missing reads as zero, writing
//! past the end does nothing. The callers check lengths before they trust a value.

/// `N` bytes at `at`; zeros where the slice is too short.
pub(crate) fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    put(&mut out, 0, bytes.get(at..).unwrap_or_default());
    out
}

/// Big-endian u32 at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(take(bytes, at))
}

/// Big-endian u64 at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(take(bytes, at))
}

/// One byte at `at`.
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Copies `value` to `at`, as far as it fits.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    let to = bytes.get_mut(at..).unwrap_or_default();
    let count = to.len().min(value.len());
    to[..count].copy_from_slice(&value[..count]);
}

/// Ones' complement of the sum of all bytes, with the four bytes at `skip` taken as zero (§2).
pub(crate) fn checksum(bytes: &[u8], skip: Option<usize>) -> u32 {
    let all = bytes.iter().fold(0_u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    let skipped = skip.map_or(0, |at| take::<4>(bytes, at).iter().map(|b| u32::from(*b)).sum());
    !all.wrapping_sub(skipped)
}

/// The same over *signed* bytes: batmaps of version 1.1 (§7.1).
pub(crate) fn checksum_signed(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(0_u32, |sum, b| sum.wrapping_add_signed(i32::from(i8::from_be_bytes([*b]))))
}

/// Rounds up to a multiple of 512, or down at the very end of the numbers.
pub(crate) fn sector_up(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(512).unwrap_or(u64::MAX - 511)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_slices_read_as_zero() {
        assert_eq!(u32_at(&[1, 2], 0), 0x0102_0000);
        assert_eq!(u64_at(&[], 3), 0);
        assert_eq!(u8_at(&[7], 1), 0);
    }

    #[test]
    fn the_checksum_skips_its_own_field() {
        assert_eq!(checksum(&[1, 2, 3, 4, 9], Some(0)), !9);
        assert_eq!(checksum_signed(&[0xff, 2]), !1);
    }
}
