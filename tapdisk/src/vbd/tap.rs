//! The ring of the kernel module blktap2: attached with the disk, served while it is open. Its
//! block device is `device/tap.rs`.
//!
//! ```text
//!   ATTACH ─► mapped ─► OPEN … CLOSE: served ─► DETACH: unmapped
//! ```
use std::os::fd::OwnedFd;

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slog::{info, warn};
use tap_ctl::messages::{Device, Params};
use tap_ctl::module::Module as KernelModule;

use super::{Env, Frontends, State, Vbd};
use crate::formats::OpenError;
use crate::job::Job;
use crate::reclaim;
use crate::tokens::VBD_TOKENS;
use frontend::blktap::abi::Message;
use frontend::blktap::device;
use frontend::blktap::{Ring, Tap};
use frontend::ublk::DeviceError;

/// Of the tokens of a disk, the one of its ring device.
pub const TAP_TOKEN: usize = VBD_TOKENS - 5;
const _: () = assert!(TAP_TOKEN >= frontend::nbd::TOKENS);

/// The ring of a disk.
pub type TapRing = Tap<Ring>;

/// What is kept of a minor of the kernel module.
#[derive(Debug, Default)]
pub struct Module {
    /// The minor is the module's: it has a ring, which may have been lost.
    pub has_minor: bool,
    /// Its block device is taken away for another program, or is to be.
    pub lends: bool,
    /// The module keeps its ring and block device for another program, or has kept them.
    pub keeps: bool,
}

/// Maps the ring of a minor that the module has given; `None` for any other.
pub fn attach(env: &Env, minor: u16) -> Option<std::result::Result<Ring, OpenError>> {
    let module = KernelModule::find(&env.run).filter(|module| module.has(minor))?;
    Some(open_ring(&module, minor).map_err(|error| OpenError::new(error.errno, error.text)))
}

pub fn open_ring(module: &KernelModule, minor: u16) -> std::result::Result<Ring, DeviceError> {
    let path = module.ring(minor);
    Ring::open(&path).map_err(|error| DeviceError {
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        text: device::why_not_attached(minor, &path.display().to_string(), &error),
    })
}

impl Frontends {
    /// A ring that is mapped, for the disk with this minor and first token.
    pub(super) fn take_tap(&mut self, env: &Env, (minor, token): (u16, usize), tap: TapRing) {
        let token = Token(token + TAP_TOKEN);
        let fd = tap.side().map_or(-1, Ring::raw_fd);
        // Else nobody would notice requests before something else happens.
        if let Err(error) = env.registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
            warn!(env.log, "minor {minor}: its ring cannot be polled: {error}");
        }
        self.tap = Some(Box::new(tap));
    }

    /// Unmaps and closes the ring, on a worker: the module may have something to wait for.
    pub(super) fn drop_ring(&mut self, env: &Env) {
        let Some(ring) = self.tap.as_deref_mut().and_then(Tap::take_side) else { return };
        let _ = env.registry.deregister(&mut SourceFd(&ring.raw_fd()));
        drop(Job::start(&env.waker, move || drop(ring)));
    }
}

impl Vbd {
    /// The ring, whether the disk is open or not.
    pub(super) fn tap(&self) -> Option<&TapRing> {
        self.frontends.tap.as_deref()
    }

    /// Takes a ring that was just mapped.
    pub(super) fn take_ring(&mut self, env: &Env, ring: Ring) {
        self.frontends.take_tap(env, (self.minor, self.token), Tap::new(ring));
    }

    /// Asks the module to keep ring and block device when this program goes, or not to.
    pub(super) fn keep_tapdev(&mut self, keep: bool) {
        let wanted = match keep {
            true => matches!(self.device, Some(Device::Tap(_))),
            false => self.module.keeps,
        };
        let ring = self.tap().filter(|_| wanted).and_then(Tap::side);
        // Other modules than ours cannot: ENOTTY.
        self.module.keeps = ring.is_some_and(|ring| ring.keep(keep).is_ok()) && keep;
    }

    /// The ring that the module has kept for this program.
    pub(super) fn adopt_tap(&mut self, env: &Env, ring: OwnedFd, events: bool) {
        match Ring::again(ring) {
            Ok(ring) => {
                self.frontends.take_tap(env, (self.minor, self.token), Tap::adopt(ring, events));
                self.module.keeps = true;
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
        if !self.module.keeps {
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
            self.frontends.drop_ring(env);
        }
        started
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
            self.frontends.drop_ring(env);
            if matches!(self.state, State::Open | State::Paused { .. }) {
                self.device = None;
            }
        }
        let Some(message) = message else { return };
        info!(env.log, "minor {}: the blktap module says: {message:?}", self.minor);
        match (message, &self.state) {
            (Message::Pause, State::Open) => self.pause(env),
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
