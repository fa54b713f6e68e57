//! The command line as data: what a command is called, which options it takes, what it says.
//! One table (in `command.rs`) feeds the parser, the help, the completions and the man page.

pub mod args;
pub mod completions;
pub mod getopt;
pub mod help;
pub mod man;
pub mod nearest;

use crate::failure::{Failure, Outcome};
use args::Args;
use std::ffi::OsString;
use std::io::Write;
use tap_ctl::client::Client;
use tap_ctl::paths::RunDir;

/// Where a command is shown and known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// In the original's list of commands.
    Original,
    /// In that list only where the kernel has the blktap module; unknown elsewhere.
    WithModule,
    /// Beyond the original: in `--help` only.
    Extra,
}

/// A command of `tap-ctl`.
pub struct Command {
    pub name: &'static str,
    /// What the original prints, without the last LF.
    pub usage: &'static str,
    /// `-h` prints on stderr.
    pub usage_on_stderr: bool,
    /// One line.
    pub about: &'static str,
    /// More lines; may be empty.
    pub details: &'static str,
    pub options: &'static [Opt],
    /// Words that may follow; empty: none is looked at.
    pub operands: &'static [&'static str],
    /// (arguments after `tap-ctl `, what they do)
    pub examples: &'static [(&'static str, &'static str)],
    pub listed: Listed,
    pub run: fn(&Context, &Args) -> Outcome,
}

/// Does an option take a value?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    /// Named as in the help.
    Value(&'static str),
    /// A number may follow, in the same word or the next.
    Maybe(&'static str),
}

/// An option of a command. It has a short or a long name, or both.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    pub short: Option<char>,
    pub long: Option<&'static str>,
    pub takes: Takes,
    pub required: bool,
    pub help: &'static str,
}

/// A short option without a value.
pub const fn flag(short: char, help: &'static str) -> Opt {
    Opt { short: Some(short), long: None, takes: Takes::Nothing, required: false, help }
}

/// A short option with a value.
pub const fn value(short: char, name: &'static str, help: &'static str) -> Opt {
    Opt { short: Some(short), long: None, takes: Takes::Value(name), required: false, help }
}

/// A long option.
pub const fn long(name: &'static str, takes: Takes, help: &'static str) -> Opt {
    Opt { short: None, long: Some(name), takes, required: false, help }
}

impl Opt {
    /// The same, but the command needs it.
    pub const fn required(self) -> Opt {
        Opt { required: true, ..self }
    }

    /// The same, with a short name.
    pub const fn or(self, short: char) -> Opt {
        Opt { short: Some(short), ..self }
    }
}

pub const PID: Opt = value('p', "PID", "the tapdisk");
pub const MINOR: Opt = value('m', "MINOR", "the disk's minor number");

/// What a command runs in.
pub struct Context {
    /// `--debug` was given.
    pub debug: bool,
}

impl Context {
    pub fn run_dir(&self) -> Result<RunDir, Failure> {
        Ok(RunDir::locate()?)
    }

    pub fn client(&self) -> Result<Client, Failure> {
        let client = Client::new(self.run_dir()?).with_sentences(says, |text| eprintln!("{text}"));
        Ok(if self.debug { client.with_trace(|line| print(&format!("{line}\n"))) } else { client })
    }
}

/// What a disk waits for, and the catches that it was opened with, from its statistics.
fn says(stats: &[u8]) -> Vec<String> {
    let stats: serde_json::Value = serde_json::from_slice(stats).unwrap_or_default();
    let notes = stats.get("notes").and_then(|notes| notes.as_array()).into_iter().flatten();
    let texts = stats.get("waits").into_iter().chain(notes).filter_map(|text| text.as_str());
    texts.map(|text| show::line(text.as_bytes()).into_owned()).collect()
}

/// Remove every `--debug`, wherever it stands (`tap-ctl.md` §2).
pub fn take_debug(args: &mut Vec<OsString>) -> bool {
    let before = args.len();
    args.retain(|arg| arg != "--debug");
    args.len() < before
}

/// Print on stdout at once. A reader that has gone away is no failure of the command.
pub fn print(text: &str) {
    let _ = write(text.as_bytes());
}

/// Print bytes on stdout at once; for loops, which end when the reader has gone away.
pub fn write(bytes: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}
