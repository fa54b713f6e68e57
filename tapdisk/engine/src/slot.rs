//! Slots: what a request in flight is waiting for, as one state.
use image::{Order, Plan, Span};

use crate::cache::Local;
use crate::limits::{LARGE_BYTES, PLANS_MAX};
use request::disk::FileId;
use request::{Outcome, Owner, Request, Verb};

/// Where a slot is. A request waits while `pending` is not 0; the state says what comes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's.
    Free,
    /// The frontend fills its buffer.
    Filling,
    /// The next part of the request is to be mapped or planned. Reads stay here until they are
    /// done.
    Dispatch,
    /// What the plans leave of their units is being copied: the first half of phase 1.
    Copying,
    /// This phase of the plans is being written.
    Writing {
        /// From 1.
        phase: u8,
    },
    /// A flush between this phase and the next is being waited for.
    Flushing {
        /// From 1.
        phase: u8,
    },
    /// Space is being given back.
    Freeing,
    /// A flush is being waited for.
    Syncing,
    /// Finished; the frontend's until it is released.
    Done,
    /// The next plan of a driver's own is to be asked for. Only the slot for these is here.
    Chore,
    /// The next piece of a commit is to be looked for.
    Piece,
}

/// Loading ahead: a failure of what is not needed is no failure of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Nothing is.
    No,
    /// All that the slot waits for is metadata.
    Loading,
    /// Some of it failed: from now on only what is needed is loaded.
    Failed,
}

/// Why a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Of which image.
    pub file: FileId,
    /// Positive errno.
    pub errno: i32,
    /// What the driver says; empty where the kernel refused an operation.
    pub why: &'static str,
}

/// One slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Where it is.
    pub state: State,
    /// What it works on.
    pub request: Request,
    /// The image that a change goes to now.
    pub target: FileId,
    /// Whether the secondary had taken over when the request started at its target: it decides what
    /// lay
    /// below.
    pub taken_over: bool,
    /// Sectors of the buffer that are encrypted for the target, as bits.
    pub coded: u128,
    /// What the local cache knows of it.
    pub local: Local,
    /// Whether metadata is being loaded for it that it may not need.
    pub ahead: Ahead,
    /// Sectors of the request that are mapped or planned.
    pub cursor: u32,
    /// Things it waits for.
    pub pending: u16,
    /// Data operations among these.
    pub ops: u16,
    /// What went wrong first: its errno; more is in [`super::Engine::cause`].
    pub error: Option<i32>,
    /// Plans at work.
    pub plans: [Option<Plan>; PLANS_MAX],
    /// The plans that have another phase, as bits.
    pub live: u8,
    /// What has to lie between this phase and the next.
    pub order: Order,
    /// The buffer it has to copy through.
    pub copy: Option<u8>,
    /// The buffers for packed units are its.
    pub unpacks: bool,
    /// Its place in the order of requests.
    pub seq: u64,
    /// When it started, in µs.
    pub since: u64,
    /// Extents found so far (Status).
    pub extents: u32,
    /// The result, once done.
    pub outcome: Outcome,
}

impl Slot {
    /// A slot that nobody has.
    #[inline]
    pub fn free() -> Slot {
        let request = Request { verb: Verb::Flush, span: Span::default(), owner: Owner::default() };
        Slot {
            state: State::Free,
            request,
            target: FileId(0),
            taken_over: false,
            coded: 0,
            ahead: Ahead::No,
            local: Local::default(),
            cursor: 0,
            pending: 0,
            ops: 0,
            error: None,
            plans: [None; PLANS_MAX],
            live: 0,
            order: Order::Any,
            copy: None,
            unpacks: false,
            seq: 0,
            since: 0,
            extents: 0,
            outcome: Ok(0),
        }
    }

    /// What is still to be asked for.
    pub fn rest(&self) -> Span {
        self.request.span.skip(self.cursor)
    }

    /// The next part to change: what is left, or of it the next run that the local cache or a
    /// commit wants.
    pub fn piece(&self) -> Span {
        let rest = self.rest();
        if !self.local.writing {
            return rest;
        }
        rest.first((self.local.wanted() >> self.cursor).trailing_ones())
    }

    /// Whether the engine works on it.
    pub fn active(&self) -> bool {
        !matches!(self.state, State::Free | State::Filling | State::Done)
    }

    /// Whether the answer has to wait for a flush.
    pub fn fua(&self) -> bool {
        match self.request.verb {
            Verb::Write { fua } | Verb::Zero { fua, .. } | Verb::Discard { fua } => fua,
            Verb::Read | Verb::Flush | Verb::Status => false,
        }
    }
}

/// Sectors of a slot's buffer, as bits.
pub fn sectors_mask(first: u32, count: u32) -> u128 {
    const SECTORS_MAX: u32 = u128::BITS;
    const { assert!(LARGE_BYTES / 512 == SECTORS_MAX, "a bit for each sector of a buffer") };
    assert!(first + count <= SECTORS_MAX, "sectors {first}+{count} lie in a buffer");
    if count == 0 { 0 } else { (u128::MAX >> (SECTORS_MAX - count)) << first }
}
