//! The receive buffer of one client. One call takes as many requests as have arrived; the bulk of a
//! large payload goes past it, straight into a slot.
use std::io;
use std::os::fd::BorrowedFd;

use super::sys;
use host::arena::Buffer;
use nbd_proto::REQUEST_BYTES;

const BUFFER_BYTES: usize = 64 << 10;
/// Taken at most into the buffer in one call while large payloads come: a header and a bit, so that
/// the bulk of the next payload is not copied either.
const NARROW_BYTES: usize = 4096 + REQUEST_BYTES;
/// A write of so many bytes is large in this sense.
const LARGE_BYTES: u32 = 16 << 10;

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Got {
    /// Bytes in all; 0 is the end of the stream.
    pub bytes: usize,
    /// Those of them that went into the slot.
    pub direct: usize,
    /// There was no room for more: there may be more.
    pub full: bool,
}

/// The buffer.
#[derive(Debug)]
pub(super) struct Receive {
    buffer: Buffer,
    from: usize,
    to: usize,
    window: usize,
}

impl Receive {
    pub(super) fn new() -> Receive {
        Receive { buffer: Buffer::new(BUFFER_BYTES), from: 0, to: 0, window: BUFFER_BYTES }
    }

    /// What has arrived and was not consumed.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.from..self.to]
    }

    /// How much that is.
    pub(super) fn len(&self) -> usize {
        self.to - self.from
    }

    /// Takes bytes off the front.
    pub(super) fn consume(&mut self, n: usize) {
        assert!(n <= self.len(), "only what has arrived can be consumed");
        self.from += n;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        (self.from, self.to, self.window) = (0, 0, BUFFER_BYTES);
    }

    /// What another program had received, before anything else.
    pub(super) fn put_back(&mut self, bytes: &[u8]) -> io::Result<()> {
        let place = self.buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        place.copy_from_slice(bytes);
        (self.from, self.to) = (0, bytes.len());
        Ok(())
    }

    /// A write of so many bytes has begun: more of its kind will follow.
    pub(super) fn expect(&mut self, bytes: u32) {
        self.window = if bytes >= LARGE_BYTES { NARROW_BYTES } else { BUFFER_BYTES };
    }

    /// Receives into `hole` first. Behind it into the buffer, unless the request goes on there.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        hole: &mut [u8],
        goes_on: bool,
    ) -> io::Result<Got> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.len());
        let window = if goes_on { 0 } else { self.window };
        let end = self.buffer.len().min(self.to + window);
        let room = hole.len() + end - self.to;
        assert!(room > 0, "what is parsed next always fits the buffer");
        let bytes = sys::receive(fd, hole, &mut self.buffer[self.to..end])?;
        let direct = bytes.min(hole.len());
        self.to += bytes - direct;
        Ok(Got { bytes, direct, full: bytes == room })
    }
}
