//! The turns of a client's life: served, greeted (again), dropped, buried.
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::Export;
use super::calls::At;
use super::conn::{Conn, Phase, Style};
use super::handshake::{self, Features, Handshake};
use super::intake::Intake;
use super::notice::{Log, Notice, Why};
use super::sys::{self, Buffer};
use crate::quota::Stall;
use request::Slots;

pub(super) const SOCKET_BUFFER_BYTES: i32 = 1 << 20;

impl Conn {
    /// Greets a client in this free place.
    pub(super) fn serve(
        &mut self,
        fd: OwnedFd,
        style: Style,
        passed: bool,
        poll: (&Registry, Token),
        export: &Export,
    ) -> io::Result<()> {
        assert!(self.phase == Phase::Free, "a client is put where none is");
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.0.register(&mut SourceFd(&fd.as_raw_fd()), poll.1, interest)?;
        sys::size_buffer(fd.as_fd(), Buffer::Receive, SOCKET_BUFFER_BYTES);
        self.pace.begin(fd.as_fd(), passed);
        self.fd = Some(fd);
        self.style = style;
        self.old = style != Style::New;
        (self.readable, self.closed, self.blocked) = (true, false, false);
        (self.stall, self.freed) = (Stall::No, false);
        self.rx.clear();
        self.passed = passed;
        self.clock.start(passed);
        self.greet(export);
        Ok(())
    }

    /// Starts a negotiation. The text buffer is empty: first greeting, or a quiet end.
    pub(super) fn greet(&mut self, export: &Export) {
        assert!(self.out.is_empty(), "a greeting comes first");
        self.handshake = Handshake::new();
        self.features = Features::default();
        match self.style {
            Style::New | Style::NewThenOld => {
                handshake::greet_newstyle(&mut self.out.text);
                self.phase = Phase::Negotiating;
            }
            Style::Old => {
                handshake::greet_oldstyle(&mut self.out.text, export);
                self.phase = Phase::Serving;
            }
        }
    }

    /// Starts over after DISC.
    pub(super) fn greet_again(&mut self, export: &Export) {
        if self.style == Style::NewThenOld {
            self.style = Style::Old;
        }
        self.clock.start(true);
        self.greet(export);
    }

    /// Drops a client that is over a time limit.
    pub(super) fn tick(&mut self, now: Instant, listening: bool, log: &mut Log, poll: &Registry) {
        if listening && self.phase == Phase::Ending && self.is_quiet() {
            self.clock.rest(now);
        }
        let negotiating = listening && self.phase == Phase::Negotiating;
        let untaken = |fd: &OwnedFd| sys::untaken(fd.as_fd());
        let waiting =
            (!self.out.is_empty()).then(|| (self.out.sent, self.fd.as_ref().map_or(0, untaken)));
        if let Some(why) = self.clock.check(now, negotiating, waiting).filter(|_| self.is_live()) {
            self.drop_client(why, log, poll);
        }
    }

    /// Closes the descriptor; slots come back in `bury` and `complete`.
    pub(super) fn drop_client(&mut self, why: Why, log: &mut Log, registry: &Registry) {
        if !self.is_live() {
            return;
        }
        if !matches!(why, Why::Closed | Why::Aborted | Why::Shut) {
            log.counters.dropped += 1;
        }
        log.notices.note(Notice::Ended { client: self.id, why });
        if let Some(fd) = self.fd.take() {
            // The peer may hold a copy of a passed descriptor, which would keep it in the poll.
            // Failure means it is not in it, which is what we want.
            let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
        }
        self.phase = Phase::Dying;
    }

    /// Gives back the slots of a dying client; frees its place when the engine has none of them.
    pub(super) fn bury(&mut self, slots: &mut dyn Slots, log: &mut Log) {
        assert!(self.phase == Phase::Dying, "only the dead are buried");
        if let Some(slot) = std::mem::replace(&mut self.intake, Intake::Head).slot() {
            self.held.release(slots, slot);
        }
        self.out.clear(|slot| self.held.release(slots, slot));
        for index in 0..self.pieces.size() as u16 {
            if self.pieces[index].at == At::Parked {
                self.held.release(slots, self.pieces[index].slot);
                self.free_piece(index);
            }
        }
        if self.in_engine == 0 {
            self.reset(log);
        }
    }

    fn reset(&mut self, log: &mut Log) {
        assert!(self.held.is_none() && self.pieces.used() == 0, "every slot went back");
        let traffic = &mut log.traffic[usize::from(self.old)];
        for (over, open) in traffic.over.iter_mut().zip(&mut self.open) {
            *over += std::mem::take(open);
        }
        self.calls.clear();
        self.line.clear();
        self.streaming = None;
        self.phase = Phase::Free;
    }

    pub(super) fn fail(&mut self, e: &io::Error, log: &mut Log, registry: &Registry) {
        let why = match e.raw_os_error() {
            Some(libc::ECONNRESET | libc::EPIPE) | None => Why::Closed,
            Some(errno) => Why::Socket(errno),
        };
        self.drop_client(why, log, registry);
    }
}
