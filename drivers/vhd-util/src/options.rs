//! What a command reads first, its options, and where it writes.
use crate::EINVAL;
use cli::Spec;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use vhd_rs::VhdError;
use vhd_rs::lock::Others;

pub(crate) use cli::{JSON, Long, Options, Takes};

/// The output streams, and what was said for all commands.
pub(crate) struct Term {
    streams: cli::Term,
    /// `--ignore-lock`: an image that another process is writing is changed all the same.
    pub(crate) others: Others,
}

impl Deref for Term {
    type Target = cli::Term;

    fn deref(&self) -> &cli::Term {
        &self.streams
    }
}

impl DerefMut for Term {
    fn deref_mut(&mut self) -> &mut cli::Term {
        &mut self.streams
    }
}

impl Term {
    pub(crate) fn new(others: Others) -> Term {
        Term { streams: cli::Term::new(), others }
    }

    /// Writes everything out; the exit code of a command that itself ended with `code`.
    pub(crate) fn finish(self, code: i32) -> i32 {
        self.streams.finish(code)
    }

    /// Writes the line that callers know to standard output and the whole story to standard error;
    /// the exit code.
    pub(crate) fn failed(&mut self, line: &str, e: &VhdError) -> i32 {
        self.say(line);
        self.complain(&format!("{e}\n"));
        e.errno()
    }

    /// The same for an image that does not open.
    pub(crate) fn not_opened(&mut self, name: &Path, e: &VhdError) -> i32 {
        self.failed(&format!("error opening {}: -{}\n", show::path(name), e.errno()), e)
    }

    /// A failure in the way that was asked for: as an object with the member `error`, or as
    /// [`Term::failed`]; the exit code.
    pub(crate) fn failed_as(&mut self, json: bool, line: &str, name: &Path, e: &VhdError) -> i32 {
        if !json {
            return self.failed(line, e);
        }
        self.json(&json!({ "name": name.display().to_string(), "error": error(e) }));
        self.complain(&format!("{e}\n"));
        e.errno()
    }

    /// The usage text of a command, and its exit code.
    pub(crate) fn usage(&mut self, text: &str) -> i32 {
        self.say(text);
        EINVAL
    }
}

/// An error as a JSON object.
pub(crate) fn error(e: &VhdError) -> Value {
    json!({ "errno": e.errno(), "message": e.to_string() })
}

/// Reads the options of a command; says what is wrong with them, or what they are (`-h`).
///
/// # Errors
/// The exit code when the command is over with that.
pub(crate) fn given(
    command: &str,
    spec: impl Into<Spec>,
    args: &[OsString],
    usage: &str,
    term: &mut Term,
) -> Result<Options, i32> {
    let options = parse(command, spec, args, usage, term)?;
    if options.has('h') {
        term.say(usage);
        return Err(0);
    }
    Ok(options)
}

/// Whether `-f` says that the image is a raw one.
///
/// # Errors
/// The exit code when it names no format; that has been said.
pub(crate) fn is_raw(options: &Options, term: &mut Term) -> Result<bool, i32> {
    match options.value('f').map(|value| value.to_string_lossy().into_owned()).as_deref() {
        None | Some("vhd") => Ok(false),
        Some("raw") => Ok(true),
        Some(other) => {
            let other = show::bytes(other.as_bytes());
            term.complain(&format!("'{other}' is no format; vhd and raw are\n"));
            Err(EINVAL)
        }
    }
}

/// The same for a command whose help is wrong usage, as most of the original's are, and that has no
/// operands.
///
/// # Errors
/// The exit code when the command is over with that.
pub(crate) fn given_no_help(
    command: &str,
    spec: impl Into<Spec>,
    args: &[OsString],
    usage: &str,
    term: &mut Term,
) -> Result<Options, i32> {
    let options = parse(command, spec, args, usage, term)?;
    if options.has('h') || !options.operands().is_empty() {
        Err(term.usage(usage))
    } else {
        Ok(options)
    }
}

fn parse(
    command: &str,
    spec: impl Into<Spec>,
    args: &[OsString],
    usage: &str,
    term: &mut Term,
) -> Result<Options, i32> {
    Options::parse(command, spec, args).map_err(|text| {
        term.complain(&text);
        term.usage(usage)
    })
}
