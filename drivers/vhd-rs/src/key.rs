//! Keys of encrypted images: an image holds a nonce and the SHA-256 of nonce and key (§7.3), so that a key
//! can be told from a wrong one before any sector is read.
//!
//! ```
//! use vhd_rs::key;
//!
//! let key: Vec<u8> = (0..64).collect();
//! let stored = key::hash_of(&[0; 32], &key);
//! assert_eq!(
//!     key::hex(&stored.hash),
//!     "dc7a48014fc1fac8b52af39bc7ea5cafafabf8bb81fb8f880fdf3b4a4566795c"
//! );
//! assert!(key::fits(&stored, &key));
//! assert!(!key::fits(&stored, &[7; 64]));
//! ```
use crate::batmap::{BatmapHeader, KeyHash};
use crate::edit::{open_to_change, put, refuse_poisoned};
use crate::error::{VhdError, errno::EINVAL};
use crate::open::BatmapState;
use image::Storage;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Bytes of a key of AES-128-XTS and of AES-256-XTS.
pub const KEY_BYTES: [usize; 2] = [32, 64];

/// The hash that an image stores for a key.
pub fn hash_of(nonce: &[u8; 32], key: &[u8]) -> KeyHash {
    let digest = Sha256::new().chain_update(nonce).chain_update(key).finalize();
    KeyHash { nonce: *nonce, hash: digest.into() }
}

/// Whether a key is the one whose hash is stored.
pub fn fits(stored: &KeyHash, key: &[u8]) -> bool {
    hash_of(&stored.nonce, key).hash == stored.hash
}

/// Makes an empty image an encrypted one.
///
/// # Errors
/// EINVAL for a fixed image, one that already holds data, or one without a batmap.
pub fn set_hash(storage: &dyn Storage, name: &Path, key: &KeyHash) -> Result<(), VhdError> {
    let opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    let refuse = |why| Err(VhdError::request(name, EINVAL, why));
    if opened.header.is_none() {
        return refuse("can't save key hashes for fixed vhds");
    }
    if opened.bat.iter().any(|entry| *entry != crate::bat::UNUSED) {
        return refuse("can't save key hashes for non-empty vhds");
    }
    let BatmapState::Valid { header_at, header } = &opened.batmap else {
        return refuse("there is no batmap to hold a key hash");
    };
    let mut header: BatmapHeader = header.clone();
    header.set_key_hash(key);
    put(storage, name, *header_at, &header.encode())?;
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", *header_at, &e))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Exactly 64 hexadecimal digits as 32 bytes.
pub fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_with_a_nonce_is_that_of_the_specification() {
        let key: Vec<u8> = (0..32).collect();
        let stored = hash_of(&[1; 32], &key);
        let want = "8f167766ebeed671a794ae8192a7c61e19e038574fcbfaa75df585476e3e5333";
        assert_eq!(from_hex(want), Some(stored.hash));
        assert_eq!(hex(&stored.hash), want);
    }

    #[test]
    fn only_64_digits_are_a_hash() {
        assert_eq!(from_hex(&"0F".repeat(32)), Some([15; 32]));
        for wrong in ["", "0f", &"0f".repeat(31), &"0g".repeat(32), &"+f".repeat(32)] {
            assert_eq!(from_hex(wrong), None, "{wrong}");
        }
    }
}
