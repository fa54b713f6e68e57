//! What rings tell the server: counters, and a short queue of notices that it logs between turns.
use std::{fmt, io};

use serde::{Deserialize, Serialize};
use xen::Runaway;

use super::queue::RingName;
use crate::notices::Notices;

/// Counted since the disk was opened, over all rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests by kind: read, write, barrier, flush, discard, and entries that were none.
    pub requests: [u64; 6],
    /// Of them, those with segments in pages of their own.
    pub indirect: u64,
    /// Requests answered.
    pub answers: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Grant copy calls, and copies in them.
    pub copy_calls: u64,
    /// See above.
    pub copies: u64,
    /// Notifications sent to guests.
    pub notifications: u64,
    /// Looks at the event channel descriptor, with and without a port that had fired.
    pub wakes: u64,
    /// Times that polling began.
    pub polls: u64,
    /// Notices that nobody fetched in time.
    pub notices_lost: u64,
}

/// What one ring, or all rings of a device, have done since they were connected. Pairs are of reads
/// and of writes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct Tally {
    /// Requests taken.
    pub taken: [u64; 2],
    /// Of them, those answered.
    pub answered: [u64; 2],
    /// Sectors of 512 bytes.
    pub sectors: [u64; 2],
    /// Time from taking to answering, in µs.
    pub ticks_us: [u64; 2],
    /// The longest such time.
    pub longest_us: [u64; 2],
    /// Requests that failed, also those that were none.
    pub errors: u64,
    /// Flushes taken.
    pub flushes: u64,
    /// Discards taken.
    pub discards: u64,
}

impl Tally {
    /// With another ring's added.
    #[must_use]
    pub fn plus(self, other: &Tally) -> Tally {
        let sum = |a: [u64; 2], b: [u64; 2]| [a[0] + b[0], a[1] + b[1]];
        let most = |a: [u64; 2], b: [u64; 2]| [a[0].max(b[0]), a[1].max(b[1])];
        Tally {
            taken: sum(self.taken, other.taken),
            answered: sum(self.answered, other.answered),
            sectors: sum(self.sectors, other.sectors),
            ticks_us: sum(self.ticks_us, other.ticks_us),
            longest_us: most(self.longest_us, other.longest_us),
            errors: self.errors + other.errors,
            flushes: self.flushes + other.flushes,
            discards: self.discards + other.discards,
        }
    }
}

/// Where the ends of a ring are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of a ring")]
pub struct Indices {
    pub entries: u32,
    pub req_prod: u32,
    pub req_cons: u32,
    pub req_event: u32,
    pub rsp_prod: u32,
    pub rsp_pvt: u32,
    pub rsp_event: u32,
}

/// Something for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A front end's producer index ran away: its ring is not served any more.
    Broken {
        /// Which ring.
        name: RingName,
        /// What was seen.
        runaway: Runaway,
    },
    /// A grant copy call failed as a whole, with this errno.
    CopyFailed(i32),
    /// A notification could not be sent, with this errno.
    NotifyFailed(i32),
    /// A port could not be unmasked, with this errno.
    UnmaskFailed(i32),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = |errno: &i32| io::Error::from_raw_os_error(*errno);
        match self {
            Notice::Broken { name, runaway } => write!(
                f,
                "the ring of {name} is not served any more: its producer index says {}, and {} \
                 requests were taken; disconnecting and connecting it again mends it",
                runaway.req_prod, runaway.req_cons
            ),
            Notice::CopyFailed(errno) => {
                write!(f, "a grant copy call failed, and its requests: {}", because(errno))
            }
            Notice::NotifyFailed(errno) => {
                write!(f, "a guest cannot be notified: {}", because(errno))
            }
            Notice::UnmaskFailed(errno) => {
                write!(f, "an event channel cannot be unmasked: {}", because(errno))
            }
        }
    }
}

const NOTICES_MAX: usize = 16;

/// Counters and notices.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub counters: Counters,
    pub notices: Notices<Notice, NOTICES_MAX>,
}
