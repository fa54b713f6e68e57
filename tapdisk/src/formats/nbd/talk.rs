//! Sending and receiving that waits, until a moment.
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use host::socket::{self, Ready};

/// A connection during a negotiation. The flags of its descriptor, which may be somebody else's as
/// well, stay as they are.
pub(super) struct Talk<F: AsFd> {
    fd: F,
    until: Instant,
    /// Something was sent or received.
    touched: bool,
}

impl<F: AsFd> Talk<F> {
    pub(super) fn new(fd: F, until: Instant) -> Talk<F> {
        Talk { fd, until, touched: false }
    }

    /// The connection, and whether anything was said on it.
    pub(super) fn into_parts(self) -> (F, bool) {
        (self.fd, self.touched)
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match socket::send(self.fd.as_fd(), [rest].into_iter()) {
                Ok(n) => {
                    self.touched = true;
                    rest = &rest[n..];
                }
                Err(e) => self.wait_after(e, Ready::Send)?,
            }
        }
        Ok(())
    }

    /// Receives `N` bytes.
    pub(super) fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives as many bytes as there is room for.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match socket::receive(self.fd.as_fd(), &mut bytes[done..], &mut []) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.touched = true;
                    done += n;
                }
                Err(e) => self.wait_after(e, Ready::Receive)?,
            }
        }
        Ok(())
    }

    fn wait_after(&self, error: io::Error, ready: Ready) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            _ => return Err(error),
        }
        let left = self.until.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match socket::wait(self.fd.as_fd(), ready, left) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        }
    }
}
