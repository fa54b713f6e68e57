//! Running a program to its end, with a deadline.
use std::ffi::OsStr;
use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crate::sys;

/// No program of a test may take longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a program did.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The command, for messages.
    pub what: String,
    /// Exit code; 128 + signal if it was killed.
    pub code: i32,
    /// Standard output.
    pub bytes: Vec<u8>,
    /// Standard output as text.
    pub out: String,
    /// Standard error as text.
    pub err: String,
}

impl Outcome {
    /// Demands an exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Outcome {
        assert_eq!(self.code, code, "exit code of {self:?}");
        self
    }

    /// Demands success.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.exits(0)
    }

    /// Demands an exact standard output, but for newlines at the end.
    #[track_caller]
    pub fn says(self, text: &str) -> Outcome {
        assert_eq!(self.out.trim_end_matches('\n'), text, "output of {self:?}");
        self
    }

    /// Demands a part of standard output.
    #[track_caller]
    pub fn mentions(self, text: &str) -> Outcome {
        assert!(self.out.contains(text), "no {text:?} in {self:?}");
        self
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { what, code, out, err, .. } = self;
        write!(f, "{what}: exit code {code}\n--- stdout\n{out}\n--- stderr\n{err}\n---")
    }
}

/// Runs a command with `input` on its standard input.
///
/// # Panics
/// If it cannot be started, or takes minutes.
#[track_caller]
pub fn run(command: &mut Command, input: &[u8]) -> Outcome {
    let what = shown(command);
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let out = thread::spawn(move || read_all(out));
    let err = thread::spawn(move || read_all(err));
    if let Some(mut stdin) = child.stdin.take() {
        // A program that reads less is no concern of ours.
        let _ = stdin.write_all(input);
    }
    let status = wait(&mut child, &what);
    let bytes = out.join().expect("the reader of standard output");
    let err = err.join().expect("the reader of standard error");
    outcome(what, status, bytes, &err)
}

/// Runs a command whose standard output is a terminal. Lines end in CR LF there.
///
/// # Panics
/// If it cannot be started, or takes minutes.
#[track_caller]
pub fn on_terminal(command: &mut Command) -> Outcome {
    let what = shown(command);
    let (mut ours, theirs) = sys::terminal();
    command.stdin(Stdio::null()).stdout(Stdio::from(theirs)).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
    // The command holds the program's side; reading ends when the last holder is gone.
    command.stdout(Stdio::null());
    let err = child.stderr.take();
    let err = thread::spawn(move || read_all(err));
    let mut bytes = Vec::new();
    // EIO is the end of a terminal.
    let _ = ours.read_to_end(&mut bytes);
    let status = wait(&mut child, &what);
    let err = err.join().expect("the reader of standard error");
    outcome(what, status, bytes, &err)
}

fn outcome(what: String, status: ExitStatus, bytes: Vec<u8>, err: &[u8]) -> Outcome {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let out = String::from_utf8_lossy(&bytes).into_owned();
    Outcome { what, code, out, bytes, err: String::from_utf8_lossy(err).into_owned() }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn read_all(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.expect("a pipe").read_to_end(&mut bytes).expect("a pipe can be read");
    bytes
}

fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let process = sys::pidfd(i32::try_from(child.id()).expect("a pid")).expect("our own child");
    if !sys::wait_readable(&process, PATIENCE) {
        let _ = child.kill();
        panic!("{what} has not ended after {PATIENCE:?}");
    }
    child.wait().expect("our own child")
}
