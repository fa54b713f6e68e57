//! Slots: what a request in flight is waiting for, as one state.
use image::{Plan, Span};

use crate::engine::limits::PLANS_MAX;
use crate::transport::{Outcome, Request, Verb};

/// Where a slot is. A request waits while `pending` is not 0; the state says what comes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's.
    Free,
    /// The transport fills its buffer.
    Filling,
    /// The next part of the request is to be mapped or planned. Reads stay here until they are done.
    Ask,
    /// This phase of the plans is being written.
    Landing {
        /// From 1.
        phase: u8,
    },
    /// A barrier between phase 1 and 2 is being waited for.
    Barrier,
    /// Space is being given back.
    Freeing,
    /// A flush is being waited for.
    Syncing,
    /// Finished; the transport's until it is released.
    Done,
}

/// One slot.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Where it is.
    pub state: State,
    /// What it works on.
    pub request: Request,
    /// Sectors of the request that are mapped or planned.
    pub cursor: u32,
    /// Things it waits for.
    pub pending: u16,
    /// Data operations among these.
    pub ops: u16,
    /// First error of an operation.
    pub error: Option<i32>,
    /// Plans at work.
    pub plans: [Option<Plan>; PLANS_MAX],
    /// The plans that have another phase, as bits.
    pub live: u8,
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
    pub fn free() -> Slot {
        let request = Request { verb: Verb::Flush, span: Span::default(), mark: 0 };
        Slot {
            state: State::Free,
            request,
            cursor: 0,
            pending: 0,
            ops: 0,
            error: None,
            plans: [None; PLANS_MAX],
            live: 0,
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
