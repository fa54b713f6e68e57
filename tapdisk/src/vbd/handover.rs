//! A disk, as one program leaves it and the next one takes it (docs/upgrade.md).
//!
//! ```text
//!   Open ── finish ─► at rest ── pause ─► Paused ─► DiskState ── exec ─► adopted: clients and rings
//!     ▲                                     │                              wait in the frontends     
//!     └────────────── go_on ◄───────────────┘                                │ images open
//!                                                                            ▼
//!                                                          DataPath ─► (the block device) ─► Open
//! ```
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mio::Token;
use serde::{Deserialize, Serialize};
use slog::{info, warn};
use tap_ctl::messages::{
    Device, DeviceOptions, ImageInfo, MESSAGE_BYTES, Request, Text, validate_request,
};
use vhd_rs::secret::Bytes;
use xen::devices::Devices;

use super::decide::Request as Asked;
use super::rings::GuestRings;
use super::{Env, Opened, State, Vbd, socket_paths};
use crate::formats::{DiskOptions, Key};
pub(super) use engine::stats::Carried as StatsCarried;
use engine::throttle::Rates;
use frontend::Frontend;
use frontend::blkif::{RingState, Rings};
use frontend::nbd::{Export, NbdServer, NbdState};
use host::carry::{Carried, Carrier, Fetcher};

/// A disk without anything under way.
#[derive(Debug, Deserialize, Serialize)]
pub struct DiskState {
    minor: u16,
    marker: Option<Carried>,
    /// The minor is the kernel module's.
    #[serde(default)]
    module: bool,
    secs_before: [u64; 2],
    life: Life,
}

#[derive(Debug, Deserialize, Serialize)]
enum Life {
    Attached,
    Closed,
    Open(Box<OpenState>),
}

#[derive(Debug, Deserialize, Serialize)]
struct OpenState {
    /// OPEN, as it came.
    message: Vec<u8>,
    timeout_s: u16,
    // The word of the programs that came before.
    #[serde(rename = "wish")]
    options: OptionsState,
    sectors: u64,
    sector_size: u32,
    info: u32,
    /// The block device by its path.
    device: Option<String>,
    mirror_failed: bool,
    #[serde(default)]
    stats: StatsCarried,
    nbd: NbdState,
    /// The module's ring, which it keeps, and whether it looks at `req_event`.
    #[serde(default)]
    tap: Option<(Carried, bool)>,
    /// The guests' event channels.
    events: Option<Carried>,
    rings: Vec<RingState>,
    /// `None` of a program that knew none.
    #[serde(default)]
    rates: Option<Rates>,
}

/// What is open; names are bytes.
#[derive(Debug, Deserialize, Serialize)]
struct OptionsState {
    name: Vec<u8>,
    #[serde(rename = "second")]
    secondary: Option<Vec<u8>>,
    log: Option<Vec<u8>>,
    parent: Option<Vec<u8>>,
    read_only: bool,
    page_cache: bool,
    local_cache: bool,
    standby: bool,
    taken_over: bool,
    /// The next key is its.
    encrypted: bool,
}

impl Vbd {
    /// Why another program cannot go on with this disk just now.
    pub fn why_not_upgraded(&self) -> Option<String> {
        let minor = self.minor;
        if let Some(why) = self.why_committing() {
            return Some(why);
        }
        let why = match (&self.state, &self.frontends.rings) {
            (State::Open, _) if !self.stopping => return None,
            (State::Attached | State::Closed, None) if !self.stopping => return None,
            (State::Paused { .. }, _) => "paused; unpause it first".into(),
            (state, None) => state.to_string(),
            (_, Some(_)) => "waited for by a guest, and not open".into(),
        };
        Some(format!("minor {minor} is {why}"))
    }

    /// Comes to rest, so that another program can go on; the module's block device goes meanwhile,
    /// where the module cannot keep it.
    pub fn rest(&mut self, env: &Env) {
        self.ask_and_begin(env, Asked::Rest);
    }

    /// Clients and guests end what they have begun, and begin nothing.
    pub fn finish(&mut self) {
        self.keep_tapdev(true);
        if self.is_served() {
            self.frontends.finish();
        }
    }

    /// Whether they have.
    pub fn at_rest(&self) -> bool {
        !self.is_served() || self.frontends.at_rest()
    }

    /// Who has not.
    pub fn restlessness(&self) -> String {
        let clients = self.frontends.nbd.as_ref().map_or(0, NbdServer::restless);
        let (minor, who) = match clients {
            0 => (self.minor, "a guest's requests are not done".to_string()),
            1 => (self.minor, "an NBD client is in the middle of a request or a reply".into()),
            n => (self.minor, format!("{n} NBD clients are in the middle of a request or a reply")),
        };
        format!("minor {minor}: {who}; try again")
    }

    /// There is no other program: everybody goes on.
    pub fn go_on(&mut self, env: &Env) {
        self.keep_tapdev(false);
        self.goes_on = false;
        if let (State::Paused { .. }, opened) = (self.state, &self.opened) {
            self.again = opened.as_ref().map(|opened| opened.options.clone());
            if let Some(options) = &self.again {
                info!(env.log, "minor {}: goes on with {}", self.minor, options.name);
            }
        }
        self.ask_and_begin(env, Asked::GoOn);
    }

    /// Why it is not open yet, whatever the errno.
    pub fn reason_of_any(&self) -> Option<String> {
        self.refused.0.borrow().as_ref().map(|error| error.text.clone())
    }

    /// What the next program needs; `keys` takes the key.
    ///
    /// # Errors
    /// Those of the carrier.
    pub fn leave<'a>(
        &'a self,
        carrier: &mut Carrier,
        keys: &mut Vec<&'a [u8]>,
    ) -> io::Result<DiskState> {
        let marker = self._marker.as_ref().map(|file| carrier.carry(file.as_fd())).transpose()?;
        let life = match (&self.opened, &self.data, &self.frontends.nbd) {
            (Some(opened), Some(data), Some(nbd)) => {
                if let Some(key) = &opened.options.key {
                    keys.push(key.bytes());
                }
                let rings = self.rings();
                let events = rings.map(|rings| carrier.carry(rings.xen().as_fd())).transpose()?;
                let kept = self.tap().filter(|_| self.module.keeps);
                let kept = kept.and_then(|tap| Some((tap.side()?.as_fd(), tap.has_events())));
                let tap = kept.map(|(fd, events)| Ok((carrier.carry(fd)?, events)));
                let tap = tap.transpose().map_err(|error: io::Error| error)?;
                let minor = self.minor;
                let open = Request::Open { minor, params: opened.params };
                Life::Open(Box::new(OpenState {
                    message: open.to_message().encode().to_vec(),
                    timeout_s: opened.timeout_s,
                    options: OptionsState::of(&opened.options),
                    sectors: self.info.sectors,
                    sector_size: self.info.sector_size,
                    info: self.info.info,
                    device: self.device.map(|device| device.to_string()),
                    mirror_failed: self.mirror_failed,
                    stats: data.engine.stats().into(),
                    nbd: nbd.state(&mut |fd| carrier.carry(fd))?,
                    tap,
                    events,
                    rings: rings.map(GuestRings::states).unwrap_or_default(),
                    rates: Some(self.rates),
                }))
            }
            _ if matches!(self.state, State::Attached) => Life::Attached,
            _ => Life::Closed,
        };
        let (module, secs_before) = (self.module.has_minor, self.secs_before);
        Ok(DiskState { minor: self.minor, marker, module, secs_before, life })
    }

    /// The disk that another program has left. Its images are opened at once; until they are,
    /// clients and guests wait.
    ///
    /// # Errors
    /// What is not there, or makes no sense.
    pub fn adopt(
        env: &Env,
        state: DiskState,
        token: usize,
        (fetcher, keys): (&mut Fetcher, &mut dyn Iterator<Item = Bytes>),
    ) -> io::Result<Vbd> {
        let marker = state.marker.map(|fd| fetcher.fetch(fd)).transpose()?.map(File::from);
        let mut vbd = Vbd::new(state.minor, token, marker);
        vbd.module.has_minor = state.module;
        vbd.secs_before = state.secs_before;
        match state.life {
            Life::Attached => {}
            Life::Closed => vbd.state = State::Closed,
            Life::Open(open) => vbd.adopt_open(env, *open, fetcher, keys)?,
        }
        // That of an open disk is mapped when the images are.
        if state.module && vbd.opened.is_none() {
            match super::tap::attach(env, state.minor) {
                Some(Ok(ring)) => vbd.take_ring(env, ring),
                Some(Err(error)) => warn!(env.log, "minor {}: {error}", state.minor),
                None => warn!(env.log, "minor {}: the blktap module is gone", state.minor),
            }
        }
        Ok(vbd)
    }

    fn adopt_open(
        &mut self,
        env: &Env,
        open: OpenState,
        fetcher: &mut Fetcher,
        keys: &mut dyn Iterator<Item = Bytes>,
    ) -> io::Result<()> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let frame = open.message.first_chunk::<MESSAGE_BYTES>().ok_or_else(wrong)?;
        let Ok(Request::Open { params, .. }) = validate_request(frame) else { return Err(wrong()) };
        let options = open.options.restore(keys)?;
        let device = open.device.as_deref().and_then(Device::of_path);
        if device.is_none() != open.device.is_none() {
            return Err(wrong());
        }
        self.info = ImageInfo {
            sectors: open.sectors,
            sector_size: open.sector_size,
            info: open.info,
            device: None,
        };
        self.device = device;
        self.mirror_failed = open.mirror_failed;
        self.rates = open.rates.unwrap_or(super::rates::NONE);
        let export = Export {
            sectors: open.sectors,
            sector_size: open.sector_size,
            read_only: open.options.read_only,
            fast_zero: false,
        };
        let (paths, base) = (socket_paths(env, self.minor), Token(self.token));
        let mut fetch = |fd| fetcher.fetch(fd);
        let nbd = NbdServer::adopt(&env.registry, &paths, base, export, open.nbd, &mut fetch);
        let mut nbd = nbd.map_err(|error| error.error)?;
        nbd.suspend();
        self.frontends.nbd = Some(nbd);
        self.left = Some(open.stats);
        if let Some((ring, events)) = open.tap {
            self.adopt_tap(env, fetcher.fetch(ring)?, events);
        }
        if let Some(events) = open.events {
            self.adopt_rings(env, fetcher.fetch(events)?, &open.rings)?;
        }
        let wanted = device.filter(|device| matches!(device, Device::Ublk(_)));
        let device =
            wanted.map(DeviceOptions::exactly).or(params.has(DEVICE).then_some(params.device));
        let opened = Opened {
            options: options.clone(),
            timeout_s: open.timeout_s,
            params,
            device,
            take_over: wanted.is_some(),
        };
        self.opened = Some(opened);
        self.again = Some(options);
        self.state = State::Resuming { tries: 0, until: Some(0) };
        Ok(())
    }

    /// The guests' rings are mapped again. One that cannot be is lost, and its guest with it; the
    /// others are not.
    fn adopt_rings(&mut self, env: &Env, events: OwnedFd, states: &[RingState]) -> io::Result<()> {
        let devices = Devices::adopt(events).map_err(io::Error::other)?;
        let mut rings = Box::new(Rings::new(devices));
        rings.suspend();
        for state in states {
            match rings.adopt(state) {
                Ok(()) => self.tell_in_files(env, state.name()),
                Err(error) => warn!(env.log, "minor {}: a ring is lost: {error}", self.minor),
            }
        }
        if rings.wants_ticks() {
            rings.set_idle(self.host_idle.percent());
        }
        self.frontends.rings = Some(rings);
        Ok(())
    }
}

const DEVICE: u32 = tap_ctl::messages::flag::DEVICE;

impl OptionsState {
    fn of(options: &DiskOptions) -> OptionsState {
        let bytes = |text: Option<Text>| text.map(|text| text.as_bytes().to_vec());
        OptionsState {
            name: options.name.as_bytes().to_vec(),
            secondary: bytes(options.secondary),
            log: bytes(options.log),
            parent: bytes(options.parent),
            read_only: options.read_only,
            page_cache: options.page_cache,
            local_cache: options.local_cache,
            standby: options.standby,
            taken_over: options.taken_over,
            encrypted: options.key.is_some(),
        }
    }

    fn restore(&self, keys: &mut dyn Iterator<Item = Bytes>) -> io::Result<DiskOptions> {
        let wrong = || io::Error::from_raw_os_error(libc::EINVAL);
        let text = |bytes: &[u8]| Text::new(bytes).map_err(|_| wrong());
        let some = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(text).transpose();
        let key = match self.encrypted {
            true => {
                let bytes = keys.next().ok_or_else(wrong)?;
                Some(Arc::new(Key::new(Arc::new(bytes)).map_err(|_| wrong())?))
            }
            false => None,
        };
        Ok(DiskOptions {
            name: text(&self.name)?,
            read_only: self.read_only,
            page_cache: self.page_cache,
            local_cache: self.local_cache,
            key,
            secondary: some(&self.secondary)?,
            standby: self.standby,
            taken_over: self.taken_over,
            log: some(&self.log)?,
            parent: some(&self.parent)?,
        })
    }
}
