//! The ids that link logs to each other, and their text form.
use std::fmt;
use std::str::FromStr;

/// A 128-bit id; its bytes stand in the order of the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// No log: all bytes zero.
    pub const NONE: Uuid = Uuid([0; 16]);
}

/// A text that is no id: 36 characters, hexadecimal but for four hyphens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnId;

impl fmt::Display for NotAnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not of the form 01234567-89ab-cdef-0123-456789abcdef")
    }
}

impl std::error::Error for NotAnId {}

/// Where the text has its hyphens: before these bytes of the id.
const HYPHENS: [usize; 4] = [4, 6, 8, 10];

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if HYPHENS.contains(&i) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Uuid, NotAnId> {
        let mut id = [0; 16];
        let mut left = text.as_bytes();
        for (i, byte) in id.iter_mut().enumerate() {
            if HYPHENS.contains(&i) {
                left = left.strip_prefix(b"-").ok_or(NotAnId)?;
            }
            let [high, low, rest @ ..] = left else { return Err(NotAnId) };
            *byte = digit(*high)? << 4 | digit(*low)?;
            left = rest;
        }
        if left.is_empty() { Ok(Uuid(id)) } else { Err(NotAnId) }
    }
}

fn digit(c: u8) -> Result<u8, NotAnId> {
    let value = char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    value.ok_or(NotAnId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_in_the_same_order() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id: Uuid = text.to_uppercase().parse().unwrap();
        assert_eq!(id.0[..4], [0, 0x11, 0x22, 0x33]);
        assert_eq!(id.to_string(), text);
        assert_eq!(Uuid::NONE.to_string(), "00000000-0000-0000-0000-000000000000");
    }

    #[test]
    fn anything_else_is_refused() {
        let good = "00112233-4455-6677-8899-aabbccddeeff";
        for at in 0..=good.len() {
            assert_eq!(format!("{}x{}", &good[..at], &good[at..]).parse::<Uuid>(), Err(NotAnId));
            assert_eq!(good[..at].parse::<Uuid>().is_ok(), at == good.len());
        }
        assert_eq!("{0112233-4455-6677-8899-aabbccddeef}".parse::<Uuid>(), Err(NotAnId));
        assert_eq!("00112233445566778899aabbccddeeff".parse::<Uuid>(), Err(NotAnId));
        assert_eq!("é0112233-4455-6677-8899-aabbccddeef".parse::<Uuid>(), Err(NotAnId));
    }
}
