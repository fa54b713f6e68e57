//! The parsed arguments of a command, and the original's way of reading numbers.

use super::Opt;
use crate::failure::Failure;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tap_ctl::messages::{Text, TextError};

/// Options in order of appearance, and what is left.
#[derive(Default)]
pub struct Args {
    pub options: Vec<(&'static Opt, Option<OsString>)>,
    pub operands: Vec<OsString>,
}

impl Args {
    /// How often the option was given. `name` is its letter, or its long name.
    pub fn count(&self, name: &str) -> usize {
        self.options.iter().filter(|(opt, _)| is(opt, name)).count()
    }

    /// Was the option given?
    pub fn has(&self, name: &str) -> bool {
        self.count(name) > 0
    }

    /// The value of the option where it was given last.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(opt, _)| is(opt, name))?.1.as_deref()
    }

    /// The number of the option; −1 means "not given", as in the original. What is no number is
    /// refused: the original takes it for 0, and so for somebody else's disk (no caller does that:
    /// SM, xapi and xl format integers, `docs/compatibility.md`).
    pub fn number(&self, name: &str) -> Result<Option<i32>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match whole(value) {
            Some(number) => Ok(Some(number).filter(|number| *number != -1)),
            None => {
                let option = if name.chars().count() == 1 { "-" } else { "--" };
                let shown = show::line(value.as_bytes());
                let sentence = format!("{option}{name} \"{shown}\": this is no number");
                Err(Failure::new(libc::EINVAL, sentence).aloud())
            }
        }
    }

    /// The pid, which the command needs.
    pub fn pid(&self) -> Result<i32, Failure> {
        self.number("p")?.ok_or(Failure::Usage)
    }

    /// The minor, which the command needs and which must fit into a message's cookie. (The
    /// original cuts off what does not fit, and so addresses another disk.)
    pub fn minor(&self) -> Result<u16, Failure> {
        let number = self.number("m")?.ok_or(Failure::Usage)?;
        u16::try_from(number).map_err(|_| {
            let sentence = format!("minor {number} does not exist; minors are 0 to 16383");
            Failure::new(libc::EINVAL, sentence)
        })
    }

    /// A text for a message, of at most 255 bytes.
    pub fn text(&self, name: &str) -> Result<Option<Text>, Failure> {
        self.value(name).map(text).transpose()
    }

    /// A time in whole seconds; below 0 counts as 0.
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, Failure> {
        let seconds = self.number(name)?;
        Ok(seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }

    /// An image as `TYPE:PATH`, with its path from the root on: a tapdisk has another working
    /// directory.
    pub fn image(&self, name: &str) -> Result<Option<Text>, Failure> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let bytes = value.as_bytes();
        // What follows nbd: may be a host and a port.
        const KINDS: [&[u8]; 3] = [b"aio:", b"vhd:", b"qcow2:"];
        let kind = KINDS.into_iter().find(|kind| bytes.starts_with(kind));
        let Some((kind, path)) = kind.map(|kind| bytes.split_at(kind.len())) else {
            return text(value).map(Some);
        };
        if path.is_empty() || path.starts_with(b"/") {
            return text(value).map(Some);
        }
        let path = absolute(OsStr::from_bytes(path))?;
        text(OsStr::from_bytes(&[kind, path.as_os_str().as_bytes()].concat())).map(Some)
    }

    /// A file, from the root on.
    pub fn path(&self, name: &str) -> Result<Option<Text>, Failure> {
        let Some(value) = self.value(name).filter(|value| !value.is_empty()) else {
            return self.text(name);
        };
        text(absolute(value)?.as_os_str()).map(Some)
    }
}

fn is(opt: &Opt, name: &str) -> bool {
    opt.long == Some(name) || opt.short.is_some_and(|short| name.chars().eq([short]))
}

fn text(value: &OsStr) -> Result<Text, Failure> {
    Text::new(value.as_bytes()).map_err(|error: TextError| {
        Failure::new(error.errno(), format!("{error}: {}", value.to_string_lossy()))
    })
}

fn absolute(path: &OsStr) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        let shown = show::path(Path::new(path));
        Failure::new(errno, format!("{shown}: where this is cannot be told: {error}")).aloud()
    })
}

/// A number and nothing else, but for blanks around it; out of range is the nearest one.
fn whole(value: &OsStr) -> Option<i32> {
    let text = value.as_bytes().trim_ascii();
    let digits = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    number.then(|| atoi(value))
}

/// C's `atoi`: leading blanks and a sign, then digits; what follows is ignored, no digits are 0.
/// Out of range is the nearest number.
pub fn atoi(value: &OsStr) -> i32 {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let bytes = value.as_bytes();
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let (negative, digits) = match &bytes[start..] {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] | digits => (false, digits),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let number = digits
        .fold(0i64, |sum, digit| sum.saturating_mul(10).saturating_add((digit - b'0').into()));
    let number = if negative { -number } else { number };
    number.clamp(i32::MIN.into(), i32::MAX.into()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_by_atoi() {
        let cases = [
            ("7", 7),
            ("7abc", 7),
            ("x", 0),
            ("", 0),
            (" \t+12", 12),
            ("-1", -1),
            ("- 1", 0),
            ("+-1", 0),
            ("0x10", 0),
            ("99999999999999999999", i32::MAX),
            ("-99999999999999999999", i32::MIN),
        ];
        for (text, number) in cases {
            assert_eq!(atoi(OsStr::new(text)), number, "{text:?}");
        }
    }
}
