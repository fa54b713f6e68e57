//! Operations of an engine, and the disk that does them.
use request::disk::{Disk, Op};

use crate::ops::{Ops, Owner};

/// What reads and writes.
pub struct Io<D> {
    /// Does the operations.
    pub disk: D,
    /// Those in flight, and those that are to be tried again.
    pub ops: Ops,
    /// What time it is, in µs.
    pub now: u64,
}

impl<D: Disk> Io<D> {
    /// Sets an operation going. There is always room: everybody has a share of the table.
    #[inline]
    pub fn push(&mut self, owner: Owner, op: Op) {
        self.ops.push(&mut self.disk, owner, op, self.now);
    }
}
