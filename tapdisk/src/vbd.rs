//! The life of a disk: one state, moved on by what the control path asks for and by time.
//!
//! ```text
//!   request ─► ask ─┐
//!                   ├─► Step: the next state, what is done, what is said, what is over
//!   looks ─► decide ┘     ▲                   │
//!                         └───────────────────┘
//! ```
//! `decide.rs` decides and has the states drawn, `advance.rs` looks and does it.
//! The images are opened and closed by a worker ([`crate::job`]); engine, arena and sockets are
//! made when they are open and kept until CLOSE, also over a pause. Nothing here waits.
mod advance;
mod commit;
mod data_path;
mod decide;
mod device;
mod frontends;
pub mod handover;
mod host_idle;
pub(crate) mod metrics;
mod options;
mod rates;
mod report;
mod ring_files;
mod rings;
mod serve;
mod state;
mod tap;

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;

use mio::{Registry, Waker};
use slog::{Logger, info, warn};
use tap_ctl::messages::{Device, DeviceOptions, ImageInfo, Params, Text, flag};
use tap_ctl::paths::RunDir;

use crate::formats::{DiskOptions, Living, OpenError, Patience};
use crate::job::Job;
use crate::log::Log;
use crate::memory::Memory;
use crate::receiver::Stash;
pub use data_path::{DataPath, REMOTE_TOKEN};
use decide::Request;
pub use device::DEVICE_TOKEN;
pub use frontends::Frontends;
pub use options::{Extra, options};
pub use rings::{RINGS_TOKEN, name_of as ring_name};
pub use state::{Goal, Rest, State};
pub use tap::TAP_TOKEN;

/// What every disk of the process uses.
pub struct Env {
    /// The run-time directory.
    pub run: RunDir,
    /// Our process id.
    pub pid: i32,
    /// Where sentences go.
    pub log: Logger,
    /// The same, to steer it.
    pub sink: Log,
    /// The poll.
    pub registry: Registry,
    /// Wakes the poll.
    pub waker: Arc<Waker>,
    /// What may be locked.
    pub memory: Memory,
    /// What it tells in shared memory.
    pub folder: metrics::Folder,
    /// Descriptors that were passed for NBD images.
    pub stash: Arc<Stash>,
    /// It stays in the foreground, and logs there.
    pub foreground: bool,
}

/// What an operation came to: a positive errno on failure.
pub type Result<T> = std::result::Result<T, i32>;

/// A disk.
pub struct Vbd {
    /// Its minor.
    pub minor: u16,
    /// First token of the poll that is its own.
    pub token: usize,
    /// The marker, locked while the disk is attached; none of a minor of the kernel module.
    _marker: Option<File>,
    /// What is kept of the kernel module's.
    module: tap::Module,
    /// Where its requests come from. Dropped before the memory of the engine.
    frontends: Frontends,
    /// The client that asked for what is under way is gone.
    alone: bool,
    state: State,
    /// What is under way, and its images when they are open.
    work: advance::Work,
    /// What OPEN asked for; `None` while not open.
    opened: Option<Opened>,
    /// What is opened again, on the way from a pause.
    again: Option<DiskOptions>,
    /// As stored at OPEN; zeros before.
    info: ImageInfo,
    /// Engine and images; from OPEN to CLOSE.
    data: Option<DataPath>,
    /// What the rings of each device tell in shared memory.
    ring_files: Vec<ring_files::DeviceFiles>,
    /// What it tells itself there.
    files: metrics::DiskFiles,
    /// The block device.
    device: Option<Device>,
    /// The mirror failed and was left behind.
    mirror_failed: bool,
    /// Sectors read and written before the present engine was made.
    secs_before: [u64; 2],
    /// What the present or last opening of the images waits for.
    patience: Option<Patience>,
    /// A signal asked for the end.
    stopping: bool,
    /// How idle the host is, while rings may be polled.
    host_idle: host_idle::HostIdle,
    /// What was refused last, for the reply.
    refused: Refused,
    /// What another program has counted of this disk, until the images are open.
    left: Option<handover::StatsCarried>,
    /// When it is paused it goes on at once.
    goes_on: bool,
    /// It has clients: if there is no block device any more it goes on without.
    goes_without: bool,
    /// The last commit of an inner image.
    commit: Option<commit::Asked>,
    /// How many bytes and operations a second it may have.
    rates: engine::throttle::Rates,
}

/// What stays in force from OPEN to CLOSE.
#[derive(Clone, Debug)]
struct Opened {
    options: DiskOptions,
    timeout_s: u16,
    /// As OPEN had it, for the record of a block device.
    params: Params,
    /// The block device that was asked for.
    device: Option<DeviceOptions>,
    /// It is there, and its tapdisk died.
    take_over: bool,
}

/// Why a request was refused last, until it is said.
#[derive(Default)]
pub struct Refused(RefCell<Option<OpenError>>);

impl Refused {
    /// Logs why something is refused, and keeps it for the reply; gives the errno.
    fn refuse(&self, env: &Env, minor: u16, error: &OpenError) -> i32 {
        warn!(env.log, "minor {minor}: {error}");
        self.0.replace(Some(error.clone()));
        error.errno
    }
}

/// What came of an attempt to attach.
pub enum Attach {
    /// Done.
    Done(Box<Vbd>),
    /// Another process holds the marker just now.
    Wait,
    /// Refused.
    Failed(OpenError),
}

impl Vbd {
    /// Opens and locks the marker of a minor (spec/control-socket.md §5.1), or maps its ring where
    /// the minor is the kernel module's (spec/history.md §2).
    pub fn attach(env: &Env, minor: u16, token: usize) -> Attach {
        match tap::attach(env, minor) {
            Some(Ok(ring)) => {
                info!(env.log, "minor {minor}: attached, with its ring");
                let mut vbd = Vbd::new(minor, token, None);
                vbd.take_ring(env, ring);
                return Attach::Done(Box::new(vbd));
            }
            Some(Err(error)) => return Attach::Failed(error),
            None => {}
        }
        let path = env.run.marker(u32::from(minor));
        let marker = match File::open(&path) {
            Ok(marker) => marker,
            Err(error) => {
                let path = show::path(&path);
                let why = format!("cannot open {path}: {error}; tap-ctl allocate makes it");
                return Attach::Failed(OpenError::new(libc::EPERM, why));
            }
        };
        match image::try_lock(&marker, true) {
            Ok(true) => {}
            Ok(false) => return Attach::Wait,
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EPERM);
                let why = format!("cannot lock {}: {error}", show::path(&path));
                return Attach::Failed(OpenError::new(errno, why));
            }
        }
        info!(env.log, "minor {minor}: attached");
        Attach::Done(Box::new(Vbd::new(minor, token, Some(marker))))
    }

    fn new(minor: u16, token: usize, marker: Option<File>) -> Vbd {
        Vbd {
            minor,
            token,
            module: tap::Module { has_minor: marker.is_none(), ..tap::Module::default() },
            _marker: marker,
            frontends: Frontends::default(),
            alone: false,
            state: State::Attached,
            work: advance::Work::default(),
            opened: None,
            again: None,
            info: ImageInfo::default(),
            data: None,
            ring_files: Vec::new(),
            files: metrics::DiskFiles::default(),
            device: None,
            mirror_failed: false,
            secs_before: [0; 2],
            patience: None,
            stopping: false,
            host_idle: host_idle::HostIdle::default(),
            refused: Refused::default(),
            left: None,
            goes_on: false,
            goes_without: false,
            commit: None,
            rates: rates::NONE,
        }
    }

    /// Where its life is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The block device, once it is there.
    pub fn device(&self) -> Option<Device> {
        self.device
    }

    /// The state as LIST shows it (spec/control-socket.md §5.13).
    pub fn bits(&self) -> u32 {
        let busy = self.data.as_ref().is_some_and(|data| data.engine.active() > 0);
        let stop = if self.stopping { tap_ctl::messages::state::SHUTDOWN_REQUESTED } else { 0 };
        self.state.bits(busy) | stop
    }

    /// `type:path`, empty if not open (yet).
    pub fn name(&self) -> Text {
        match (&self.state, &self.opened) {
            (State::Opening { .. }, _) | (_, None) => Text::EMPTY,
            (_, Some(opened)) => opened.options.name,
        }
    }

    /// As stored at OPEN (spec/control-socket.md §5.11).
    pub fn info(&self) -> ImageInfo {
        ImageInfo { device: self.device, ..self.info }
    }

    /// Whether an image is named: DETACH and a second OPEN are refused.
    pub fn is_open(&self) -> bool {
        self.opened.is_some()
    }

    /// Where requests come from, and where they go, while the disk is served.
    pub fn path(&mut self) -> Option<(&mut Frontends, &mut DataPath)> {
        Some((&mut self.frontends, self.data.as_mut()?))
    }

    /// Whether it is served.
    pub fn is_served(&self) -> bool {
        self.data.is_some()
    }

    /// Whether no request is in flight, here or below.
    fn idle(&self) -> bool {
        self.data.as_ref().is_none_or(|data| data.engine.idle() && self.frontends.idle())
    }

    /// Begins to open the images.
    ///
    /// # Errors
    /// EALREADY while open, or what is wrong with the request.
    pub fn open(&mut self, env: &Env, params: &Params, extra: &Extra) -> Result<()> {
        if self.is_open() {
            return Err(libc::EALREADY);
        }
        if params.has(flag::DEVICE | flag::TAKE_OVER | flag::REMOVE) {
            return self.remove_device(env, &params.device);
        }
        let options =
            options(params, extra, &env.run, &env.log).map_err(|e| self.refuse(env, &e))?;
        let name = options.name;
        let step = self.ask(Request::Open)?;
        info!(env.log, "minor {}: opening {name}", self.minor);
        let timeout_s = if params.req_timeout > 0 { params.req_timeout } else { 120 };
        self.mirror_failed = false;
        let device = params.has(flag::DEVICE).then_some(params.device);
        let take_over = params.has(flag::TAKE_OVER);
        self.opened = Some(Opened { options, timeout_s, params: *params, device, take_over });
        self.begin(env, step);
        Ok(())
    }

    /// Takes a device away whose tapdisk died, for an image that cannot be opened any more.
    fn remove_device(&mut self, env: &Env, options: &DeviceOptions) -> Result<()> {
        let device = device::can_be_dead(options).ok_or(libc::EINVAL)?;
        let step = self.ask(Request::Remove)?;
        self.work.dead = Some(device);
        self.begin(env, step);
        Ok(())
    }

    /// A worker opens images. Where there is a block device, the kernel reads from it before
    /// anybody is answered, so the images must be ours by then.
    fn open_images(&mut self, env: &Env, options: DiskOptions, living: Living) -> advance::Opening {
        let device =
            self.module.has_minor || self.opened.as_ref().is_some_and(|w| w.device.is_some());
        let living = if living == Living::Reported && device { Living::Awaited } else { living };
        let patience = Patience::new(living, &env.log);
        self.patience = Some(patience.clone());
        let stash = Arc::clone(&env.stash);
        let (commit, leaf) = (self.commit_shared(), self.leaf_commit());
        Job::start(&env.waker, move || {
            // One that has stopped meanwhile is ended before the chain is looked at.
            if let Some(commit) = commit {
                commit.finish();
            }
            match leaf.and_then(|leaf| leaf.open(&options, &stash, &patience)) {
                Some(images) => Ok(images),
                None => crate::formats::open(&options, &stash, &patience),
            }
        })
    }

    /// What the disk waits for before it can serve, if it does.
    pub fn waits(&self) -> Option<String> {
        self.patience.as_ref().and_then(Patience::waits)
    }

    /// Begins to pause. Pausing a paused disk is done at once; a pause under way is joined.
    pub fn pause(&mut self, env: &Env) {
        // It may be on its way to go on by itself.
        self.goes_on = false;
        self.ask_and_begin(env, Request::Pause);
    }

    /// Begins to close, whatever the state. A paused disk stays paused, without a name.
    /// A block device goes first, unless somebody uses it; with `force` in any case.
    pub fn close(&mut self, env: &Env, force: bool) {
        self.goes_on = false;
        self.ask_and_begin(env, Request::Close { force });
    }

    /// Whether it may be detached.
    ///
    /// # Errors
    /// EBUSY.
    pub fn may_be_detached(&mut self) -> Result<()> {
        self.ask(Request::Detach).map(drop)
    }

    /// Begins to open the images of a paused disk again, under another name if one is given.
    ///
    /// # Errors
    /// EINVAL if it is not paused, or what is wrong with the request.
    pub fn resume(&mut self, env: &Env, params: &Params, extra: &Extra) -> Result<()> {
        let State::Paused { .. } = self.state else { return Err(libc::EINVAL) };
        if params.has(flag::SECONDARY) && self.is_open() {
            self.mirror_failed = false;
        }
        let options = self.options_to_resume(params, extra).map_err(|e| self.refuse(env, &e));
        let step = self.ask(Request::Resume { refused: options.as_ref().err().copied() })?;
        let options = options?;
        info!(env.log, "minor {}: resuming with {}", self.minor, options.name);
        self.again = Some(options);
        self.begin(env, step);
        Ok(())
    }

    /// What a paused disk is to be opened with.
    fn options_to_resume(
        &self,
        params: &Params,
        extra: &Extra,
    ) -> std::result::Result<DiskOptions, OpenError> {
        let nothing = "nothing was open, so there is nothing to resume";
        let opened = self.opened.as_ref().ok_or_else(|| OpenError::new(libc::EINVAL, nothing))?;
        let options = options::resumed(&opened.options, params, extra);
        // What no second try can mend.
        for name in [Some(options.name), options.secondary].into_iter().flatten() {
            crate::formats::parse(name.as_bytes())?;
        }
        Ok(options)
    }

    /// A signal asked for the end: close, as soon as what is under way is over.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.give_up();
    }

    /// Nobody is waited for any more by who opens the images.
    pub fn give_up(&self) {
        if let Some(patience) = &self.patience {
            patience.give_up();
        }
    }

    /// Logs why something is refused, and keeps it for the reply; gives the errno.
    fn refuse(&self, env: &Env, error: &OpenError) -> i32 {
        self.refused.refuse(env, self.minor, error)
    }

    /// Why the last request was refused with this errno, if there is more to say. Said once.
    pub fn reason(&self, errno: i32) -> Option<String> {
        let refused = self.refused.0.take();
        refused.filter(|error| error.errno == errno).map(|error| error.text)
    }
}

/// The sockets of a disk.
fn socket_paths(env: &Env, minor: u16) -> frontend::nbd::Paths {
    frontend::nbd::Paths {
        nbd: env.run.nbd(env.pid, minor),
        nbd_old: env.run.nbd_old(env.pid, minor),
        server: env.run.nbdserver(env.pid, minor),
        server_new: env.run.nbdserver_new(env.pid, minor),
    }
}
