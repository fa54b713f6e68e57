//! The control socket, as one program leaves it and the next one takes it (docs/upgrade.md).
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::net::UnixStream as StdStream;
use std::path::PathBuf;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde::{Deserialize, Serialize};
use tap_ctl::messages::{MESSAGE_BYTES, Request, Text, validate_request};

use super::conn::Conn;
use super::{Awaits, CLIENTS_MAX, ClientId, Control, Queued, Running};
use crate::vbd::Extra;
use host::carry::{Carried, Carrier, Fetcher};
use host::entrance::Guard;

/// The socket and who waits there.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct ControlState {
    listener: Carried,
    /// Who asked for the upgrade, if it is still there, and what it asked for.
    asker: Option<Carried>,
    program: Vec<u8>,
    /// Clients that have not said anything.
    fresh: Vec<Carried>,
    /// Requests that wait for their turn.
    queued: Vec<(Option<Carried>, Vec<u8>)>,
}

impl Control {
    /// What the next program needs.
    ///
    /// # Errors
    /// EBUSY if there is something that cannot be handed over just now; those of the carrier.
    pub fn state(&self, carrier: &mut Carrier) -> io::Result<ControlState> {
        let busy = || io::Error::from_raw_os_error(libc::EBUSY);
        let running = self.running.as_ref().ok_or_else(busy)?;
        let Request::Upgrade { program } = running.request.0 else { return Err(busy()) };
        let listener = self.listener.as_ref().ok_or_else(busy)?;
        let socket = |client: ClientId, carrier: &mut Carrier| {
            let conn = self.clients[client.0].as_ref().filter(|conn| conn.serial == client.1);
            conn.map(|conn| carrier.carry(conn.stream.as_fd())).transpose()
        };
        let mut state = ControlState {
            listener: carrier.carry(listener.as_fd())?,
            asker: running.client.map_or(Ok(None), |client| socket(client, carrier))?,
            program: program.as_bytes().to_vec(),
            ..ControlState::default()
        };
        for client in self.clients.iter().flatten().filter(|client| client.is_fresh()) {
            state.fresh.push(carrier.carry(client.stream.as_fd())?);
        }
        for Queued { client, request } in &self.queue {
            if request.1 != Extra::default() {
                return Err(busy());
            }
            let message = request.0.to_message().encode().to_vec();
            state.queued.push((socket(*client, carrier)?, message));
        }
        Ok(state)
    }

    /// Everything is at rest for another program.
    pub fn is_leaving(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.awaits == Awaits::Server)
    }

    /// It cannot leave yet.
    pub fn look_again(&mut self, now: u64) {
        if let Some(running) = &mut self.running {
            running.awaits = Awaits::Time(now + 200);
        }
    }

    /// What is being worked on.
    pub fn running_request(&self) -> Option<Request> {
        self.running.as_ref().map(|running| running.request.0)
    }

    /// Half a request, or a reply that is not out: it takes a moment.
    pub fn is_talking(&self) -> bool {
        let asking = |client: &Conn| client.silent_since().is_some() && !client.is_fresh();
        self.is_answering() || self.clients.iter().flatten().any(asking)
    }

    /// The socket that another program has left. Its request to go on with this one is answered
    /// when the disks are there.
    ///
    /// # Errors
    /// A descriptor that is not there, or a request that is none.
    pub fn adopt(
        (path, registry, base): (PathBuf, &Registry, usize),
        state: &ControlState,
        fetcher: &mut Fetcher,
    ) -> io::Result<Control> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let stream = |fd: Carried, fetcher: &mut Fetcher| {
            let stream = StdStream::from(fetcher.fetch(fd)?);
            stream.set_nonblocking(true)?;
            Ok::<UnixStream, io::Error>(UnixStream::from_std(stream))
        };
        if state.fresh.len() + state.queued.len() >= CLIENTS_MAX {
            return Err(wrong());
        }
        // Everything that can fail comes before what removes the socket's file when it is dropped.
        let listener = StdListener::from(fetcher.fetch(state.listener)?);
        let mut listener = UnixListener::from_std(listener);
        registry.register(&mut listener, Token(base), Interest::READABLE)?;
        let (mut clients, mut queue) = (Vec::with_capacity(CLIENTS_MAX), Vec::new());
        let mut admit = |fd: Option<Carried>, waits: bool, fetcher: &mut Fetcher| {
            let index = clients.len();
            let serial = index as u64 + 1;
            let mut client = None;
            // What somebody asked for who is gone is done nevertheless.
            if let Some(fd) = fd {
                let mut stream = stream(fd, fetcher)?;
                let both = Interest::READABLE | Interest::WRITABLE;
                registry.register(&mut stream, Token(base + 1 + index), both)?;
                let make = if waits { Conn::waiting } else { Conn::new };
                client = Some(make(stream, serial, 0));
            }
            clients.push(client);
            Ok::<ClientId, io::Error>(ClientId(index, serial))
        };
        for fd in &state.fresh {
            admit(Some(*fd), false, fetcher)?;
        }
        for (fd, message) in &state.queued {
            let frame = message.first_chunk::<MESSAGE_BYTES>().ok_or_else(wrong)?;
            let request =
                Box::new((validate_request(frame).map_err(|_| wrong())?, Extra::default()));
            let client = admit(*fd, true, fetcher)?;
            queue.push(Queued { client, request });
        }
        let asker = state.asker.map(|fd| admit(Some(fd), true, fetcher)).transpose()?;
        let program = Text::new(&state.program).map_err(|_| wrong())?;
        let request = Box::new((Request::Upgrade { program }, Extra::default()));
        let serial = clients.len() as u64;
        Ok(Control {
            path,
            listener: Some(listener),
            guard: Guard::default(),
            base,
            clients,
            serial,
            knocked: true,
            accept_at: None,
            queue: queue.into(),
            running: Some(Running { client: asker, request, awaits: Awaits::Time(0) }),
        })
    }
}
