//! Standard output and standard error.
use std::io::{BufWriter, Write};

/// The two streams. An error of standard output is kept until the end: a command's work is not
/// undone by a reader that went away, but whoever redirected its output has to learn that it is not whole.
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

    /// Writes text to standard output.
    pub fn say(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Writes bytes to standard output.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let done = self.out.write_all(bytes);
        self.note(done);
    }

    /// Writes text to standard error, after all output so far.
    pub fn complain(&mut self, text: &str) {
        self.flush();
        // There is nowhere left to report a failure to.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// Writes everything out.
    pub fn flush(&mut self) {
        let done = self.out.flush();
        self.note(done);
    }

    /// Writes everything out; the exit code of a command that itself ended with `code`.
    pub fn finish(mut self, code: i32) -> i32 {
        self.flush();
        if code == 0 { self.failed.unwrap_or(0) } else { code }
    }

    /// Keeps the first error.
    fn note(&mut self, done: std::io::Result<()>) {
        if let Err(e) = done {
            self.failed = self.failed.or(Some(e.raw_os_error().unwrap_or(5)));
        }
    }
}
