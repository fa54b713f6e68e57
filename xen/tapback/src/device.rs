//! The life of one disk, a task: look, decide, do one step, until there is nothing to do; then
//! sleep until the bell rings, or until it is time to try again what has failed.

use crate::bell::Bell;
use crate::config::DeviceId;
use crate::decide::{Known, Ring, Step, decide};
use crate::desk::Desk;
use crate::reactor::{Either, either};
use crate::steps::Steps;
use crate::trouble::{Cause, Trouble};
use crate::view::{Front, Node, Reader, TapId, View, state};
use slog::{debug, error, info, o, warn};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use xenstore::{Error, Watch};

/// A step that failed, and when it is tried again.
struct Retry {
    step: Step,
    at: Instant,
    pause: Duration,
}

/// What comes after a turn.
enum Then {
    Again,
    Sleep,
    Until(Instant),
    End,
}

/// A disk.
pub(crate) struct Device {
    desk: Rc<Desk>,
    id: DeviceId,
    bell: Rc<Bell>,
    log: slog::Logger,
    /// `backend/vbd3/5/51712`.
    path: String,
    known: Known,
    /// Where the frontend was at the last look; empty before the first.
    frontend: String,
    /// It had a directory without a state then.
    stateless: bool,
    /// On the frontend's state; on its directory where it has none.
    watch: Option<Watch>,
    retry: Option<Retry>,
    /// What was said last, if it is not over.
    trouble: Option<Trouble>,
    /// The store may say something of it; of a tapback before this one, at first.
    published: bool,
}

impl Device {
    pub fn new(desk: Rc<Desk>, id: DeviceId, bell: Rc<Bell>) -> Device {
        let path = format!("{}/{id}", desk.root());
        let log = desk.log.new(o!("disk" => path.clone()));
        let noted = desk.record.get(id);
        Device {
            desk,
            id,
            bell,
            log,
            path,
            known: Known { ring: Ring::Unsure(noted), ..Known::default() },
            frontend: String::new(),
            stateless: false,
            watch: None,
            retry: None,
            trouble: None,
            published: true,
        }
    }

    /// Until the disk is gone.
    pub async fn live(mut self) {
        loop {
            match self.turn().await {
                Then::Again => {}
                Then::Sleep => self.bell.heard().await,
                Then::Until(at) => {
                    let (mut heard, mut time) =
                        (pin!(self.bell.heard()), pin!(self.desk.reactor.until(at)));
                    either(&mut heard, &mut time).await;
                }
                // It may have been made again; heard, or this would never end.
                Then::End if self.bell.is_rung() => self.bell.heard().await,
                Then::End => break,
            }
        }
        info!(self.log, "gone");
        self.desk.forget(self.id, self.watch.as_ref().map(Watch::number));
    }

    async fn turn(&mut self) -> Then {
        let (frontend, view) = match self.look().await {
            Ok(seen) => seen,
            Err(error) if error.is_lost() => return Then::Sleep,
            Err(error) => {
                let frontend = self.frontend.clone();
                return self.failed(Step::Nothing, error.into(), &frontend).await;
            }
        };
        self.can_look(&frontend).await;
        let step = decide(&view, &self.known);
        self.note_progress(&view);
        debug!(self.log, "{step:?}"; "frontend" => ?view.front, "backend" => ?view.backend);
        self.desk.note(self.id, &view, &self.known);
        match &self.retry {
            Some(retry) if retry.step == step && Instant::now() < retry.at => {
                return Then::Until(retry.at);
            }
            _ => {}
        }
        match (Trouble::of_view(&view, &self.known), &self.trouble) {
            (Some(trouble), _) => self.tell(&trouble, &frontend).await,
            (None, Some(old)) if old.cause == Cause::Toolstack => self.mended(&frontend).await,
            (None, _) => {}
        }
        match step {
            Step::Nothing => Then::Sleep,
            Step::Forget => self.gone().await,
            step => self.act(step, &frontend, &view).await,
        }
    }

    /// Keys that could not be read can be.
    async fn can_look(&mut self, frontend: &str) {
        if self.retry.as_ref().is_some_and(|retry| retry.step == Step::Nothing) {
            self.retry = None;
            self.mended(frontend).await;
        }
    }

    /// A frontend that has left what it was refused for may try again.
    fn note_progress(&mut self, view: &View) {
        if !matches!(view.front, Front::At(state::INITIALISED | state::CONNECTED)) {
            self.known.refused = false;
        }
    }

    /// Read everything, after making sure that changes are reported.
    async fn look(&mut self) -> Result<(String, View), Error> {
        let desk = Rc::clone(&self.desk);
        let path = self.path.clone();
        let reader = Reader { store: &desk.store, path: &path, run: &desk.config.run };
        let frontend = match reader.frontend().await? {
            Ok(frontend) => frontend,
            Err(node) => {
                self.watch_nothing();
                self.frontend.clear();
                return Ok((String::new(), View::empty(node)));
            }
        };
        self.frontend.clone_from(&frontend);
        self.watch_frontend(&frontend).await?;
        let view = reader.view(self.id, &frontend).await?;
        let stateless = view.front == Front::Stateless;
        if stateless != self.stateless {
            // The next look watches the other place.
            self.stateless = stateless;
            self.bell.ring();
        }
        Ok((frontend, view))
    }

    /// The end of a directory does not ring for a key that was not in it.
    async fn watch_frontend(&mut self, frontend: &str) -> Result<(), Error> {
        let path = match self.stateless {
            true => frontend.to_owned(),
            false => format!("{frontend}/state"),
        };
        if self.watch.as_ref().is_some_and(|watch| watch.is_live() && watch.path() == path) {
            return Ok(());
        }
        self.watch_nothing();
        let number = self.desk.store.watch_number();
        self.desk.listen(number, &self.bell);
        match self.desk.store.watch(&path, number).await {
            Ok(watch) => {
                self.watch = Some(watch);
                Ok(())
            }
            Err(error) => {
                self.desk.unlisten(number);
                Err(error)
            }
        }
    }

    fn watch_nothing(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.desk.unlisten(watch.number());
        }
    }

    async fn act(&mut self, step: Step, frontend: &str, view: &View) -> Then {
        let result = match self.perform(&step, frontend, view).await {
            Some(result) => result,
            None => {
                debug!(self.log, "{step:?} is no longer wanted");
                return Then::Again;
            }
        };
        match result {
            Ok(()) => self.done(step, frontend).await,
            Err(trouble) => self.failed(step, trouble, frontend).await,
        }
    }

    /// Do it. What waits for a tapdisk is given up when it is not the thing to do any more: `None`.
    async fn perform(
        &mut self,
        step: &Step,
        frontend: &str,
        view: &View,
    ) -> Option<Result<(), Trouble>> {
        let (desk, log, path) = (Rc::clone(&self.desk), self.log.clone(), self.path.clone());
        let steps = Steps { desk: &desk, log: &log, id: self.id, path: &path, frontend };
        let known = self.known.clone();
        match step {
            Step::Nothing | Step::Forget => Some(Ok(())),
            Step::Announce => Some(steps.announce().await),
            Step::Enter(state) => Some(steps.enter(*state).await),
            Step::Abandon => Some(steps.abandon().await),
            Step::Disconnect => Some(steps.disconnect(&known, view).await),
            Step::Meet(tap) => {
                let meeting = pin!(steps.meet(*tap));
                self.unless_overtaken(step, meeting).await
            }
            Step::Connect(tap) => {
                // Until it has been answered, nobody knows.
                self.known.ring = Ring::Unsure(Some(*tap));
                self.keep_in_mind(*tap);
                let connecting = pin!(steps.connect(*tap, &known, view));
                self.unless_overtaken(step, connecting).await
            }
        }
    }

    /// For the next tapback.
    fn keep_in_mind(&self, tap: TapId) {
        if let Err(error) = self.desk.record.put(self.id, tap) {
            let loss = "a tapback after this one would not know of it if the disk goes meanwhile";
            warn!(self.log, "its ring's tapdisk cannot be recorded: {error}; {loss}");
        }
    }

    async fn unless_overtaken(
        &mut self,
        step: &Step,
        mut doing: impl Future<Output = Result<(), Trouble>> + Unpin,
    ) -> Option<Result<(), Trouble>> {
        let bell = Rc::clone(&self.bell);
        // As it was decided: an order without an answer yet changes what is remembered, not what is
        // wanted.
        loop {
            let mut heard = pin!(bell.heard());
            match either(&mut doing, &mut heard).await {
                Either::First(result) => return Some(result),
                Either::Second(()) => match self.look().await {
                    Ok((_, view)) if decide(&view, &self.known) == *step => {}
                    _ => {
                        self.bell.ring();
                        return None;
                    }
                },
            }
        }
    }

    async fn done(&mut self, step: Step, frontend: &str) -> Then {
        // A tapdisk that was asked again after it could not connect: what was said of that still
        // holds.
        let connects = matches!(&self.retry, Some(Retry { step: Step::Connect(_), .. }));
        let only_asked = matches!(step, Step::Meet(_)) && connects;
        if !only_asked {
            self.retry = None;
        }
        match step {
            Step::Nothing | Step::Forget | Step::Enter(_) | Step::Abandon => {}
            Step::Announce => {
                self.known = Known { ring: Ring::Down, met: None, refused: false };
                info!(self.log, "a new disk"; "frontend" => frontend.to_owned());
            }
            Step::Meet(tap) => self.known.met = Some(tap),
            Step::Connect(tap) => self.known.ring = Ring::Up(tap),
            Step::Disconnect => {
                self.known.ring = Ring::Down;
                if let Err(error) = self.desk.record.remove(self.id) {
                    warn!(self.log, "the record of its ring cannot be removed: {error}");
                }
            }
        }
        if matches!(step, Step::Connect(_) | Step::Meet(_)) && !only_asked {
            self.mended(frontend).await;
        }
        Then::Again
    }

    async fn failed(&mut self, step: Step, trouble: Trouble, frontend: &str) -> Then {
        match trouble.cause {
            Cause::Lost => return Then::Sleep,
            Cause::Frontend => {
                self.known.refused = true;
                self.tell(&trouble, frontend).await;
                return Then::Again;
            }
            Cause::Toolstack | Cause::Tapdisk | Cause::Store => {}
        }
        self.tell(&trouble, frontend).await;
        // A tapdisk that could not be asked may have been replaced by another of the same number.
        if trouble.cause == Cause::Tapdisk && step != Step::Disconnect {
            self.known.met = None;
        }
        let limits = self.desk.config.limits;
        let pause = match &self.retry {
            Some(retry) if retry.step == step => (retry.pause * 2).min(limits.retry_max),
            _ => limits.retry_first,
        };
        let at = Instant::now() + pause;
        self.retry = Some(Retry { step, at, pause });
        Then::Until(at)
    }

    /// Into the log and the store, once.
    async fn tell(&mut self, trouble: &Trouble, frontend: &str) {
        if self.trouble.as_ref() == Some(trouble) {
            return;
        }
        match trouble.cause {
            Cause::Frontend => warn!(self.log, "{}", trouble.text),
            _ => error!(self.log, "{}", trouble.text),
        }
        self.trouble = Some(trouble.clone());
        self.published = true;
        let (desk, log) = (&self.desk, &self.log);
        let steps = Steps { desk, log, id: self.id, path: &self.path, frontend };
        if let Err(other) = steps.publish(trouble).await {
            warn!(self.log, "and it cannot be written to xenstore: {}", other.text);
        }
    }

    async fn mended(&mut self, frontend: &str) {
        self.trouble = None;
        if !std::mem::take(&mut self.published) {
            return;
        }
        let (desk, log) = (&self.desk, &self.log);
        let steps = Steps { desk, log, id: self.id, path: &self.path, frontend };
        if let Err(other) = steps.unpublish().await {
            debug!(self.log, "the error cannot be removed from xenstore: {}", other.text);
        }
    }

    async fn gone(&mut self) -> Then {
        self.mended("").await;
        self.watch_nothing();
        debug_assert_eq!(decide(&View::empty(Node::Gone), &self.known), Step::Forget);
        Then::End
    }
}
