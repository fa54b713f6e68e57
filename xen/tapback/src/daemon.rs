//! The loop: tasks that were woken, then xenstore, then sleep until a socket, a time or a signal.

use crate::config::Config;
use crate::desk::Desk;
use crate::reactor::Reactor;
use crate::sys::{Signal, Signals};
use crate::tasks::Tasks;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use slog::{Logger, info, warn};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xenstore::{Endpoint, Error, Link};

const STORE: Token = Token(0);
const SIGNALS: Token = Token(1);
const STOP: Token = Token(2);

/// Ends a daemon from another thread.
#[derive(Clone)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stop {
    /// Soon.
    pub fn stop(&self) {
        self.asked.store(true, Ordering::Release);
        // Without it the daemon would stop at its next event.
        let _ = self.waker.wake();
    }
}

/// A daemon that has not begun.
pub struct Daemon {
    config: Config,
    log: Logger,
    poll: Poll,
    stop: Stop,
}

/// Between two looks for a xenstore that is not there yet.
const LOOK: Duration = Duration::from_secs(1);

/// Until there is a xenstore; false if told to end before. It may start long after us, and whoever
/// starts us may give up after some ends in a row, as systemd does.
///
/// # Errors
/// A sentence, if events cannot be waited for.
pub fn wait_for_store(
    places: &[Endpoint],
    signals: &Signals,
    log: &Logger,
) -> Result<bool, String> {
    let failed = |error: io::Error| format!("cannot wait for events: {error}");
    let mut poll = Poll::new().map_err(failed)?;
    let fd = signals.raw();
    poll.registry().register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE).map_err(failed)?;
    let mut events = Events::with_capacity(1);
    let mut said = false;
    while let Err(error) = Link::open(places) {
        if !said {
            warn!(log, "{error}; waiting for it");
            said = true;
        }
        match poll.poll(&mut events, Some(LOOK)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(failed(error)),
            _ => {}
        }
        while let Some(signal) = signals.take() {
            if signal == Signal::Stop {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Daemon {
    /// Checks that there is a xenstore.
    ///
    /// # Errors
    /// A sentence: no xenstore, or no descriptors left.
    pub fn new(config: Config, log: Logger) -> Result<Daemon, String> {
        drop(Link::open(&config.places).map_err(|error: Error| error.to_string())?);
        let failed = |error: io::Error| format!("cannot wait for events: {error}");
        let poll = Poll::new().map_err(failed)?;
        let waker = Waker::new(poll.registry(), STOP).map_err(failed)?;
        let stop = Stop { asked: Arc::default(), waker: Arc::new(waker) };
        Ok(Daemon { config, log, poll, stop })
    }

    /// Its end.
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    /// Serve until told to stop. Rings that are connected stay so: the next tapback finds them.
    /// `ready` is called once all disks that are there have been found.
    ///
    /// # Errors
    /// A sentence, if events cannot be waited for.
    pub fn run(
        mut self,
        signals: Option<Signals>,
        ready: impl FnOnce() + 'static,
    ) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot wait for events: {error}");
        let registry = self.poll.registry().try_clone().map_err(failed)?;
        if let Some(signals) = &signals {
            let fd = signals.raw();
            registry.register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE).map_err(failed)?;
        }
        let tasks = Tasks::default();
        let reactor = Reactor::new(registry.try_clone().map_err(failed)?);
        let desk = Desk::new(self.config.clone(), reactor.clone(), tasks.clone(), self.log.clone());
        tasks.spawn(Rc::clone(&desk).tend(registry, STORE, ready));
        let mut events = Events::with_capacity(64);
        while !self.stop.asked.load(Ordering::Acquire) {
            tasks.run();
            turn(&desk);
            if tasks.has_ready() || desk.store.wants_turn() {
                continue;
            }
            let limit = reactor.next_time().map(|at| at.saturating_duration_since(Instant::now()));
            match self.poll.poll(&mut events, limit) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result.map_err(failed)?,
            }
            reactor.tick(Instant::now());
            for event in &events {
                match event.token() {
                    STORE | STOP => {}
                    SIGNALS => self.signalled(signals.as_ref(), &desk),
                    token => reactor.ready(token),
                }
            }
        }
        info!(self.log, "ending; connected disks stay connected");
        tasks.clear();
        Ok(())
    }

    fn signalled(&self, signals: Option<&Signals>, desk: &Desk) {
        while let Some(signal) = signals.and_then(Signals::take) {
            match signal {
                Signal::Stop => self.stop.stop(),
                Signal::Report => desk.report(),
            }
        }
    }
}

/// Take what xenstore has sent.
fn turn(desk: &Rc<Desk>) {
    let fired = RefCell::new(Vec::new());
    let result = desk.store.turn(|event| fired.borrow_mut().push(event));
    fired.into_inner().iter().for_each(|event| desk.fired(event));
    if let Err(error) = result {
        desk.lost(&error);
    }
}
