//! What the ring tells the server: counters, and notices that it logs between turns.
use std::{fmt, io};

/// Counted since the ring was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests by kind: read, write, flush, trim, zeros, others.
    pub requests: [u64; 6],
    /// Requests answered.
    pub answers: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Turns in which requests were found.
    pub batches: u64,
    /// RESPOND calls: one for all answers of a turn.
    pub kicks: u64,
    /// Looks at the device that made the kernel go on after the ring had been full.
    pub polls: u64,
}

/// Why a ring is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The producer index claims more requests than there is room for.
    Runaway {
        /// What it says.
        req_prod: u32,
        /// Requests that we have taken.
        req_cons: u32,
    },
    /// There is no such id, or its request is not answered yet.
    Id(u64),
    /// A read or write with so many segments.
    Count(u8),
    /// A segment that does not lie in its page.
    Segment {
        /// First sector.
        first: u8,
        /// Last sector.
        last: u8,
    },
}

/// Something for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The ring is not served any more.
    Broken(Malformed),
    /// The kernel did not take our answers, with this errno: the ring is not served any more.
    KickFailed(i32),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Runaway { req_prod, req_cons } => {
                write!(f, "its producer index says {req_prod}, and {req_cons} requests were taken")
            }
            Malformed::Id(id) => write!(f, "a request has the id {id}, which is none or in use"),
            Malformed::Count(count) => write!(f, "a request has {count} segments, not 1 to 11"),
            Malformed::Segment { first, last } => {
                write!(f, "a segment has the sectors {first} to {last} of a page of 8")
            }
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Broken(why) => closed(f, why),
            Notice::KickFailed(errno) => {
                let error = io::Error::from_raw_os_error(*errno);
                closed(f, &format_args!("the blktap module does not take answers: {error}"))
            }
        }
    }
}

fn closed(f: &mut fmt::Formatter<'_>, why: &dyn fmt::Display) -> fmt::Result {
    write!(
        f,
        "the ring of the block device is closed: {why}; whoever uses the device sees errors; closing and opening \
         the disk makes a new one"
    )
}
