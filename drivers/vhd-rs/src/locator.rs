//! Parent locators: up to eight texts, each in its own area, that say where the parent is.
//!
//! ```
//! use vhd_rs::{OpenOptions, files, locator, open};
//!
//! let dir = tempfile::tempdir()?;
//! let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
//! files::create(&base, 16 << 20, None, false)?;
//! files::snapshot(&leaf, &base, &Default::default())?;
//!
//! let file = std::fs::File::open(&leaf)?;
//! let opened = open(&file, &leaf, &OpenOptions { read_only: true, ..Default::default() })?;
//! let header = opened.header.expect("a differencing image has one");
//! let used: Vec<u32> = header.locators.iter().map(|l| l.code).filter(|c| *c != 0).collect();
//! assert_eq!(used, [locator::MACX, locator::W2KU, locator::W2RU]);
//! let path = vhd_rs::open::locator_path(&file, &header.locators[0]);
//! assert_eq!(path.as_deref(), Some("./base.vhd".as_ref()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
use crate::bytes::{put, u32_at, u64_at};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Unused slot.
pub const NONE: u32 = 0;
/// Deprecated, relative, ANSI: known, not decodable.
pub const WI2R: u32 = 0x5769_3272;
/// Deprecated, absolute, ANSI: known, not decodable.
pub const WI2K: u32 = 0x5769_326B;
/// Windows, relative, UTF-16LE.
pub const W2RU: u32 = 0x5732_7275;
/// Windows, absolute, UTF-16LE (the original stores the relative path here too).
pub const W2KU: u32 = 0x5732_6B75;
/// Mac alias: known, not decodable.
pub const MAC: u32 = 0x4D61_6320;
/// File URL, UTF-8.
pub const MACX: u32 = 0x4D61_6358;

/// Longest path, in bytes (PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;
const URL: &[u8] = b"file://";

/// Why a locator gives no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocatorFault {
    /// The slot is unused.
    Unused,
    /// Data space is neither a small number of sectors nor a multiple of 512 bytes.
    Space,
    /// The text is empty or longer than its area or than a path may be.
    Length,
    /// A platform whose text cannot be decoded.
    Platform,
    /// The text is not what its platform writes.
    Text,
}

/// One entry of the table in the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locator {
    /// Platform code.
    pub code: u32,
    /// Size of the area: bytes, or sectors if below 512.
    pub space: u32,
    /// Bytes of text.
    pub length: u32,
    /// Reserved.
    pub reserved: u32,
    /// Byte offset of the area in the file.
    pub offset: u64,
}

impl Locator {
    /// From 24 bytes of the header.
    pub fn decode(bytes: &[u8]) -> Locator {
        Locator {
            code: u32_at(bytes, 0),
            space: u32_at(bytes, 4),
            length: u32_at(bytes, 8),
            reserved: u32_at(bytes, 12),
            offset: u64_at(bytes, 16),
        }
    }

    /// To 24 bytes of the header.
    pub fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        put(&mut out, 0, &self.code.to_be_bytes());
        put(&mut out, 4, &self.space.to_be_bytes());
        put(&mut out, 8, &self.length.to_be_bytes());
        put(&mut out, 12, &self.reserved.to_be_bytes());
        put(&mut out, 16, &self.offset.to_be_bytes());
        out
    }

    /// Whether the platform code belongs to the known set.
    pub fn code_known(&self) -> bool {
        matches!(self.code, NONE | WI2R | WI2K | W2RU | W2KU | MAC | MACX)
    }

    /// Bytes of the area (§5.1): writers disagree on the unit.
    ///
    /// # Errors
    /// [`LocatorFault::Space`].
    pub fn area_bytes(&self) -> Result<u64, LocatorFault> {
        let space = u64::from(self.space);
        if space < 512 {
            Ok(space * 512)
        } else if space % 512 == 0 {
            Ok(space)
        } else {
            Err(LocatorFault::Space)
        }
    }

    /// Where the area ends, for the end of the headers; unused and invalid slots end at 0.
    pub fn end(&self) -> u64 {
        match self.code {
            NONE => 0,
            _ => self.area_bytes().map_or(0, |area| self.offset.saturating_add(area)),
        }
    }

    /// How many bytes of text to read.
    ///
    /// # Errors
    /// Why there is nothing to read.
    pub fn text_bytes(&self) -> Result<usize, LocatorFault> {
        if self.code == NONE {
            return Err(LocatorFault::Unused);
        }
        let max = if self.code == MACX { PATH_BYTES_MAX + URL.len() } else { 2 * PATH_BYTES_MAX };
        let length = usize::try_from(self.length).map_err(|_| LocatorFault::Length)?;
        if length == 0 || length > max || u64::from(self.length) > self.area_bytes()? {
            return Err(LocatorFault::Length);
        }
        Ok(length)
    }

    /// The path in a text of this locator.
    ///
    /// # Errors
    /// Why there is none.
    pub fn path(&self, text: &[u8]) -> Result<PathBuf, LocatorFault> {
        match self.code {
            NONE => Err(LocatorFault::Unused),
            MACX => path_of_url(text),
            W2RU | W2KU => path_of_utf16(text),
            _ => Err(LocatorFault::Platform),
        }
    }
}

/// `file://` and the bytes as they are (§5.2).
fn path_of_url(text: &[u8]) -> Result<PathBuf, LocatorFault> {
    let path = text.strip_prefix(URL).ok_or(LocatorFault::Text)?;
    checked(path.split(|b| *b == 0).next().unwrap_or_default())
}

/// UTF-16LE with backslashes and perhaps a drive (§5.2, corpus F08).
fn path_of_utf16(text: &[u8]) -> Result<PathBuf, LocatorFault> {
    let units = text.chunks_exact(2).filter_map(|c| c.try_into().ok()).map(u16::from_le_bytes);
    let units: Vec<u16> = units.take_while(|u| *u != 0).collect();
    let text = String::from_utf16(&units).map_err(|_| LocatorFault::Text)?.replace('\\', "/");
    let path = text.strip_prefix("C:").or_else(|| text.strip_prefix("c:")).unwrap_or(&text);
    checked(path.as_bytes())
}

fn checked(path: &[u8]) -> Result<PathBuf, LocatorFault> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err(LocatorFault::Length);
    }
    // No writer stores such a path; a stranger's would make lines of its own wherever it is
    // printed.
    if !show::is_plain(path) {
        return Err(LocatorFault::Text);
    }
    Ok(PathBuf::from(OsStr::from_bytes(path)))
}

/// The text that a locator of this platform holds for a relative path (§5.1). `None` if the path
/// is not UTF-8 or the platform is not one of those that are written.
pub fn text_of(code: u32, relative: &Path) -> Option<Vec<u8>> {
    let path = relative.to_str()?;
    match code {
        MACX => Some([URL, path.as_bytes()].concat()),
        W2KU | W2RU => {
            let tail = path.strip_prefix("./").unwrap_or(path).replace('/', "\\");
            let text = if path.starts_with('/') { tail } else { format!(".\\{tail}") };
            Some(text.encode_utf16().flat_map(u16::to_le_bytes).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locator(code: u32) -> Locator {
        Locator { code, space: 512, length: 1, reserved: 0, offset: 0 }
    }

    fn utf16(text: &str) -> Vec<u8> {
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn texts_are_those_of_the_original() {
        let path = Path::new("./p.vhd");
        assert_eq!(text_of(MACX, path).unwrap(), b"file://./p.vhd");
        assert_eq!(text_of(W2KU, path).unwrap(), utf16(".\\p.vhd"));
        assert_eq!(text_of(W2RU, Path::new("../p.vhd")).unwrap(), utf16(".\\..\\p.vhd"));
        assert_eq!(text_of(MAC, path), None);
    }

    #[test]
    fn texts_decode_to_the_path_also_beyond_ascii() {
        for path in ["./p.vhd", "./d/p.vhd", "../ü/ł 𝄞.vhd"] {
            let path = Path::new(path);
            let url = locator(MACX).path(&text_of(MACX, path).unwrap()).unwrap();
            assert_eq!(url, path);
            let wide = locator(W2RU).path(&text_of(W2RU, path).unwrap()).unwrap();
            assert!(wide == path || wide == Path::new(".").join(path), "{}", wide.display());
        }
        let bytes = OsStr::from_bytes(b"./\xff");
        assert_eq!(text_of(MACX, Path::new(bytes)), None, "not UTF-8: refused, never truncated");
    }

    #[test]
    fn a_drive_c_is_dropped_and_others_are_not() {
        let decode = |text: &str| locator(W2KU).path(&utf16(text)).unwrap();
        assert_eq!(decode("C:\\d\\p.vhd"), Path::new("/d/p.vhd"));
        assert_eq!(decode("c:\\d"), Path::new("/d"));
        assert_eq!(decode("D:\\d"), Path::new("D:/d"));
    }

    #[test]
    fn wrong_texts_are_faults() {
        assert_eq!(locator(MACX).path(b"http://x"), Err(LocatorFault::Text));
        assert_eq!(locator(MACX).path(b"file://"), Err(LocatorFault::Length));
        for steers in ["./a\nb", "./a\x1b[31m", "./a\u{7f}", "./a\u{9b}2J", "./a\u{202e}", "./a\r"]
        {
            let url = [b"file://", steers.as_bytes()].concat();
            assert_eq!(locator(MACX).path(&url), Err(LocatorFault::Text), "{steers:?}");
            assert_eq!(locator(W2RU).path(&utf16(steers)), Err(LocatorFault::Text), "{steers:?}");
        }
        assert!(locator(MACX).path(b"file://./b\xfcro.vhd").is_ok(), "a name of the eighties");
        assert_eq!(locator(W2RU).path(&[0x00, 0xD8]), Err(LocatorFault::Text));
        assert_eq!(locator(WI2K).path(b"x"), Err(LocatorFault::Platform));
        assert_eq!(locator(NONE).path(b"x"), Err(LocatorFault::Unused));
    }

    #[test]
    fn data_space_is_sectors_or_bytes() {
        let area = |space| Locator { space, ..locator(MACX) }.area_bytes();
        assert_eq!(area(1), Ok(512));
        assert_eq!(area(511), Ok(511 * 512));
        assert_eq!(area(512), Ok(512));
        assert_eq!(area(1024), Ok(1024));
        assert_eq!(area(513), Err(LocatorFault::Space));
        assert_eq!(
            Locator { space: 1, length: 513, ..locator(MACX) }.text_bytes(),
            Err(LocatorFault::Length)
        );
    }
}
