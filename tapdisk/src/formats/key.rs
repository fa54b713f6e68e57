//! The key of an encrypted disk: kept until the disk is detached, wiped then, never shown.
use std::fmt;

use super::OpenError;
use crate::engine::chain;
use vhd_rs::crypt::Cipher;

/// A key.
pub struct Key(Vec<u8>);

impl Key {
    /// Takes a key of 32 or 64 bytes.
    ///
    /// # Errors
    /// EINVAL for other lengths.
    pub fn new(bytes: Vec<u8>) -> Result<Key, OpenError> {
        let key = Key(bytes);
        if Cipher::new(&key.0).is_none() {
            let text = format!("the key has {} bytes; use one of 32 or 64", key.0.len());
            return Err(OpenError::new(libc::EINVAL, text));
        }
        Ok(key)
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

impl chain::Cipher for Cipher {
    fn encrypt(&self, sector: u64, bytes: &mut [u8]) {
        Cipher::encrypt(self, sector, bytes);
    }
    fn decrypt(&self, sector: u64, bytes: &mut [u8]) {
        Cipher::decrypt(self, sector, bytes);
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&mut self.0);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key of {} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_shown() {
        let key = Key::new(vec![7; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "key of 32 bytes");
        assert_eq!(Key::new(vec![7; 33]).unwrap_err().errno, libc::EINVAL);
    }
}
