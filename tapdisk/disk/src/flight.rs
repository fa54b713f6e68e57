//! What an engine has been given and has not given back: at most as much as was agreed at open.
//!
//! ```text
//!   push ─► begin ─► (the kernel, a worker) ─► finish ─► reap
//! ```
use std::collections::VecDeque;

use request::disk::Tag;

use super::worker::Done;

/// The operations of an engine that are pushed and not reaped. Allocates when it is made, and never
/// again.
pub(crate) struct Flight {
    depth: u32,
    /// Pushed and not reaped.
    count: u32,
    /// Of these, those that are over.
    done: VecDeque<Done>,
}

impl Flight {
    /// Room for `depth` of them.
    pub(crate) fn of(depth: u32) -> Flight {
        Flight { depth, count: 0, done: VecDeque::with_capacity(depth as usize) }
    }

    /// As many as there is room for.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// One more is pushed.
    pub(crate) fn begin(&mut self) {
        assert!(self.count < self.depth, "no more in flight than the depth given at open");
        self.count += 1;
    }

    /// One is over.
    pub(crate) fn finish(&mut self, tag: Tag, result: Result<u32, i32>) {
        self.done.push_back((tag, result));
    }

    /// Gives the oldest that is over back.
    pub(crate) fn reap(&mut self) -> Option<Done> {
        let done = self.done.pop_front()?;
        self.count -= 1;
        Some(done)
    }

    /// Whether one is over.
    pub(crate) fn has_finished(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether none is pushed.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}
