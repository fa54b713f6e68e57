//! The states of a disk and the bits that LIST shows for them.
use std::fmt;

use tap_ctl::messages::state as bit;

/// Where the life of a disk is. What is under way meanwhile is beside it (`advance.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Attached, never opened.
    Attached,
    /// A worker opens the images for OPEN.
    Opening {
        /// What it was before, and is again if this fails.
        before: Rest,
    },
    /// The images are open; the block device is being made.
    MakingDevice,
    /// Served.
    Open,
    /// The block device is being taken away.
    EndingDevice {
        /// What follows.
        goal: Goal,
        /// The state to be in again if the device is in use; `None`: open.
        back: Option<Rest>,
    },
    /// Intake is stopped; requests in flight are waited for.
    Draining {
        /// What comes then.
        goal: Goal,
    },
    /// A worker closes the images.
    Shutting {
        /// What comes then.
        goal: Goal,
    },
    /// The images are closed, clients wait.
    Paused {
        /// The last RESUME failed.
        resume_failed: bool,
    },
    /// The images of a paused disk are opened again, in up to ten tries.
    Resuming {
        /// Tries so far.
        tries: u32,
        /// The next one begins then, in µs of the clock; `None`: a worker is at the present one.
        until: Option<u64>,
    },
    /// As good as open, but somebody else writes an image: requests wait until a worker has opened
    /// all of them anew.
    Waiting,
    /// Closed.
    Closed,
}

/// What follows when all is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Goal {
    /// Paused.
    Pause,
    /// Closed.
    Close,
    /// An OPEN or a RESUME has failed with this errno after its images were open.
    Fail {
        /// Positive errno.
        errno: i32,
        /// The state to be in.
        rest: Rest,
    },
}

/// States without anything under way and without images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rest {
    /// See [`State::Attached`].
    Attached,
    /// See [`State::Closed`].
    Closed,
    /// See [`State::Paused`].
    Paused {
        /// The last RESUME failed.
        resume_failed: bool,
    },
}

impl State {
    /// The bits of spec/control-socket.md §5.13; `busy` while requests are in flight.
    pub fn bits(&self, busy: bool) -> u32 {
        match self {
            State::Attached
            | State::Opening { before: Rest::Attached }
            | State::Open
            | State::Waiting
            | State::MakingDevice
            | State::EndingDevice { back: None, .. } => 0,
            State::EndingDevice { back: Some(rest), .. } => State::from(*rest).bits(busy),
            State::Draining { goal: Goal::Pause } if busy => {
                bit::PAUSE_REQUESTED | bit::QUIESCE_REQUESTED
            }
            State::Draining { goal: Goal::Pause } | State::Shutting { goal: Goal::Pause } => {
                bit::PAUSE_REQUESTED
            }
            State::Draining { .. } | State::Shutting { .. } => 0,
            State::Paused { resume_failed: true }
            | State::Opening { before: Rest::Paused { resume_failed: true } } => {
                bit::PAUSED | bit::QUIESCED | bit::CLOSED | bit::RESUME_FAILED
            }
            State::Paused { .. }
            | State::Resuming { .. }
            | State::Opening { before: Rest::Paused { .. } } => {
                bit::PAUSED | bit::QUIESCED | bit::CLOSED
            }
            State::Closed | State::Opening { before: Rest::Closed } => bit::CLOSED,
        }
    }

    /// The state without images, if it is one.
    pub fn rest(&self) -> Option<Rest> {
        match self {
            State::Attached => Some(Rest::Attached),
            State::Closed => Some(Rest::Closed),
            State::Paused { resume_failed } => Some(Rest::Paused { resume_failed: *resume_failed }),
            State::Opening { .. }
            | State::MakingDevice
            | State::Open
            | State::EndingDevice { .. }
            | State::Draining { .. }
            | State::Shutting { .. }
            | State::Waiting
            | State::Resuming { .. } => None,
        }
    }

    /// Whether nothing is under way.
    pub fn settled(&self) -> bool {
        matches!(self, State::Open) || self.rest().is_some()
    }

    /// Whether it may be paused or closed at once.
    pub fn may_end(&self) -> bool {
        self.settled() || matches!(self, State::Waiting)
    }
}

impl From<Rest> for State {
    fn from(rest: Rest) -> State {
        match rest {
            Rest::Attached => State::Attached,
            Rest::Closed => State::Closed,
            Rest::Paused { resume_failed } => State::Paused { resume_failed },
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Attached => f.write_str("attached"),
            State::Opening { .. } => f.write_str("opening"),
            State::MakingDevice => f.write_str("making the block device"),
            State::Open => f.write_str("open"),
            State::EndingDevice { goal, .. } => {
                write!(f, "taking the block device away, then {goal}")
            }
            State::Draining { goal } => write!(f, "waiting for requests, then {goal}"),
            State::Shutting { goal } => write!(f, "closing the images, then {goal}"),
            State::Paused { resume_failed: false } => f.write_str("paused"),
            State::Paused { resume_failed: true } => f.write_str("paused, resume failed"),
            State::Resuming { tries, .. } => write!(f, "resuming, try {tries}"),
            State::Waiting => f.write_str("waiting until another process lets go of an image"),
            State::Closed => f.write_str("closed"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Pause => f.write_str("paused"),
            Goal::Close => f.write_str("closed"),
            Goal::Fail { errno, .. } => write!(f, "failed with errno {errno}"),
        }
    }
}
