//! The crate's one error type.

use crate::wire::Kind;
use std::fmt;

/// What xenstored says when it refuses, by name (`xsd_errors` of xs_wire.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "xs_wire.h's names")]
pub enum Errno {
    Inval,
    Acces,
    Exist,
    IsDir,
    NoEnt,
    NoMem,
    NoSpc,
    Io,
    NotEmpty,
    NoSys,
    RoFs,
    Busy,
    Again,
    IsConn,
    TooBig,
    Perm,
    /// A name that xs_wire.h does not have.
    Other,
}

const NAMES: [(Errno, &str, &str); 17] = [
    (Errno::Inval, "EINVAL", "invalid argument"),
    (Errno::Acces, "EACCES", "permission denied"),
    (Errno::Exist, "EEXIST", "it exists already"),
    (Errno::IsDir, "EISDIR", "it is a directory"),
    (Errno::NoEnt, "ENOENT", "it does not exist"),
    (Errno::NoMem, "ENOMEM", "xenstored is out of memory"),
    (Errno::NoSpc, "ENOSPC", "the quota of this domain is used up"),
    (Errno::Io, "EIO", "xenstored has an I/O error"),
    (Errno::NotEmpty, "ENOTEMPTY", "it is not empty"),
    (Errno::NoSys, "ENOSYS", "this xenstored cannot do that"),
    (Errno::RoFs, "EROFS", "the store is read-only"),
    (Errno::Busy, "EBUSY", "busy"),
    (Errno::Again, "EAGAIN", "another change came in between"),
    (Errno::IsConn, "EISCONN", "connected already"),
    (Errno::TooBig, "E2BIG", "too big"),
    (Errno::Perm, "EPERM", "not permitted"),
    (Errno::Other, "unknown", "xenstored gave an unknown reason"),
];

impl Errno {
    /// From the payload of an error packet.
    pub fn from_name(name: &[u8]) -> Errno {
        let found = NAMES.iter().find(|(_, known, _)| known.as_bytes() == name);
        found.map_or(Errno::Other, |(errno, _, _)| *errno)
    }

    /// `ENOENT` and so on.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    fn row(self) -> &'static (Errno, &'static str, &'static str) {
        NAMES.iter().find(|(errno, _, _)| *errno == self).unwrap_or(&NAMES[16])
    }
}

/// Why something did not work, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// xenstored refused.
    Refused {
        /// The request.
        kind: Kind,
        /// What it was about.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// The request was not sent, because xenstored cannot take it.
    Unfit {
        /// What is wrong with it.
        reason: String,
    },
    /// A reply that makes no sense. The connection stands.
    BadReply {
        /// The request.
        kind: Kind,
        /// What it was about.
        path: String,
        /// What is wrong with the reply.
        reason: String,
    },
    /// The connection is gone, with everything that was on its way.
    Lost {
        /// How.
        reason: String,
    },
    /// There is no xenstore here.
    Absent {
        /// Where it was looked for, and how that failed.
        tried: String,
    },
    /// A transaction met changes each time it was tried.
    Contended {
        /// How often it was tried.
        tries: u32,
    },
}

impl Error {
    /// Did xenstored refuse for this reason?
    pub fn is(&self, wanted: Errno) -> bool {
        matches!(self, Error::Refused { errno, .. } if *errno == wanted)
    }

    /// Is the connection gone?
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Lost { .. })
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused { kind, path, errno } => {
                let (_, name, sentence) = errno.row();
                write!(f, "cannot {} {path} in xenstore: {sentence} ({name})", kind.verb())
            }
            Error::Unfit { reason } => f.write_str(reason),
            Error::BadReply { kind, path, reason } => {
                write!(f, "xenstored answered nonsense to {} {path}: {reason}", kind.verb())
            }
            Error::Lost { reason } => write!(f, "the connection to xenstored is gone: {reason}"),
            Error::Absent { tried } => {
                write!(f, "there is no xenstore here, is this Xen? Tried {tried}")
            }
            Error::Contended { tries } => {
                write!(f, "a xenstore transaction met other changes {tries} times in a row")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (errno, name, _) in NAMES {
            assert_eq!(errno.name(), name);
            assert_eq!(Errno::from_name(name.as_bytes()), errno);
        }
        assert_eq!(Errno::from_name(b"EWHATEVER"), Errno::Other);
        assert_eq!(Errno::from_name(b""), Errno::Other);
    }

    #[test]
    fn a_refusal_is_a_sentence_with_the_path() {
        let error = Error::Refused { kind: Kind::Read, path: "a/b".into(), errno: Errno::Acces };
        assert_eq!(error.to_string(), "cannot read a/b in xenstore: permission denied (EACCES)");
        assert!(error.is(Errno::Acces) && !error.is(Errno::NoEnt));
    }
}
