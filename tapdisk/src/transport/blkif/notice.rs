//! What rings tell the server: counters, and a short queue of notices that it logs between turns.
use std::{fmt, io};

use xen::Runaway;

use super::queue::RingName;

/// Counted since the disk was opened, over all rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Requests by kind: read, write, barrier, flush, discard, and entries that were none.
    pub requests: [u64; 6],
    /// Of them, those with segments in pages of their own.
    pub indirect: u64,
    /// Sectors of reads and writes.
    pub sectors: [u64; 2],
    /// Time from taking to answering, of reads and writes, in µs.
    pub ticks_us: [u64; 2],
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
    notices: [Option<Notice>; NOTICES_MAX],
    first: usize,
    used: usize,
}

impl Log {
    pub(super) fn note(&mut self, notice: Notice) {
        if self.used == NOTICES_MAX {
            self.counters.notices_lost += 1;
            return;
        }
        self.notices[(self.first + self.used) % NOTICES_MAX] = Some(notice);
        self.used += 1;
    }

    pub(super) fn take(&mut self) -> Option<Notice> {
        let notice = self.notices[self.first].take()?;
        self.first = (self.first + 1) % NOTICES_MAX;
        self.used -= 1;
        Some(notice)
    }
}
