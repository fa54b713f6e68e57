//! A server's clients, as one program leaves them and the next one takes them (docs/upgrade.md).
//!
//! ```text
//!   finish ─► what has begun to arrive is taken, answered and sent ─► at_rest ─► state ─► exec ─► adopt
//! ```
//! Nobody sees anything: the sockets stay, and what a client sends meanwhile waits in them.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use mio::{Registry, Token};
use serde::{Deserialize, Serialize};

use super::conn::{Conn, Phase, Style};
use super::handshake::Features;
use super::intake::Intake;
use super::listen::{Door, ListenError, Paths};
use super::notice::Counters;
use super::{CLIENTS_MAX, DOORS, Export, NbdServer, doors, tokens_of_door};
use crate::notices::Notices;
use host::carry::Carried;
use request::Traffic;

/// A server at rest.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NbdState {
    doors: Vec<DoorState>,
    clients: Vec<ClientState>,
    #[serde(default)]
    counters: Counters,
    #[serde(default)]
    traffic: [Traffic; 2],
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct DoorState {
    socket: Carried,
    /// Who has come with a descriptor that did not arrive yet.
    courier: Option<Carried>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct ClientState {
    socket: Carried,
    style: Greeting,
    /// Where it is.
    stage: Stage,
    old: bool,
    passed: bool,
    structured: bool,
    allocation: bool,
    /// What has arrived of its next request.
    received: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
enum Greeting {
    Old,
    New,
    NewThenOld,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
enum Stage {
    /// It was greeted and has not said anything.
    Greeted,
    /// Its requests are served.
    Serving,
    /// It has said DISC.
    Ending,
}

impl Conn {
    /// It waits for nothing of ours, and we for nothing that it has begun to say.
    fn stage(&self) -> Option<Stage> {
        let quiet = self.is_quiet() && self.in_engine == 0;
        match self.phase {
            Phase::Negotiating if quiet && self.handshake.is_fresh() => Some(Stage::Greeted),
            Phase::Serving if quiet && self.intake == Intake::Head => Some(Stage::Serving),
            Phase::Ending if quiet => Some(Stage::Ending),
            _ => None,
        }
    }
}

impl NbdServer {
    /// How many clients are not at rest.
    pub fn restless(&self) -> usize {
        let conns = self.slab.iter().flatten().filter(|conn| conn.phase != Phase::Free);
        conns.filter(|conn| conn.stage().is_none()).count()
    }

    /// What the next program needs to go on. `carry` is told of every descriptor.
    ///
    /// # Errors
    /// Those of `carry`.
    pub fn state(
        &self,
        carry: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<Carried>,
    ) -> io::Result<NbdState> {
        let mut state = NbdState {
            doors: Vec::new(),
            clients: Vec::new(),
            counters: self.counters(),
            traffic: self.log.traffic,
        };
        for door in &self.doors {
            let (socket, courier) = door.sockets();
            let socket = carry(socket)?;
            let courier = courier.map(&mut *carry).transpose()?;
            state.doors.push(DoorState { socket, courier });
        }
        for conn in self.slab.iter().flatten() {
            let (Some(fd), Some(stage)) = (&conn.fd, conn.stage()) else { continue };
            state.clients.push(ClientState {
                socket: carry(fd.as_fd())?,
                style: match conn.style {
                    Style::Old => Greeting::Old,
                    Style::New => Greeting::New,
                    Style::NewThenOld => Greeting::NewThenOld,
                },
                stage,
                old: conn.old,
                passed: conn.passed,
                structured: conn.features.structured,
                allocation: conn.features.allocation,
                received: conn.rx.data().to_vec(),
            });
        }
        Ok(state)
    }

    /// The server that another program has left. `fetch` gives the descriptors.
    ///
    /// # Errors
    /// A descriptor that is not there, or that the poll does not take.
    pub fn adopt(
        registry: &Registry,
        paths: &Paths,
        base: Token,
        export: Export,
        state: NbdState,
        fetch: &mut dyn FnMut(Carried) -> io::Result<OwnedFd>,
    ) -> Result<NbdServer, ListenError> {
        let fail = |error| ListenError { path: paths.nbd.clone(), error };
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        if state.doors.len() != DOORS || state.clients.len() > CLIENTS_MAX {
            return Err(fail(wrong()));
        }
        let mut server = NbdServer::without_sockets(registry, base, export).map_err(fail)?;
        for (i, ((path, purpose), door)) in doors(paths).into_iter().zip(state.doors).enumerate() {
            let socket = UnixListener::from(fetch(door.socket).map_err(fail)?);
            let mut made = Door::over(socket, path, purpose, registry, tokens_of_door(base, i))?;
            made.knocked = true;
            if let Some(courier) = door.courier {
                let stream = UnixStream::from(fetch(courier).map_err(fail)?);
                made.admit(stream, registry).map_err(fail)?;
            }
            server.doors.push(made);
        }
        server.log.counters = state.counters;
        server.log.notices = Notices::after(state.counters.notices_lost);
        server.log.traffic = state.traffic;
        for client in state.clients {
            let fd = fetch(client.socket).map_err(fail)?;
            server.readmit(fd, &client).map_err(fail)?;
        }
        Ok(server)
    }

    fn readmit(&mut self, fd: OwnedFd, client: &ClientState) -> io::Result<()> {
        let index = self.slab.len();
        let mut conn = Box::new(Conn::new(index as u16));
        let style = match client.style {
            Greeting::Old => Style::Old,
            Greeting::New => Style::New,
            Greeting::NewThenOld => Style::NewThenOld,
        };
        let token = Token(self.base + 2 * DOORS + index);
        conn.serve(fd, style, client.passed, (&self.registry, token), &self.export)?;
        // It was greeted long ago.
        conn.out.text.clear();
        conn.old = client.old;
        conn.phase = match client.stage {
            Stage::Greeted => Phase::Negotiating,
            Stage::Serving => Phase::Serving,
            Stage::Ending => Phase::Ending,
        };
        conn.features = Features { structured: client.structured, allocation: client.allocation };
        conn.rx.put_back(&client.received)?;
        self.slab.push(Some(conn));
        Ok(())
    }
}
