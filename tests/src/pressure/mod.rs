//! What `pressure` (tests/src/bin) is made of.
pub mod dm;
pub mod files;
pub mod hog;
pub mod threads;
pub mod watch;

/// The word of a place: a page or a block of 4 KiB is filled with it.
pub fn word(seed: u64, place: u64) -> u64 {
    let mixed = (seed ^ place.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// Fills 4 KiB, so that no two pages are alike and none compresses to nothing.
pub fn fill(page: &mut [u8], seed: u64, place: u64) {
    let mut word = word(seed, place) | 1;
    for bytes in page.chunks_exact_mut(8) {
        bytes.copy_from_slice(&word.to_le_bytes());
        word = word.rotate_left(17).wrapping_add(0x94d0_49bb_1331_11eb);
    }
}

/// Whether 4 KiB hold what [`fill`] wrote.
///
/// # Errors
/// Says where not.
pub fn compare(page: &[u8], seed: u64, place: u64) -> Result<(), String> {
    let mut word = word(seed, place) | 1;
    for (i, bytes) in page.chunks_exact(8).enumerate() {
        if bytes != word.to_le_bytes() {
            let at = place * 4096 + i as u64 * 8;
            return Err(format!("DATA: byte {at} of seed {seed} is not what was written"));
        }
        word = word.rotate_left(17).wrapping_add(0x94d0_49bb_1331_11eb);
    }
    Ok(())
}
