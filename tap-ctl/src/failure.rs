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
    /// An errno. The sentence is for people and the log; what a daemon said comes first. A loud one
    /// has a reason that only the daemon knows: it is for callers and their logs as well.
    Error { errno: i32, sentence: String, said: String, loud: bool },
}

impl Failure {
    pub fn new(errno: i32, sentence: impl Into<String>) -> Failure {
        Failure::Error { errno, sentence: sentence.into(), said: String::new(), loud: false }
    }

    /// Its sentence is always said: of a command that the original does not have.
    pub fn aloud(self) -> Failure {
        match self {
            Failure::Error { errno, sentence, said, .. } => {
                Failure::Error { errno, sentence, said, loud: true }
            }
            other => other,
        }
    }

    /// `attach` and `detach` of the original do not decode a refusal: callers see 22 whatever the
    /// reason (`tap-ctl.md` §4.6). The sentence has the real one.
    pub fn masked(error: Error) -> Failure {
        let refused = matches!(error, Error::Refused { .. });
        let errno = if refused { libc::EINVAL } else { error.errno() };
        let loud = is_loud(&error);
        Failure::Error { errno, sentence: error.to_string(), said: String::new(), loud }
    }
}

fn is_loud(error: &Error) -> bool {
    matches!(error, Error::Refused { reason: Some(_), .. })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let (errno, sentence, loud) = (error.errno(), error.to_string(), is_loud(&error));
        let said = match error {
            Error::Spawn { said, .. } => said,
            _ => String::new(),
        };
        Failure::Error { errno, sentence, said, loud }
    }
}
