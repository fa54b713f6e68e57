//! What is carried over an exec: descriptors by their numbers, keys, and a clock
//! (docs/upgrade.md).
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys;
use std::sync::atomic::{AtomicBool, Ordering};

static TAKING_OVER: AtomicBool = AtomicBool::new(false);

/// This program takes over from another, or does so no more. If it fails on the way, the other goes
/// on with sockets and files of these names: what is dropped meanwhile must leave them.
pub fn take_over(on: bool) {
    TAKING_OVER.store(on, Ordering::Relaxed);
}

/// Whether it does.
pub fn is_taking_over() -> bool {
    TAKING_OVER.load(Ordering::Relaxed)
}

/// A descriptor that is carried over: its number.
pub type Carried = i32;

/// µs of a clock that goes on over an exec.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    u64::try_from(micros).unwrap_or(0)
}

/// Those that stay open.
#[derive(Debug, Default)]
pub struct Carrier(Vec<RawFd>);

impl Carrier {
    /// This one as well. Its number is what the next program knows it by.
    ///
    /// # Errors
    /// Those of `fcntl(2)`.
    pub fn carry(&mut self, fd: BorrowedFd<'_>) -> io::Result<Carried> {
        sys::survive_exec(fd.as_raw_fd(), true)?;
        self.0.push(fd.as_raw_fd());
        Ok(fd.as_raw_fd())
    }

    /// There was no exec: they are as they were.
    pub fn undo(&self) {
        for fd in &self.0 {
            // It is open, so this does not fail.
            let _ = sys::survive_exec(*fd, false);
        }
    }
}

/// Takes them in the next program. The originals stay open until all is well, for whoever must go
/// back.
#[derive(Debug, Default)]
pub struct Fetcher(Vec<RawFd>);

impl Fetcher {
    /// A descriptor by its number.
    ///
    /// # Errors
    /// EBADF if it is not open.
    pub fn fetch(&mut self, fd: Carried) -> io::Result<OwnedFd> {
        // Nobody hands over the standard streams.
        if fd <= 2 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let copy = sys::copy_of_number(fd)?;
        if !self.0.contains(&fd) {
            self.0.push(fd);
        }
        Ok(copy)
    }

    /// Nobody goes back: the originals are closed.
    pub fn close(self) {
        self.0.into_iter().for_each(sys::close_number);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_is_carried_and_fetched() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut carrier = Carrier::default();
        let number = carrier.carry(ours.as_fd()).unwrap();
        carrier.undo();
        let mut fetcher = Fetcher::default();
        let copy = fetcher.fetch(number).unwrap();
        assert_ne!(copy.as_raw_fd(), number);
        assert!(fetcher.fetch(1).is_err() && fetcher.fetch(9999).is_err());
        std::mem::forget(ours);
        fetcher.close();
        assert!(Fetcher::default().fetch(number).is_err());
    }
}
