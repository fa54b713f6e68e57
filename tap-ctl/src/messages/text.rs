//! The protocol's string: 256 bytes, NUL-terminated, so at most 255 bytes of text.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Size of a string field, in bytes (§3.1).
pub const TEXT_BYTES: usize = 256;
/// Longest text a string field can hold, in bytes: the field less its NUL.
pub const TEXT_LEN_MAX: usize = TEXT_BYTES - 1;

/// A checked string field: a text of at most 255 bytes without a NUL. Not necessarily UTF-8.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// The text, then zeros to the end; the last byte is always 0.
    bytes: [u8; TEXT_BYTES],
    len: usize,
}

/// Why bytes are not a [`Text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// More than 255 bytes: the field cannot hold it. Errno ENAMETOOLONG.
    TooLong {
        /// Length of the refused text, in bytes.
        len: usize,
    },
    /// A NUL inside the text. Errno EINVAL.
    Nul,
}

impl Default for Text {
    fn default() -> Text {
        Text::EMPTY
    }
}

impl Text {
    /// The empty text.
    pub const EMPTY: Text = Text { bytes: [0; TEXT_BYTES], len: 0 };

    /// A text from bytes without a NUL.
    ///
    /// # Errors
    /// Longer than 255 bytes (nothing is cut off silently, as the original did), or a NUL inside.
    pub fn new(text: &[u8]) -> Result<Text, TextError> {
        if text.len() > TEXT_LEN_MAX {
            return Err(TextError::TooLong { len: text.len() });
        }
        if text.contains(&0) {
            return Err(TextError::Nul);
        }
        let mut bytes = [0; TEXT_BYTES];
        bytes[..text.len()].copy_from_slice(text);
        Ok(Text { bytes, len: text.len() })
    }

    /// The text of a received field, up to its first NUL; `None` if it has none.
    pub fn from_field(field: &[u8; TEXT_BYTES]) -> Option<Text> {
        let len = field.iter().position(|byte| *byte == 0)?;
        let mut bytes = [0; TEXT_BYTES];
        bytes[..len].copy_from_slice(&field[..len]);
        Some(Text { bytes, len })
    }

    /// The field to send: the text and zeros.
    pub fn field(&self) -> &[u8; TEXT_BYTES] {
        &self.bytes
    }

    /// The text without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The text as a file name.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.as_bytes()))
    }

    /// Is there no text?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Split a `type:path` at the first colon (`tap-ctl.md` §3); `None` without a colon.
    pub fn split_type(&self) -> Option<(&[u8], &[u8])> {
        let colon = self.as_bytes().iter().position(|byte| *byte == b':')?;
        Some((&self.as_bytes()[..colon], &self.as_bytes()[colon + 1..]))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

/// As one line of text, for people.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show::line(self.as_bytes()))
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TextError::TooLong { len } => write!(
                f,
                "the text has {len} bytes and the control protocol carries at most {TEXT_LEN_MAX}; use a shorter path"
            ),
            TextError::Nul => write!(f, "the text has a NUL byte inside; remove it"),
        }
    }
}

impl TextError {
    /// The errno for this error.
    pub fn errno(&self) -> i32 {
        match self {
            TextError::TooLong { .. } => libc::ENAMETOOLONG,
            TextError::Nul => libc::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_255_bytes_and_refuses_256() {
        let text = Text::new(&[b'x'; 255]).expect("255 bytes fit");
        assert_eq!(text.as_bytes().len(), 255);
        assert_eq!(text.field()[255], 0);
        let error = Text::new(&[b'x'; 256]).expect_err("256 bytes do not");
        assert_eq!(error, TextError::TooLong { len: 256 });
        assert_eq!(error.errno(), 36);
    }

    #[test]
    fn refuses_a_nul_inside() {
        assert_eq!(Text::new(b"a\0b"), Err(TextError::Nul));
    }

    #[test]
    fn a_received_field_ends_at_its_first_nul() {
        let mut field = [b'y'; TEXT_BYTES];
        assert_eq!(Text::from_field(&field), None);
        field[3] = 0;
        let text = Text::from_field(&field).expect("has a NUL");
        assert_eq!(text.as_bytes(), b"yyy");
        assert!(
            text.field()[3..].iter().all(|byte| *byte == 0),
            "what follows the NUL is not kept"
        );
    }

    #[test]
    fn splits_at_the_first_colon() {
        let split = |text: &[u8]| {
            Text::new(text).expect("short").split_type().map(|(t, p)| (t.to_vec(), p.to_vec()))
        };
        assert_eq!(split(b"vhd:/a:b=c d"), Some((b"vhd".to_vec(), b"/a:b=c d".to_vec())));
        assert_eq!(split(b":"), Some((vec![], vec![])));
        assert_eq!(split(b"/a"), None);
    }
}
