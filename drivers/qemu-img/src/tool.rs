//! What every command has: its streams, its words, and how it fails.
use std::ffi::OsString;
use std::fmt::Display;
use std::io;

use cli::{Long, Options, Spec, Takes, Term};

/// `--output`, `json` or `human`.
pub(crate) const OUTPUT: Long = Long { name: "output", key: 'O', takes: Takes::Value };
/// `-U`, which is always so for who only reads.
pub(crate) const SHARE: Long = Long { name: "force-share", key: 'U', takes: Takes::Nothing };
/// The format of an image.
pub(crate) const FORMAT: Long = Long { name: "format", key: 'f', takes: Takes::Value };
/// No words but errors.
pub(crate) const QUIET: Long = Long { name: "quiet", key: 'q', takes: Takes::Nothing };
/// Progress on standard output.
pub(crate) const PROGRESS: Long = Long { name: "progress", key: 'p', takes: Takes::Nothing };

/// A command that is over.
#[derive(Debug)]
pub(crate) struct Fail {
    /// Its exit code.
    pub(crate) code: i32,
    /// What is said on standard error, without the name of the tool.
    pub(crate) text: String,
}

/// The exit code of a command, or why there is none.
pub(crate) type Outcome<T = i32> = Result<T, Fail>;

impl<T: Display> From<T> for Fail {
    fn from(text: T) -> Fail {
        Fail { code: 1, text: text.to_string() }
    }
}

/// An error of the system without its number.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// The program while it runs.
pub(crate) struct Tool {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Whether it stands for QEMU's, as the storage manager knows it.
    pub(crate) qemu: bool,
    term: Term,
}

impl Tool {
    pub(crate) fn new(name: &'static str, qemu: bool) -> Tool {
        Tool { name, qemu, term: Term::new() }
    }

    /// Text on standard output.
    pub(crate) fn say(&mut self, text: &str) {
        self.term.say(text);
    }

    /// JSON on standard output.
    pub(crate) fn json(&mut self, text: &str) {
        self.term.bytes(show::json(text).as_bytes());
    }

    /// Text that moves the cursor, at once.
    pub(crate) fn tick(&mut self, text: &str) {
        self.term.bytes(text.as_bytes());
        self.term.flush();
    }

    /// A line on standard error, after the name of the tool.
    pub(crate) fn complain(&mut self, text: &str) {
        let name = self.name;
        self.term.complain(&format!("{name}: {text}\n"));
    }

    /// A line on standard error as it is.
    pub(crate) fn note(&mut self, text: &str) {
        self.term.complain(&format!("{text}\n"));
    }

    pub(crate) fn finish(self, code: i32) -> i32 {
        self.term.finish(code)
    }

    /// Reads the words of a command.
    pub(crate) fn options(
        &self,
        command: &str,
        letters: &'static str,
        long: &'static [Long],
        words: &[OsString],
    ) -> Outcome<Options> {
        let spec = Spec { letters, long };
        let whole = format!("{} {command}", self.name);
        Options::parse(&whole, spec, words).map_err(|text| {
            let text = text.strip_prefix(&format!("{} ", self.name)).unwrap_or(&text);
            Fail::from(format!("{}{}", text, self.hint(command)))
        })
    }

    /// Where more is to be read.
    pub(crate) fn hint(&self, command: &str) -> String {
        format!("Try '{} {command} --help' for more info", self.name)
    }

    /// The error of missing or needless operands.
    pub(crate) fn usage<T>(&self, command: &str, what: &str) -> Outcome<T> {
        Err(format!("{what}\n{}", self.hint(command)).into())
    }

    /// Whether JSON is asked for.
    pub(crate) fn wants_json(&self, command: &str, o: &Options) -> Outcome<bool> {
        match o.value(OUTPUT.key).map(|value| value.to_string_lossy().into_owned()).as_deref() {
            None => Ok(o.has(cli::JSON.key)),
            Some("human") => Ok(false),
            Some("json") => Ok(true),
            Some(other) => {
                let other = show::bytes(other.as_bytes()).to_string();
                let what = format!("--output expects 'human' or 'json' not '{other}'");
                self.usage(command, &what)
            }
        }
    }
}
