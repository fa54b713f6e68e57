//! Sectors of encrypted images (§12): AES-XTS over units of 512 bytes, tweaked by the number of the
//! sector on the disk as 32 bits, little endian. Only data is encrypted; metadata is not.
//!
//! ```
//! use vhd_rs::crypt::Cipher;
//!
//! let key: Vec<u8> = (0..64).collect();
//! let cipher = Cipher::new(&key).expect("32 or 64 bytes");
//! let mut sector = [0; 512];
//! cipher.encrypt(0, &mut sector);
//! assert_eq!(vhd_rs::key::hex(&sector[..16]), "cd6b103236fbd87dba93e9001e29bc3d");
//! cipher.decrypt(0, &mut sector);
//! assert_eq!(sector, [0; 512]);
//! ```
use crate::secret::Secret;
use aes::cipher::{BlockCipher, BlockDecrypt, BlockEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use xts_mode::Xts128;

/// Bytes of a unit.
const UNIT: usize = 512;

/// The cipher of one key. Its schedules begin with the key itself: they are as secret as that.
pub struct Cipher(Kind);

enum Kind {
    Aes128(Secret<Xts128<Aes128>>),
    Aes256(Secret<Xts128<Aes256>>),
}

impl Cipher {
    /// A key of 32 bytes for AES-128-XTS or of 64 for AES-256-XTS: half for the data, half for the
    /// tweak.
    pub fn new(key: &[u8]) -> Option<Cipher> {
        match key.len() {
            32 => Some(Cipher(Kind::Aes128(Secret::new(|| xts(key))))),
            64 => Some(Cipher(Kind::Aes256(Secret::new(|| xts(key))))),
            _ => None,
        }
    }

    /// Encrypts whole sectors, the first of which is number `sector` of the disk.
    pub fn encrypt(&self, sector: u64, data: &mut [u8]) {
        for (n, unit) in (sector..).zip(data.chunks_exact_mut(UNIT)) {
            match &self.0 {
                Kind::Aes128(xts) => xts.encrypt_sector(unit, tweak(n)),
                Kind::Aes256(xts) => xts.encrypt_sector(unit, tweak(n)),
            }
        }
    }

    /// The reverse.
    pub fn decrypt(&self, sector: u64, data: &mut [u8]) {
        for (n, unit) in (sector..).zip(data.chunks_exact_mut(UNIT)) {
            match &self.0 {
                Kind::Aes128(xts) => xts.decrypt_sector(unit, tweak(n)),
                Kind::Aes256(xts) => xts.decrypt_sector(unit, tweak(n)),
            }
        }
    }
}

/// Of a key whose length was checked.
fn xts<C: KeyInit + BlockCipher + BlockEncrypt + BlockDecrypt>(key: &[u8]) -> Xts128<C> {
    let (data, tweak) = key.split_at(key.len() / 2);
    let half = |half| C::new_from_slice(half).expect("half of a key is one of the cipher's");
    Xts128::new(half(data), half(tweak))
}

fn tweak(sector: u64) -> [u8; 16] {
    let mut out = [0; 16];
    // Below 2 TiB of disk this loses nothing, and a VHD ends there.
    crate::bytes::put(&mut out, 0, &(sector as u32).to_le_bytes());
    out
}

impl image::Cipher for Cipher {
    fn encrypt(&self, sector: u64, bytes: &mut [u8]) {
        Cipher::encrypt(self, sector, bytes);
    }
    fn decrypt(&self, sector: u64, bytes: &mut [u8]) {
        Cipher::decrypt(self, sector, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::hex;

    #[test]
    fn sectors_are_those_of_the_specification() {
        let key: Vec<u8> = (0..64).collect();
        for (bytes, sector, first, last) in [
            (64, 0, "cd6b103236fbd87dba93e9001e29bc3d", "226790136af4ae079c61a907ba497df2"),
            (64, 1, "0c22ed7e2168a8500b30154c2ec00d26", "a1fe130460ec6322bc846036dc6cc47b"),
            (
                64,
                0x1234_5678,
                "534f72d1a1802871a12c4fee13ab7396",
                "726b9beab391e13f30d967391ba69dd6",
            ),
            (32, 0, "f071a2b402c105ea37024133e24d6ef6", "048e03178663b4fec9d9bb05835c52f7"),
            (32, 1, "a8ce33a288a211258599d867beceaf25", "eabbee88416c7eda35ebe03d41aec5e9"),
        ] {
            let mut data = [0; 512];
            let cipher = Cipher::new(&key[..bytes]).unwrap();
            cipher.encrypt(sector, &mut data);
            assert_eq!((hex(&data[..16]).as_str(), hex(&data[496..]).as_str()), (first, last));
            cipher.decrypt(sector, &mut data);
            assert_eq!(data, [0; 512]);
        }
    }

    #[test]
    fn other_lengths_are_no_keys() {
        for bytes in [0, 16, 31, 33, 63, 65] {
            assert!(Cipher::new(&vec![0; bytes]).is_none());
        }
    }
}
