//! A fake engine over a disk in memory, a poll around the server, and the client's half of the
//! protocol: everything in one thread, one turn at a time, so that every test is deterministic.
#![allow(dead_code)]
pub mod client;
pub mod engine;
pub mod loads;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use frontend::Frontend;
use frontend::nbd::{Export, NbdServer, Notice};
use mio::{Events, Poll, Token};

pub use client::Client;
pub use engine::Memory;

/// Size of the test disk in sectors: 64 MiB.
pub const SECTORS: u64 = 128 << 10;
const BASE: usize = 100;

pub fn export() -> Export {
    Export { sectors: SECTORS, sector_size: 512, read_only: false, fast_zero: true }
}

/// The server, its poll and its engine.
pub struct Bench {
    pub poll: Poll,
    pub events: Events,
    pub server: NbdServer,
    pub memory: Memory,
    /// The last `take` said that there is more.
    pub more: bool,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(export())
    }

    pub fn with(export: Export) -> Bench {
        let poll = Poll::new().unwrap();
        let server =
            NbdServer::without_sockets(poll.registry(), Token(BASE), export).expect("a server");
        let memory = Memory::new(export);
        Bench { poll, events: Events::with_capacity(64), server, memory, more: false }
    }

    /// A client on a socketpair.
    pub fn connect(&mut self, oldstyle: bool) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.server.serve(OwnedFd::from(theirs), oldstyle).expect("served");
        Client::new(ours)
    }

    /// A client that agreed on everything.
    pub fn structured(&mut self) -> Client {
        let mut client = self.connect(false);
        client.negotiate(self);
        client
    }

    /// A client with EXPORT_NAME and simple replies.
    pub fn simple(&mut self) -> Client {
        let mut client = self.connect(false);
        client.negotiate_simple(self);
        client
    }

    /// One turn of a server's loop.
    pub fn turn(&mut self) {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        for event in &self.events {
            assert!(self.server.owns(event.token()));
            self.server.event(event);
        }
        self.more = self.server.take(&mut self.memory);
        while let Some((slot, request, outcome)) = self.memory.finish() {
            self.server.complete(&mut self.memory, slot, &request, outcome);
        }
        self.server.kick(&mut self.memory);
    }

    /// Turns until the server would sleep.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            self.turn();
            let idle = self.events.is_empty() && !self.memory.is_ready();
            if idle && !self.server.pending(&self.memory) {
                return;
            }
        }
        panic!("the server never comes to rest");
    }

    pub fn notices(&mut self) -> Vec<Notice> {
        std::iter::from_fn(|| self.server.take_notice()).collect()
    }

    /// Every slot is free, nothing is in the engine: nothing leaked.
    pub fn assert_clean(&mut self) {
        self.settle();
        assert!(self.server.idle());
        assert_eq!(self.memory.reserved(), 0, "slots leaked");
    }
}
