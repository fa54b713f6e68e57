//! Block devices of this host over a disk: one life cycle, a row and a file for each kind.
//!
//! ```text
//!   OPEN ─► images open ─► make ─► … ─► There
//!   CLOSE ─► end: in use? ─► stop, while it is served ─► Idle ─► gone ─► … ─► Gone
//!                   └─► Stays                              for the module's: tap.rs
//! ```
//! A kind says what its driver is told; a [`Progress`] says where that leads. What a driver makes
//! us wait for is done by a worker ([`crate::job`]), while the data path goes on: the kernel reads
//! from a device before it says that it has started, and waits for requests before it stops.
mod nbd;
mod record;
mod tap;
mod ublk;

use slog::{info, warn};
use tap_ctl::messages::{Device, DeviceOptions};

use super::tap::Module;
use super::{DataPath, Env, Frontends, Opened, Refused};
use crate::formats::OpenError;
use crate::job::Job;
use crate::reclaim;
use frontend::Frontend;
use frontend::ublk::DeviceError;
use frontend::ublk::device::{check, sync};
pub use ublk::DEVICE_TOKEN;

/// The kinds; an OPEN gets the first that suits it.
const KINDS: [&dyn HostDevice; 3] = [&tap::Tapdev, &ublk::UblkDevice, &nbd::NbdDevice];

/// Queues of a device at most: one thread serves them all, more only take turns.
const QUEUES_MAX: u16 = 4;

/// What one kind of block device does in the life cycle of all.
pub trait HostDevice: Sync {
    /// The number of a device of this kind.
    fn number(&self, device: Device) -> Option<u32>;

    /// Whether an OPEN gets it that asks for this; of which module the minor is.
    fn suits(&self, options: Option<&DeviceOptions>, minor_of_module: Option<u16>) -> bool;

    /// Large slots that it keeps.
    fn own_slots(&self) -> u16 {
        0
    }

    /// Whether it waits for another tapdisk when its own dies; a record says how it goes on then.
    fn outlives(&self) -> bool {
        true
    }

    /// The images are open: begins to make it.
    fn make(&'static self, site: &mut Site<'_>) -> Progress;

    /// Begins to take it away, unless it is in use; with `force` in any case.
    fn end(&'static self, site: &mut Site<'_>, force: bool) -> Progress;

    /// For a worker: the driver takes it away.
    ///
    /// # Errors
    /// Those of the driver.
    fn stop(&self, number: u32) -> Result<(), DeviceError>;

    /// For a worker: the same for one that nobody serves.
    ///
    /// # Errors
    /// Those of the driver.
    fn remove_dead(&self, number: u32) -> Result<(), DeviceError>;

    /// What its requests come through, if that is ours.
    fn frontend<'a>(&self, frontends: &'a mut Frontends) -> Option<&'a mut dyn Frontend>;

    /// Whether what its end waits for has come; `delete`: it does not stay for another tapdisk.
    fn is_idle(&self, _frontends: &Frontends, _delete: bool) -> bool {
        true
    }

    /// It is idle, and not to be served any more.
    fn let_go(&self, _site: &mut Site<'_>) {}

    /// What the driver has to do about one that has stopped and that is let go of.
    fn delete(&self) -> Option<fn(u32) -> Result<(), DeviceError>> {
        None
    }
}

/// What a kind sees of its disk.
pub struct Site<'a> {
    /// Of all disks.
    pub env: &'a Env,
    /// Of the disk.
    pub minor: u16,
    /// The first token of the disk.
    pub token: usize,
    /// µs of the clock.
    pub now: u64,
    /// What OPEN asked for.
    pub opened: Option<&'a Opened>,
    /// Where requests come from.
    pub frontends: &'a mut Frontends,
    /// The data path, while the disk is served.
    pub data: Option<&'a mut DataPath>,
    /// The block device that is there.
    pub device: &'a mut Option<Device>,
    /// What is kept of the kernel module's.
    pub module: &'a mut Module,
    /// Takes refusals.
    pub refused: &'a Refused,
    /// A signal asked for the end.
    pub stopping: bool,
    /// Nobody waits for what is under way.
    pub alone: bool,
}

/// Where the making or the end of a device is.
pub enum Progress {
    /// Under way.
    Waits(Wait),
    /// Made.
    There,
    /// Not made, and nothing is left of it.
    NotThere(DeviceError),
    /// Not made; what there is of it is being taken away.
    Broken(DeviceError, Wait),
    /// Taken away, or left for another tapdisk.
    Gone,
    /// Not taken away, for this errno, which is said.
    Stays(i32),
    /// One that nobody served is taken away, or not for this errno, which is said.
    Removed(Result<(), i32>),
}

/// What the making or the end of a device waits for.
pub enum Wait {
    /// A worker.
    Worker(Worker),
    /// It was in use: its end begins again then.
    InUse {
        /// The kind.
        kind: &'static dyn HostDevice,
        /// Under its users, too.
        force: bool,
        /// µs of the clock.
        until: u64,
    },
    /// What is in flight.
    Idle {
        /// The kind.
        kind: &'static dyn HostDevice,
        /// It is deleted then, or left to the next tapdisk.
        delete: bool,
    },
}

/// A worker, and what its answer leads to.
pub struct Worker(Box<Poll>);

/// Goes on with the answer, once there is one.
type Poll = dyn FnMut(&mut Site<'_>) -> Option<Progress>;

impl Progress {
    /// Starts work that waits, and goes on with its answer.
    pub fn work<T: Send + 'static>(
        env: &Env,
        work: impl FnOnce() -> T + Send + 'static,
        then: impl FnOnce(&mut Site<'_>, T) -> Progress + 'static,
    ) -> Progress {
        let job = Job::start(&env.waker, work);
        let mut then = Some(then);
        Progress::Waits(Wait::Worker(Worker(Box::new(move |site| {
            let answer = job.take()?;
            Some(then.take().expect("an answer comes once")(site, answer))
        }))))
    }

    /// Not made, while its end is under way.
    fn broken(error: DeviceError, end: Progress) -> Progress {
        match end {
            Progress::Waits(wait) => Progress::Broken(error, wait),
            _ => Progress::NotThere(error),
        }
    }
}

impl Wait {
    /// Goes on, if what is waited for has come.
    pub fn advance(self, site: &mut Site<'_>) -> Progress {
        match self {
            Wait::Worker(mut worker) => {
                let progress = (worker.0)(site);
                progress.unwrap_or(Progress::Waits(Wait::Worker(worker)))
            }
            Wait::InUse { until, .. } if until > site.now && !site.alone => Progress::Waits(self),
            Wait::InUse { kind, force, .. } => kind.end(site, force),
            Wait::Idle { kind, delete } if !kind.is_idle(site.frontends, delete) => {
                Progress::Waits(self)
            }
            Wait::Idle { kind, delete } => gone(kind, site, delete),
        }
    }

    /// When it has something to do even if nothing happens, in µs of the clock.
    pub fn next_us(&self) -> Option<u64> {
        match self {
            Wait::InUse { until, .. } => Some(*until),
            Wait::Worker(_) | Wait::Idle { .. } => None,
        }
    }

    /// Whether it goes on at the end of a turn: no event would tell.
    pub fn has_come(&self, frontends: &Frontends) -> bool {
        match self {
            Wait::Idle { kind, delete } => kind.is_idle(frontends, *delete),
            Wait::Worker(_) | Wait::InUse { .. } => false,
        }
    }
}

impl Site<'_> {
    /// Says why something is refused; gives the errno.
    pub fn refuse(&self, error: DeviceError) -> i32 {
        self.refused.refuse(self.env, self.minor, &OpenError::new(error.errno, error.text))
    }

    /// Whether the images are closed.
    fn is_closed(&self) -> bool {
        self.data.as_ref().is_none_or(|data| data.images.is_none())
    }

    fn takes_over(&self) -> bool {
        self.opened.is_some_and(|opened| opened.take_over)
    }
}

/// The kind of a device.
pub fn kind_of(device: Device) -> &'static dyn HostDevice {
    let kind = KINDS.into_iter().find(|kind| kind.number(device).is_some());
    kind.expect("every device has a kind")
}

/// The kind that an OPEN gets, if it gets one.
pub fn wanted(
    options: Option<&DeviceOptions>,
    minor_of_module: Option<u16>,
) -> Option<&'static dyn HostDevice> {
    KINDS.into_iter().find(|kind| kind.suits(options, minor_of_module))
}

/// The images are open: begins to make a device.
pub fn make(kind: &'static dyn HostDevice, site: &mut Site<'_>) -> Progress {
    reclaim::hold_reserves(&site.env.log);
    kind.make(site)
}

/// The end of the devices that outlive a tapdisk.
fn check_and_stop(kind: &'static dyn HostDevice, site: &mut Site<'_>, force: bool) -> Progress {
    let device = site.device.expect("there is a device");
    if force {
        return stop(kind, site, force);
    }
    let then = move |site: &mut Site<'_>, checked| match checked {
        Ok(()) => stop(kind, site, false),
        Err(error) if site.stopping => {
            warn!(site.env.log, "minor {}: {error}: it waits for tap-ctl recover", site.minor);
            if let Some(device) = kind.frontend(site.frontends) {
                device.suspend();
            }
            Progress::Waits(Wait::Idle { kind, delete: false })
        }
        Err(error) => Progress::Stays(site.refuse(error)),
    };
    Progress::work(site.env, move || check(&device.to_string()), then)
}

/// The driver takes it away, while it is served.
fn stop(kind: &'static dyn HostDevice, site: &mut Site<'_>, force: bool) -> Progress {
    let device = site.device.expect("there is a device");
    let number = kind.number(device).expect("it is of this kind");
    // Nobody reads or writes any more while the images are closed.
    let closed = site.is_closed();
    if let Some(device) = kind.frontend(site.frontends).filter(|_| closed) {
        device.refuse();
    }
    let synced = !force && !closed;
    let work = move || {
        if synced {
            sync(&device.to_string());
        }
        kind.stop(number)
    };
    Progress::work(site.env, work, move |site, stopped| {
        warn_of(site, &stopped);
        Progress::Waits(Wait::Idle { kind, delete: stopped.is_ok() })
    })
}

/// What was in flight is done.
fn gone(kind: &'static dyn HostDevice, site: &mut Site<'_>, delete: bool) -> Progress {
    kind.let_go(site);
    let Some(device) = site.device.take().filter(|_| delete) else { return Progress::Gone };
    info!(site.env.log, "minor {}: {device} is gone", site.minor);
    if kind.outlives() {
        record::remove_file(site.env, site.minor);
    }
    let number = kind.number(device).expect("it is of this kind");
    match kind.delete() {
        Some(delete) => deleting(site, move || delete(number)),
        None => Progress::Gone,
    }
}

/// A worker deletes it, with a warning if that fails.
fn deleting(
    site: &Site<'_>,
    delete: impl FnOnce() -> Result<(), DeviceError> + Send + 'static,
) -> Progress {
    Progress::work(site.env, delete, |site, deleted| {
        warn_of(site, &deleted);
        Progress::Gone
    })
}

fn warn_of(site: &Site<'_>, result: &Result<(), DeviceError>) {
    if let Err(error) = result {
        warn!(site.env.log, "minor {}: {error}", site.minor);
    }
}

/// What serves the device again if this process dies.
pub fn write_record(site: &Site<'_>) {
    let (Some(opened), Some(device)) = (site.opened, *site.device) else { return };
    if kind_of(device).outlives() {
        record::write_record(site.env, site.minor, opened, device);
    }
}

/// Takes a device away whose tapdisk died, for an image that cannot be opened any more.
pub fn remove_dead(site: &Site<'_>, device: Device) -> Progress {
    let kind = kind_of(device);
    let number = kind.number(device).expect("it is of this kind");
    info!(site.env.log, "minor {}: removing {device}", site.minor);
    let record = site.env.run.device(site.minor);
    let work = move || {
        kind.remove_dead(number)?;
        let _ = std::fs::remove_file(record);
        Ok(())
    };
    Progress::work(site.env, work, |site, removed| {
        Progress::Removed(removed.map_err(|error| site.refuse(error)))
    })
}

/// Whether a device whose tapdisk died can be taken away: the module's goes with its tapdisk.
pub fn can_be_dead(options: &DeviceOptions) -> Option<Device> {
    options.exact().filter(|device| kind_of(*device).outlives())
}
