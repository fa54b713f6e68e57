//! Standard output and standard error.
use std::io::{BufWriter, Write};

/// The reader has gone away.
const EPIPE: i32 = 32;

/// The two streams. An error of standard output is kept until the end: a command's work is not
/// undone by a reader that went away, but whoever redirected its output has to learn that it is not
/// whole.
#[derive(Debug)]
pub struct Term {
    out: BufWriter<std::io::Stdout>,
    failed: Option<i32>,
}

impl Default for Term {
    fn default() -> Term {
        Term::new()
    }
}

impl Term {
    /// The streams of this process.
    pub fn new() -> Term {
        Term { out: BufWriter::new(std::io::stdout()), failed: None }
    }

    /// Writes lines of text to standard output. Whoever puts a stranger's text into one makes it a
    /// single line before ([`show`]).
    pub fn say(&mut self, text: &str) {
        self.bytes(show::lines(text).as_bytes());
    }

    /// Writes bytes to standard output.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let done = self.out.write_all(bytes);
        self.note(done);
    }

    /// Writes a JSON value as a line to standard output.
    pub fn json(&mut self, value: &serde_json::Value) {
        self.bytes(show::json(&format!("{value}\n")).as_bytes());
    }

    /// Writes lines of text to standard error, after all output so far.
    pub fn complain(&mut self, text: &str) {
        self.flush();
        // There is nowhere left to report a failure to.
        let _ = std::io::stderr().write_all(show::lines(text).as_bytes());
    }

    /// Writes everything out.
    pub fn flush(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let done = self.out.flush();
        self.note(done);
    }

    /// The errno of standard output, once it has failed: what is still to be printed is not wanted
    /// any more.
    pub fn failed_with(&self) -> Option<i32> {
        self.failed
    }

    /// Writes everything out; the exit code of a command that itself ended with `code`. A full disk
    /// is said aloud; a reader that went away knows that it did.
    pub fn finish(mut self, code: i32) -> i32 {
        self.flush();
        let Some(errno) = self.failed else { return code };
        if errno != EPIPE {
            let e = std::io::Error::from_raw_os_error(errno);
            self.complain(&format!("standard output: {e}: not all of it was written\n"));
        }
        if code == 0 { errno } else { code }
    }

    /// Keeps the first error.
    fn note(&mut self, done: std::io::Result<()>) {
        if let Err(e) = done {
            self.failed = self.failed.or(Some(e.raw_os_error().unwrap_or(5)));
        }
    }
}
