//! The command line. Letters are the original's; long names work, with their values, where the
//! original's crash.

use cli::{Options as Words, Spec, number};
use std::ffi::OsString;
use std::path::PathBuf;
use tapback::config::{QUEUES_MAX, SEGMENTS_MAX};

/// Queues offered without `--queues`.
const QUEUES: u32 = 4;

/// An option.
struct Known {
    letter: char,
    long: &'static str,
    /// What stands for its value in the help; empty: it has none.
    value: &'static str,
    help: &'static str,
}

const KNOWN: [Known; 11] = [
    known('d', "debug", "", "stay in the foreground and log to standard error"),
    known('w', "wait", "", "wait for a xenstore that is not there yet"),
    known('v', "verbose", "", "log every step"),
    known('n', "name", "NAME", "type of the backends to serve (vbd3)"),
    known('p', "pidfile", "FILE", "write the pid there when ready, and remove it at the end"),
    known('x', "domain", "ID", "serve this domain only (all; 0 means all, too)"),
    known('b', "nobarrier", "", "do not offer write barriers"),
    known('q', "queues", "N", "queues to offer each disk, 1 to 8 (4)"),
    known('s', "segments", "N", "segments of indirect requests to offer, 0 to 256 (256)"),
    known('h', "help", "", "this text"),
    known('V', "version", "", "the version"),
];

const fn known(letter: char, long: &'static str, value: &'static str, help: &'static str) -> Known {
    Known { letter, long, value, help }
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// The help.
    Help,
    /// The version.
    Version,
    /// To serve.
    Serve(Serve),
}

/// How to serve.
#[derive(Debug, PartialEq, Eq)]
pub struct Serve {
    pub foreground: bool,
    pub wait: bool,
    pub verbose: bool,
    pub name: String,
    pub pidfile: Option<PathBuf>,
    pub only: Option<u32>,
    pub barrier: bool,
    pub queues: u32,
    pub segments: u32,
}

/// The help.
pub fn help() -> String {
    let mut text = usage();
    text.push_str(
        "\nConnects the disks of Xen guests, as found in xenstore, to their tapdisks.\n\n",
    );
    for Known { letter, long, value, help } in &KNOWN {
        let names = match value.is_empty() {
            true => format!("-{letter}, --{long}"),
            false => format!("-{letter}, --{long} {value}"),
        };
        text.push_str(&format!("  {names:<22} {help}\n"));
    }
    text.push_str(
        "\nXENSTORED_PATH names another xenstore socket or device, TAPDISK_RUN_DIR another run directory.\n",
    );
    text
}

/// One line.
pub fn usage() -> String {
    let word = |k: &Known| match k.value {
        "" => format!(" [-{}|--{}]", k.letter, k.long),
        value => format!(" [-{}|--{} {value}]", k.letter, k.long),
    };
    let words: String = KNOWN.iter().map(word).collect();
    format!("usage: tapback{words}\n")
}

/// Read it.
///
/// # Errors
/// A sentence about what is wrong.
pub fn parse(words: &[OsString]) -> Result<Asked, String> {
    let letters = "dwvn:p:x:bq:s:hV";
    let words: Vec<OsString> = words.iter().flat_map(shorten).collect();
    let found = Words::parse("tapback", Spec { letters, long: &[] }, &words)?;
    if found.has('h') {
        return Ok(Asked::Help);
    }
    if found.has('V') {
        return Ok(Asked::Version);
    }
    if let Some(word) = found.operands().first() {
        return Err(format!("tapback: {} is no option\n", word.to_string_lossy()));
    }
    let limited = |letter, default, min, max| match found.value(letter) {
        None => Ok(default),
        Some(text) => number::<u32>(text).filter(|n| (min..=max).contains(n)).ok_or_else(|| {
            let text = text.to_string_lossy();
            format!("tapback: -{letter} is {min} to {max}, not \"{text}\"\n")
        }),
    };
    let name = found.value('n').map_or("vbd3".into(), |name| name.to_string_lossy());
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(format!("tapback: \"{name}\" cannot be a type of backends\n"));
    }
    Ok(Asked::Serve(Serve {
        foreground: found.has('d'),
        wait: found.has('w'),
        verbose: found.has('v'),
        name: name.into_owned(),
        pidfile: found.path('p'),
        only: Some(limited('x', 0, 0, 65535)?).filter(|domid| *domid != 0),
        barrier: !found.has('b'),
        queues: limited('q', QUEUES, 1, QUEUES_MAX)?,
        segments: limited('s', SEGMENTS_MAX, 0, SEGMENTS_MAX)?,
    }))
}

/// `--name=x` and `--name x` as `-n x`.
fn shorten(word: &OsString) -> Vec<OsString> {
    let text = word.to_string_lossy();
    let Some(long) = text.strip_prefix("--").filter(|long| !long.is_empty()) else {
        return vec![word.clone()];
    };
    let (long, value) = match long.split_once('=') {
        Some((long, value)) => (long, Some(value)),
        None => (long, None),
    };
    match KNOWN.iter().find(|known| known.long == long) {
        Some(known) if value.is_none() || !known.value.is_empty() => {
            let letter = format!("-{}", known.letter).into();
            std::iter::once(letter).chain(value.map(OsString::from)).collect()
        }
        _ => vec![word.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Asked, String> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn serve(words: &[&str]) -> Serve {
        match read(words) {
            Ok(Asked::Serve(serve)) => serve,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn the_originals_options_and_defaults() {
        let all = serve(&["-d", "-v", "-n", "vbd9", "-p", "/run/x", "-x", "5", "-b"]);
        assert!(all.foreground && all.verbose && !all.barrier);
        assert_eq!((all.name.as_str(), all.only), ("vbd9", Some(5)));
        assert_eq!(all.pidfile, Some(PathBuf::from("/run/x")));
        let none = serve(&[]);
        assert_eq!(
            (none.name.as_str(), none.only, none.queues, none.segments),
            ("vbd3", None, 4, 256)
        );
        assert_eq!(serve(&["-x", "0"]).only, None);
    }

    #[test]
    fn long_names_take_their_values() {
        let long = serve(&["--name", "vbd9", "--pidfile=/run/x", "--domain", "7", "--queues=1"]);
        assert_eq!((long.name.as_str(), long.only, long.queues), ("vbd9", Some(7), 1));
        assert_eq!(long.pidfile, Some(PathBuf::from("/run/x")));
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for words in [
            &["-Z"][..],
            &["--bogus"],
            &["-n"],
            &["-n", "a/b"],
            &["-n", ""],
            &["-x", "many"],
            &["-q", "0"],
            &["-q", "9"],
            &["-s", "257"],
            &["rest"],
            &["--debug=yes"],
        ] {
            let error = read(words).expect_err("refused");
            assert!(error.starts_with("tapback: ") && error.ends_with('\n'), "{error}");
        }
    }

    #[test]
    fn the_help_names_every_option() {
        let text = help();
        for known in &KNOWN {
            assert!(text.contains(&format!("--{}", known.long)), "{}", known.long);
        }
        assert_eq!(read(&["-h"]), Ok(Asked::Help));
        assert_eq!(read(&["--version"]), Ok(Asked::Version));
    }
}
