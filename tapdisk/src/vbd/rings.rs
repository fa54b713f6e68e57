//! The guest rings of a disk, as tapback asks for them (spec/control-socket.md §5.9–5.10).
//!
//! ```text
//!   connect ─► waiting (the disk is not open) ── OPEN ──► served, beside NBD clients ── CLOSE ──► gone
//! ```
//! The devices of Xen are opened with a disk's first ring and closed when the disk is. What is
//! wrong is said in the log and in the reply.
use std::os::fd::{AsFd, AsRawFd};

use mio::Registry;
use slog::{info, warn};
use tap_ctl::messages::Blkif;
use xen::devices::Devices;

use super::metrics::SHM;
use super::ring_files::DeviceFiles;
use super::{Env, State, Vbd};
use crate::formats::OpenError;
use crate::tokens::VBD_TOKENS;
use frontend::Frontend;
use frontend::blkif::{ConnectError, PollPolicy, RingName, RingParams, Rings};
use host::sys;

/// Of the tokens of a disk, the one of its event channels.
pub const RINGS_TOKEN: usize = VBD_TOKENS - 3;
const _: () = assert!(RINGS_TOKEN >= frontend::nbd::TOKENS);

/// The rings of one disk.
pub type GuestRings = Rings<Devices>;

impl Vbd {
    /// The rings that are connected, whether the disk is open or not.
    pub(super) fn rings(&self) -> Option<&GuestRings> {
        self.frontends.rings.as_deref()
    }

    /// Whether a ring is connected to this disk.
    pub fn has_ring(&self, name: RingName) -> bool {
        self.rings().is_some_and(|rings| rings.has(name))
    }

    /// Connects a ring. It is served while the disk is open.
    ///
    /// # Errors
    /// What is wrong, said in the log.
    pub fn connect_ring(&mut self, env: &Env, asked: &Blkif) -> super::Result<()> {
        let connected = self.try_connect(env, asked);
        let (minor, domid, devid) = (self.minor, asked.domid, asked.devid);
        let error = match connected {
            Ok(name) => {
                info!(env.log, "minor {minor}: the ring of {name} is connected");
                return Ok(());
            }
            Err(error) => error,
        };
        let why = format!("the ring of domain {domid}, device {devid} is not connected: {error}");
        Err(self.refuse(env, &OpenError::new(error.errno, why)))
    }

    fn try_connect(&mut self, env: &Env, asked: &Blkif) -> Result<RingName, ConnectError> {
        let params = params(asked)?;
        let open = matches!(self.state, State::Open);
        let place = &mut self.frontends.rings;
        let fresh = place.is_none();
        let rings = match place {
            Some(rings) => rings,
            None => {
                let devices = Devices::open()
                    .map_err(|error| ConnectError::new(error.errno(), error.to_string()))?;
                place.insert(Box::new(Rings::new(devices)))
            }
        };
        let connected = rings.connect(&params);
        if rings.wants_ticks() {
            rings.set_idle(self.host_idle.percent());
        }
        if !open {
            rings.suspend();
        }
        // Also when this ring is refused: the devices are open now, and the next ring finds them
        // so.
        if fresh && self.is_served() {
            self.poll_rings(env);
        }
        connected?;
        self.tell_in_files(env, params.name);
        Ok(params.name)
    }

    /// Files in shared memory for a device's first ring.
    pub(super) fn tell_in_files(&mut self, env: &Env, name: RingName) {
        let device = (name.domid, name.devid);
        if self.ring_files.iter().any(|files| files.device == device) {
            return;
        }
        match DeviceFiles::create(&env.folder, device) {
            Ok(files) => self.ring_files.push(files),
            Err(error) => {
                warn!(env.log, "no files in {SHM} tell of the rings of {name}: {error}");
            }
        }
    }

    /// Once a second: whether the host has CPU to spare for polling.
    pub(super) fn look_at_host(&mut self) {
        let rings = self.frontends.rings.as_mut().filter(|_| self.data.is_some());
        if let Some(rings) = rings.filter(|rings| rings.wants_ticks()) {
            rings.set_idle(self.host_idle.percent());
        }
    }

    /// Once a second: what the rings have done.
    pub(super) fn update_ring_files(&self) {
        let Some(rings) = self.rings() else { return };
        for files in &self.ring_files {
            let (tally, indices) = rings.tally(files.device.0, files.device.1);
            // A full file system: the next second may be better.
            let _ = files.update(&tally, indices);
        }
    }

    /// Lets go of all rings of a device. False if there are none.
    pub fn disconnect_ring(&mut self, env: &Env, domid: u32, devid: u32) -> bool {
        let Some(rings) = &mut self.frontends.rings else { return false };
        let found = rings.disconnect(domid, devid);
        self.ring_files
            .retain(|files| (u32::from(files.device.0), files.device.1) != (domid, devid));
        if found {
            let minor = self.minor;
            info!(env.log, "minor {minor}: the rings of domain {domid}, device {devid} are gone");
        }
        found
    }

    /// The disk is open: rings that were connected before are served from now on.
    pub(super) fn poll_rings(&self, env: &Env) {
        let Some(rings) = self.rings() else { return };
        if let Err(error) = watch(&env.registry, rings.xen(), self.token + RINGS_TOKEN) {
            warn!(env.log, "minor {}: event channels cannot be polled: {error}", self.minor);
        }
    }
}

/// Level-triggered, unlike everything else: a port that fires while others are being read does not
/// wake anybody again.
fn watch(registry: &Registry, devices: &Devices, token: usize) -> std::io::Result<()> {
    sys::watch_level(registry.as_raw_fd(), devices.as_fd(), token as u64)
}

/// What a message asks for.
fn params(asked: &Blkif) -> Result<RingParams, ConnectError> {
    let name = name_of(asked)?;
    let poll =
        PollPolicy { duration_us: asked.poll_duration, idle_threshold: asked.poll_idle_threshold };
    RingParams::new(name, (asked.order, &asked.gref), asked.port, asked.proto, poll)
}

/// The ring that a message names.
///
/// # Errors
/// EINVAL for numbers that are none.
pub fn name_of(asked: &Blkif) -> Result<RingName, ConnectError> {
    RingParams::name((asked.domid, asked.devid), (asked.queue, asked.queues))
}
