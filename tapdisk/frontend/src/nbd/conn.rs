//! One client: its descriptor, its buffers and where it is in its life.
//!
//! ```text
//!   Free ─► Negotiating ─► Serving ─► Ending (after DISC) ─► Negotiating …
//!              └─► Closing (ABORT)  └──────────┴─► Dying ─► Free
//! ```
//! All memory is made when the place serves its first client and is kept. A dying client's
//! descriptor is closed at once; its place is free again when the engine has given back every slot.
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use mio::Registry;
use mio::event::Event;

use super::Export;
use super::calls::{self, At, CALLS_MAX, Call, Piece, Table};
use super::clock::Clock;
use super::handshake::{Features, Handshake, Step};
use super::intake::{Intake, Progress};
use super::notice::{Log, Why};
use super::outq::{OutQueue, Sent};
use super::pace::Pace;
use super::receive::{Got, Receive};
use crate::quota::{Held, Stall};
use request::Slots;

/// Receive calls for one client in one turn.
const RECEIVES_MAX: u32 = 32;
/// Bytes of payload taken from one client, or sent to it, in one round of a turn: the disk waits
/// for the end of the round.
const RECEIVED_MAX: usize = 256 << 10;
const SENT_MAX: usize = 256 << 10;

/// What everybody needs during a turn.
pub(super) struct Turn<'a> {
    pub slots: &'a mut dyn Slots,
    pub log: &'a mut Log,
    pub export: &'a Export,
    pub registry: &'a Registry,
    /// Clients that share the slots.
    pub clients: u16,
    /// Requests are taken, not only greetings.
    pub intake: bool,
    /// What has begun to arrive is taken to its end, and nothing more.
    pub finishing: bool,
}

/// Which greeting a client gets, at first and after each DISC (control-socket.md §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Old,
    New,
    /// The quirk of `nbd-old`.
    NewThenOld,
}

/// Where a client is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Negotiating,
    Serving,
    /// DISC came; what is left is answered, then greeted again.
    Ending,
    /// The last words are sent, then closed.
    Closing,
    /// Closed; slots are on their way back.
    Dying,
}

/// One client, or a place for one.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: u16,
    pub(super) phase: Phase,
    pub(super) fd: Option<OwnedFd>,
    pub(super) style: Style,
    /// Greeted in the old style, or through the door of that name: whose traffic it is.
    pub(super) old: bool,
    /// Reads and writes that are not over.
    pub(super) open: [u64; 2],
    /// Came as a descriptor, not by connecting.
    pub(super) passed: bool,
    /// The socket may have bytes for us.
    pub(super) readable: bool,
    /// The peer closed its end: a short receive does not mean that the end was seen.
    pub(super) closed: bool,
    /// The socket takes no bytes just now.
    pub(super) blocked: bool,
    pub(super) stall: Stall,
    /// Something was freed since the stall.
    pub(super) freed: bool,
    pub(super) clock: Clock,
    pub(super) handshake: Handshake,
    pub(super) features: Features,
    pub(super) rx: Receive,
    pub(super) intake: Intake,
    pub(super) calls: Table<Call>,
    pub(super) pieces: Table<Piece>,
    pub(super) in_engine: u16,
    pub(super) held: Held,
    pub(super) out: OutQueue,
    pub(super) pace: Pace,
    /// Simple replies: the long read whose data are being sent, and the calls in line behind it.
    pub(super) streaming: Option<u16>,
    pub(super) line: VecDeque<u16>,
}

impl Conn {
    /// A free place with its memory.
    pub(super) fn new(id: u16) -> Conn {
        Conn {
            id,
            phase: Phase::Free,
            fd: None,
            style: Style::New,
            old: false,
            open: [0; 2],
            passed: false,
            readable: false,
            closed: false,
            blocked: false,
            stall: Stall::No,
            freed: false,
            clock: Clock::default(),
            handshake: Handshake::new(),
            features: Features::default(),
            rx: Receive::new(),
            intake: Intake::Head,
            calls: calls::calls(),
            pieces: calls::pieces(),
            in_engine: 0,
            held: Held::default(),
            out: OutQueue::new(),
            pace: Pace::default(),
            streaming: None,
            line: VecDeque::with_capacity(CALLS_MAX),
        }
    }

    /// Is there a client that is served or negotiates?
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.phase, Phase::Free | Phase::Dying)
    }

    /// The poll has something to say about the socket.
    pub(super) fn event(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.closed |= event.is_read_closed() || event.is_error();
        if event.is_writable() || event.is_write_closed() || event.is_error() {
            self.blocked = false;
        }
    }

    /// Another `take` or `kick` would get on with it.
    pub(super) fn is_pending(&self, slots: &dyn Slots) -> bool {
        match (self.phase, self.stall) {
            (Phase::Free, _) => false,
            (Phase::Dying, _) => self.in_engine == 0,
            (Phase::Closing, _) => self.can_send(),
            (Phase::Ending, _) => {
                self.can_send() || (self.is_quiet() && (self.readable || self.stays()))
            }
            (_, Stall::No) => self.readable || self.can_send(),
            (_, Stall::Own) => self.freed,
            (_, Stall::Slot(bytes)) => self.freed || self.held.may(slots.slots(), bytes),
        }
    }

    /// Something waits that the socket may take.
    pub(super) fn can_send(&self) -> bool {
        !self.out.is_empty() && !self.blocked
    }

    /// What `take` has to say about a client that stalled: true if it is not waiting for its peer.
    pub(super) fn is_waiting(&self) -> bool {
        self.stall != Stall::No && !self.blocked
    }

    /// Reads and starts what has arrived. True if it stopped although there is more to do.
    pub(super) fn take(&mut self, turn: &mut Turn<'_>) -> bool {
        (self.stall, self.freed) = (Stall::No, false);
        self.held.clients = turn.clients;
        let enough = turn.log.moved + RECEIVED_MAX;
        for _ in 0..RECEIVES_MAX {
            if turn.log.moved >= enough {
                break;
            }
            match self.parse(turn) {
                Progress::Starved if self.readable => self.receive(turn),
                Progress::Starved => return false,
                Progress::Stalled(stall) => {
                    self.stall = stall;
                    return turn.intake && !turn.finishing && self.is_waiting();
                }
            }
        }
        self.is_live()
    }

    /// Uses up what was received.
    fn parse(&mut self, turn: &mut Turn<'_>) -> Progress {
        loop {
            match self.phase {
                Phase::Negotiating => match self.negotiate(turn) {
                    true => {}
                    false => return Progress::Starved,
                },
                Phase::Serving if !turn.intake => return Progress::Stalled(Stall::Own),
                Phase::Serving => match self.intake(turn) {
                    // DISC may have come.
                    Progress::Starved if self.phase == Phase::Serving => return Progress::Starved,
                    Progress::Starved => {}
                    stalled => return stalled,
                },
                Phase::Ending if self.is_quiet() => match self.stays() {
                    true => self.greet_again(turn.export),
                    false => return Progress::Starved,
                },
                // Neither reads from its client.
                Phase::Ending | Phase::Closing => return Progress::Stalled(Stall::Own),
                Phase::Free | Phase::Dying => {
                    self.readable = false;
                    return Progress::Starved;
                }
            }
        }
    }

    /// One step of the negotiation; false if it needs more bytes.
    fn negotiate(&mut self, turn: &mut Turn<'_>) -> bool {
        let text = &mut self.out.text;
        match self.handshake.step(self.rx.data(), text, turn.export) {
            Step::Starved => return false,
            Step::Used(n) => self.rx.consume(n),
            Step::Ready(n) => {
                self.rx.consume(n);
                self.features = self.handshake.features();
                self.phase = Phase::Serving;
            }
            Step::Close => self.phase = Phase::Closing,
            Step::Drop(why) => self.drop_client(why, turn.log, turn.registry),
        }
        true
    }

    fn receive(&mut self, turn: &mut Turn<'_>) {
        let Some(fd) = &self.fd else { return };
        turn.log.counters.receives += 1;
        let (hole, goes_on) = self.intake.hole(turn.slots);
        match self.rx.receive(fd.as_fd(), hole, goes_on) {
            Ok(Got { bytes: 0, .. }) => self.drop_client(Why::Closed, turn.log, turn.registry),
            Ok(got) => {
                self.intake.filled(got.direct);
                turn.log.moved += got.bytes;
                self.clock.heard();
                // A short receive has drained the socket, and what comes later makes a new event;
                // the end of the stream, however, may have been announced already.
                self.readable = got.full || self.closed;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => self.fail(&e, turn.log, turn.registry),
        }
    }

    /// Sends what is waiting.
    pub(super) fn kick(&mut self, turn: &mut Turn<'_>) {
        if !self.can_send() {
            return;
        }
        let Some(fd) = &self.fd else { return };
        let held = &mut self.held;
        self.freed = true;
        let result = self.out.send(fd.as_fd(), SENT_MAX, turn.slots, turn.log, |slots, slot| {
            held.release(slots, slot);
        });
        match result {
            Ok(Sent::Blocked) => self.blocked = true,
            Ok(Sent::All) if self.phase == Phase::Closing => {
                self.drop_client(Why::Aborted, turn.log, turn.registry);
            }
            Ok(Sent::All | Sent::Enough) => {}
            Err(e) => self.fail(&e, turn.log, turn.registry),
        }
    }

    pub(super) fn free_piece(&mut self, index: u16) {
        self.pieces[index].at = At::Free;
        self.pieces.free(index);
        self.freed = true;
    }

    /// Nothing is left to answer or to send.
    pub(super) fn is_quiet(&self) -> bool {
        self.out.is_empty() && self.calls.used() == 0
    }

    /// After DISC: the client wants another greeting. One that was passed does (a migration
    /// negotiates again when its disk is unpaused). One that connected, like libnbd, may be about
    /// to close and would take a greeting for a broken reply: it is given a moment.
    fn stays(&self) -> bool {
        self.passed || self.clock.stayed || self.rx.len() > 0
    }
}
