//! The ring of the kernel module blktap2: attached with the disk, served while it is open, and its
//! block device.
//!
//! ```text
//!   ATTACH ─► ring mapped        OPEN ─► images open ─► Creating ─► Open
//!   CLOSE ─► Removing ─┬─► Ending (idle) ─► the rest of CLOSE          DETACH ─► ring unmapped
//!              ▲       └─► in use: waits as long as somebody waits for it, then stays open (EBUSY)
//!              └──────────────┘
//! ```
//! Unlike other block devices this one ends with the tapdisk: the module fails what is outstanding.
//! What the module makes us wait for is done by a worker ([`crate::job`]).
use std::os::fd::OwnedFd;

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slog::{info, warn};
use tap_ctl::messages::{Device, DeviceWish, Params};
use tap_ctl::module::Module;

use super::plug::{Plug, Unplug, Way, Work};
use super::{Env, Goal, Result, State, Vbd};
use crate::formats::OpenError;
use crate::job::Job;
use crate::reclaim;
use crate::tokens::VBD_TOKENS;
use frontend::Frontend;
use frontend::blktap::abi::Message;
use frontend::blktap::device::{self, Offers, Removed, Shape};
use frontend::blktap::{Ring, Tap};
use frontend::ublk::{self, DeviceError};
use request::Slots;

/// Of the tokens of a disk, the one of its ring device.
pub const TAP_TOKEN: usize = VBD_TOKENS - 5;
const _: () = assert!(TAP_TOKEN >= frontend::nbd::TOKENS);
/// Between two tries to take a block device away that is in use, in µs.
const IN_USE_US: u64 = 100_000;

/// The ring of a disk.
pub type TapRing = Tap<Ring>;

/// A state and, if something was under way and is over now, what came of it.
type Next = (State, Option<Result<()>>);

/// Where the end of the module's block device is.
pub enum TapEnd {
    /// The module is asked to take it away.
    Removing(Job<Removed>),
    /// It is in use; asked again at this time, in µs.
    InUse {
        /// µs of the clock.
        until: u64,
    },
    /// What is in flight is waited for.
    Ending,
}

/// Maps the ring of a minor that the module has given; `None` for any other.
pub fn attach(env: &Env, minor: u16) -> Option<std::result::Result<Ring, OpenError>> {
    let module = Module::find(&env.run).filter(|module| module.has(minor))?;
    Some(open(&module, minor).map_err(|error| OpenError::new(error.errno, error.text)))
}

fn open(module: &Module, minor: u16) -> std::result::Result<Ring, DeviceError> {
    let path = module.ring(minor);
    Ring::open(&path).map_err(|error| DeviceError {
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        text: device::why_not_attached(minor, &path.display().to_string(), &error),
    })
}

impl Vbd {
    /// The ring, whether the disk is open or not.
    pub(super) fn tap(&self) -> Option<&TapRing> {
        self.frontends.tap.as_deref()
    }

    /// Takes a ring that was just mapped.
    pub(super) fn take_ring(&mut self, env: &Env, ring: Ring) {
        self.take_tap(env, Tap::new(ring));
    }

    fn take_tap(&mut self, env: &Env, tap: TapRing) {
        let token = Token(self.token + TAP_TOKEN);
        let fd = tap.side().map_or(-1, Ring::raw_fd);
        // Else nobody would notice requests before something else happens.
        if let Err(error) = env.registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
            warn!(env.log, "minor {}: its ring cannot be polled: {error}", self.minor);
        }
        self.frontends.tap = Some(Box::new(tap));
    }

    /// Whether the disk that is being opened gets the module's block device: unless another is
    /// named.
    pub(super) fn wants_tapdev(&self, wish: Option<&DeviceWish>) -> bool {
        let any = |wish: &DeviceWish| match wish.driver {
            0 => true,
            _ => wish.exact() == Some(Device::Tap(self.minor.into())),
        };
        self.has_minor_of_module && wish.is_none_or(any)
    }

    /// Begins to make the block device; first the ring, if it was lost.
    pub(super) fn plug_tap(&mut self, env: &Env) -> State {
        if self.frontends.tap.is_some() {
            return self.create_tapdev(env);
        }
        let (run, minor) = (env.run.clone(), self.minor);
        let job = Job::start(&env.waker, move || match Module::find(&run) {
            Some(module) => open(&module, minor),
            None => {
                let text = format!("minor {minor}: the blktap module is gone");
                Err(DeviceError { errno: libc::ENODEV, text })
            }
        });
        State::Plugging(Plug::Mapping(job))
    }

    pub(super) fn create_tapdev(&mut self, env: &Env) -> State {
        let engine = &mut self.data.as_mut().expect("it is being opened").engine;
        let tap = self.frontends.tap.as_mut().expect("there is a ring");
        let handle = tap.side().map(Ring::handle);
        let started = tap.start(engine);
        let minor = self.minor;
        let shape = Shape {
            sectors: engine.sectors(),
            sector_size: engine.sector_size(),
            read_only: engine.read_only(),
            name: self.name().as_bytes().to_vec(),
        };
        let job: Work<Offers> = Job::start(&env.waker, move || {
            let Some(handle) = handle.filter(|_| started) else {
                let text = format!("minor {minor}: there are no slots for the ring");
                return Err(DeviceError { errno: libc::ENOBUFS, text });
            };
            device::create(&handle, &shape).map_err(|error| DeviceError {
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                text: device::why_not_created(minor, &error),
            })
        });
        State::Plugging(Plug::Creating(job))
    }

    /// The block device is there.
    pub(super) fn tapdev_is_there(&mut self, offers: Offers) {
        self.device = Some(Device::Tap(self.minor.into()));
        if let Some(tap) = &mut self.frontends.tap {
            tap.set_events(offers.events());
        }
    }

    /// Begins to take the block device away. Where a signal ends the process, what was written to
    /// it comes first: it ends with us.
    pub(super) fn remove_tapdev(&mut self, env: &Env, force: bool, way: Way) -> State {
        let Some(handle) = self.tap().and_then(Tap::side).map(Ring::handle) else {
            return State::Unplugging(Unplug::Tap(TapEnd::Ending, force), way);
        };
        let path = Device::Tap(self.minor.into()).to_string();
        let open = self.data.as_ref().is_some_and(|data| data.images.is_some());
        let sync = self.stopping && open;
        let job = Job::start(&env.waker, move || {
            if sync {
                ublk::device::sync(&path);
            }
            device::remove(&handle)
        });
        State::Unplugging(Unplug::Tap(TapEnd::Removing(job), force), way)
    }

    pub(super) fn ending_tapdev(
        &mut self,
        env: &Env,
        (end, force): (TapEnd, bool),
        way: Way,
        now: u64,
    ) -> Next {
        let minor = self.minor;
        let stay = |end| (State::Unplugging(Unplug::Tap(end, force), way), None);
        match end {
            TapEnd::Removing(job) => match job.take() {
                None => stay(TapEnd::Removing(job)),
                // Only until another program makes it again.
                Some(Removed::InUse | Removed::WithRing) if self.leaves => {
                    self.leaves = false;
                    let why = format!(
                        "{} is in use, or of a module that cannot take it away, and it goes with \
                         the program that serves it: it gets the new one when the disk is attached \
                         the next time",
                        Device::Tap(minor.into())
                    );
                    (State::Open, Some(Err(self.refuse(env, &OpenError::new(libc::EBUSY, why)))))
                }
                Some(Removed::Gone | Removed::WithRing) => stay(TapEnd::Ending),
                Some(Removed::InUse) if force || self.stopping => {
                    let device = Device::Tap(minor.into());
                    warn!(env.log, "minor {minor}: {device} goes under its users, who see errors");
                    self.drop_ring(env);
                    stay(TapEnd::Ending)
                }
                Some(Removed::InUse) if self.alone => {
                    let device = Device::Tap(minor.into());
                    warn!(env.log, "minor {minor}: {device} is in use, and stays");
                    (way.back.map_or(State::Open, State::from), Some(Err(libc::EBUSY)))
                }
                Some(Removed::InUse) => stay(TapEnd::InUse { until: now + IN_USE_US }),
                Some(Removed::Failed(errno)) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    warn!(env.log, "minor {minor}: its block device goes with its ring: {error}");
                    self.drop_ring(env);
                    stay(TapEnd::Ending)
                }
            },
            TapEnd::InUse { until } if until > now && !self.alone => stay(TapEnd::InUse { until }),
            TapEnd::InUse { .. } => (self.remove_tapdev(env, force, way), None),
            TapEnd::Ending if !self.tap_is_idle() => stay(TapEnd::Ending),
            TapEnd::Ending => {
                if let Some(device) = self.device.take() {
                    info!(env.log, "minor {minor}: {device} is gone");
                }
                self.after_device(env, way)
            }
        }
    }

    /// Takes the block device away until another program makes it again, if nobody uses it. The
    /// disk is paused then.
    pub(super) fn lend_tapdev(&mut self, env: &Env) {
        self.leaves = true;
        let way = Way { goal: Goal::Pause, back: None };
        self.state = self.remove_tapdev(env, false, way);
    }

    /// The disk goes on: the block device that was taken away for another program comes back.
    pub(super) fn take_tapdev_back(&mut self, env: &Env) -> Option<State> {
        if !std::mem::take(&mut self.leaves) {
            return None;
        }
        self.keep_ring();
        Some(self.plug_tap(env))
    }

    /// Asks the module to keep ring and block device when this program goes, or not to.
    pub(super) fn keep_tapdev(&mut self, keep: bool) {
        let wanted = match keep {
            true => matches!(self.device, Some(Device::Tap(_))),
            false => self.keeps,
        };
        let ring = self.tap().filter(|_| wanted).and_then(Tap::side);
        // Other modules than ours cannot: ENOTTY.
        self.keeps = ring.is_some_and(|ring| ring.keep(keep).is_ok()) && keep;
    }

    /// The ring that the module has kept for this program.
    pub(super) fn adopt_tap(&mut self, env: &Env, ring: OwnedFd, events: bool) {
        match Ring::again(ring) {
            Ok(ring) => {
                self.take_tap(env, Tap::adopt(ring, events));
                self.keeps = true;
            }
            Err(error) => {
                warn!(env.log, "minor {}: its block device is lost: {error}", self.minor);
                self.device = None;
            }
        }
    }

    /// The images are open: the block device that the module has kept is served on. Whether there
    /// is one.
    pub(super) fn serve_kept_tap(&mut self, env: &Env) -> bool {
        if !self.keeps {
            return false;
        }
        reclaim::hold_reserves(&env.log);
        // Nobody goes back to the program before.
        self.keep_tapdev(false);
        let (Some(data), Some(tap)) = (&mut self.data, &mut self.frontends.tap) else {
            return false;
        };
        let started = tap.start(&mut data.engine);
        if !started {
            warn!(env.log, "minor {}: its block device is lost: no slots are free", self.minor);
            self.drop_ring(env);
        }
        started
    }

    pub(super) fn tap_is_idle(&self) -> bool {
        self.tap().is_none_or(|tap| tap.idle())
    }

    /// Unmaps and closes the ring, on a worker: the module may have something to wait for.
    fn drop_ring(&mut self, env: &Env) {
        let tap = self.frontends.tap.as_deref_mut();
        let Some(ring) = tap.and_then(Tap::take_side) else { return };
        let _ = env.registry.deregister(&mut SourceFd(&ring.raw_fd()));
        drop(Job::start(&env.waker, move || drop(ring)));
    }

    /// The disk is closed: the ring waits for the next OPEN, if it is still there.
    pub(super) fn keep_ring(&mut self) {
        let (Some(data), Some(tap)) = (&mut self.data, &mut self.frontends.tap) else { return };
        tap.stop(&mut data.engine);
        if tap.is_broken() {
            self.frontends.tap = None;
        }
    }

    /// Whether `look_after_ring` has something to do: no event would tell.
    pub(super) fn ring_wants_care(&self) -> bool {
        let tap = self.tap().filter(|_| self.is_served());
        tap.is_some_and(|tap| tap.has_message() || (tap.is_broken() && tap.side().is_some()))
    }

    /// Between turns: closes a ring that made no sense, and does what the module asks for.
    pub fn look_after_ring(&mut self, env: &Env) {
        let served = self.is_served();
        let Some(tap) = self.frontends.tap.as_deref_mut().filter(|_| served) else { return };
        let (broken, message) = (tap.is_broken() && tap.side().is_some(), tap.take_message());
        if broken {
            self.drop_ring(env);
            if matches!(self.state, State::Open | State::Paused { .. }) {
                self.device = None;
            }
        }
        let Some(message) = message else { return };
        info!(env.log, "minor {}: the blktap module says: {message:?}", self.minor);
        match (message, &self.state) {
            (Message::Pause, State::Open) => self.pause(),
            (Message::Resume, State::Paused { .. }) => {
                // A refusal is in the log; nobody waits for an answer.
                let _ = self.resume(env, &Params::default(), &super::Extra::default());
            }
            (Message::Close, State::Open | State::Paused { .. }) => self.close(env, false),
            (message, state) => {
                warn!(env.log, "minor {}: not done while {state}: {message:?}", self.minor);
            }
        }
    }

    /// Whether the client that asked for what is under way is gone.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }
}
