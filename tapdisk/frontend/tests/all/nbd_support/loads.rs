//! A server on real sockets in a thread of its own, for real clients.
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend::Frontend;
use frontend::nbd::{Counters, Export, NbdServer, Paths};
use mio::{Events, Poll, Token, Waker};

use super::Memory;

const SECOND: Duration = Duration::from_secs(1);

/// A running server; stops when dropped.
pub struct Daemon {
    pub paths: Paths,
    folder: PathBuf,
    stop: Arc<(AtomicBool, Waker)>,
    thread: Option<JoinHandle<Counters>>,
}

impl Daemon {
    pub fn start(name: &str, export: Export, prepare: impl FnOnce(&mut Memory)) -> Daemon {
        let folder = std::env::temp_dir().join(format!("nbd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let paths = Paths::in_folder(&folder, std::process::id(), 7);
        let poll = Poll::new().unwrap();
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let stop = Arc::new((AtomicBool::new(false), waker));
        let server = NbdServer::new(poll.registry(), &paths, Token(10), export).unwrap();
        let mut memory = Memory::new(export);
        prepare(&mut memory);
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(poll, server, memory, &seen.0));
        Daemon { paths, folder, stop, thread: Some(thread) }
    }

    /// The URI that libnbd and qemu understand.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///any?socket={}", self.paths.nbd.display())
    }

    pub fn stop(&mut self) -> Counters {
        self.stop.0.store(true, Ordering::SeqCst);
        self.stop.1.wake().unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop();
        }
        std::fs::remove_dir(&self.folder).expect("no socket is left behind");
    }
}

fn run(mut poll: Poll, mut server: NbdServer, mut memory: Memory, stop: &AtomicBool) -> Counters {
    let mut events = Events::with_capacity(64);
    while !stop.load(Ordering::SeqCst) {
        let busy = server.pending(&memory) || memory.is_ready();
        let timeout = if busy { Duration::ZERO } else { server.tick_within().unwrap_or(SECOND) };
        poll.poll(&mut events, Some(timeout)).unwrap();
        for event in &events {
            if server.owns(event.token()) {
                server.event(event);
            }
        }
        server.take(&mut memory);
        while let Some((slot, request, outcome)) = memory.finish() {
            server.complete(&mut memory, slot, &request, outcome);
        }
        memory.seen.clear();
        server.kick(&mut memory);
        server.tick(Instant::now());
        while let Some(notice) = server.take_notice() {
            println!("{notice:?}");
        }
    }
    server.hang_up(&mut memory);
    assert_eq!(memory.reserved(), 0, "slots leaked");
    server.counters()
}
