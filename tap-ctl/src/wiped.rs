//! Bytes of a key on their way: wiped when they are no longer needed.

use std::fmt;
use std::hint::black_box;
use std::io::{self, Read};
use std::ops::Deref;

/// Bytes. Their memory is zeroed before it is given back.
pub struct Wiped(Vec<u8>);

impl Wiped {
    /// Bytes whose memory was never moved: what was left behind would not be wiped.
    pub fn new(bytes: Vec<u8>) -> Wiped {
        Wiped(bytes)
    }

    /// What can be read, `max` bytes at most. A buffer of the reader's own would keep a copy.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(from: &mut impl Read, max: usize) -> io::Result<Wiped> {
        let mut bytes = Wiped(vec![0; max]);
        let mut len = 0;
        while len < max {
            match from.read(&mut bytes.0[len..]) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.0.truncate(len);
        Ok(bytes)
    }
}

impl Deref for Wiped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Wiped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret bytes", self.0.len())
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        black_box(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_bytes_are_read_and_no_more() {
        let mut from = io::repeat(1).take(70);
        assert_eq!(Wiped::read(&mut from, 65).expect("read").len(), 65);
        assert_eq!(Wiped::read(&mut from, 65).expect("read")[..], [1; 5]);
    }
}
