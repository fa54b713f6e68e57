//! How a command fails: exit status and what is printed.

use tap_ctl::error::Error;

/// Exit status when the kernel module is absent: −38 (ENOSYS), low 8 bits (`tap-ctl.md` §7).
pub const MODULE_ABSENT_EXIT: u8 = 218;

/// What a command returns.
pub type Outcome = Result<(), Failure>;

#[derive(Debug)]
pub enum Failure {
    /// The usage text on stderr, then EINVAL.
    Usage,
    /// One line on stderr and this exit status, without the text of an errno.
    Line { exit: u8, line: &'static str },
    /// One line on stdout and [`MODULE_ABSENT_EXIT`].
    Absent { line: &'static str },
    /// An errno. The sentence is for people and the log; what a daemon said comes first.
    Error { errno: i32, sentence: String, said: String },
}

impl Failure {
    pub fn new(errno: i32, sentence: impl Into<String>) -> Failure {
        Failure::Error { errno, sentence: sentence.into(), said: String::new() }
    }

    /// `attach` and `detach` of the original do not decode a refusal: callers see 22 whatever the
    /// reason (`tap-ctl.md` §4.6). The sentence has the real one.
    pub fn masked(error: Error) -> Failure {
        let refused = matches!(error, Error::Refused { .. });
        let errno = if refused { libc::EINVAL } else { error.errno() };
        Failure::new(errno, error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let (errno, sentence) = (error.errno(), error.to_string());
        let said = match error {
            Error::Spawn { said, .. } => said,
            _ => String::new(),
        };
        Failure::Error { errno, sentence, said }
    }
}
