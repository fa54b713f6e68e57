//! NBD over unix sockets: the frontend that SM, migration, `qemu` and `nbdcopy` talk to.
//!
//! ```text
//!   listen (4 sockets) ─► conn: negotiation (handshake) ─► transmission
//!   socket ─► receive ─► intake ─► slots ─► engine ─► reply ─► outq ─► socket
//!             one recvmsg, many requests            one sendmsg, many replies
//! ```
//! All clients of a disk share its slots under quotas (quota), so that a hostile or half-dead
//! client costs only itself. Nothing on the path of a request allocates, blocks or logs: counters
//! and a short ring of notices are for the server to fetch. Facts: control-socket.md §1, §6, §7.
//!
//! What the server's loop does:
//! * every event with [`NbdServer::owns`] its token goes to [`NbdServer::event`];
//! * every turn calls `take`, the engine, `complete`, `kick` as [`Frontend`] says;
//! * it sleeps only if [`NbdServer::pending`] is false after `kick`;
//! * about every second (or [`NbdServer::tick_within`]) it calls [`NbdServer::tick`] and fetches
//!   the notices.
mod calls;
mod clock;
mod conn;
mod handover;
mod handshake;
mod intake;
mod life;
mod listen;
mod notice;
mod outq;
mod pace;
mod receive;
mod reply;
mod sys;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token};

pub use self::handover::NbdState;
pub use self::listen::{ListenError, Paths};
pub use self::notice::{Counters, Notice, Why};

use self::conn::{Conn, Phase, Style, Turn};
use self::listen::{Door, Purpose};
use self::notice::Log;
use crate::Frontend;
use crate::note::Note;
use host::slab::{free_index, next_first};
use request::{Outcome, Request, SlotId, Slots, Traffic};

/// Clients of one disk at once.
pub const CLIENTS_MAX: usize = 16;
/// Tokens of the poll that one [`NbdServer`] uses, from its base on.
pub const TOKENS: usize = 2 * DOORS + CLIENTS_MAX;
const DOORS: usize = 4;
/// Time between ticks while somebody may be leaving.
const TICK: Duration = Duration::from_millis(50);
/// Who is let in at one door in one turn.
const ACCEPTS_MAX: usize = 64;

/// The disk as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes, 512 or 4096: requests are multiples of it.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Zeroing without writing zeros is possible (or fails fast, when asked to be fast).
    pub fast_zero: bool,
}

impl Export {
    /// Size in bytes. The original takes `sectors` times the sector size, which is wrong for 4096.
    fn bytes(&self) -> u64 {
        self.sectors * image::SECTOR_BYTES
    }
}

/// The NBD server of one disk.
#[derive(Debug)]
pub struct NbdServer {
    /// Empty once closed.
    doors: Vec<Door>,
    /// Places are made when first needed and kept.
    slab: Vec<Option<Box<Conn>>>,
    registry: Registry,
    base: usize,
    export: Export,
    suspended: bool,
    /// Clients are greeted, and their requests wait.
    holding: bool,
    /// What clients have begun to say is heard to its end and answered, and nothing more.
    finishing: bool,
    log: Log,
    /// Whose turn it is to be first.
    first: usize,
}

impl NbdServer {
    /// Makes the sockets and waits for clients. Uses the tokens `base` to `base + TOKENS - 1`.
    ///
    /// # Errors
    /// A socket that cannot be made; none is left behind then.
    pub fn new(
        registry: &Registry,
        paths: &Paths,
        base: Token,
        export: Export,
    ) -> Result<NbdServer, ListenError> {
        let open =
            |(i, (path, purpose))| Door::open(path, purpose, registry, tokens_of_door(base, i));
        let doors = doors(paths).into_iter().enumerate();
        let doors = doors.map(open).collect::<Result<Vec<Door>, _>>()?;
        let fail = |error| ListenError { path: paths.nbd.clone(), error };
        let mut server = NbdServer::without_sockets(registry, base, export).map_err(fail)?;
        server.doors = doors;
        Ok(server)
    }

    /// A server whose clients all come through [`NbdServer::serve`].
    ///
    /// # Errors
    /// When the poll cannot be shared.
    pub fn without_sockets(
        registry: &Registry,
        base: Token,
        export: Export,
    ) -> io::Result<NbdServer> {
        Ok(NbdServer {
            doors: Vec::new(),
            slab: Vec::with_capacity(CLIENTS_MAX),
            registry: registry.try_clone()?,
            base: base.0,
            export,
            suspended: false,
            holding: false,
            finishing: false,
            log: Log::default(),
            first: 0,
        })
    }

    /// Whether a token of the poll is one of ours.
    pub fn owns(&self, token: Token) -> bool {
        (self.base..self.base + TOKENS).contains(&token.0)
    }

    /// Takes an event of ours: lets clients in, or remembers what their sockets are ready for. May
    /// allocate; does nothing lasting.
    pub fn event(&mut self, event: &Event) {
        let at = event.token().0 - self.base;
        if let Some(index) = at.checked_sub(2 * DOORS) {
            if let Some(Some(conn)) = self.slab.get_mut(index) {
                conn.event(event);
            }
            return;
        }
        if let Some(door) = self.doors.get_mut(at % DOORS) {
            door.knocked = true;
            if !self.suspended && !self.finishing {
                self.open_door(at % DOORS);
            }
        }
    }

    /// Serves a client on a descriptor, with the oldstyle or the newstyle greeting.
    ///
    /// # Errors
    /// When the poll does not take it.
    pub fn serve(&mut self, fd: OwnedFd, oldstyle: bool) -> io::Result<()> {
        self.admit(fd, if oldstyle { Style::Old } else { Style::New }, true)
    }

    /// What is known about the disk from now on (its size stays).
    pub fn set_export(&mut self, export: Export) {
        self.export = export;
    }

    /// While the images are somebody else's: clients are let in and told the size, since they may
    /// do nothing else before they know it; their requests stay in the socket.
    pub fn hold(&mut self) {
        self.holding = true;
        self.suspended = false;
    }

    /// Time passes: drops clients that negotiate for more than 30 s or take no reply for 60 s, and
    /// knocks again where accepting failed.
    pub fn tick(&mut self, now: Instant) {
        let listening = !self.suspended;
        let (log, registry) = (&mut self.log, &self.registry);
        for conn in self.slab.iter_mut().flatten() {
            conn.tick(now, listening, log, registry);
        }
        self.doors.iter_mut().for_each(|door| door.tick(now, registry));
        if listening && !self.finishing {
            (0..self.doors.len()).for_each(|i| self.open_door(i));
        }
    }

    /// How soon `tick` should be called, where a second would be long: after DISC a client that
    /// stays is greeted again by the second tick, at least 50 ms after the first.
    pub fn tick_within(&self) -> Option<Duration> {
        let mut conns = self.slab.iter().flatten();
        (!self.suspended && conns.any(|conn| conn.phase == Phase::Ending)).then_some(TICK)
    }

    /// Clients that are connected.
    pub fn clients(&self) -> usize {
        self.slab.iter().flatten().filter(|conn| conn.is_live()).count()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        Counters { notices_lost: self.log.notices.lost(), ..self.log.counters }
    }

    /// Reads and writes of clients that were greeted in the new style, and in the old one.
    pub fn traffic(&self) -> [Traffic; 2] {
        self.log.traffic
    }

    /// The oldest notice that was not fetched yet.
    pub fn take_notice(&mut self) -> Option<Notice> {
        self.log.notices.take()
    }

    fn conns(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.slab.iter_mut().flatten().map(|conn| &mut **conn)
    }

    /// Lets in whoever waits at a door.
    fn open_door(&mut self, i: usize) {
        self.collect(i);
        if !self.doors[i].knocked {
            return;
        }
        for _ in 0..ACCEPTS_MAX {
            match self.doors[i].accept() {
                Ok(Some(Err(stranger))) => {
                    self.log.counters.refused += 1;
                    self.log.notices.note(Notice::TurnedAway(stranger));
                }
                Ok(Some(Ok(stream))) => match self.doors[i].purpose {
                    Purpose::Clients(style) => {
                        let admitted = self.admit(stream.into(), style, false);
                        self.note_failure(admitted);
                    }
                    Purpose::Descriptors(_) => {
                        let admitted = self.doors[i].admit(stream, &self.registry);
                        self.note_failure(admitted);
                        self.collect(i);
                    }
                },
                Ok(None) => return,
                failed => return self.note_failure(failed.map(|_| ())),
            }
        }
    }

    /// Serves the descriptor that a courier brought.
    fn collect(&mut self, i: usize) {
        let Purpose::Descriptors(style) = self.doors[i].purpose else { return };
        match self.doors[i].collect(&self.registry) {
            None => {}
            Some(None) => self.log.notices.note(Notice::NoDescriptor),
            Some(Some(fd)) => {
                let admitted = self.admit(fd, style, true);
                self.note_failure(admitted);
            }
        }
    }

    fn note_failure(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            self.log.notices.note(Notice::AcceptFailed(e.raw_os_error().unwrap_or(libc::EIO)));
        }
    }

    /// Puts a client in a free place, or closes its descriptor.
    fn admit(&mut self, fd: OwnedFd, style: Style, passed: bool) -> io::Result<()> {
        let Some(index) = free_index(&mut self.slab, CLIENTS_MAX, |conn| conn.phase == Phase::Free)
        else {
            self.log.counters.refused += 1;
            self.log.notices.note(Notice::Refused);
            return Ok(());
        };
        let conn = self.slab[index].get_or_insert_with(|| Box::new(Conn::new(index as u16)));
        let token = Token(self.base + 2 * DOORS + index);
        conn.serve(fd, style, passed, (&self.registry, token), &self.export)?;
        self.log.counters.clients += 1;
        self.log.notices.note(Notice::Connected { client: index as u16 });
        Ok(())
    }

    /// Calls `f` for every place in use; the one that was first last time is last now.
    fn each(&mut self, slots: &mut dyn Slots, mut f: impl FnMut(&mut Conn, &mut Turn<'_>)) {
        let clients = self.clients() as u16;
        let (log, export, registry) = (&mut self.log, &self.export, &self.registry);
        let (intake, finishing) = (!self.holding, self.finishing);
        let mut turn = Turn { slots, log, export, registry, clients, intake, finishing };
        let (head, tail) = self.slab.split_at_mut(self.first);
        for conn in tail.iter_mut().chain(head).flatten() {
            if conn.phase == Phase::Dying {
                conn.bury(turn.slots, turn.log);
            }
            if conn.is_live() {
                f(conn, &mut turn);
            }
        }
    }
}

/// Where the doors are, and what each is for.
fn doors(paths: &Paths) -> [(&Path, Purpose); DOORS] {
    use Purpose::{Clients, Descriptors};
    [
        (paths.nbd.as_path(), Clients(Style::New)),
        // What the name suggests is only true after DISC (control-socket.md §6.1).
        (paths.nbd_old.as_path(), Clients(Style::NewThenOld)),
        (paths.server.as_path(), Descriptors(Style::Old)),
        (paths.server_new.as_path(), Descriptors(Style::New)),
    ]
}

/// Of the door, and of who comes through it with a descriptor.
fn tokens_of_door(base: Token, i: usize) -> (Token, Token) {
    (Token(base.0 + i), Token(base.0 + DOORS + i))
}

impl Frontend for NbdServer {
    fn take(&mut self, slots: &mut dyn Slots) -> bool {
        if self.suspended {
            self.each(slots, |_, _| {});
            return false;
        }
        self.first = next_first(&self.slab, self.first);
        let mut more = false;
        self.each(slots, |conn, turn| more |= conn.take(turn));
        more
    }

    fn complete(&mut self, slots: &mut dyn Slots, _: SlotId, request: &Request, outcome: Outcome) {
        let cookie = request.owner.cookie;
        let (index, piece) = ((cookie >> 16) as usize, cookie as u16);
        let (log, export, registry) = (&mut self.log, &self.export, &self.registry);
        let conn = self.slab[index].as_mut().expect("a request has a client");
        let (intake, finishing) = (!self.holding, self.finishing);
        let mut turn = Turn { slots, log, export, registry, clients: 1, intake, finishing };
        conn.complete(piece, outcome, &mut turn);
    }

    fn kick(&mut self, slots: &mut dyn Slots) {
        self.each(slots, |conn, turn| conn.kick(turn));
    }

    fn idle(&self) -> bool {
        self.slab.iter().flatten().all(|conn| conn.in_engine == 0)
    }

    fn pending(&mut self, slots: &dyn Slots) -> bool {
        let mut conns = self.slab.iter().flatten();
        conns.any(|conn| match self.suspended {
            true => conn.is_live() && conn.can_send(),
            false => conn.is_pending(slots),
        })
    }

    fn clock(&mut self, now: u64) {
        self.log.now = now;
    }

    fn suspend(&mut self) {
        self.suspended = true;
    }

    fn resume(&mut self) {
        self.holding = false;
        self.finishing = false;
        self.suspended = false;
        self.conns().for_each(|conn| conn.clock.restart());
        (0..self.doors.len()).for_each(|i| self.open_door(i));
    }

    fn hang_up(&mut self, slots: &mut dyn Slots) {
        self.doors.clear();
        let (log, registry) = (&mut self.log, &self.registry);
        for conn in self.slab.iter_mut().flatten().filter(|conn| conn.is_live()) {
            conn.drop_client(Why::Shut, log, registry);
            conn.bury(slots, log);
        }
    }

    fn finish(&mut self) {
        self.finishing = true;
    }

    fn at_rest(&self) -> bool {
        self.restless() == 0
    }

    fn go_on(&mut self) {
        self.finishing = false;
        for conn in self.conns().filter(|conn| conn.is_live()) {
            // Asked again: no event tells of what has arrived already.
            conn.freed = true;
        }
        (0..self.doors.len()).for_each(|i| self.open_door(i));
    }

    fn take_moved(&mut self) -> usize {
        std::mem::take(&mut self.log.moved)
    }

    fn has_arrived(&mut self, _: &dyn Slots) -> bool {
        // Its sockets are in the poll.
        false
    }

    fn take_note(&mut self) -> Option<Note> {
        Some(match self.take_notice()? {
            Notice::TurnedAway(who) => Note::warning(format!("NBD sockets: {who}")),
            notice => Note::info(format!("nbd {notice:?}")),
        })
    }
}
