//! Text that somebody else wrote, on its way to a terminal, a log or a program that reads lines.
//!
//! Names of files, what an image says of its parent, keys of xenstore, errors of a server: any of
//! it may hold line breaks that make lines of their own, or sequences that steer a terminal.
//! Whatever is shown goes through here once, where it becomes text: a line stays a line, and is
//! otherwise as it was.
//!
//! | text | is shown |
//! |---|---|
//! | printable, UTF-8 | as it is, byte for byte |
//! | with characters that control or reorder text | as `\n`, `\x1b`, `\u{202e}`, `\` as `\\` |
//! | not UTF-8 | likewise, with `\xff` for each byte that is none |
//!
//! JSON has escapes of its own, and keeps the text as it is.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;

/// One line of printable text.
///
/// ```
/// assert_eq!(show::line(b"/srv/a b.vhd"), "/srv/a b.vhd");
/// assert_eq!(show::line(b"a\nvhd=b\x1b[31m\xff"), r"a\nvhd=b\x1b[31m\xff");
/// ```
pub fn line(text: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(text) {
        Ok(plain) if !plain.chars().any(steers) => Cow::Borrowed(plain),
        _ => Cow::Owned(escaped(text)),
    }
}

/// The same of a name that a caller gave and a program looks for in the output: bytes that are no
/// UTF-8 stay as they are, unless there is something else to escape.
///
/// ```
/// assert_eq!(show::name("b\u{fc}ro".as_ref()).as_ref(), "b\u{fc}ro".as_bytes());
/// assert_eq!(show::name("a\nb".as_ref()).as_ref(), br"a\nb");
/// ```
pub fn name(name: &OsStr) -> Cow<'_, [u8]> {
    let bytes = name.as_bytes();
    let plain = bytes.utf8_chunks().all(|chunk| {
        let high = chunk.invalid().iter().any(|byte| (0x80..0xa0).contains(byte));
        !high && !chunk.valid().chars().any(steers)
    });
    match plain {
        true => Cow::Borrowed(bytes),
        false => Cow::Owned(escaped(bytes).into_bytes()),
    }
}

/// A stranger's name as one word of a line of `key=value` words: blanks and `=` are written out
/// too.
///
/// ```
/// assert_eq!(show::word("b.vhd".as_ref()).as_ref(), b"b.vhd");
/// assert_eq!(show::word("a hidden=1".as_ref()).as_ref(), br"a\x20hidden\x3d1");
/// ```
pub fn word(name: &OsStr) -> Cow<'_, [u8]> {
    let parts = |c: char| c == '=' || c.is_whitespace();
    let text = line(name.as_bytes());
    if !text.chars().any(parts) {
        return self::name(name);
    }
    let escaped = escaped(name.as_bytes());
    let mut out = String::with_capacity(2 * escaped.len());
    for c in escaped.chars() {
        // Writing to a string does not fail.
        let _ = match parts(c) {
            true if c.is_ascii() => write!(out, "\\x{:02x}", c as u32),
            true => write!(out, "\\u{{{:x}}}", c as u32),
            false => out.write_char(c),
        };
    }
    Cow::Owned(out.into_bytes())
}

/// A path in a sentence.
///
/// ```
/// let path = std::path::Path::new("/srv/a\n.vhd");
/// assert_eq!(show::path(path).to_string(), r"/srv/a\n.vhd");
/// ```
pub fn path<P: AsRef<OsStr> + ?Sized>(path: &P) -> Shown<'_> {
    Shown(path.as_ref().as_bytes())
}

/// Bytes in a sentence.
pub fn bytes(bytes: &[u8]) -> Shown<'_> {
    Shown(bytes)
}

/// What [`path`] and [`bytes`] give: shown when it is written.
#[derive(Clone, Copy)]
pub struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&line(self.0))
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text of several lines, each made printable; tabs stay.
///
/// ```
/// assert_eq!(show::lines("a\n\tb\n"), "a\n\tb\n");
/// assert_eq!(show::lines("a\nb\x1b[2J\n"), "a\nb\\x1b[2J\n");
/// ```
pub fn lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && c != '\t' && steers(c)) {
        return Cow::Borrowed(text);
    }
    let lines: Vec<_> = text.split('\n').map(|text| line(text.as_bytes())).collect();
    Cow::Owned(lines.join("\n"))
}

/// A JSON text with nothing in its strings that steers a terminal: the same value, also for who
/// looks at it.
///
/// ```
/// assert_eq!(show::json("{\"name\":\"\u{9b}2J\"}"), r#"{"name":"\u009b2J"}"#);
/// ```
pub fn json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && steers(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(2 * text.len());
    for c in text.chars() {
        // Line breaks stand between values; all others have four digits.
        let done = match c != '\n' && steers(c) {
            true => write!(out, "\\u{:04x}", c as u32),
            false => out.write_char(c),
        };
        // Writing to a string does not fail.
        let _ = done;
    }
    Cow::Owned(out)
}

/// Whether nothing in a text steers a terminal or a reader of lines.
pub fn is_plain(text: &[u8]) -> bool {
    text.utf8_chunks().all(|chunk| !chunk.valid().chars().any(steers))
}

/// Control characters; line and paragraph separators; marks that change the direction of the text
/// beside them.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &[u8]) -> String {
    let mut out = String::with_capacity(2 * text.len());
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            escape(&mut out, c);
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn escape(out: &mut String, c: char) {
    let done = match c {
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        '\\' => out.write_str("\\\\"),
        c if c.is_ascii_control() => write!(out, "\\x{:02x}", c as u32),
        c if steers(c) => write!(out, "\\u{{{:x}}}", c as u32),
        c => out.write_char(c),
    };
    // Writing to a string does not fail.
    let _ = done;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_text_is_as_it_was() {
        for text in ["", "/srv/a b.vhd", "größe/ż 𝄞", r"C:\d\p.vhd", "a'b\"c"] {
            assert_eq!(line(text.as_bytes()), text);
            assert!(is_plain(text.as_bytes()));
        }
    }

    #[test]
    fn what_steers_is_written_out_and_a_backslash_beside_it_too() {
        assert_eq!(line(b"a\\b\r\n\t\0\x7f"), r"a\\b\r\n\t\x00\x7f");
        assert_eq!(line("\u{9b}2J\u{202e}x\u{2028}".as_bytes()), r"\u{9b}2J\u{202e}x\u{2028}");
        assert_eq!(line(b"\xe9t\xe9"), r"\xe9t\xe9");
    }

    #[test]
    fn a_callers_name_stays_byte_exact_where_nothing_steers() {
        let exact = |bytes: &[u8]| name(OsStr::from_bytes(bytes)).into_owned();
        assert_eq!(exact(b"\xe9t\xe9 \\x"), b"\xe9t\xe9 \\x");
        assert_eq!(exact(b"\xe9\n\\"), br"\xe9\n\\");
        assert_eq!(exact(b"\x9b2J"), br"\x9b2J", "a terminal of eight bits takes that for ESC [");
    }

    proptest! {
        #[test]
        fn nothing_that_is_shown_steers(text: Vec<u8>) {
            prop_assert!(!line(&text).chars().any(steers));
            let name = name(OsStr::from_bytes(&text)).into_owned();
            prop_assert!(!name.contains(&b'\n') && !name.contains(&0x1b));
            let text = String::from_utf8_lossy(&text).into_owned();
            prop_assert_eq!(lines(&text).matches('\n').count(), text.matches('\n').count());
        }

        #[test]
        fn two_texts_never_look_alike(a: Vec<u8>, b: Vec<u8>) {
            let [x, y] = [escaped(&a), escaped(&b)];
            prop_assert_eq!(a == b, x == y);
        }
    }
}
