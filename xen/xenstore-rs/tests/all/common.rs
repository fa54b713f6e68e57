//! A store on a socket, and an event loop of a few lines.

use mio::{Events, Poll, Token};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll as Ready, Wake, Waker};
use std::time::{Duration, Instant};
use xenstore::{Endpoint, Error, Fired, Link, Store};

/// Longest wait for anything, before the test fails.
const WAIT: Duration = Duration::from_secs(20);

pub struct Rig {
    pub store: Store,
    pub fired: Vec<Fired>,
    poll: Poll,
}

impl Rig {
    pub fn new(socket: &Path) -> Rig {
        let rig =
            Rig { store: Store::new(), fired: Vec::new(), poll: Poll::new().expect("a poll") };
        rig.connect(socket);
        rig
    }

    pub fn connect(&self, socket: &Path) {
        let link = Link::open(&[Endpoint::Socket(socket.into())]).expect("the fake listens");
        self.store.connect(link, self.poll.registry(), Token(0)).expect("registered");
    }

    /// Drive the store until this is done.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&woken));
        let end = Instant::now() + WAIT;
        loop {
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            if let Ready::Ready(value) = polled {
                return value;
            }
            assert!(Instant::now() < end, "nothing comes");
            while !woken.0.swap(false, Ordering::Relaxed) {
                if !self.turn() && !woken.0.load(Ordering::Relaxed) {
                    self.sleep();
                }
            }
        }
    }

    /// Drive the store until a watch has fired.
    pub fn next_fired(&mut self) -> Fired {
        let end = Instant::now() + WAIT;
        while self.fired.is_empty() {
            assert!(Instant::now() < end, "no watch fires");
            self.turn();
            if self.fired.is_empty() {
                self.sleep();
            }
        }
        self.fired.remove(0)
    }

    /// Drive the store until nothing is outstanding.
    pub fn settle(&mut self) {
        let end = Instant::now() + WAIT;
        self.turn();
        while self.store.outstanding() > 0 {
            assert!(Instant::now() < end, "requests stay without reply");
            self.sleep();
            self.turn();
        }
    }

    /// Is there more to do at once? A lost connection shows in the futures.
    fn turn(&mut self) -> bool {
        let fired = &mut self.fired;
        let result: Result<(), Error> = self.store.turn(|event| fired.push(event));
        result.is_err() || self.store.wants_turn()
    }

    fn sleep(&mut self) {
        let mut events = Events::with_capacity(8);
        self.poll.poll(&mut events, Some(WAIT)).expect("a poll");
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
