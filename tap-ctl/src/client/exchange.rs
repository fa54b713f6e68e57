//! One connection: send a request, receive what comes back, under one time budget.

use crate::error::{Error, io_errno};
use crate::messages::{Body, MESSAGE_BYTES, Message, Request, Response, kind};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Shortest wait: std refuses a timeout of zero, and an answer that is there is to be taken.
const WAIT_MIN: Duration = Duration::from_millis(1);

pub(super) struct Exchange {
    stream: UnixStream,
    pid: i32,
    request: Request,
    deadline: Option<Instant>,
    trace: fn(&str),
}

impl Exchange {
    /// Connect and send the request.
    pub fn begin(
        socket: &Path,
        pid: i32,
        request: &Request,
        limit: Option<Duration>,
        trace: fn(&str),
    ) -> Result<Exchange, Error> {
        let stream = UnixStream::connect(socket)
            .map_err(|error| Error::Connect { path: socket.to_owned(), errno: io_errno(&error) })?;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut exchange = Exchange { stream, pid, request: *request, deadline, trace };
        exchange.send_request()?;
        Ok(exchange)
    }

    /// From here on there is no time limit.
    pub fn unlimited(&mut self) {
        self.deadline = None;
    }

    /// Send the blocks that follow the message, each with a single write (§2). An error is not
    /// reported here: a tapdisk that refuses the request may close before it has read them, and
    /// then its reply says more.
    pub fn send_blocks(&mut self, blocks: &[Option<&[u8]>]) {
        for block in blocks.iter().flatten() {
            if self.stream.write_all(block).is_err() {
                return;
            }
        }
    }

    /// The reply to the request, as a `B`.
    pub fn reply<B: Body>(&mut self) -> Result<B, Error> {
        let message = self.receive()?;
        if message.kind() == self.request.reply_kind() {
            return message.body().map_err(|bad| Error::BadReply {
                pid: self.pid,
                reason: format!("the text at offset {} has no NUL", bad.offset),
            });
        }
        Err(self.not_a_reply(&message))
    }

    /// The same without a limit, calling `ask` whenever it has not come for so long.
    pub fn reply_asking<B: Body>(
        &mut self,
        pause: Duration,
        ask: &mut dyn FnMut(),
    ) -> Result<B, Error> {
        while !crate::sys::readable(self.stream.as_fd(), pause) {
            ask();
        }
        self.reply()
    }

    /// [`Exchange::done`] in the same way.
    pub fn done_asking(self, pause: Duration, ask: &mut dyn FnMut()) -> Result<(), Error> {
        while !crate::sys::readable(self.stream.as_fd(), pause) {
            ask();
        }
        self.done()
    }

    /// The reply to the request, which says 0 or an errno.
    pub fn done(mut self) -> Result<(), Error> {
        match self.reply::<Response>()?.error {
            0 => Ok(()),
            errno => Err(self.refused(errno, None)),
        }
    }

    /// Exactly `count` bytes.
    pub fn receive_bytes(&mut self, count: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn send_request(&mut self) -> Result<(), Error> {
        let message = self.request.to_message();
        (self.trace)(&format!("sending {message:?}"));
        // write_all makes one write of the 544 bytes, which the original daemon depends on; a
        // fresh socket's buffer takes them whole.
        let limit = self.deadline.map(remaining);
        let sent = self
            .stream
            .set_write_timeout(limit)
            .and_then(|()| self.stream.write_all(message.as_bytes()));
        sent.map_err(|_| Error::Send { kind: self.request.kind(), pid: self.pid })
    }

    fn receive(&mut self) -> Result<Message, Error> {
        let mut frame = [0; MESSAGE_BYTES];
        self.fill(&mut frame)?;
        let message = Message::decode(&frame);
        (self.trace)(&format!("received {message:?}"));
        Ok(message)
    }

    /// Read until `buffer` is full, in whatever pieces the bytes come.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let (kind, pid) = (self.request.kind(), self.pid);
        let mut filled = 0;
        while filled < buffer.len() {
            let limit = self.deadline.map(remaining);
            self.stream.set_read_timeout(limit).map_err(|_| Error::NoReply { kind, pid })?;
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => return Err(Error::NoReply { kind, pid }),
                Ok(count) => filled += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        return Err(Error::TimedOut { kind, pid });
                    }
                    _ => return Err(Error::NoReply { kind, pid }),
                },
            }
            if filled < buffer.len() && self.deadline.is_some_and(|end| end <= Instant::now()) {
                return Err(Error::TimedOut { kind, pid });
            }
        }
        Ok(())
    }

    fn not_a_reply(&self, message: &Message) -> Error {
        match message.body::<Response>() {
            Ok(Response { error }) if message.kind() == kind::ERROR => {
                self.refused(error, message.reason())
            }
            _ => Error::Unexpected {
                kind: self.request.kind(),
                pid: self.pid,
                reply: message.kind(),
            },
        }
    }

    /// An errno of 0 in an ERROR message is none; take it as EINVAL, so that it stays a failure.
    fn refused(&self, errno: i32, reason: Option<String>) -> Error {
        let errno = if errno == 0 { libc::EINVAL } else { errno.saturating_abs() };
        let (kind, pid, minor) = (self.request.kind(), self.pid, self.request.cookie());
        Error::Refused { kind, pid, minor, errno, reason }
    }
}

fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(WAIT_MIN)
}
