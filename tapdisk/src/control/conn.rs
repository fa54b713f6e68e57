//! One client of the control socket: one request, one reply, never waiting for it.
use std::io::{self, Read, Write};

use mio::net::UnixStream;
use tap_ctl::messages::{MESSAGE_BYTES, Message, Request};

use super::frame::{Parsed, REQUEST_BYTES_MAX, parse};
use crate::vbd::Extra;

/// How long a request may be incomplete, in µs.
const INCOMPLETE_US: u64 = 10_000_000;
/// How long a client may say nothing, or not read its reply, in µs.
const SILENT_US: u64 = 60_000_000;
/// Further requests on a busy connection that are answered (with EBUSY).
const BUSY_ANSWERS_MAX: usize = 4;

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its request is not complete.
    Asking,
    /// It waits for its reply.
    Waiting,
    /// Its reply is being sent; then it is over.
    Answered,
}

/// What reading gave.
pub enum Input {
    /// A request.
    Request(Box<(Request, Extra)>),
    /// Nothing to do now.
    Nothing,
    /// The client is gone or gets no reply.
    Gone,
}

/// A client.
pub struct Conn {
    /// Its socket.
    pub stream: UnixStream,
    /// Never used twice.
    pub serial: u64,
    /// Where it is.
    pub phase: Phase,
    /// When it began to be silent or incomplete, in µs.
    since: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// Bytes that came while it was waiting.
    surplus: usize,
}

impl Conn {
    /// A new client.
    pub fn new(stream: UnixStream, serial: u64, now: u64) -> Conn {
        let (input, output) = (Vec::new(), Vec::new());
        Conn {
            stream,
            serial,
            phase: Phase::Asking,
            since: now,
            input,
            output,
            sent: 0,
            surplus: 0,
        }
    }

    /// A client that has asked for something, and waits for its reply.
    pub fn waiting(stream: UnixStream, serial: u64, now: u64) -> Conn {
        let mut conn = Conn::new(stream, serial, now);
        conn.phase = Phase::Waiting;
        conn
    }

    /// It is connected and has not said anything.
    pub fn is_fresh(&self) -> bool {
        self.phase == Phase::Asking && self.input.is_empty()
    }

    /// Reads what is there.
    pub fn read(&mut self, now: u64) -> Input {
        match self.phase {
            Phase::Asking => self.ask(now),
            Phase::Waiting => self.read_surplus(),
            Phase::Answered => Input::Nothing,
        }
    }

    fn ask(&mut self, now: u64) -> Input {
        loop {
            let want = match parse(&self.input) {
                Parsed::More(want) => want.min(REQUEST_BYTES_MAX),
                Parsed::Request(request) => {
                    self.forget_input();
                    self.phase = Phase::Waiting;
                    return Input::Request(request);
                }
                Parsed::Refused(refusal) => {
                    self.forget_input();
                    self.answer(refusal.as_bytes(), now);
                    return Input::Nothing;
                }
            };
            let have = self.input.len();
            self.input.resize(want, 0);
            let got = self.stream.read(&mut self.input[have..]);
            self.input.truncate(have + got.as_ref().map_or(0, |n| *n));
            match got {
                Ok(0) => return self.cut_short(now),
                Ok(_) if have == 0 => self.since = now,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Nothing,
                Err(_) => return Input::Gone,
            }
        }
    }

    /// The client ends, or takes too long: a message that misses only what follows it gets a reply.
    fn cut_short(&mut self, now: u64) -> Input {
        let cookie = self.input.get(2..4).map(|b| u16::from_ne_bytes([b[0], b[1]]));
        let whole = self.input.len() >= MESSAGE_BYTES;
        self.forget_input();
        match cookie {
            Some(cookie) if whole => {
                let why = "the log path or key that belongs to the request did not come whole";
                self.answer(Message::refusal(cookie, libc::EIO, why).as_bytes(), now);
                Input::Nothing
            }
            _ => Input::Gone,
        }
    }

    /// A second request is answered with EBUSY (spec/control-socket.md §2).
    fn read_surplus(&mut self) -> Input {
        let mut bytes = [0; MESSAGE_BYTES];
        loop {
            match self.stream.read(&mut bytes) {
                // It will send no more, and may still read.
                Ok(0) => return Input::Nothing,
                Ok(n) => {
                    let before = self.surplus / MESSAGE_BYTES;
                    self.surplus += n;
                    for _ in before..self.surplus / MESSAGE_BYTES {
                        let why =
                            "the request before is not answered yet; one connection, one request";
                        let busy = Message::refusal(0, libc::EBUSY, why);
                        self.output.extend_from_slice(busy.as_bytes());
                    }
                    if self.surplus / MESSAGE_BYTES > BUSY_ANSWERS_MAX {
                        return Input::Gone;
                    }
                    self.write();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Nothing,
                Err(_) => return Input::Gone,
            }
        }
    }

    /// The reply. It is sent as far as the client takes it; the rest when it takes more.
    pub fn answer(&mut self, bytes: &[u8], now: u64) {
        self.output.extend_from_slice(bytes);
        self.phase = Phase::Answered;
        self.since = now;
        self.write();
    }

    /// Sends what the client takes.
    pub fn write(&mut self) {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return self.give_up(),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.give_up(),
            }
        }
    }

    fn give_up(&mut self) {
        self.sent = self.output.len();
    }

    /// The reply is out: nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Answered && self.sent == self.output.len()
    }

    /// Since when its request has been awaited, in µs.
    pub fn silent_since(&self) -> Option<u64> {
        (self.phase == Phase::Asking).then_some(self.since)
    }

    /// When it has to be done with, in µs.
    pub fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Asking if self.input.is_empty() => Some(self.since + SILENT_US),
            Phase::Asking => Some(self.since + INCOMPLETE_US),
            Phase::Answered => Some(self.since + SILENT_US),
            Phase::Waiting => None,
        }
    }

    /// The deadline has passed. Whether the client is to be dropped.
    pub fn expire(&mut self, now: u64) -> bool {
        match self.phase {
            Phase::Asking => matches!(self.cut_short(now), Input::Gone),
            Phase::Answered => true,
            Phase::Waiting => false,
        }
    }

    /// Keys pass through here.
    fn forget_input(&mut self) {
        self.input.fill(0);
        std::hint::black_box(&self.input);
        self.input = Vec::new();
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.forget_input();
    }
}
