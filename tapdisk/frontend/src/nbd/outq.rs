//! What is to be sent on one connection, in order: the text of the negotiation, then reply heads
//! with the slots whose buffers follow them. Slot buffers go to the socket from where they are.
use std::io;
use std::os::fd::BorrowedFd;

use super::calls::{CALLS_MAX, PIECES_MAX};
use super::notice::Log;
use super::{handshake, sys};
use nbd_proto::Head;
use request::{SlotId, Slots};

/// Every piece and every call of the connection may have an answer waiting here.
pub(super) const REPLIES_MAX: usize = 512;
const _: () = assert!(REPLIES_MAX >= PIECES_MAX + CALLS_MAX + 2);

/// One reply: its head, and the first `bytes` bytes of a slot's buffer.
#[derive(Clone, Copy, Debug)]
struct Reply {
    head: Head,
    data: Option<(SlotId, u32)>,
}

impl Reply {
    const NONE: Reply = Reply { head: Head::EMPTY, data: None };

    fn bytes(&self) -> usize {
        self.head.bytes().len() + self.data.map_or(0, |(_, bytes)| bytes as usize)
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct OutQueue {
    /// What the negotiation said; sent before any reply.
    pub text: Vec<u8>,
    text_sent: usize,
    ring: Box<[Reply]>,
    first: usize,
    used: usize,
    /// Bytes of the first reply that were sent.
    first_sent: usize,
    /// Bytes sent so far.
    pub sent: u64,
}

/// How a round of sending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything is out.
    All,
    /// The socket takes no more just now.
    Blocked,
    /// As much as was asked for; the socket may take more.
    Enough,
}

impl OutQueue {
    pub(super) fn new() -> OutQueue {
        OutQueue {
            text: Vec::with_capacity(handshake::TEXT_BYTES),
            text_sent: 0,
            ring: vec![Reply::NONE; REPLIES_MAX].into(),
            first: 0,
            used: 0,
            first_sent: 0,
            sent: 0,
        }
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0 && self.text.is_empty()
    }

    /// Replies that wait.
    pub(super) fn replies(&self) -> usize {
        self.used
    }

    /// Appends a reply. There is room: the intake sees to it.
    pub(super) fn push(&mut self, head: Head, data: Option<(SlotId, u32)>) {
        assert!(self.used < REPLIES_MAX, "the intake leaves room for every reply");
        self.ring[(self.first + self.used) % REPLIES_MAX] = Reply { head, data };
        self.used += 1;
    }

    /// Sends as much as the socket takes, and about `bytes_max` bytes at most. Slots whose bytes are
    /// out are handed to `release`.
    pub(super) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes_max: usize,
        slots: &mut dyn Slots,
        log: &mut Log,
        mut release: impl FnMut(&mut dyn Slots, SlotId),
    ) -> io::Result<Sent> {
        let mut left = bytes_max;
        while !self.is_empty() {
            if left == 0 {
                return Ok(Sent::Enough);
            }
            log.counters.sends += 1;
            match sys::send(fd, first_bytes(self.parts(slots), left)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    log.moved += n;
                    left = left.saturating_sub(n);
                    self.advance(n, |slot| release(slots, slot));
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                Err(e) => return Err(e),
            }
        }
        Ok(Sent::All)
    }

    /// Drops everything, sent or not.
    pub(super) fn clear(&mut self, mut release: impl FnMut(SlotId)) {
        self.text.clear();
        self.text_sent = 0;
        while let Some(reply) = self.pop() {
            if let Some((slot, _)) = reply.data {
                release(slot);
            }
        }
    }

    /// The bytes that wait, in order.
    fn parts<'a>(&'a self, slots: &'a dyn Slots) -> impl Iterator<Item = &'a [u8]> {
        let mut skip = self.first_sent;
        let replies = (0..self.used).map(|i| &self.ring[(self.first + i) % REPLIES_MAX]);
        let bytes = replies.flat_map(move |reply| {
            let data = reply.data.map_or(&[][..], |(slot, n)| &slots.buffer(slot)[..n as usize]);
            let head = cut(reply.head.bytes(), &mut skip);
            [head, cut(data, &mut skip)]
        });
        std::iter::once(&self.text[self.text_sent..]).chain(bytes).filter(|part| !part.is_empty())
    }

    fn advance(&mut self, mut n: usize, mut release: impl FnMut(SlotId)) {
        self.sent += n as u64;
        let text = n.min(self.text.len() - self.text_sent);
        self.text_sent += text;
        n -= text;
        if self.text_sent == self.text.len() {
            self.text.clear();
            self.text_sent = 0;
        }
        while n > 0 {
            let left = self.ring[self.first].bytes() - self.first_sent;
            if n < left {
                self.first_sent += n;
                return;
            }
            n -= left;
            if let Some((slot, _)) = self.pop().and_then(|reply| reply.data) {
                release(slot);
            }
        }
    }

    fn pop(&mut self) -> Option<Reply> {
        if self.used == 0 {
            return None;
        }
        let reply = self.ring[self.first];
        self.first = (self.first + 1) % REPLIES_MAX;
        self.used -= 1;
        self.first_sent = 0;
        Some(reply)
    }
}

/// The first parts, until they have `bytes` bytes together; whole parts, so that a little more comes.
fn first_bytes<'a>(
    parts: impl Iterator<Item = &'a [u8]>,
    mut bytes: usize,
) -> impl Iterator<Item = &'a [u8]> {
    parts.take_while(move |part| {
        let wanted = bytes > 0;
        bytes = bytes.saturating_sub(part.len());
        wanted
    })
}

/// Takes `skip` bytes off the front, as far as there are any.
fn cut<'a>(part: &'a [u8], skip: &mut usize) -> &'a [u8] {
    let n = part.len().min(*skip);
    *skip -= n;
    &part[n..]
}
