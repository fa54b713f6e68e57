//! Requests: what a daemon may be asked, checked at the edge (§3.4).

use super::bodies::{Blkif, Body, Params, Program, Response};
use super::rates::Rates;
use super::text::{TEXT_BYTES, Text};
use super::{COOKIE_ALL, Frame, Message, flag, kind};
use std::fmt;

/// A checked request. The minor is the cookie of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
// A request lives for one turn of the control loop, and boxing would allocate there.
#[allow(clippy::large_enum_variant)]
pub enum Request {
    /// Which process are you?
    Pid,
    /// All VBDs.
    List,
    /// Statistics of one VBD, or of all with [`COOKIE_ALL`].
    Stats {
        /// Minor, or [`COOKIE_ALL`].
        minor: u16,
    },
    /// Add a VBD.
    Attach {
        /// Its minor.
        minor: u16,
    },
    /// Remove a VBD.
    Detach {
        /// Its minor.
        minor: u16,
    },
    /// Open the images of a VBD. A log path and a key may follow the message.
    Open {
        /// Its minor.
        minor: u16,
        /// What to open and how.
        params: Params,
    },
    /// Finish what is in flight and close the images.
    Pause {
        /// Its minor.
        minor: u16,
    },
    /// Open the images of a paused VBD again. A log path may follow the message.
    Resume {
        /// Its minor.
        minor: u16,
        /// Only the path, the secondary and two flags count.
        params: Params,
    },
    /// Close the images.
    Close {
        /// Its minor.
        minor: u16,
    },
    /// Close the images without waiting for rings. The reply is CLOSE_RSP.
    ForceShutdown {
        /// Its minor.
        minor: u16,
    },
    /// Connect a guest ring.
    Connect {
        /// The VBD's minor.
        minor: u16,
        /// The ring.
        blkif: Blkif,
    },
    /// Disconnect a guest ring; the cookie is ignored.
    Disconnect {
        /// Frontend domain.
        domid: u32,
        /// Virtual device number.
        devid: u32,
    },
    /// Size and sector size as stored at OPEN.
    DiskInfo {
        /// Its minor.
        minor: u16,
    },
    /// Merge an image of a VBD's chain into its parent, while the VBD is in use.
    Commit {
        /// Its minor.
        minor: u16,
        /// The image.
        path: Text,
    },
    /// How far that is.
    QueryCommit {
        /// Its minor.
        minor: u16,
    },
    /// Stop it.
    CancelCommit {
        /// Its minor.
        minor: u16,
        /// The reply comes when nothing is written any more.
        wait: bool,
    },
    /// Ours: how many bytes and operations a second a VBD may have; the reply has what is in force.
    Limit {
        /// Its minor.
        minor: u16,
        /// What changes.
        rates: Rates,
    },
    /// Ours: go on with this program, in the same process.
    Upgrade {
        /// Its path, which begins with a slash.
        program: Text,
    },
}

/// Why a message is refused. All are EINVAL to the caller; see [`RefuseReason::reply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// Type 0, or above 36 and not one of ours.
    UnknownType(u16),
    /// A type of the table that no daemon handles: replies, LIST_MINORS, EXIT.
    NoHandler(u16),
    /// The 256 bytes at offset 20, where most bodies have their path, hold no NUL. Checked in
    /// every message, whatever its type.
    PathNotTerminated,
    /// OPEN or RESUME with [`flag::SECONDARY`], and the secondary holds no NUL.
    SecondaryNotTerminated,
    /// XENBLKIF_CONNECT, and the pool name holds no NUL.
    PoolNotTerminated,
}

/// Check a received message as a daemon has to (§3.4), in the order of the original.
///
/// # Errors
/// The reason; answer with [`RefuseReason::reply`].
pub fn validate_request(frame: &Frame) -> Result<Request, RefuseReason> {
    let message = Message::decode(frame);
    let minor = message.cookie();
    if !path_terminated(frame) {
        return Err(RefuseReason::PathNotTerminated);
    }
    Ok(match message.kind() {
        kind::PID => Request::Pid,
        kind::LIST => Request::List,
        kind::STATS => Request::Stats { minor },
        kind::ATTACH => Request::Attach { minor },
        kind::DETACH => Request::Detach { minor },
        kind::OPEN => Request::Open { minor, params: params(frame)? },
        kind::PAUSE => Request::Pause { minor },
        kind::RESUME => Request::Resume { minor, params: params(frame)? },
        kind::CLOSE => Request::Close { minor },
        kind::FORCE_SHUTDOWN => Request::ForceShutdown { minor },
        kind::XENBLKIF_CONNECT => Request::Connect { minor, blkif: blkif(frame)? },
        kind::XENBLKIF_DISCONNECT => disconnect(frame),
        kind::DISK_INFO => Request::DiskInfo { minor },
        kind::LIMIT => Request::Limit { minor, rates: rates(frame)? },
        kind::UPGRADE => Request::Upgrade { program: program(frame)? },
        kind::COMMIT => Request::Commit { minor, path: program(frame)? },
        kind::QUERY_COMMIT_JOB => Request::QueryCommit { minor },
        kind::CANCEL_COMMIT_JOB => Request::CancelCommit { minor, wait: word_at(frame, 8) != 0 },
        number @ (0 | 37..) => return Err(RefuseReason::UnknownType(number)),
        number => return Err(RefuseReason::NoHandler(number)),
    })
}

fn path_terminated(frame: &Frame) -> bool {
    frame[20..20 + TEXT_BYTES].contains(&0)
}

fn params(frame: &Frame) -> Result<Params, RefuseReason> {
    Params::read_from(frame).map_err(|_| RefuseReason::SecondaryNotTerminated)
}

fn blkif(frame: &Frame) -> Result<Blkif, RefuseReason> {
    Blkif::read_from(frame).map_err(|_| RefuseReason::PoolNotTerminated)
}

fn rates(frame: &Frame) -> Result<Rates, RefuseReason> {
    Rates::read_from(frame).map_err(|_| RefuseReason::PathNotTerminated)
}

fn program(frame: &Frame) -> Result<Text, RefuseReason> {
    let program = Program::read_from(frame).map_err(|_| RefuseReason::PathNotTerminated)?;
    Ok(program.path)
}

/// Only `domid` and `devid` count; the pool may be anything.
fn disconnect(frame: &Frame) -> Request {
    Request::Disconnect { domid: word_at(frame, 8), devid: word_at(frame, 12) }
}

fn word_at(frame: &Frame, at: usize) -> u32 {
    u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

impl Request {
    /// The type of the message.
    pub fn kind(&self) -> u16 {
        match self {
            Request::Pid => kind::PID,
            Request::List => kind::LIST,
            Request::Stats { .. } => kind::STATS,
            Request::Attach { .. } => kind::ATTACH,
            Request::Detach { .. } => kind::DETACH,
            Request::Open { .. } => kind::OPEN,
            Request::Pause { .. } => kind::PAUSE,
            Request::Resume { .. } => kind::RESUME,
            Request::Close { .. } => kind::CLOSE,
            Request::ForceShutdown { .. } => kind::FORCE_SHUTDOWN,
            Request::Connect { .. } => kind::XENBLKIF_CONNECT,
            Request::Disconnect { .. } => kind::XENBLKIF_DISCONNECT,
            Request::DiskInfo { .. } => kind::DISK_INFO,
            Request::Upgrade { .. } => kind::UPGRADE,
            Request::Commit { .. } => kind::COMMIT,
            Request::QueryCommit { .. } => kind::QUERY_COMMIT_JOB,
            Request::CancelCommit { .. } => kind::CANCEL_COMMIT_JOB,
            Request::Limit { .. } => kind::LIMIT,
        }
    }

    /// The type of the reply on success: + 1, except for FORCE_SHUTDOWN (§3.2).
    pub fn reply_kind(&self) -> u16 {
        match self {
            Request::ForceShutdown { .. } => kind::CLOSE_RSP,
            request => request.kind() + 1,
        }
    }

    /// The cookie that a client sends, and that the reply repeats.
    pub fn cookie(&self) -> u16 {
        match *self {
            Request::Pid | Request::Disconnect { .. } | Request::Upgrade { .. } => 0,
            Request::List => COOKIE_ALL,
            Request::Stats { minor }
            | Request::Attach { minor }
            | Request::Detach { minor }
            | Request::Open { minor, .. }
            | Request::Pause { minor }
            | Request::Resume { minor, .. }
            | Request::Close { minor }
            | Request::ForceShutdown { minor }
            | Request::Connect { minor, .. }
            | Request::Commit { minor, .. }
            | Request::QueryCommit { minor }
            | Request::CancelCommit { minor, .. }
            | Request::Limit { minor, .. }
            | Request::DiskInfo { minor } => minor,
        }
    }

    /// May it be served at once, also during a long exclusive operation (§2.1)? All others are
    /// queued and served one at a time.
    pub fn is_reentrant(&self) -> bool {
        let stats = matches!(self, Request::Stats { .. } | Request::QueryCommit { .. });
        stats || matches!(self, Request::Pid | Request::List | Request::Limit { .. })
    }

    /// Does a block of [`LOG_PATH_BYTES`](super::LOG_PATH_BYTES) bytes follow the message?
    pub fn log_path_follows(&self) -> bool {
        match self {
            Request::Open { params, .. } | Request::Resume { params, .. } => {
                params.has(flag::ADD_LOG)
            }
            _ => false,
        }
    }

    /// Does a key (one byte n, then n bytes) follow the message, after the log path if any?
    pub fn key_follows(&self) -> bool {
        matches!(self, Request::Open { params, .. } if params.has(flag::OPEN_ENCRYPTED))
    }

    /// The message to send.
    pub fn to_message(&self) -> Message {
        let (number, cookie) = (self.kind(), self.cookie());
        match self {
            Request::Open { params, .. } | Request::Resume { params, .. } => {
                Message::with(number, cookie, params)
            }
            Request::Connect { blkif, .. } => Message::with(number, cookie, blkif),
            Request::Disconnect { domid, devid } => {
                Message::with(number, cookie, &ring_name(*domid, *devid))
            }
            Request::Upgrade { program } => {
                Message::with(number, cookie, &Program { path: *program })
            }
            Request::Limit { rates, .. } => Message::with(number, cookie, rates),
            Request::Commit { path, .. } => Message::with(number, cookie, &Program { path: *path }),
            Request::CancelCommit { wait, .. } => {
                Message::with(number, cookie, &Response { error: i32::from(*wait) })
            }
            _ => Message::new(number, cookie),
        }
    }
}

fn ring_name(domid: u32, devid: u32) -> Blkif {
    Blkif {
        domid,
        devid,
        gref: [0; 8],
        order: 0,
        proto: 0,
        pool: Text::EMPTY,
        port: 0,
        poll_duration: 0,
        poll_idle_threshold: 0,
        queue: 0,
        queues: 0,
    }
}

impl RefuseReason {
    /// Always EINVAL.
    pub fn errno(&self) -> i32 {
        libc::EINVAL
    }

    /// The ERROR reply to `frame`. A message refused before it reaches a handler gets cookie 0;
    /// one refused by its handler keeps its cookie (§3.4).
    pub fn reply(&self, frame: &Frame) -> Message {
        let cookie = match self {
            RefuseReason::UnknownType(_)
            | RefuseReason::NoHandler(_)
            | RefuseReason::PathNotTerminated => 0,
            RefuseReason::SecondaryNotTerminated | RefuseReason::PoolNotTerminated => {
                Message::decode(frame).cookie()
            }
        };
        Message::refusal(cookie, self.errno(), &self.to_string())
    }
}

impl fmt::Display for RefuseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unterminated = |f: &mut fmt::Formatter<'_>, what, at| {
            write!(
                f,
                "the {what} at offset {at} of the control message has no NUL in its 256 bytes"
            )
        };
        match self {
            RefuseReason::UnknownType(number) => {
                write!(f, "control message type {number} does not exist")
            }
            RefuseReason::NoHandler(number) => {
                write!(
                    f,
                    "control message type {number} ({}) is not a request",
                    super::type_name(*number)
                )
            }
            RefuseReason::PathNotTerminated => unterminated(f, "path", 20),
            RefuseReason::SecondaryNotTerminated => unterminated(f, "secondary", 282),
            RefuseReason::PoolNotTerminated => unterminated(f, "pool name", 56),
        }
    }
}

#[cfg(test)]
mod tests;
