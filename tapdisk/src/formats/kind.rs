//! Image types and the argument `type:path` (spec/tap-ctl.md §3).
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::{Closing, Storage};

use super::probed::Probe;
use super::{OpenError, qcow2, raw, vhd};

/// Longest type name (spec/drivers.md §1).
const NAME_MAX: usize = 31;
/// A chain file in place of an image.
const CHAIN_FILE: &[u8] = b"x-chain";

/// The formats that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `aio`: a raw file or block device.
    Raw,
    /// `vhd`.
    Vhd,
    /// `qcow2`.
    Qcow2,
    /// `nbd`: a disk that an NBD server has.
    Nbd,
}

/// A format: all that others ask about it.
pub struct Format {
    /// Which.
    pub kind: Kind,
    /// Name on the command line and in statistics.
    pub name: &'static str,
    /// Number in statistics (spec/drivers.md §1).
    pub number: u32,
    /// How an image of it is looked at; `None` of what is with a server and in no file.
    pub probe: Option<Probe>,
    /// What it does not have reads as what lies below: it may take over from a leaf without space,
    /// and is read as the chain's when it is a secondary.
    pub layered: bool,
    /// `-D` sends what is only read through the page cache (spec/drivers.md §5.3).
    pub page_cache: bool,
    /// A switch on the host has it written with O_DSYNC (spec/drivers.md §5.3).
    pub dsync: bool,
    /// The original's statistics count the requests of its driver.
    pub counts_requests: bool,
    /// What is kept of the image's file when its end is written.
    pub before_closing: fn(&mut Closing, &dyn Storage),
}

impl Format {
    /// A server has its images.
    pub fn is_remote(&self) -> bool {
        self.probe.is_none()
    }
}

/// A row for each [`Kind`], in its order.
pub const FORMATS: [Format; 4] = [
    Format {
        kind: Kind::Raw,
        name: "aio",
        number: 0,
        probe: Some(raw::probe),
        layered: false,
        page_cache: false,
        dsync: false,
        counts_requests: true,
        before_closing: |_, _| {},
    },
    Format {
        kind: Kind::Vhd,
        name: "vhd",
        number: 4,
        probe: Some(vhd::probe),
        layered: true,
        page_cache: true,
        dsync: true,
        counts_requests: false,
        before_closing: vhd_rs::beside::keep,
    },
    Format {
        kind: Kind::Qcow2,
        name: "qcow2",
        number: 6,
        probe: Some(qcow2::probe),
        layered: true,
        page_cache: true,
        dsync: false,
        counts_requests: false,
        before_closing: |_, _| {},
    },
    Format {
        kind: Kind::Nbd,
        name: "nbd",
        number: 15,
        probe: None,
        layered: false,
        page_cache: false,
        dsync: false,
        counts_requests: false,
        before_closing: |_, _| {},
    },
];

impl Kind {
    /// Its row.
    pub fn format(self) -> &'static Format {
        static ROWS: [Format; 4] = FORMATS;
        match self {
            Kind::Raw => &ROWS[0],
            Kind::Vhd => &ROWS[1],
            Kind::Qcow2 => &ROWS[2],
            Kind::Nbd => &ROWS[3],
        }
    }
}

/// A parsed image argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One image, with the parents it names itself.
    Image(Kind, PathBuf),
    /// A text file that lists images, leaf first.
    ChainFile(PathBuf),
}

/// Parses `type:path`.
///
/// # Errors
/// EINVAL without a colon, ENAMETOOLONG, ENOENT for an unknown type; for a type that is known but
/// not there, what the original gives where it fails.
pub fn parse(text: &[u8]) -> Result<Source, OpenError> {
    let shown = show::line(text);
    let Some(colon) = text.iter().position(|byte| *byte == b':') else {
        return Err(OpenError::new(
            libc::EINVAL,
            format!("\"{shown}\" has no type; write TYPE:PATH, as in vhd:/sr/disk.vhd"),
        ));
    };
    let (name, path) = (&text[..colon], Path::new(OsStr::from_bytes(&text[colon + 1..])));
    if let Some(format) = FORMATS.iter().find(|format| format.name.as_bytes() == name) {
        return Ok(Source::Image(format.kind, path.into()));
    }
    match name {
        CHAIN_FILE => Ok(Source::ChainFile(path.into())),
        _ if name.len() > NAME_MAX => Err(OpenError::new(
            libc::ENAMETOOLONG,
            format!("\"{shown}\": a type has at most {NAME_MAX} characters"),
        )),
        _ => Err(absent(name, path, &shown)),
    }
}

/// Types of the original that are not here (spec/drivers.md §1, §6).
fn absent(name: &[u8], path: &Path, shown: &str) -> OpenError {
    let errno = match name {
        b"ram" if !path.exists() => libc::ENOENT,
        b"sync" | b"vmdk" | b"vhdsync" | b"ram" | b"qcow" | b"vhdi" | b"lc" | b"valve" => {
            libc::ENOSYS
        }
        // Layers that only the stack inserts.
        b"bc" | b"lle" | b"llp" => libc::EINVAL,
        b"log" => libc::EPERM,
        _ => libc::ENOENT,
    };
    let known = if errno == libc::ENOENT && name != b"ram" { "unknown" } else { "not usable here" };
    OpenError::new(errno, format!("\"{shown}\": this type is {known}; use aio, vhd, qcow2 or nbd"))
}

/// The lines of a chain file, leaf first: image and whether it is marked `ro`.
///
/// # Errors
/// EINVAL for a line that is not `type:path [ro]`.
pub fn chain_lines(text: &[u8], name: &Path) -> Result<Vec<(Kind, PathBuf, bool)>, OpenError> {
    /// Longest line in bytes (spec/operations.md §4.1).
    const LINE_MAX: usize = 511;
    let bad = |number: usize, why: &str| {
        OpenError::new(libc::EINVAL, format!("{}: line {number} {why}", show::path(name)))
    };
    let mut images = Vec::new();
    for (i, line) in text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n').enumerate() {
        if line.len() > LINE_MAX {
            return Err(bad(i + 1, "has more than 511 bytes"));
        }
        let mut words = line.split(|b| *b == b' ' || *b == b'\t').filter(|word| !word.is_empty());
        let (image, flag, more) = (words.next().unwrap_or_default(), words.next(), words.next());
        if more.is_some() || flag.is_some_and(|flag| flag != b"ro") {
            return Err(bad(i + 1, "is not TYPE:PATH and an optional \"ro\""));
        }
        match parse(image)? {
            Source::Image(kind, path) => images.push((kind, path, flag.is_some())),
            Source::ChainFile(_) => return Err(bad(i + 1, "names a chain file in a chain file")),
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(text: &str) -> i32 {
        parse(text.as_bytes()).unwrap_err().errno
    }

    #[test]
    fn each_kind_has_its_row() {
        for format in &FORMATS {
            assert_eq!(format.kind.format().name, format.name);
            assert_eq!(format.kind.format().kind, format.kind);
        }
    }

    #[test]
    fn the_first_colon_splits() {
        let path = PathBuf::from("/a:b c=d");
        assert_eq!(parse(b"aio:/a:b c=d").unwrap(), Source::Image(Kind::Raw, path));
        assert_eq!(parse(b"vhd:").unwrap(), Source::Image(Kind::Vhd, PathBuf::new()));
        let address = PathBuf::from("10.0.0.1:10809:exportname=x");
        assert_eq!(
            parse(b"nbd:10.0.0.1:10809:exportname=x").unwrap(),
            Source::Image(Kind::Nbd, address)
        );
    }

    #[test]
    fn what_cannot_be_opened_gives_the_errno_of_the_original() {
        let long = format!("{}:x", "t".repeat(32));
        for (text, want) in [
            ("", 22),
            ("/golden/w/a.raw", 22),
            (":", 2),
            ("bogus:/x", 2),
            ("ram:8", 2),
            ("ram:/dev/null", 38),
            ("sync:/x", 38),
            ("qcow:/x", 38),
            ("log:/x", 1),
            ("bc:/x", 22),
            (long.as_str(), 36),
        ] {
            assert_eq!(errno(text), want, "{text}");
        }
    }

    #[test]
    fn a_chain_file_has_one_image_a_line() {
        let name = Path::new("/chain");
        let lines = chain_lines(b"vhd:/c.vhd\naio:/r.img ro\n", name).unwrap();
        assert_eq!(lines[1], (Kind::Raw, "/r.img".into(), true));
        for text in ["vhd:/a\n\nvhd:/b\n", "vhd:/a rw\n", "vhd:/a ro x\n", ""] {
            assert_eq!(chain_lines(text.as_bytes(), name).unwrap_err().errno, 22, "{text:?}");
        }
    }
}
