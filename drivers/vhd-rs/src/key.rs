//! Keys of encrypted images: an image holds a nonce and the SHA-256 of nonce and key (§7.3), so
//! that a key can be told from a wrong one before any sector is read.
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
use crate::crypt::Cipher;
use crate::edit::{open_to_change, put, refuse_poisoned};
use crate::error::{
    VhdError,
    errno::{EINVAL, ENOKEY},
};
use crate::open::BatmapState;
use crate::secret::on_clean_stack;
use image::{Node, NodeError, Odd, Storage};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::Path;

/// Where the key hash of an image without batmap is kept.
pub const ATTRIBUTE: &str = "user.com.citrix.xenclient.backend.keyhash";
/// Bytes of a key of AES-128-XTS and of AES-256-XTS.
pub const KEY_BYTES: [usize; 2] = [32, 64];

/// The hash that an image stores for a key.
pub fn hash_of(nonce: &[u8; 32], key: &[u8]) -> KeyHash {
    // The hash's state has the beginning of the key in it.
    let hash = || Sha256::new().chain_update(nonce).chain_update(key).finalize();
    let digest = on_clean_stack(hash);
    KeyHash { nonce: *nonce, hash: digest.into() }
}

/// What file systems call themselves that hold the pipes without a name (linux/magic.h).
const PIPEFS: u64 = 0x5049_5045;

/// Opens a file that holds a key. A pipe that a shell made, `<(command)`, has its writer already
/// and is read as well; one with a name may have none for ever.
///
/// # Errors
/// Those of the file system, and [`VhdError::Node`].
pub fn open_file(path: &Path) -> Result<File, VhdError> {
    let failed = |e: NodeError| VhdError::node(path, "read the key", &e);
    let file = match Node::find(path) {
        Err(NodeError::Odd(Odd::Pipe)) if nameless(path) => File::open(path),
        found => found.map_err(failed)?.open(false),
    };
    file.map_err(|e| failed(e.into()))
}

fn nameless(pipe: &Path) -> bool {
    rustix::fs::statfs(pipe).is_ok_and(|fs| fs.f_type as u64 == PIPEFS)
}

/// Whether a key is the one whose hash is stored.
pub fn fits(stored: &KeyHash, key: &[u8]) -> bool {
    hash_of(&stored.nonce, key).hash == stored.hash
}

/// Makes an empty image an encrypted one.
///
/// # Errors
/// EINVAL for a fixed image, or one that already holds data; EOPNOTSUPP for one without a batmap
/// where there are no extended attributes.
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
    match &opened.batmap {
        BatmapState::Valid { header_at, header } => {
            let mut header: BatmapHeader = header.clone();
            header.set_key_hash(key);
            put(storage, name, *header_at, &header.encode())?;
        }
        BatmapState::Absent => storage
            .set_attribute(ATTRIBUTE, &key.encode())
            .map_err(|e| VhdError::io(name, "store the key hash as an attribute", 0, &e))?,
        BatmapState::Damaged { .. } => {
            return refuse("the batmap that holds the key hash is damaged; run vhd-util check");
        }
    }
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e))
}

/// The cipher of an image's data: none for an image that is not encrypted.
///
/// # Errors
/// EINVAL for an encrypted image without key, a key for an image that is not encrypted, or one of
/// neither 32 nor 64 bytes; ENOKEY for a key that does not fit.
pub fn cipher(
    name: &Path,
    stored: Option<&KeyHash>,
    key: Option<&[u8]>,
) -> Result<Option<Cipher>, VhdError> {
    let (errno, why) = match (stored, key) {
        (None, None) => return Ok(None),
        (Some(stored), Some(key)) if fits(stored, key) => match Cipher::new(key) {
            Some(cipher) => return Ok(Some(cipher)),
            None => (EINVAL, "a key has 32 or 64 bytes"),
        },
        (Some(_), Some(_)) => (ENOKEY, "the image is encrypted with another key"),
        (Some(_), None) => (EINVAL, "the image is encrypted; its key is needed"),
        (None, Some(_)) => (EINVAL, "the image is not encrypted, but a key was given"),
    };
    Err(VhdError::request(name, errno, why))
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
