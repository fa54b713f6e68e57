//! The block device of a disk: how it comes, how it goes, and how the next tapdisk finds it.
//!
//! ```text
//!   OPEN ─► images open ─► Adding ─► (tags fetched) ─► Starting ─► Open
//!   CLOSE ─► Checking (in use?) ─► Stopping ─► Ending (idle, ring closed) ─► Deleting ─► the rest of CLOSE
//! ```
//! What the driver makes us wait for is done by a worker ([`crate::job`]), while the data path goes
//! on: the kernel reads from a device before it says that it has started, and waits for requests
//! before it stops. Beside the sockets lies a file with the OPEN message that serves the device
//! again: if this process dies, the device waits, and `tap-ctl recover` sends the message to
//! another one.
use mio::unix::SourceFd;
use mio::{Interest, Token};
use slog::{info, warn};
use tap_ctl::messages::{Device, DeviceWish, Params, Request, flag};

use super::tap::TapEnd;
use super::{DataPath, Env, Goal, Opened, Rest, Result, State, Vbd};
use crate::formats::OpenError;
use crate::job::Job;
use crate::tokens::VBD_TOKENS;
use crate::{kernel_nbd, reclaim};
use frontend::ublk::abi::CONTROL_PATH;
use frontend::ublk::device::{self, Added, DeviceError, Shape};
use frontend::ublk::{Ring, TAGS_MAX, Ublk};
use frontend::{Frontend, blktap};

/// Of the tokens of a disk, the one of its block device.
pub const DEVICE_TOKEN: usize = VBD_TOKENS - 4;
const _: () = assert!(DEVICE_TOKEN >= frontend::nbd::TOKENS);
/// Queues at most: one thread serves them all, more only take turns.
const QUEUES_MAX: u16 = 4;

pub(super) type Work<T> = Job<std::result::Result<T, DeviceError>>;

/// Where the making of a device is.
pub enum Plug {
    /// The kernel's NBD client is given connections.
    Connecting(Work<u32>),
    /// The driver is asked for one.
    Adding(Work<Added>),
    /// Its tags are fetched, and it starts.
    Starting(Work<()>),
    /// The kernel module's ring is mapped again.
    Mapping(Work<blktap::Ring>),
    /// The kernel module makes its block device.
    Creating(Work<blktap::device::Offers>),
}

/// Where its end is.
pub enum Unplug {
    /// Is it in use?
    Checking(Work<()>),
    /// The driver takes it away, while it is served.
    Stopping(Work<()>),
    /// What is in flight is waited for; then it is deleted, or left to the next tapdisk.
    Ending {
        /// Deleted.
        delete: bool,
    },
    /// The driver deletes it.
    Deleting(Work<()>),
    /// The driver stops and deletes one that nobody serves.
    Removing(Work<()>),
    /// The kernel module takes its block device away; under its users too, if forced.
    Tap(super::tap::TapEnd, bool),
}

/// What is asked of the device's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// What follows.
    pub goal: Goal,
    /// The state to be in again if the device is in use; `None`: open.
    pub back: Option<Rest>,
}

/// A state and, if something was under way and is over now, what came of it.
type Next = (State, Option<Result<()>>);

impl Vbd {
    /// The block device, once it is there.
    pub fn device(&self) -> Option<Device> {
        self.device
    }

    /// Large slots that the block device of a disk that is being opened keeps.
    pub(super) fn own_slots(&self, opened: &Opened) -> u16 {
        match opened.device {
            _ if self.wants_tapdev(opened.device.as_ref()) => blktap::OWN_SLOTS,
            Some(wish) if !is_for_nbd(&wish) => TAGS_MAX,
            _ => 0,
        }
    }

    /// The images are open: begins to make the device that was asked for.
    pub(super) fn plug(&mut self, env: &Env) -> Option<State> {
        let opened = self.wish.as_ref()?;
        if self.wants_tapdev(opened.device.as_ref()) {
            reclaim::hold_reserves(&env.log);
            return Some(self.plug_tap(env));
        }
        let (wish, take_over) = (opened.device?, opened.take_over);
        let data = self.data.as_ref()?;
        reclaim::hold_reserves(&env.log);
        if is_for_nbd(&wish) {
            let plan = nbd_plan(data, &wish, take_over, env.run.device(self.minor));
            let socket = env.run.nbd(env.pid, self.minor);
            let job = Job::start(&env.waker, move || kernel_nbd::connect(&socket, &plan));
            return Some(State::Plugging(Plug::Connecting(job)));
        }
        let shape = shape(data, &wish);
        let number = wish.number();
        let job = Job::start(&env.waker, move || match (take_over, number) {
            (true, Some(number)) => device::take_over(number, &shape),
            _ => device::add(number, &shape),
        });
        Some(State::Plugging(Plug::Adding(job)))
    }

    pub(super) fn plugging(&mut self, env: &Env, plug: Plug) -> Next {
        match plug {
            Plug::Connecting(job) => match job.take() {
                None => (State::Plugging(Plug::Connecting(job)), None),
                Some(Ok(number)) => {
                    self.device = Some(Device::Nbd(number));
                    self.write_record(env);
                    self.is_there(env)
                }
                Some(Err(error)) => self.not_plugged(env, &error),
            },
            Plug::Adding(job) => match job.take() {
                None => (State::Plugging(Plug::Adding(job)), None),
                Some(Ok(added)) => self.serve_device(env, added),
                Some(Err(error)) => self.not_plugged(env, &error),
            },
            Plug::Mapping(job) => match job.take() {
                None => (State::Plugging(Plug::Mapping(job)), None),
                Some(Ok(ring)) => {
                    self.take_ring(env, ring);
                    (self.create_tapdev(env), None)
                }
                Some(Err(error)) => self.not_plugged(env, &error),
            },
            Plug::Creating(job) => match job.take() {
                None => (State::Plugging(Plug::Creating(job)), None),
                Some(Ok(offers)) => {
                    self.tapdev_is_there(offers);
                    self.is_there(env)
                }
                Some(Err(error)) => self.not_plugged(env, &error),
            },
            Plug::Starting(job) => match job.take() {
                None => (State::Plugging(Plug::Starting(job)), None),
                Some(Ok(())) => self.is_there(env),
                Some(Err(error)) => {
                    let goal = self.failure(env, &error);
                    let way = Way { goal, back: None };
                    match self.wish.as_ref().is_some_and(|opened| opened.take_over) {
                        // It waits for another tapdisk, as before.
                        true => (State::Unplugging(Unplug::Ending { delete: false }, way), None),
                        false => (self.stop_device(env, true, way), None),
                    }
                }
            },
        }
    }

    fn is_there(&mut self, env: &Env) -> Next {
        self.announce(env);
        if let Some(device) = self.device {
            info!(env.log, "minor {}: {device} is there", self.minor);
        }
        (State::Open, Some(Ok(())))
    }

    /// Takes a slot for each tag and fetches: from now on the device can start.
    fn serve_device(&mut self, env: &Env, added: Added) -> Next {
        let number = added.number;
        let taken_over = self.wish.as_ref().is_some_and(|opened| opened.take_over);
        let token = Token(self.token + DEVICE_TOKEN);
        let data = self.data.as_mut().expect("it is being opened");
        match fetch(env, data, added, token) {
            Ok(device) => {
                self.frontends.ublk = Some(Box::new(device));
                self.device = Some(Device::Ublk(number));
                // Before it starts: the kernel reads from it then, and if we are killed in the
                // middle the device stays, with that read, and somebody must find it.
                self.write_record(env);
                let pid = env.pid;
                let job = Job::start(&env.waker, move || device::go(number, pid, taken_over));
                (State::Plugging(Plug::Starting(job)), None)
            }
            Err(error) => {
                let goal = self.failure(env, &error);
                let job = Job::start(&env.waker, move || match taken_over {
                    true => Ok(()),
                    false => device::delete(number),
                });
                let way = Way { goal, back: None };
                (State::Unplugging(Unplug::Deleting(job), way), None)
            }
        }
    }

    /// There is no device, so the disk is not opened; one that had clients before it goes on
    /// without.
    fn not_plugged(&mut self, env: &Env, error: &DeviceError) -> Next {
        if std::mem::take(&mut self.goes_without) {
            warn!(env.log, "minor {}: goes on without its block device: {error}", self.minor);
            self.announce(env);
            return (State::Open, Some(Ok(())));
        }
        let goal = self.failure(env, error);
        self.after_device(env, Way { goal, back: None })
    }

    fn failure(&self, env: &Env, error: &DeviceError) -> Goal {
        let errno = self.refuse(env, &OpenError::new(error.errno, error.text.clone()));
        Goal::Fail { errno, rest: Rest::Closed }
    }

    /// Begins to take the device away, unless it is in use; with `force` in any case.
    pub(super) fn unplug(&mut self, env: &Env, force: bool, way: Way) {
        let Some(device) = self.device else { return };
        if let Device::Tap(_) = device {
            self.state = self.remove_tapdev(env, force, way);
            return;
        }
        self.state = match force {
            true => self.stop_device(env, true, way),
            false => {
                let job = Job::start(&env.waker, move || device::check(&device.to_string()));
                State::Unplugging(Unplug::Checking(job), way)
            }
        };
    }

    fn stop_device(&mut self, env: &Env, force: bool, way: Way) -> State {
        let Some(plugged) = self.device else { unreachable!("there is a device") };
        let data = self.data.as_ref().expect("a device is served");
        // Nobody reads or writes any more while the images are closed.
        let closed = data.images.is_none();
        if let Some(device) = self.frontends.ublk.as_mut().filter(|_| closed) {
            device.refuse();
        }
        let sync = !force && !closed;
        let job = Job::start(&env.waker, move || {
            if sync {
                device::sync(&plugged.to_string());
            }
            match plugged {
                Device::Ublk(number) => device::stop(number),
                Device::Nbd(number) => kernel_nbd::disconnect(number),
                Device::Tap(_) => unreachable!("it goes another way"),
            }
        });
        State::Unplugging(Unplug::Stopping(job), way)
    }

    /// Takes a device away whose tapdisk died, for an image that cannot be opened any more.
    pub(super) fn remove_device(&mut self, env: &Env, wish: &DeviceWish) -> Result<()> {
        // The module's goes with its tapdisk.
        let ours = |device: &Device| !matches!(device, Device::Tap(_));
        let device = wish.exact().filter(ours).ok_or(libc::EINVAL)?;
        self.state.rest().ok_or(libc::EBUSY)?;
        info!(env.log, "minor {}: removing {device}", self.minor);
        let record = env.run.device(self.minor);
        let job = Job::start(&env.waker, move || {
            match device {
                Device::Ublk(number) => device::remove_dead(number)?,
                Device::Nbd(number) => kernel_nbd::disconnect(number)?,
                Device::Tap(_) => unreachable!("refused above"),
            }
            let _ = std::fs::remove_file(record);
            Ok(())
        });
        let way = Way { goal: Goal::Close, back: None };
        self.state = State::Unplugging(Unplug::Removing(job), way);
        Ok(())
    }

    pub(super) fn unplugging(&mut self, env: &Env, unplug: Unplug, way: Way, now: u64) -> Next {
        match unplug {
            Unplug::Tap(end, force) => self.ending_tapdev(env, (end, force), way, now),
            Unplug::Checking(job) => match job.take() {
                None => (State::Unplugging(Unplug::Checking(job), way), None),
                Some(Ok(())) => (self.stop_device(env, false, way), None),
                Some(Err(error)) if self.stopping => {
                    warn!(env.log, "minor {}: {error}: it waits for tap-ctl recover", self.minor);
                    if let Some(device) = &mut self.frontends.ublk {
                        device.suspend();
                    }
                    (State::Unplugging(Unplug::Ending { delete: false }, way), None)
                }
                Some(Err(error)) => {
                    let errno = self.refuse(env, &OpenError::new(error.errno, error.text));
                    (way.back.map_or(State::Open, State::from), Some(Err(errno)))
                }
            },
            Unplug::Stopping(job) => match job.take() {
                None => (State::Unplugging(Unplug::Stopping(job), way), None),
                Some(stopped) => {
                    if let Err(error) = &stopped {
                        warn!(env.log, "minor {}: {error}", self.minor);
                    }
                    let delete = stopped.is_ok();
                    (State::Unplugging(Unplug::Ending { delete }, way), None)
                }
            },
            Unplug::Ending { delete } => self.ending(env, delete, way),
            Unplug::Removing(job) => match job.take() {
                None => (State::Unplugging(Unplug::Removing(job), way), None),
                Some(removed) => {
                    let error = removed.err().map(|e| OpenError::new(e.errno, e.text));
                    let outcome = error.map_or(Ok(()), |error| Err(self.refuse(env, &error)));
                    (State::Closed, Some(outcome))
                }
            },
            Unplug::Deleting(job) => match job.take() {
                None => (State::Unplugging(Unplug::Deleting(job), way), None),
                Some(deleted) => {
                    if let Err(error) = deleted {
                        warn!(env.log, "minor {}: {error}", self.minor);
                    }
                    self.after_device(env, way)
                }
            },
        }
    }

    fn ending(&mut self, env: &Env, delete: bool, way: Way) -> Next {
        if !self.device_ends(delete) {
            return (State::Unplugging(Unplug::Ending { delete }, way), None);
        }
        let data = self.data.as_mut().expect("a device is served");
        if let Some(device) = self.frontends.ublk.take() {
            let fd = device.commands().raw_fd();
            let _ = env.registry.deregister(&mut SourceFd(&fd));
            device.end(&mut data.engine);
        }
        let Some(device) = self.device.take().filter(|_| delete) else {
            return self.after_device(env, way);
        };
        info!(env.log, "minor {}: {device} is gone", self.minor);
        let _ = std::fs::remove_file(env.run.device(self.minor));
        let Device::Ublk(number) = device else { return self.after_device(env, way) };
        let job = Job::start(&env.waker, move || device::delete(number));
        (State::Unplugging(Unplug::Deleting(job), way), None)
    }

    /// Whether what the end of the device waits for has come.
    fn device_ends(&self, delete: bool) -> bool {
        let device = self.frontends.ublk.as_ref();
        device.is_none_or(|device| device.idle() && (!delete || device.has_ended()))
    }

    /// The same, to be asked at the end of a turn.
    pub(super) fn is_unplugged(&self) -> bool {
        matches!(&self.state, State::Unplugging(Unplug::Ending { delete }, _)
            if self.device_ends(*delete))
            || matches!(&self.state, State::Unplugging(Unplug::Tap(TapEnd::Ending, _), _)
                if self.tap_is_idle())
    }

    /// What was to follow the end of the device.
    pub(super) fn after_device(&mut self, env: &Env, way: Way) -> Next {
        if self.data.as_ref().is_some_and(|data| data.images.is_some()) {
            self.stop_intake(way.goal);
            return (State::Draining { goal: way.goal }, None);
        }
        match (way.goal, way.back) {
            (Goal::Close, Some(rest)) => {
                self.forget(env);
                (rest.into(), Some(Ok(())))
            }
            (goal, _) => self.arrive(env, goal, Ok(())),
        }
    }

    /// What serves the device again if this process dies.
    pub(super) fn write_record(&self, env: &Env) {
        let (Some(opened), Some(device)) = (&self.wish, self.device) else { return };
        // The module's ends with us: there is nothing to take over.
        if let Device::Tap(_) = device {
            return;
        }
        let path = env.run.device(self.minor);
        if let Err(error) = write(&path, &record(self.minor, opened, device)) {
            warn!(
                env.log,
                "minor {}: cannot write {}: {error}; without it tap-ctl recover does not find {device}",
                self.minor,
                show::path(&path)
            );
        }
    }
}

/// The OPEN message, and the path of the log behind it.
fn record(minor: u16, opened: &Opened, device: Device) -> Vec<u8> {
    let log = opened.wish.log.as_ref();
    let log_flag = if log.is_some() { flag::ADD_LOG } else { 0 };
    let flags = opened.params.flags & !flag::ADD_LOG | flag::TAKE_OVER | log_flag;
    let params = Params {
        flags,
        path: opened.wish.name,
        device: DeviceWish::exactly(device),
        ..opened.params
    };
    let mut bytes = Request::Open { minor, params }.to_message().encode().to_vec();
    bytes.extend(log.into_iter().flat_map(|path| path.field()));
    bytes
}

/// Whole or not at all, and ours alone: it names what root opens.
fn write(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let new = path.with_extension("new");
    // What a dead process left, whoever may write to it.
    let _ = std::fs::remove_file(&new);
    let how = std::fs::File::options().write(true).create_new(true).mode(0o600).clone();
    how.open(&new)?.write_all(bytes)?;
    std::fs::rename(&new, path)
}

/// The device for a disk: its tags are shared among its queues.
fn shape(data: &DataPath, wish: &DeviceWish) -> Shape {
    use request::Slots;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    // The driver makes no more queues than there are processors.
    let queues_max = u16::try_from(processors).unwrap_or(QUEUES_MAX).min(QUEUES_MAX);
    let queues = match u16::from(wish.queues) {
        0 => queues_max.min(2),
        n => n.min(queues_max),
    };
    let engine = &data.engine;
    Shape {
        sectors: engine.sectors(),
        sector_size: engine.sector_size(),
        read_only: engine.read_only(),
        queues,
        depth: TAGS_MAX / queues,
    }
}

/// The driver that was named, else ublk where it is, else the kernel's NBD client.
fn is_for_nbd(wish: &DeviceWish) -> bool {
    match wish.driver {
        0 => !std::path::Path::new(CONTROL_PATH).exists(),
        driver => driver == 2,
    }
}

fn nbd_plan(
    data: &DataPath,
    wish: &DeviceWish,
    take_over: bool,
    record: std::path::PathBuf,
) -> kernel_nbd::Plan {
    use request::Slots;
    kernel_nbd::Plan {
        number: wish.number(),
        connections: wish.queues.min(QUEUES_MAX as u8),
        read_only: data.engine.read_only(),
        sector_size: data.engine.sector_size(),
        take_over,
        record,
    }
}

fn fetch(
    env: &Env,
    data: &mut DataPath,
    added: Added,
    token: Token,
) -> std::result::Result<Ublk<Ring>, DeviceError> {
    let failed = |what: &str, errno: i32| {
        let error = std::io::Error::from_raw_os_error(errno);
        DeviceError { errno, text: format!("the block device cannot be served: {what}: {error}") }
    };
    let io = |what: &'static str| {
        move |error: std::io::Error| failed(what, error.raw_os_error().unwrap_or(libc::EIO))
    };
    let tags = added.queues.0.saturating_mul(added.queues.1);
    let ring = Ring::open(added.device, added.queues, added.encoded).map_err(io("its ring"))?;
    let fd = ring.raw_fd();
    let started = Ublk::start(ring, tags, &mut data.engine).map_err(io("its requests"))?;
    let device = started.ok_or_else(|| failed("slots for its tags", libc::ENOBUFS))?;
    if device.is_ending() {
        device.end(&mut data.engine);
        return Err(failed("the kernel refuses to wait for requests", libc::ENODEV));
    }
    if let Err(error) = env.registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
        device.end(&mut data.engine);
        return Err(io("polling")(error));
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tap_ctl::messages::{Text, validate_request};

    #[test]
    fn a_record_is_ours_alone_whoever_had_its_name() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (path, trap) = (dir.path().join("device3"), dir.path().join("trap"));
        std::fs::write(&trap, "trap").unwrap();
        symlink(&trap, dir.path().join("device3.new")).unwrap();
        symlink(&trap, &path).unwrap();
        write(&path, b"first").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        write(&path, b"second").unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.is_file(), meta.permissions().mode() & 0o7777), (true, 0o600));
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&path), read(&trap)), ("second".into(), "trap".into()));
    }

    #[test]
    fn the_record_is_the_message_that_serves_the_device_again() {
        let text = |text: &str| Text::new(text.as_bytes()).unwrap();
        let params = Params {
            flags: flag::DEVICE | flag::RDONLY,
            path: text("vhd:/old"),
            req_timeout: 9,
            ..Params::default()
        };
        let run = tap_ctl::paths::RunDir::at(std::path::Path::new("/nowhere"));
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let mut wish =
            super::super::wish(&params, &super::super::Extra::default(), &run, &log).unwrap();
        // After a snapshot.
        wish.name = text("vhd:/new");
        wish.log = Some(text("/log"));
        let opened =
            Opened { wish, timeout_s: 9, params, device: Some(params.device), take_over: false };
        let bytes = record(5, &opened, Device::Ublk(3));
        assert_eq!(bytes.len(), 544 + 256);
        let request = validate_request(bytes[..544].try_into().unwrap()).unwrap();
        let Request::Open { minor: 5, params } = request else { panic!("{request:?}") };
        assert!(params.has(flag::DEVICE | flag::TAKE_OVER | flag::RDONLY | flag::ADD_LOG));
        assert_eq!((params.path, params.req_timeout), (text("vhd:/new"), 9));
        assert_eq!(params.device.number(), Some(3));
        assert_eq!(bytes[544..549], *b"/log\0");
    }
}
