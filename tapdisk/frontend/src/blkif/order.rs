//! A barrier among the queues of its device: none of them has anything in flight while it is at
//! work.
//!
//! ```text
//!   queue 0   w w │ barrier │ w       a ticket is drawn when the barrier is first in its line; from
//!   queue 1   w w w │       │ w w     then on the device's other queues begin nothing new, and finish
//!                                     what they have begun
//! ```
//! A request that is held up draws a ticket too. Whoever drew first goes first: so barriers of two
//! queues do not wait for each other, and queues full of barriers hold up another one's request
//! once. Other devices, and the disk's NBD clients, are not held up.
use super::calls::{Calls, Stage, Work};
use super::queue::Queue;

/// What a queue has to know of the other queues of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    /// The oldest ticket among them.
    first: Option<u64>,
    /// The oldest of a barrier.
    first_barrier: Option<u64>,
    /// Nothing of theirs is in flight.
    quiet: bool,
}

impl Gate {
    /// For the queue at `place`.
    pub(super) fn of(queues: &[Option<Queue>], index: usize, calls: &Calls) -> Gate {
        let alone = Gate { first: None, first_barrier: None, quiet: true };
        let Some(own) = &queues[index] else { return alone };
        // Those that were disconnected are among them: their requests still change the disk.
        let others = queues
            .iter()
            .flatten()
            .filter(|other| other.index != own.index && other.name.same_device(own.name));
        others.fold(alone, |gate, other| Gate {
            first: older(gate.first, other.ticket),
            first_barrier: older(gate.first_barrier, other.ticket.filter(|_| other.bars(calls))),
            quiet: gate.quiet && other.busy == 0 && !other.has_begun(calls),
        })
    }

    /// Whether the barrier with this ticket may begin, as far as the others are concerned.
    fn admits(&self, ticket: u64) -> bool {
        self.quiet && self.first.is_none_or(|first| ticket < first)
    }
}

fn older(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

impl Queue {
    /// Whether a barrier is the first of the line.
    fn bars(&self, calls: &Calls) -> bool {
        self.line.front().is_some_and(|id| matches!(calls[*id].work, Work::Barrier(_)))
    }

    /// Whether the first of the line, which is no barrier, may begin or go on.
    pub(super) fn may_begin(&self, calls: &Calls, gate: Gate) -> bool {
        let older = |barrier| self.ticket.is_some_and(|ticket| ticket < barrier);
        gate.first_barrier.is_none_or(older) || self.has_begun(calls)
    }

    /// Whether the first of the line is partly in slots: it goes on, whatever waits.
    fn has_begun(&self, calls: &Calls) -> bool {
        let begun = |id: &u16| calls[*id].issued > 0 || calls[*id].outstanding > 0;
        self.line.front().is_some_and(begun)
    }

    /// Whether the barrier at the front of the line may begin. It has a ticket then.
    pub(super) fn may_begin_barrier(&self, gate: Gate) -> bool {
        self.busy == 0 && self.ticket.is_some_and(|ticket| gate.admits(ticket))
    }

    /// Whether what a stalled queue waited for at others has come.
    pub(super) fn is_let_through(&self, calls: &Calls, gate: Gate) -> bool {
        let Some(front) = self.line.front() else { return false };
        match calls[*front].work {
            Work::Barrier(Stage::Alone) => self.may_begin_barrier(gate),
            // The end of its own pieces lets it go on.
            Work::Barrier(Stage::Before | Stage::Data | Stage::After) => false,
            Work::Read | Work::Write | Work::Discard | Work::Flush => self.may_begin(calls, gate),
        }
    }
}
