//! One connection: requests in a row, one of them on its way, replies matched to it, watch events
//! between.
//!
//! One at a time, as Xen's own library does it: the device holds one message a descriptor, and no
//! server has ever been asked to do more. A request takes tens of microseconds, so the row stays
//! short.

use crate::error::{Errno, Error};
use crate::link::Link;
use crate::request::Request;
use crate::wire::{Decoder, Kind, Packet};
use mio::event::Source;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};

/// Bytes read at a time: a whole packet.
const CHUNK: usize = 4112;

/// Names a request until its reply has been taken. Chosen by whoever submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// What came.
#[derive(Debug)]
pub enum Event {
    /// The reply to a request, or why there is none.
    Reply {
        /// The request.
        tag: Tag,
        /// Its kind.
        kind: Kind,
        /// What it was about.
        about: String,
        /// The payload of the reply.
        result: Result<Vec<u8>, Error>,
    },
    /// Something below a watched path has changed.
    Fired {
        /// What has changed, relative if the watch was.
        path: String,
        /// The token of the watch.
        token: String,
    },
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    link: Link,
    decoder: Decoder,
    /// Requests that wait, the first one perhaps on its way.
    row: VecDeque<(Tag, Request)>,
    /// The id of the request on its way.
    on_its_way: Option<u32>,
    /// What of it has not been sent yet.
    unsent: Vec<u8>,
    next_id: u32,
}

impl Client {
    /// On an open link.
    pub fn new(link: Link) -> Client {
        Client {
            link,
            decoder: Decoder::default(),
            row: VecDeque::new(),
            on_its_way: None,
            unsent: Vec::new(),
            next_id: 1,
        }
    }

    /// For polling.
    pub fn source(&mut self) -> &mut impl Source {
        &mut self.link
    }

    /// Put a request into the row. It is sent by [`Client::next_event`].
    pub fn submit(&mut self, tag: Tag, request: Request) {
        self.row.push_back((tag, request));
    }

    /// Requests without a reply so far.
    pub fn outstanding(&self) -> usize {
        self.row.len()
    }

    /// Send what can be sent, and take what has come; `None`: nothing more for now.
    ///
    /// # Errors
    /// [`Error::Lost`]: the connection is of no use any more, and nor are the requests in it.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        loop {
            self.send()?;
            if let Some(packet) = self.decoder.next_packet().map_err(|bad| {
                lost(format!("xenstored announced a packet of {} bytes", bad.length))
            })? {
                match self.understand(packet)? {
                    Some(event) => return Ok(Some(event)),
                    None => continue,
                }
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    /// Start the first request of the row if none is on its way, and push out its bytes. A message
    /// goes out in one write, which the device demands; a socket may take it in pieces.
    fn send(&mut self) -> Result<(), Error> {
        if self.on_its_way.is_none()
            && let Some((_, request)) = self.row.front()
        {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            self.unsent = request.packet(id).encode();
            self.on_its_way = Some(id);
        }
        while !self.unsent.is_empty() {
            match self.link.write(&self.unsent) {
                Ok(0) => return Err(lost("nothing can be written")),
                Ok(count) => drop(self.unsent.drain(..count.min(self.unsent.len()))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// Has anything come?
    fn receive(&mut self) -> Result<bool, Error> {
        let mut chunk = [0; CHUNK];
        loop {
            match self.link.read(&mut chunk) {
                Ok(0) => return Err(lost("xenstored has closed it")),
                Ok(count) => {
                    self.decoder.feed(&chunk[..count.min(CHUNK)]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// A watch event that is no text is dropped: nobody can have asked for it.
    fn understand(&mut self, packet: Packet) -> Result<Option<Event>, Error> {
        if packet.kind == Kind::WatchEvent as u32 {
            return Ok(fired(&packet.payload));
        }
        if self.on_its_way != Some(packet.id) || !self.unsent.is_empty() {
            return Err(lost(format!("a reply to no request came: {packet:?}")));
        }
        self.on_its_way = None;
        let Some((tag, request)) = self.row.pop_front() else {
            return Err(lost("a reply came while nothing was asked"));
        };
        let (kind, about) = (request.kind(), request.subject().to_owned());
        let result = if packet.kind == Kind::Error as u32 {
            let name = packet.payload.strip_suffix(b"\0").unwrap_or(&packet.payload);
            Err(Error::Refused { kind, path: about.clone(), errno: Errno::from_name(name) })
        } else if packet.kind == kind as u32 {
            Ok(packet.payload)
        } else {
            return Err(lost(format!("a reply of another kind came: {packet:?}")));
        };
        Ok(Some(Event::Reply { tag, kind, about, result }))
    }
}

/// `path NUL token NUL`, and more fields that nobody uses.
fn fired(payload: &[u8]) -> Option<Event> {
    let mut fields = payload.split(|byte| *byte == 0);
    let mut text = || std::str::from_utf8(fields.next()?).ok().map(str::to_owned);
    let (path, token) = (text()?, text()?);
    Some(Event::Fired { path, token })
}

fn lost(reason: impl ToString) -> Error {
    Error::Lost { reason: reason.to_string() }
}
