//! What the server wants to know about its clients: counters, and a short ring of notices that it
//! drains and logs outside the data path. A full ring drops and counts.
use serde::{Deserialize, Serialize};

use crate::notices::Notices;
use host::entrance::Stranger;
use request::Traffic;

/// Plain counters since the sockets were made.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// READ requests.
    pub reads: u64,
    /// WRITE requests.
    pub writes: u64,
    /// FLUSH requests.
    pub flushes: u64,
    /// TRIM requests.
    pub trims: u64,
    /// WRITE_ZEROES requests.
    pub zeroes: u64,
    /// BLOCK_STATUS requests.
    pub statuses: u64,
    /// CACHE requests, and requests with an unknown command.
    pub others: u64,
    /// Bytes that READ asked for, in valid requests.
    pub bytes_read: u64,
    /// Bytes that came with valid WRITE requests.
    pub bytes_written: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Clients served, by connection and by passed descriptor.
    pub clients: u64,
    /// Clients turned away because there were too many, or who are strangers.
    pub refused: u64,
    /// Clients dropped because of something they did or failed to do.
    pub dropped: u64,
    /// Receive calls.
    pub receives: u64,
    /// Send calls.
    pub sends: u64,
    /// Notices that found the ring full.
    pub notices_lost: u64,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// The client closed its end.
    Closed,
    /// The client said ABORT.
    Aborted,
    /// The socket failed, with this errno.
    Socket(i32),
    /// The negotiation took too long.
    Slow,
    /// Replies waited too long for the client to read them.
    Stuck,
    /// A wrong magic number in the negotiation, or unknown client flags.
    BadNegotiation,
    /// Too many options, or too long ones.
    TooManyOptions,
    /// A wrong magic number in front of a request.
    BadRequest,
    /// A write of more bytes than could ever be accepted.
    AbsurdLength,
    /// Part of a long read failed after its success had been announced; the protocol without
    /// structured replies has no other way to say so.
    ReadFailed,
    /// The server closed its sockets.
    Shut,
}

/// Something to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A client connected or was passed, and got this number.
    Connected {
        /// Number of the connection, reused later.
        client: u16,
    },
    /// A client ended.
    Ended {
        /// Number of the connection.
        client: u16,
        /// Why.
        why: Why,
    },
    /// A client was turned away: too many at once.
    Refused,
    /// Somebody else than root or ourselves connected.
    TurnedAway(Stranger),
    /// A message without a descriptor arrived at a descriptor receiver.
    NoDescriptor,
    /// Accepting a client failed with this errno; it is tried again.
    AcceptFailed(i32),
}

const NOTICES_MAX: usize = 32;

/// Counters and notices.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Bytes copied from and to clients since somebody asked.
    pub moved: usize,
    pub counters: Counters,
    /// Of clients that were greeted in the new style, and in the old one.
    pub traffic: [Traffic; 2],
    /// The clock, in µs.
    pub now: u64,
    pub notices: Notices<Notice, NOTICES_MAX>,
}
