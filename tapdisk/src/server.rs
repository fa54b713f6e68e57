//! The loop of the daemon: everything happens in its turns, on one thread.
//!
//! ```text
//!   sleep ─► events: control, signals, clients at the door      (may allocate)
//!     ▲      control.work, vbd.advance, once a second: tick
//!     │                    │
//!     │      sealed: for each disk: take, step, complete, kick  (never allocates, blocks or logs)
//!     └──────────────────── submit ◄──┘
//! ```
//! One disk on io_uring submits and sleeps in the same system call, with the poll's own descriptor
//! as one more thing to wait for; the other disks, if there are any, wake the poll.
use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slog::{info, warn};
use tap_ctl::messages::Text;
use tap_ctl::upgrade::FORMAT;

use crate::confine;
use crate::control::{self, Control, Daemon};
use crate::handover::{self, resume_args};
use crate::sealed::Seal;
use crate::signals::{self, Signal, Signals};
use crate::tokens::{VBD_TOKENS, VBD_TOKENS_BASE};
use crate::vbd::{DEVICE_TOKEN, REMOTE_TOKEN, RINGS_TOKEN, TAP_TOKEN, Vbd};
use disk::probe::AnyDisk;
use host::carry::Carrier;
use host::sys;
use request::disk::Disk;

/// Wakes the loop when a worker is done.
pub const WAKER: Token = Token(0);
/// Signals.
pub const SIGNALS: Token = Token(1);
/// The receiver of descriptors: its listener and its client.
pub const RECEIVER: [Token; 2] = [Token(2), Token(3)];
/// The control socket.
pub const CONTROL: usize = 16;
/// Of the tokens of a disk, the one of its disk engine; the others are of its sockets.
const DISK_TOKEN: usize = VBD_TOKENS - 1;

/// Events of one look at the poll.
const EVENTS_MAX: usize = 256;
/// The longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(600);
/// Between two ticks, in µs, while a disk has clients, and while it has none.
const TICK_US: u64 = 1_000_000;
const CALM_TICK_US: u64 = 10 * TICK_US;
/// Wakes by rings between two looks at the poll.
const RINGS_FIRST_MAX: u32 = 8;
/// How long replies may take to go out at the end, in µs (spec/control-socket.md §2).
const DRAIN_US: u64 = 10_000_000;

/// How long an end that SIGTERM asked for may take, in µs: requests may hang with their storage for
/// ever.
const TERM_US: u64 = 10_000_000;

const _: () = assert!(CONTROL + control::TOKENS <= VBD_TOKENS_BASE);
const _: () = assert!(frontend::nbd::TOKENS <= REMOTE_TOKEN && REMOTE_TOKEN < DISK_TOKEN);

/// A program that somebody might change while it runs is none to go on with.
fn open_program(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let ours = meta.uid() == 0 || meta.uid() == tap_ctl::sys::euid();
    if !meta.is_file() || !ours || meta.mode() & 0o002 != 0 {
        let text = "it is no file of root or ourselves that others cannot write";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(file.into())
}

/// The daemon, ready to run.
pub struct Server {
    poll: Poll,
    events: Events,
    /// The disks and their surroundings.
    daemon: Daemon,
    control: Control,
    signals: Signals,
    start: Instant,
    ticked: u64,
    /// The disk that sleeps for all, by its token.
    sleeper: Option<usize>,
    /// How often rings are still asked before the poll.
    rings_first: u32,
    /// Disks whose engines wake the poll.
    watched: Vec<usize>,
    stopping: bool,
    /// When SIGTERM is to be obeyed whatever is under way, in µs.
    terminate_at: Option<u64>,
    serving: bool,
}

impl Server {
    /// Puts the parts together; all of them are registered with `poll` already, but for the
    /// signals.
    ///
    /// # Errors
    /// Those of epoll.
    pub fn new(
        poll: Poll,
        daemon: Daemon,
        control: Control,
        signals: Signals,
    ) -> io::Result<Server> {
        poll.registry().register(&mut SourceFd(&signals.raw()), SIGNALS, Interest::READABLE)?;
        Ok(Server {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            daemon,
            control,
            signals,
            start: Instant::now(),
            ticked: 0,
            sleeper: None,
            rings_first: 0,
            watched: Vec::new(),
            stopping: false,
            terminate_at: None,
            serving: false,
        })
    }

    /// Serves until the last disk is detached or a signal ends it, and until replies are out.
    pub fn run(&mut self) {
        let mut more = false;
        let mut end = None;
        loop {
            self.sleep(more);
            let now = self.now();
            self.look(now);
            self.control.work(&mut self.daemon, now);
            self.advance(now);
            self.leave(now);
            self.terminate(now);
            self.tick(now);
            more = self.turn() || self.daemon.vbds.iter().any(Vbd::is_drained);
            if self.daemon.over || self.stopping && self.daemon.vbds.is_empty() {
                let since = *end.get_or_insert(now);
                if !self.control.is_answering() || now - since >= DRAIN_US {
                    return;
                }
            }
        }
    }

    /// µs since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    // ---- sleeping ------------------------------------------------------------------------------

    /// Hands operations to the kernel and waits for whatever comes first; not at all if there is
    /// more to do. Then `events` holds what the poll has.
    fn sleep(&mut self, more: bool) {
        self.elect();
        let timeout = if more { Duration::ZERO } else { self.timeout() };
        let mut ready = more;
        for vbd in &mut self.daemon.vbds {
            let sleeps = Some(vbd.token) == self.sleeper;
            if let Some((_, data)) = vbd.path().filter(|_| more || !sleeps) {
                data.submit();
                ready |= data.engine.disk_ref().has_finished();
            }
        }
        let timeout = if ready { Duration::ZERO } else { timeout };
        if !more && self.sleep_inside(timeout) {
            return;
        }
        self.look_at_poll(timeout);
    }

    /// Sleeps in the system call of a disk engine. False if there is none that can.
    fn sleep_inside(&mut self, timeout: Duration) -> bool {
        let watch = self.poll.as_raw_fd();
        let sleeper = self.sleeper;
        let vbd = self.daemon.vbds.iter_mut().find(|vbd| Some(vbd.token) == sleeper);
        let Some((frontends, data)) = vbd.and_then(Vbd::path) else { return false };
        let disk = data.engine.disk();
        frontends.read_events(disk.inner().inner(), watch);
        let Some(result) = disk.submit_and_wait(watch, timeout) else { return false };
        let polled = disk.inner().inner().take_watch_ready();
        frontends.take_events(disk.inner().inner());
        data.note_disk(result);
        self.events.clear();
        if polled && !self.rings_first() {
            self.look_at_poll(Duration::ZERO);
        }
        true
    }

    /// Where a ring woke the loop last time, it most likely did again: asking the guests' event
    /// channels, or looking into the memory of a block device's ring, saves a call. Not for ever,
    /// since others knock at the poll too. True if it was so.
    fn rings_first(&mut self) -> bool {
        if self.rings_first == 0 {
            return false;
        }
        let sleeper = self.sleeper;
        let vbd = self.daemon.vbds.iter_mut().find(|vbd| Some(vbd.token) == sleeper);
        let path = vbd.and_then(Vbd::path);
        let arrived = path.is_some_and(|(frontends, data)| frontends.have_arrived(&data.engine));
        self.rings_first = if arrived { self.rings_first - 1 } else { 0 };
        arrived
    }

    fn look_at_poll(&mut self, timeout: Duration) {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => {
                self.events.clear();
                warn!(self.daemon.env.log, "epoll fails: {error}");
            }
        }
    }

    /// Which disk sleeps for all. Once chosen it stays; the engines of the others wake the poll.
    fn elect(&mut self) {
        let there =
            |vbds: &mut [Vbd], token| vbds.iter().any(|vbd| vbd.token == token && vbd.is_served());
        let vbds = &mut self.daemon.vbds;
        if self.sleeper.is_some_and(|token| !there(vbds, token)) {
            self.sleeper = None;
        }
        self.watched.retain(|token| there(vbds, *token));
        for vbd in vbds {
            let token = vbd.token;
            if Some(token) == self.sleeper {
                continue;
            }
            let Some((_, data)) = vbd.path() else { continue };
            let disk = data.engine.disk_ref();
            let fd = disk.wake_fd();
            let registry = self.poll.registry();
            let known = self.watched.iter().position(|other| *other == token);
            if self.sleeper.is_none() && matches!(disk.inner_ref().inner_ref(), AnyDisk::Uring(_)) {
                self.sleeper = Some(token);
                if let Some(at) = known {
                    self.watched.swap_remove(at);
                    let _ = registry.deregister(&mut SourceFd(&fd));
                }
            } else if known.is_none() {
                let token = Token(token + DISK_TOKEN);
                let watched = registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
                if let Err(error) = watched {
                    warn!(self.daemon.env.log, "a disk engine cannot be polled: {error}");
                }
                self.watched.push(token.0 - DISK_TOKEN);
            }
        }
    }

    /// Until the next thing that happens by itself.
    fn timeout(&mut self) -> Duration {
        let now = self.now();
        let mut next = self.control.next_us().into_iter().chain(self.terminate_at).min();
        let mut sooner = |at: Option<u64>| next = next.into_iter().chain(at).min();
        for vbd in &mut self.daemon.vbds {
            sooner(vbd.next_us());
            if let Some((frontends, data)) = vbd.path() {
                sooner(data.engine.next_retry());
                // Without clients there is little to look after.
                let calm = frontends.is_calm() && data.is_calm();
                sooner(Some(self.ticked + if calm { CALM_TICK_US } else { TICK_US }));
            }
        }
        let wait = next.map(|at| Duration::from_micros(at.saturating_sub(now)));
        wait.map_or(SLEEP_MAX, |wait| wait.min(SLEEP_MAX))
    }

    // ---- what may allocate ---------------------------------------------------------------------

    /// Hands the poll's events to those they are for.
    fn look(&mut self, now: u64) {
        let Server { events, daemon, control, rings_first, .. } = self;
        let mut signalled = false;
        for event in events.iter() {
            let token = event.token();
            match token.0.checked_sub(VBD_TOKENS_BASE) {
                None if token == SIGNALS => signalled = true,
                None if control.owns(token) => control.event(daemon, event, now),
                None if RECEIVER.contains(&token) => {
                    if let Some(receiver) = &mut daemon.receiver {
                        receiver.event(&daemon.env.registry, &daemon.env.log);
                    }
                }
                None => {}
                Some(at) if at % VBD_TOKENS == REMOTE_TOKEN => {}
                Some(at) if at % VBD_TOKENS == DISK_TOKEN => {
                    let mut vbds = daemon.vbds.iter_mut();
                    let vbd = vbds.find(|vbd| vbd.token + DISK_TOKEN == token.0);
                    if let Some((_, data)) = vbd.and_then(Vbd::path) {
                        data.engine.disk().inner().inner().woken();
                    }
                }
                Some(at) if matches!(at % VBD_TOKENS, DEVICE_TOKEN | TAP_TOKEN) => {
                    *rings_first = RINGS_FIRST_MAX;
                }
                Some(at) if at % VBD_TOKENS == RINGS_TOKEN => {
                    let mut vbds = daemon.vbds.iter_mut();
                    let vbd = vbds.find(|vbd| vbd.token + RINGS_TOKEN == token.0);
                    let frontends = vbd.and_then(Vbd::path).map(|(frontends, _)| frontends);
                    if let Some(rings) = frontends.and_then(|f| f.rings.as_mut())
                        && rings.event()
                    {
                        *rings_first = RINGS_FIRST_MAX;
                    }
                }
                Some(_) => {
                    let vbds = &mut daemon.vbds;
                    let paths = vbds.iter_mut().filter_map(Vbd::path);
                    let servers = paths.filter_map(|(frontends, _)| frontends.nbd.as_mut());
                    for nbd in servers.filter(|nbd| nbd.owns(token)) {
                        nbd.event(event);
                    }
                }
            }
        }
        self.events.clear();
        if signalled {
            self.signalled();
        }
    }

    fn signalled(&mut self) {
        while let Some(signal) = self.signals.take() {
            let env = &self.daemon.env;
            match signal {
                Signal::Reopen => env.sink.reopen(),
                Signal::Report => {
                    let report: Vec<String> = self.daemon.vbds.iter().map(Vbd::report).collect();
                    let head = format!("report of tapdisk {}: {} disks", env.pid, report.len());
                    env.sink.report(&format!("{head}\n{}", report.join("\n")));
                }
                Signal::PollRings => {
                    info!(env.log, "asked to poll all rings");
                    let paths = self.daemon.vbds.iter_mut().filter_map(Vbd::path);
                    let rings = paths.filter_map(|(frontends, _)| frontends.rings.as_mut());
                    rings.for_each(|rings| rings.poll_now());
                }
                Signal::Stop => {
                    info!(env.log, "asked to stop by a signal");
                    self.stop();
                }
                Signal::Terminate if self.terminate_at.is_some() => self.terminate(u64::MAX),
                Signal::Terminate => {
                    info!(env.log, "asked to end by SIGTERM, within {} s", TERM_US / 1_000_000);
                    self.terminate_at = Some(self.now() + TERM_US);
                    self.stop();
                }
            }
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.daemon.vbds.iter_mut().for_each(Vbd::stop);
    }

    /// The time that SIGTERM gives is over, or a second one came: what is still in flight lands in
    /// the image after our
    /// end, and whoever opens it next waits for that.
    fn terminate(&mut self, now: u64) {
        if self.terminate_at.is_some_and(|at| at <= now) {
            let env = &self.daemon.env;
            let report: Vec<String> = self.daemon.vbds.iter().map(Vbd::report).collect();
            env.sink.report(&format!("ends by SIGTERM with disks open\n{}", report.join("\n")));
            signals::end_by_sigterm();
        }
    }

    /// Moves the disks on and tells the control socket what is over.
    fn advance(&mut self, now: u64) {
        let Server { daemon, control, .. } = self;
        for i in 0..daemon.vbds.len() {
            let minor = daemon.vbds[i].minor;
            daemon.vbds[i].look_after_ring(&daemon.env);
            daemon.vbds[i].commit_on(&daemon.env);
            daemon.vbds[i].set_alone(control.is_alone(minor));
            if let Some(outcome) = daemon.vbds[i].advance(&daemon.env, now) {
                daemon.note_pause(minor, &outcome);
                control.finished(daemon, minor, outcome, now);
            }
        }
        control.work(daemon, now);
        if self.stopping {
            let Daemon { env, vbds, .. } = &mut *daemon;
            let closed: Vec<u16> = vbds
                .iter_mut()
                .filter_map(|v| v.finish_stop(env, now).then_some(v.minor))
                .collect();
            for minor in closed {
                daemon.remove(minor);
            }
        }
        let serving = daemon.vbds.iter().any(Vbd::is_served);
        if serving != std::mem::replace(&mut self.serving, serving) {
            daemon.env.sink.set_serving(serving);
        }
    }

    // ---- another program (docs/upgrade.md) -----------------------------------------------------

    /// All is at rest for another program: goes on with it. If that fails, everything goes on here.
    fn leave(&mut self, now: u64) {
        if !self.control.is_leaving() {
            return;
        }
        let Some(leaving) = &self.daemon.leaving else { return };
        // Half a request, or a reply on its way: it takes a moment, and cannot be carried.
        if self.control.is_talking() && now < leaving.until {
            return self.control.look_again(now);
        }
        let (program, paused_us) = (leaving.program, leaving.paused_us);
        let mut carrier = Carrier::default();
        let Err(why) = self.try_to_leave(&program, paused_us, &mut carrier);
        carrier.undo();
        let errno = why.raw_os_error().unwrap_or(libc::EINVAL);
        let why = format!("{} does not take over: {why}", show::path(program.as_path()));
        let Some(request) = self.control.running_request() else { return };
        let reply = self.daemon.stay_with(&request, errno, &why);
        self.control.end_running(&mut self.daemon, &reply, now);
    }

    fn try_to_leave(
        &mut self,
        program: &Text,
        paused_us: u64,
        carrier: &mut Carrier,
    ) -> io::Result<Infallible> {
        let next = open_program(program.as_path())?;
        let this = File::open("/proc/self/exe")?;
        let mut keys = Vec::new();
        let disks = self.daemon.vbds.iter().map(|vbd| vbd.leave(carrier, &mut keys));
        let disks = disks.collect::<io::Result<Vec<_>>>()?;
        let receiver = self.daemon.receiver.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let state = handover::State {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            paused_us,
            filter: confine::under(),
            program: carrier.carry(this.as_fd())?,
            control: self.control.state(carrier)?,
            receiver: receiver.state(carrier)?,
            disks,
        };
        let state = handover::write(&state, &keys, carrier)?;
        info!(self.daemon.env.log, "goes on with {}", show::path(program.as_path()));
        // What is in the log's memory would be lost.
        self.daemon.env.sink.flush();
        let args = resume_args(state.as_raw_fd(), self.daemon.env.foreground, None);
        Err(sys::execute(&next, &args))
    }

    /// Once a second.
    fn tick(&mut self, now: u64) {
        let Server { daemon, control, .. } = self;
        for vbd in &mut daemon.vbds {
            let minor = vbd.minor;
            if let Some((frontends, data)) = vbd.path() {
                data.tell(&daemon.env, minor);
                frontends.tell(&daemon.env.log, minor);
            }
        }
        if control.next_us().is_some_and(|at| at <= now) {
            control.expire(daemon, now);
        }
        if now < self.ticked + TICK_US {
            return;
        }
        self.ticked = now;
        let instant = Instant::now();
        daemon.vbds.iter_mut().for_each(|vbd| vbd.tick(&daemon.env, now, instant));
    }

    // ---- what never allocates ------------------------------------------------------------------

    /// The sealed part. True if some disk has more to do without waiting.
    fn turn(&mut self) -> bool {
        let now = self.now();
        let _seal = Seal::new();
        let mut more = false;
        for (frontends, data) in self.daemon.vbds.iter_mut().filter_map(Vbd::path) {
            more |= data.turn(frontends, now);
        }
        more
    }
}
