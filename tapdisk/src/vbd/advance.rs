//! What time and finished work do to a disk.
use std::sync::Arc;

use slog::{info, warn};

use super::data_path::{DataPath, info};
use super::plug::{Unplug, Way};
use super::state::Step;
use super::tap::TapEnd;
use super::{Env, Goal, Opened, Rest, Result, State, Vbd};
use crate::formats::{Closed, Images, Living, OpenError, Wish};
use crate::job::Job;

/// Tries of a RESUME (spec/control-socket.md §5.6).
const TRIES_MAX: u32 = 10;
/// Between two of them, in µs.
const PAUSE_US: u64 = 1_000_000;

/// A worker that opens images.
pub(super) type Opening = Job<std::result::Result<Images, OpenError>>;

/// A state and, if something was under way and is over now, what came of it.
pub(super) type Next = (State, Option<Result<()>>);

impl Vbd {
    /// Moves on. The outcome of what is over now, if anything is.
    pub fn advance(&mut self, env: &Env, now: u64) -> Option<Result<()>> {
        if self.state.settled() {
            return None;
        }
        let state = std::mem::replace(&mut self.state, State::Closed);
        let (next, outcome) = match state {
            State::Opening { job, before } => self.opening(env, job, before),
            State::Plugging(plug) => self.plugging(env, plug),
            State::Unplugging(unplug, way) => self.unplugging(env, unplug, way, now),
            State::Draining { goal } => self.draining(env, goal),
            State::Shutting { job, goal } => self.shutting(env, job, goal),
            State::Resuming { wish, tries, step } => {
                self.resuming(env, State::Resuming { wish, tries, step }, now)
            }
            State::Waiting { wish, job } => (self.waiting(env, wish, job), None),
            settled @ (State::Attached | State::Open | State::Paused { .. } | State::Closed) => {
                (settled, None)
            }
        };
        self.state = next;
        if self.goes_on && matches!(self.state, State::Paused { .. }) {
            self.go_on(env);
        }
        outcome
    }

    /// When `advance` has something to do even if nothing happens, in µs of the clock.
    pub fn next_us(&self) -> Option<u64> {
        match &self.state {
            State::Resuming { step: Step::Wait { until }, .. }
            | State::Unplugging(Unplug::Tap(TapEnd::InUse { until }, _), _) => Some(*until),
            _ => None,
        }
    }

    fn opening(&mut self, env: &Env, job: Opening, before: Rest) -> Next {
        let images = match job.take() {
            None => return (State::Opening { job, before }, None),
            Some(Ok(images)) => images,
            Some(Err(error)) => {
                (self.wish, self.patience) = (None, None);
                return (before.into(), Some(Err(self.refuse(env, &error))));
            }
        };
        self.patience = None;
        self.note(env, &images);
        let opened = self.wish.clone().expect("what is being opened was asked for");
        self.mirror_failed |= images.mirror_failed;
        let (found, held) = (info(&images), images.held.clone());
        let own_slots = self.own_slots(&opened);
        let place = (self.minor, self.token);
        let frontends = &mut self.frontends;
        match DataPath::start(env, place, (&opened, own_slots), images, frontends) {
            Ok(data) => {
                self.info = found;
                self.data = Some(data);
                self.show_files(env);
                self.poll_rings(env);
                if let Some(by) = held {
                    return (self.wait(env, opened.wish, &by), Some(Ok(())));
                }
                if let Some(plugging) = self.plug(env) {
                    return (plugging, None);
                }
                self.announce(env);
                (State::Open, Some(Ok(())))
            }
            Err((error, images)) => {
                let errno = self.refuse(env, &error);
                // The images had been open (spec/control-socket.md §5.3).
                let rest = if before == Rest::Attached { Rest::Closed } else { before };
                (shut(env, images, Goal::Fail { errno, rest }), None)
            }
        }
    }

    fn draining(&mut self, env: &Env, goal: Goal) -> Next {
        if !self.idle() {
            return (State::Draining { goal }, None);
        }
        let Some(data) = &mut self.data else { return self.arrive(env, goal, Ok(())) };
        let events = data.engine.events();
        if let Some(opened) = &mut self.wish {
            opened.wish.taken_over |= events.taken_over;
            if events.mirror_lost.is_some() {
                // Not tried again until a new one is named.
                opened.wish.second = None;
                self.mirror_failed = true;
            }
        }
        let images = data.take_out();
        self.hide_files();
        match images {
            Some(images) => (shut(env, images, goal), None),
            None => self.arrive(env, goal, Ok(())),
        }
    }

    fn shutting(&mut self, env: &Env, job: Job<Closed>, goal: Goal) -> Next {
        match job.take() {
            None => (State::Shutting { job, goal }, None),
            Some(closed) => {
                if let Ok(Some(note)) = &closed {
                    warn!(env.log, "minor {}: {note}", self.minor);
                }
                let closed = closed.map(drop);
                let closed = closed.map_err(|error| self.refuse(env, &error));
                self.arrive(env, goal, closed)
            }
        }
    }

    /// All is idle and closed.
    pub(super) fn arrive(&mut self, env: &Env, goal: Goal, closed: Result<()>) -> Next {
        if goal == Goal::Close && self.device.is_some() {
            // A pause on its way has become a close.
            let back = Some(Rest::Paused { resume_failed: false });
            self.unplug(env, false, Way { goal, back });
            return (std::mem::replace(&mut self.state, State::Closed), None);
        }
        match goal {
            Goal::Pause => {
                info!(env.log, "minor {}: paused", self.minor);
                (State::Paused { resume_failed: false }, Some(closed))
            }
            Goal::Close => {
                self.forget(env);
                (State::Closed, Some(closed))
            }
            Goal::Fail { errno, rest } => {
                if !matches!(rest, Rest::Paused { .. }) || self.data.is_none() {
                    self.forget(env);
                }
                (rest.into(), Some(Err(errno)))
            }
        }
    }

    fn resuming(&mut self, env: &Env, state: State, now: u64) -> Next {
        let State::Resuming { wish, tries, step } = state else {
            unreachable!("called for this state")
        };
        let job = match step {
            Step::Wait { until } if until > now => {
                return (State::Resuming { wish, tries, step: Step::Wait { until } }, None);
            }
            Step::Wait { .. } => {
                let job = self.open_images(env, (*wish).clone(), Living::Reported);
                let step = Step::Try(job);
                return (State::Resuming { wish, tries: tries + 1, step }, None);
            }
            Step::Try(job) => job,
        };
        match job.take() {
            None => (State::Resuming { wish, tries, step: Step::Try(job) }, None),
            Some(Ok(images)) => {
                let opened = self.wish.clone().expect("it was open");
                self.resumed(env, images, Opened { wish: *wish, ..opened })
            }
            Some(Err(error)) if self.left.is_some() && error.errno != libc::ECANCELED => {
                // Its clients and guests would be lost: nobody but this process has them.
                if tries <= TRIES_MAX || tries % 60 == 0 {
                    self.refuse(env, &error);
                }
                let step = Step::Wait { until: now + PAUSE_US };
                (State::Resuming { wish, tries, step }, None)
            }
            Some(Err(error)) if tries < TRIES_MAX && error.errno != libc::ECANCELED => {
                info!(
                    env.log,
                    "minor {}: try {tries} of {TRIES_MAX} to resume: {error}", self.minor
                );
                let step = Step::Wait { until: now + PAUSE_US };
                (State::Resuming { wish, tries, step }, None)
            }
            Some(Err(error)) => {
                self.patience = None;
                let errno = self.refuse(env, &error);
                (State::Paused { resume_failed: true }, Some(Err(errno)))
            }
        }
    }

    /// The images are open again: they must be the same disk.
    fn resumed(&mut self, env: &Env, images: Images, opened: Opened) -> Next {
        self.patience = None;
        self.note(env, &images);
        self.mirror_failed |= images.mirror_failed;
        let (had, has) = (self.info, info(&images));
        let fail = |errno| Goal::Fail { errno, rest: Rest::Paused { resume_failed: true } };
        if had != has {
            let text = format!(
                "{} has {} sectors of {} bytes, and the disk had {} of {} when it was opened: close \
                 and open it to use another size",
                opened.wish.name, has.sectors, has.sector_size, had.sectors, had.sector_size
            );
            let errno = self.refuse(env, &OpenError::new(libc::EMEDIUMTYPE, text));
            return (shut(env, images, fail(errno)), None);
        }
        if let Some(left) = self.left.take() {
            self.wish = Some(opened);
            return self.start_again(env, images, left, fail);
        }
        let Some(data) = &mut self.data else {
            let errno = self.refuse(env, &OpenError::new(libc::EINVAL, "nothing is paused"));
            return (shut(env, images, fail(errno)), None);
        };
        if let Some(by) = images.held.clone() {
            self.wish = Some(opened.clone());
            return (self.wait(env, opened.wish, &by), Some(Ok(())));
        }
        match data.put_in(images, &opened, &mut self.frontends) {
            Ok(()) => {
                self.wish = Some(opened);
                self.show_files(env);
                self.write_record(env);
                if let Some(plugging) = self.take_tapdev_back(env) {
                    self.goes_without = true;
                    return (plugging, None);
                }
                self.announce(env);
                (State::Open, Some(Ok(())))
            }
            Err((error, images)) => {
                let errno = self.refuse(env, &error);
                (shut(env, images, fail(errno)), None)
            }
        }
    }

    /// Somebody else writes an image: nothing of what was read is believed, and requests wait until
    /// it can be read anew.
    pub(super) fn wait(&mut self, env: &Env, wish: Wish, by: &str) -> State {
        if let Some(data) = &mut self.data {
            self.frontends.hold();
            // Nothing was written, so nothing is to be written at the end.
            drop(data.take_out());
        }
        let job = self.open_images(env, wish.clone(), Living::Outlived);
        if let Some(patience) = &self.patience {
            patience.told(by);
        }
        State::Waiting { wish: Box::new(wish), job }
    }

    fn waiting(&mut self, env: &Env, wish: Box<Wish>, job: Opening) -> State {
        match job.take() {
            None => State::Waiting { wish, job },
            Some(Ok(images)) => {
                let opened = self.wish.clone().expect("it was open");
                self.resumed(env, images, Opened { wish: *wish, ..opened }).0
            }
            Some(Err(error)) => {
                self.patience = None;
                self.refuse(env, &error);
                State::Paused { resume_failed: true }
            }
        }
    }

    fn note(&self, env: &Env, images: &Images) {
        images.notes.iter().for_each(|note| warn!(env.log, "minor {}: {note}", self.minor));
    }

    pub(super) fn announce(&self, env: &Env) {
        let sectors = self.info.sectors;
        info!(env.log, "minor {}: {} is open, {sectors} sectors", self.minor, self.name());
    }

    /// Begins the end that a signal asked for. True when the disk can be removed.
    pub fn finish_stop(&mut self, env: &Env, now: u64) -> bool {
        if self.stopping && self.state.may_end() && self.is_open() {
            self.close(env, false);
            self.advance(env, now);
        }
        self.stopping && self.state.settled() && !self.is_open()
    }

    /// Whether what was waited for has just finished, so that `advance` has something to do.
    pub fn is_drained(&self) -> bool {
        let drained = matches!(self.state, State::Draining { .. }) && self.idle();
        drained || self.is_unplugged() || self.ring_wants_care()
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

/// Gives the images to a worker that closes them.
pub(super) fn shut(env: &Env, images: Images, goal: Goal) -> State {
    let waker = Arc::clone(&env.waker);
    State::Shutting { job: Job::start(&waker, move || images.close()), goal }
}
