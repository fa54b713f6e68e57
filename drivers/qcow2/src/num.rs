//! Conversions of numbers that fit, and words of a file.

/// A size or an index of what is in memory.
pub(crate) fn size(number: u64) -> usize {
    usize::try_from(number).expect("a size of what is in memory")
}

/// The length of something in memory.
pub(crate) fn wide(number: usize) -> u64 {
    u64::try_from(number).expect("a length has 64 bits at most")
}

/// Four bytes of a file; zeros behind their end.
pub(crate) fn word32(bytes: &[u8], at: usize) -> u32 {
    let end = at.checked_add(4);
    let found = end.and_then(|end| bytes.get(at..end)).and_then(|b| b.try_into().ok());
    u32::from_be_bytes(found.unwrap_or_default())
}

/// Eight bytes of a file; zeros behind their end.
pub(crate) fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from(word32(bytes, at)) << 32 | u64::from(word32(bytes, at.saturating_add(4)))
}
