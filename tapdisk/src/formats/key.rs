//! The key of an encrypted disk: kept until the disk is detached in pages of its own, wiped then,
//! never shown.
use std::sync::Arc;

use super::OpenError;
use vhd_rs::crypt::Cipher;
use vhd_rs::key::KEY_BYTES;
use vhd_rs::secret::Bytes;

/// The keys of encrypted disks, in the order of the disks.
pub type Keys = Vec<Bytes>;

/// A key.
#[derive(Debug)]
pub struct Key(Arc<Bytes>);

impl Key {
    /// Takes a key of 32 or 64 bytes.
    ///
    /// # Errors
    /// EINVAL for other lengths.
    pub fn new(bytes: Arc<Bytes>) -> Result<Key, OpenError> {
        if !KEY_BYTES.contains(&bytes.len()) {
            let text = format!("the key has {} bytes; use one of 32 or 64", bytes.len());
            return Err(OpenError::new(libc::EINVAL, text));
        }
        Ok(Key(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What encrypts with it.
    pub fn cipher(&self) -> Cipher {
        Cipher::new(&self.0).expect("the length was checked when the key was taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let of = |bytes: &[u8]| Key::new(Arc::new(Bytes::copy_of(bytes)));
        assert_eq!(format!("{:?}", of(&[7; 32]).unwrap()), "Key(32 secret bytes)");
        assert_eq!(of(&[7; 33]).unwrap_err().errno, libc::EINVAL);
    }
}
