//! What a layer of a chain may have beside its format: encryption, a log of changes, a role.
use crate::Span;

/// What encrypts the data of an image, sector by sector, in place. Allocates nothing.
pub trait Cipher: Send {
    /// Encrypts whole sectors, the first of which is number `sector` of the disk.
    fn encrypt(&self, sector: u64, bytes: &mut [u8]);
    /// The reverse.
    fn decrypt(&self, sector: u64, bytes: &mut [u8]);
}

/// Who is told of changes before they are made: the changed-block log.
pub trait Changes: Send {
    /// These sectors are about to change. Does not allocate, block on I/O it issues itself, or
    /// fail.
    fn mark(&mut self, span: Span);
}

/// What a second writable image is for (spec/operations.md §4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Every change goes there first, then to the top.
    Mirror,
    /// It takes over when the top has no space left.
    Standby,
    /// It is the top's parent, and the top is being committed to it: every change goes there as
    /// well.
    Base,
}
