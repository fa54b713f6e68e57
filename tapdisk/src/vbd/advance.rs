//! What time, finished work and requests do to a disk: looks, asks what to do, does it.
use std::sync::Arc;

use slog::{info, warn};
use tap_ctl::messages::Device;

use super::decide::{Act, Answer, Request, Say, Step, TRIES_MAX, View, ask, decide};
use super::device::{self, Progress, Site, Wait};
use super::{Env, Goal, Result, State, Vbd};
use crate::formats::{Closed, Images, Living, OpenError};
use crate::job::Job;
use frontend::ublk::DeviceError;
use host::sys;

/// A worker that opens images.
pub(super) type Opening = Job<std::result::Result<Images, OpenError>>;

/// What is under way, and what is between two steps.
#[derive(Default)]
pub struct Work {
    now: Underway,
    /// What is over, for the next look.
    answer: Option<Answer>,
    /// Images that were opened and are not served yet, or cannot be.
    pub(super) images: Option<Images>,
    /// Who writes one of them.
    pub(super) held_by: Option<String>,
    /// An error that nobody knows of yet.
    unsaid: Option<OpenError>,
    /// The block device of a dead tapdisk that is to be taken away.
    pub(super) dead: Option<Device>,
}

/// One thing at a time.
#[derive(Default)]
enum Underway {
    #[default]
    Nothing,
    Opening(Opening),
    Device(Wait),
    Closing(Job<Closed>),
}

impl Vbd {
    /// Moves on. The outcome of what is over now, if anything is.
    pub fn advance(&mut self, env: &Env, now: u64) -> Option<Result<()>> {
        if self.state.settled() {
            return None;
        }
        let outcome = loop {
            let view = self.look(env, now);
            let step = decide(self.state, &view);
            if step.is_nothing(self.state) {
                break None;
            }
            self.take(env, step, now);
            if step.outcome.is_some() || self.state.settled() {
                break step.outcome;
            }
        };
        // Paused, or open still because its block device is in use.
        if self.goes_on && self.state.settled() {
            self.go_on(env);
        }
        outcome
    }

    /// What a request begins; a refusal may leave a mark on the state.
    pub(super) fn ask(&mut self, request: Request) -> Result<Step> {
        let view = self.view(None, 0);
        ask(self.state, request, &view).map_err(|refusal| {
            self.state = refusal.state;
            refusal.errno
        })
    }

    /// Begins it.
    pub(super) fn begin(&mut self, env: &Env, step: Step) {
        self.take(env, step, 0);
    }

    /// For a request that is never refused.
    pub(super) fn ask_and_begin(&mut self, env: &Env, request: Request) {
        if let Ok(step) = self.ask(request) {
            self.begin(env, step);
        }
    }

    fn view(&self, answer: Option<Answer>, now: u64) -> View {
        View {
            answer,
            now,
            idle: self.idle(),
            named: self.is_open(),
            data: self.data.is_some(),
            images: self.data.as_ref().is_some_and(|data| data.images.is_some()),
            device: self.device.is_some(),
            lends: matches!(self.device, Some(Device::Tap(_))) && !self.module.keeps,
            left: self.left.is_some(),
            goes_without: self.goes_without,
        }
    }

    fn look(&mut self, env: &Env, now: u64) -> View {
        let answer = self.work.answer.take().or_else(|| self.poll(env, now));
        self.view(answer, now)
    }

    /// What has become of what is under way, if it is over.
    fn poll(&mut self, env: &Env, now: u64) -> Option<Answer> {
        match std::mem::take(&mut self.work.now) {
            Underway::Nothing => None,
            Underway::Opening(job) => match job.poll() {
                Err(job) => self.goes_on_with(Underway::Opening(job)),
                Ok(Ok(images)) => {
                    self.patience = None;
                    self.note(env, &images);
                    self.mirror_failed |= images.mirror_failed;
                    self.work.images = Some(images);
                    Some(Answer::Opened)
                }
                Ok(Err(error)) => Some(Answer::NotOpened(self.unsaid(error))),
            },
            Underway::Device(wait) => {
                let progress = wait.advance(&mut self.site(env, now));
                self.progressed(progress)
            }
            Underway::Closing(job) => match job.poll() {
                Err(job) => self.goes_on_with(Underway::Closing(job)),
                Ok(Ok(note)) => {
                    if let Some(note) = note {
                        warn!(env.log, "minor {}: {note}", self.minor);
                    }
                    Some(Answer::Shut(Ok(())))
                }
                Ok(Err(error)) => Some(Answer::Shut(Err(self.unsaid(error)))),
            },
        }
    }

    fn goes_on_with(&mut self, work: Underway) -> Option<Answer> {
        self.work.now = work;
        None
    }

    fn progressed(&mut self, progress: Progress) -> Option<Answer> {
        let mut unsaid = |error: DeviceError| self.unsaid(OpenError::new(error.errno, error.text));
        match progress {
            Progress::Waits(wait) => self.goes_on_with(Underway::Device(wait)),
            Progress::There => Some(Answer::DeviceThere),
            Progress::NotThere(error) => Some(Answer::NoDevice(unsaid(error))),
            Progress::Broken(error, wait) => {
                let errno = unsaid(error);
                self.work.now = Underway::Device(wait);
                Some(Answer::DeviceBroken(errno))
            }
            Progress::Gone => Some(Answer::DeviceGone),
            Progress::Stays(errno) => Some(Answer::DeviceStays(errno)),
            Progress::Removed(removed) => Some(Answer::DeviceRemoved(removed)),
        }
    }

    /// Keeps an error until it is decided what is said of it; gives the errno.
    pub(super) fn unsaid(&mut self, error: OpenError) -> i32 {
        self.work.unsaid.insert(error).errno
    }

    pub(super) fn site<'a>(&'a mut self, env: &'a Env, now: u64) -> Site<'a> {
        Site {
            env,
            minor: self.minor,
            token: self.token,
            now,
            opened: self.opened.as_ref(),
            frontends: &mut self.frontends,
            data: self.data.as_mut(),
            device: &mut self.device,
            module: &mut self.module,
            refused: &self.refused,
            stopping: self.stopping,
            alone: self.alone,
        }
    }

    fn take(&mut self, env: &Env, step: Step, now: u64) {
        self.say(env, step.say);
        self.state = step.state;
        self.work.answer = self.act(env, step.act, now);
        if self.state.rest().is_some() {
            (self.again, self.patience) = (None, None);
        }
    }

    fn say(&mut self, env: &Env, say: Say) {
        let Some(error) = self.work.unsaid.take() else { return };
        let minor = self.minor;
        match (say, self.state) {
            (Say::Nothing, _) => {}
            (Say::Refusal, _) => drop(self.refuse(env, &error)),
            (Say::Retry, State::Resuming { tries, .. }) => {
                info!(env.log, "minor {minor}: try {tries} of {TRIES_MAX} to resume: {error}")
            }
            (Say::Retry, _) => unreachable!("only a RESUME is tried again"),
            (Say::Without, _) => {
                warn!(env.log, "minor {minor}: goes on without its block device: {error}");
                self.goes_without = false;
            }
        }
    }

    /// Does it. What has come of it, if that is known at once.
    fn act(&mut self, env: &Env, act: Act, now: u64) -> Option<Answer> {
        match act {
            Act::Nothing => None,
            Act::OpenImages => self.begin_to_open(env),
            Act::Serve => Some(self.serve(env)),
            Act::AwaitImages => self.await_images(env),
            Act::StopIntake { goal, give_up } => self.stop_intake(goal, give_up),
            Act::TakeOut => self.take_out(env),
            Act::Shut => {
                let images = self.work.images.take().expect("they cannot be served");
                self.shut(env, images)
            }
            Act::MakeDevice => {
                let kind = self.wanted_device().expect("it was asked for");
                let progress = device::make(kind, &mut self.site(env, now));
                self.progressed(progress)
            }
            Act::EndDevice { force } => self.end_device(env, force, now),
            Act::LendDevice => {
                self.module.lends = true;
                self.end_device(env, false, now)
            }
            Act::RemoveDevice => {
                let dead = self.work.dead.take().expect("it was named");
                let progress = device::remove_dead(&self.site(env, now), dead);
                self.progressed(progress)
            }
            Act::Announce => self.announce(env, None),
            Act::AnnounceDevice => self.announce(env, self.device),
            Act::Unname => {
                self.opened = None;
                None
            }
            Act::Forget => self.forget(env),
            Act::GoOnLater => {
                self.goes_on = true;
                None
            }
            Act::GoOn => {
                if self.is_served() {
                    self.frontends.go_on();
                    if let Some(data) = &mut self.data {
                        data.engine.come_to_rest(false);
                    }
                }
                None
            }
        }
    }

    fn end_device(&mut self, env: &Env, force: bool, now: u64) -> Option<Answer> {
        let kind = device::kind_of(self.device.expect("there is one"));
        let progress = kind.end(&mut self.site(env, now), force);
        self.progressed(progress)
    }

    fn begin_to_open(&mut self, env: &Env) -> Option<Answer> {
        let (opened, again) = (self.opened.as_ref(), self.again.as_ref());
        let options = match self.state {
            State::Opening { .. } => opened.map(|opened| &opened.options),
            _ => again,
        };
        let job =
            self.open_images(env, options.expect("it was asked for").clone(), Living::Reported);
        self.goes_on_with(Underway::Opening(job))
    }

    /// Somebody else writes an image: nothing of what was read is believed, and requests wait until
    /// it can be read anew.
    fn await_images(&mut self, env: &Env) -> Option<Answer> {
        if let Some(data) = &mut self.data {
            self.frontends.hold();
            // Nothing was written, so nothing is to be written at the end.
            drop(data.take_out());
        }
        let options = self.opened.as_ref().expect("it is open").options.clone();
        self.again = Some(options.clone());
        let job = self.open_images(env, options, Living::Outlived);
        if let (Some(patience), Some(by)) = (&self.patience, self.work.held_by.take()) {
            patience.told(&by);
        }
        self.goes_on_with(Underway::Opening(job))
    }

    /// Nobody uses it, or nothing is taken in any more, as the goal has it.
    fn stop_intake(&mut self, goal: Goal, give_up: bool) -> Option<Answer> {
        if give_up {
            self.give_up();
            self.patience = None;
        }
        // Images on their way to be closed get there; nothing else is waited for.
        if !matches!(self.work.now, Underway::Closing(_)) {
            self.work.now = Underway::Nothing;
        }
        if matches!(goal, Goal::Close | Goal::Fail { .. }) {
            self.end_leaf_commit();
        }
        let Some(data) = &mut self.data else { return None };
        data.engine.come_to_rest(true);
        match goal {
            Goal::Pause => self.frontends.suspend(),
            Goal::Close | Goal::Fail { .. } => self.frontends.hang_up(&mut data.engine),
        }
        None
    }

    /// All is idle: the images go to a worker that closes them.
    fn take_out(&mut self, env: &Env) -> Option<Answer> {
        self.look_at_leaf();
        let data = self.data.as_mut().expect("there is a data path");
        let events = data.engine.events();
        if let Some(opened) = &mut self.opened {
            opened.options.taken_over |= events.taken_over;
            if events.mirror_lost.is_some() {
                // Not tried again until a new one is named.
                opened.options.secondary = None;
                self.mirror_failed = true;
            }
        }
        let images = data.take_out();
        self.hide_files();
        match images {
            Some(images) => self.shut(env, images),
            None => Some(Answer::Shut(Ok(()))),
        }
    }

    fn shut(&mut self, env: &Env, images: Images) -> Option<Answer> {
        let commit = self.commit_shared();
        let last = matches!(self.state, State::Shutting { goal: Goal::Close });
        let job = Job::start(&Arc::clone(&env.waker), move || {
            let closed = images.close();
            match commit {
                Some(commit) if last => commit.end(),
                Some(commit) => commit.finish(),
                None => {}
            }
            closed
        });
        self.goes_on_with(Underway::Closing(job))
    }

    fn note(&self, env: &Env, images: &Images) {
        images.notes.iter().for_each(|note| warn!(env.log, "minor {}: {note}", self.minor));
    }

    fn announce(&self, env: &Env, device: Option<Device>) -> Option<Answer> {
        let (minor, sectors) = (self.minor, self.info.sectors);
        info!(env.log, "minor {minor}: {} is open, {sectors} sectors", self.name());
        if let Some(device) = device {
            info!(env.log, "minor {minor}: {device} is there");
        }
        None
    }

    /// The end of CLOSE: sockets, engine and name go. Counters are kept.
    fn forget(&mut self, env: &Env) -> Option<Answer> {
        self.end_leaf_commit();
        self.rates = super::rates::NONE;
        self.keep_ring();
        (self.frontends.nbd, self.frontends.rings, self.frontends.ublk) = (None, None, None);
        self.frontends.forget_events();
        self.left = None;
        self.ring_files.clear();
        self.files = super::metrics::DiskFiles::default();
        if let Some(data) = self.data.take() {
            let secs = data.engine.stats().secs;
            self.secs_before = [self.secs_before[0] + secs[0], self.secs_before[1] + secs[1]];
            drop(data);
            sys::trim_heap();
        }
        if self.opened.take().is_some() {
            info!(env.log, "minor {}: closed", self.minor);
        }
        None
    }

    /// Begins the end that a signal asked for. True when the disk can be removed.
    pub fn finish_stop(&mut self, env: &Env, now: u64) -> bool {
        if self.stopping && self.state.may_end() && self.is_open() {
            self.ask_and_begin(env, Request::End);
            self.advance(env, now);
        }
        self.stopping && self.state.settled() && !self.is_open()
    }

    /// Whether what was waited for has just finished, so that `advance` has something to do: no
    /// event would tell.
    pub fn is_drained(&self) -> bool {
        let drained = matches!(self.state, State::Draining { .. }) && self.idle();
        let device = match &self.work.now {
            Underway::Device(wait) => wait.has_come(&self.frontends),
            Underway::Nothing | Underway::Opening(_) | Underway::Closing(_) => false,
        };
        drained || device || self.ring_wants_care()
    }

    /// When `advance` has something to do even if nothing happens, in µs of the clock.
    pub fn next_us(&self) -> Option<u64> {
        match (&self.state, &self.work.now) {
            (State::Resuming { until, .. }, _) => *until,
            (_, Underway::Device(wait)) => wait.next_us(),
            (_, Underway::Nothing | Underway::Opening(_) | Underway::Closing(_)) => None,
        }
    }

    /// Once a second: client time limits, what the data path has to tell, and the watchdog.
    pub fn tick(&mut self, env: &Env, now: u64, instant: std::time::Instant) {
        let minor = self.minor;
        self.look_at_host();
        self.update_ring_files();
        self.update_files();
        let Some(data) = &mut self.data else { return };
        self.frontends.tick(instant);
        data.tick(instant);
        if data.watch(now) {
            let active = data.engine.active();
            warn!(env.log, "minor {minor}: {active} requests in flight and no progress for 10 s");
            env.sink.report(&self.report());
        }
    }
}
