//! A commit of an inner image, as the life of a disk sees it: begun, asked about, cancelled, and
//! ended while the chain is closed for a moment ([`crate::formats::commit`], docs/commit.md).
//!
//! ```text
//!   COMMIT ─► opened ─► copying ─► stopped ─► all at rest, images closed ─► over ─► images open
//!                         │  PAUSE, RESUME, a new leaf: it goes on
//! ```
use std::path::PathBuf;
use std::sync::Arc;

use slog::{info, warn};
use tap_ctl::messages::{CommitStatus, Text};

use super::decide::Request;
use super::{Env, Result, State, Vbd};
use crate::formats::commit::{Commit, Stage, members};
use crate::formats::{Images, OpenError};
use crate::job::Job;
use request::disk::FileId;

/// The one that was asked for last.
pub struct Asked {
    commit: Arc<Commit>,
    path: PathBuf,
    /// Who asked has an answer.
    begun: bool,
    /// Its end was logged.
    said: bool,
    /// The worker that copies.
    _copying: Job<()>,
    /// The one that ends it on a disk that is paused.
    ending: Option<Job<()>>,
}

impl Vbd {
    /// Begins a commit, or sees whether it has begun. `None`: not yet.
    pub fn commit(&mut self, env: &Env, path: &Text) -> Option<Result<()>> {
        if let Some(asked) = self.commit.as_ref().filter(|asked| !asked.begun) {
            return match asked.commit.stage() {
                Stage::Starting => None,
                Stage::Over(outcome) => {
                    // It never was one.
                    self.commit = None;
                    let errno = |error: OpenError| self.refuse(env, &error);
                    Some(outcome.map_err(errno))
                }
                _ => Some(self.commit_begun(env)),
            };
        }
        Some(self.begin_commit(env, path)).and_then(|begun| match begun {
            Ok(()) => None,
            Err(error) => Some(Err(self.refuse(env, &error))),
        })
    }

    fn begin_commit(&mut self, env: &Env, path: &Text) -> std::result::Result<(), OpenError> {
        let minor = self.minor;
        let running = |asked: &Asked| !matches!(asked.commit.stage(), Stage::Over(_));
        if self.commit.as_ref().is_some_and(running) {
            let why =
                format!("minor {minor} has a commit under way: tap-ctl query, tap-ctl cancel");
            return Err(OpenError::new(libc::EBUSY, why));
        }
        let images = self.data.as_ref().and_then(|data| data.images.as_ref());
        let (State::Open, Some(images)) = (self.state, images) else {
            // As the original has it.
            let why = format!("minor {minor} is not open, or paused");
            return Err(OpenError::new(libc::EBADF, why));
        };
        let members = members(images)?;
        let path = PathBuf::from(path.to_string());
        let commit = Arc::new(Commit::default());
        let (theirs, named) = (Arc::clone(&commit), path.clone());
        let copying = Job::start(&env.waker, move || theirs.run(members, &named));
        let said = false;
        self.commit =
            Some(Asked { commit, path, begun: false, said, _copying: copying, ending: None });
        Ok(())
    }

    /// Its images are open: from here on base changes.
    fn commit_begun(&mut self, env: &Env) -> Result<()> {
        let (asked, data) = self.commit.as_mut().zip(self.data.as_mut()).ok_or(libc::EBADF)?;
        asked.begun = true;
        let images = data.images.as_ref();
        let Some(base) = images.and_then(|images| asked.commit.base_in(images)) else {
            asked.commit.stop();
            return Err(libc::ENOENT);
        };
        let file = u8::try_from(base).expect("a chain has fewer images");
        data.engine.changed_by_others(FileId(file));
        asked.commit.go();
        let (minor, path) = (self.minor, show::path(&asked.path));
        info!(env.log, "minor {minor}: {path} is committed to its parent");
        Ok(())
    }

    /// The chain was opened anew while a commit is under way: it goes on if its images are there.
    pub(super) fn commit_meets(&mut self, images: &mut Images) {
        let Some(asked) = &self.commit else { return };
        if matches!(asked.commit.stage(), Stage::Over(_) | Stage::Starting) {
            return;
        }
        let base = asked.commit.base_in(images).and_then(|base| images.layers.get_mut(base));
        match base.and_then(|layer| layer.image.as_deref_mut()) {
            Some(image) => image.changed_by_others(),
            None => asked.commit.stop(),
        }
    }

    /// What QUERY answers.
    ///
    /// # Errors
    /// Why the last one failed.
    pub fn commit_status(&self) -> Result<CommitStatus> {
        let Some(asked) = &self.commit else { return Ok(CommitStatus::new("undefined", 0, 0)) };
        let (done, total) = asked.commit.progress();
        match asked.commit.stage() {
            Stage::Starting | Stage::Opened => Ok(CommitStatus::new("created", 0, total)),
            Stage::Copying | Stage::Stopped(_) | Stage::Finishing => {
                Ok(CommitStatus::new("running", done, total))
            }
            Stage::Over(Ok(())) => Ok(CommitStatus::new("concluded", total, total)),
            Stage::Over(Err(error)) => Err(error.errno),
        }
    }

    /// Why it failed.
    pub fn commit_failure(&self) -> Option<String> {
        let asked = self.commit.as_ref()?;
        match asked.commit.stage() {
            Stage::Over(Err(error)) => Some(error.text),
            _ => None,
        }
    }

    /// Stops one that is under way. With `wait` not over before nothing is written any more.
    /// `None`: not yet.
    pub fn cancel_commit(&mut self, wait: bool) -> Option<Result<()>> {
        let Some(asked) = &self.commit else { return Some(Ok(())) };
        asked.commit.stop();
        let over = matches!(asked.commit.stage(), Stage::Over(_));
        (over || !wait).then_some(Ok(()))
    }

    /// What a worker that opens or closes the chain has to see to.
    pub(super) fn commit_shared(&self) -> Option<Arc<Commit>> {
        self.commit.as_ref().map(|asked| Arc::clone(&asked.commit))
    }

    /// Whether one is under way, with which no other program could go on.
    pub fn is_committing(&self) -> bool {
        let stage = self.commit.as_ref().map(|asked| asked.commit.stage());
        stage.is_some_and(|stage| !matches!(stage, Stage::Over(_)))
    }

    /// Ends one that has stopped: the chain is closed for a moment, unless it is.
    pub fn commit_on(&mut self, env: &Env) {
        let Some(asked) = &mut self.commit else { return };
        match asked.commit.stage() {
            Stage::Stopped(_) => {}
            Stage::Over(outcome) => {
                if asked.begun && !std::mem::replace(&mut asked.said, true) {
                    let (minor, path) = (self.minor, show::path(&asked.path));
                    match outcome {
                        Ok(()) => info!(env.log, "minor {minor}: {path} is in its parent"),
                        Err(error) => {
                            warn!(env.log, "minor {minor}: {path} is not committed: {error}")
                        }
                    }
                }
                return;
            }
            _ => return,
        }
        match self.state {
            State::Open => {
                self.ask_and_begin(env, Request::Rest);
                self.goes_on = self.state != State::Open;
            }
            State::Paused { .. } | State::Closed if asked.ending.is_none() => {
                let commit = Arc::clone(&asked.commit);
                asked.ending = Some(Job::start(&env.waker, move || commit.finish()));
            }
            _ => {}
        }
    }
}
