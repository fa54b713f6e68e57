//! A commit, as the life of a disk sees it: begun, asked about, cancelled, and ended
//! (docs/commit.md). That of an inner image a worker does ([`crate::formats::commit`]), that of the
//! leaf the engine ([`crate::formats::leaf`]).
//!
//! ```text
//!   inner: COMMIT ─► opened ─► copying ─► stopped ─► all at rest, images closed ─► over ─► open
//!                                │  PAUSE, RESUME, a new leaf: it goes on
//!   leaf:  COMMIT ─► all at rest, images closed ─► open with base ─► copying ─► over
//!                                                                      PAUSE, RESUME: anew
//! ```
use std::path::PathBuf;
use std::sync::Arc;

use slog::{info, warn};
use tap_ctl::messages::{CommitStatus, Text};

use super::decide::Request;
use super::{Env, Result, State, Vbd};
use crate::formats::commit::{Commit, Stage, is_leaf, members};
use crate::formats::leaf::{self, LeafCommit};
use crate::formats::{Images, OpenError};
use crate::job::Job;
use request::disk::FileId;

/// The one that was asked for last.
pub struct Asked {
    work: Work,
    path: PathBuf,
    /// Who asked has an answer.
    begun: bool,
    /// Its end was logged.
    said: bool,
}

/// Who does it.
enum Work {
    /// Of an inner image: a worker.
    Inner {
        commit: Arc<Commit>,
        /// The worker that copies.
        _copying: Job<()>,
        /// The one that ends it on a disk that is paused.
        ending: Option<Job<()>>,
    },
    /// Of the leaf: the engine, while the chain is open with base to be written.
    Leaf {
        commit: Arc<LeafCommit>,
        /// Bytes that were done and all, when it was looked at last.
        done: (u64, u64),
    },
}

impl Asked {
    fn stage(&self) -> Stage {
        match &self.work {
            Work::Inner { commit, .. } => commit.stage(),
            Work::Leaf { commit, .. } => match commit.stage() {
                leaf::Stage::Wanted => Stage::Starting,
                leaf::Stage::Copying => Stage::Copying,
                leaf::Stage::Over(outcome) => Stage::Over(outcome),
            },
        }
    }

    /// Bytes of the top that are done, and all.
    fn progress(&self) -> (u64, u64) {
        match &self.work {
            Work::Inner { commit, .. } => commit.progress(),
            Work::Leaf { done, .. } => *done,
        }
    }
}

impl Vbd {
    /// Begins a commit, or sees whether it has begun. `None`: not yet.
    pub fn commit(&mut self, env: &Env, path: &Text) -> Option<Result<()>> {
        if let Some(asked) = self.commit.as_ref().filter(|asked| !asked.begun) {
            return match asked.stage() {
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
        if let Some(why) = self.why_committing() {
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
        let is_leaf = is_leaf(&members, &path)?;
        let work = if is_leaf {
            let (commit, bytes) = (LeafCommit::of(images)?, images.sectors * 512);
            Work::Leaf { commit: Arc::new(commit), done: (0, bytes) }
        } else {
            let commit = Arc::new(Commit::default());
            let (theirs, named) = (Arc::clone(&commit), path.clone());
            let _copying = Job::start(&env.waker, move || theirs.run(members, &named));
            Work::Inner { commit, _copying, ending: None }
        };
        self.commit = Some(Asked { work, path, begun: false, said: false });
        if is_leaf {
            // The chain is opened anew, with base to be written.
            self.come_to_rest(env);
        }
        Ok(())
    }

    fn come_to_rest(&mut self, env: &Env) {
        self.ask_and_begin(env, Request::Rest);
        self.goes_on = self.state != State::Open;
    }

    /// Its images are open: from here on base changes.
    fn commit_begun(&mut self, env: &Env) -> Result<()> {
        let asked = self.commit.as_mut().ok_or(libc::EBADF)?;
        if let Work::Inner { commit, .. } = &asked.work {
            asked.begun = true;
            let data = self.data.as_mut().ok_or(libc::EBADF)?;
            let images = data.images.as_ref();
            let Some(base) = images.and_then(|images| commit.base_in(images)) else {
                commit.stop();
                return Err(libc::ENOENT);
            };
            let file = u8::try_from(base).expect("a chain has fewer images");
            data.engine.changed_by_others(FileId(file));
            commit.go();
        }
        asked.begun = true;
        let (minor, path) = (self.minor, show::path(&asked.path));
        info!(env.log, "minor {minor}: {path} is committed to its parent");
        Ok(())
    }

    /// The chain was opened anew while a commit is under way: it goes on if its images are there.
    pub(super) fn commit_meets(&mut self, images: &mut Images) {
        let Some(commit) = self.commit_shared() else { return };
        if matches!(commit.stage(), Stage::Over(_) | Stage::Starting) {
            return;
        }
        let base = commit.base_in(images).and_then(|base| images.layers.get_mut(base));
        match base.and_then(|layer| layer.image.as_deref_mut()) {
            Some(image) => image.changed_by_others(),
            None => commit.stop(),
        }
    }

    /// Looks how far the engine has come with the leaf.
    pub(super) fn look_at_leaf(&mut self) {
        let Some(Asked { work: Work::Leaf { commit, done }, .. }) = &mut self.commit else {
            return;
        };
        let Some(data) = self.data.as_ref().filter(|data| data.commits()) else { return };
        let (stage, sectors) = data.engine.commit();
        done.0 = (sectors * 512).min(done.1);
        match stage {
            engine::commit::Stage::Concluded => commit.over(Ok(())),
            engine::commit::Stage::Failed(errno) => commit.over(Err(commit.failure(errno))),
            _ => {}
        }
    }

    /// What QUERY answers.
    ///
    /// # Errors
    /// Why the last one failed.
    pub fn commit_status(&mut self) -> Result<CommitStatus> {
        self.look_at_leaf();
        let Some(asked) = &self.commit else { return Ok(CommitStatus::new("undefined", 0, 0)) };
        let (done, total) = asked.progress();
        match asked.stage() {
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
        match self.commit.as_ref()?.stage() {
            Stage::Over(Err(error)) => Some(error.text),
            _ => None,
        }
    }

    /// Stops one that is under way. With `wait` not over before nothing is written any more.
    /// `None`: not yet.
    pub fn cancel_commit(&mut self, wait: bool) -> Option<Result<()>> {
        self.look_at_leaf();
        let Some(asked) = &self.commit else { return Some(Ok(())) };
        match &asked.work {
            Work::Inner { commit, .. } => {
                commit.stop();
                let over = matches!(commit.stage(), Stage::Over(_));
                (over || !wait).then_some(Ok(()))
            }
            Work::Leaf { commit, .. } => {
                commit.over(Err(commit.failure(libc::ECANCELED)));
                let data = self.data.as_mut().filter(|data| data.commits());
                let at_work = data.is_some_and(|data| {
                    data.engine.give_up_commit(libc::ECANCELED);
                    data.engine.has_pieces()
                });
                (!at_work || !wait).then_some(Ok(()))
            }
        }
    }

    /// What a worker that opens or closes the chain has to see to.
    pub(super) fn commit_shared(&self) -> Option<Arc<Commit>> {
        match &self.commit.as_ref()?.work {
            Work::Inner { commit, .. } => Some(Arc::clone(commit)),
            Work::Leaf { .. } => None,
        }
    }

    /// The same of a commit of the leaf.
    pub(super) fn leaf_commit(&self) -> Option<Arc<LeafCommit>> {
        match &self.commit.as_ref()?.work {
            Work::Inner { .. } => None,
            Work::Leaf { commit, .. } => Some(Arc::clone(commit)),
        }
    }

    /// Why no other commit is begun, and no other program could go on.
    pub fn why_committing(&self) -> Option<String> {
        let minor = self.minor;
        let asked = self.commit.as_ref()?;
        if !matches!(asked.stage(), Stage::Over(_)) {
            return Some(format!(
                "minor {minor} has a commit under way: tap-ctl query tells how far it is, tap-ctl \
                 cancel ends it"
            ));
        }
        // Its parent may be the disk by now, so it has to go on getting every change.
        let doubled = self.data.as_ref().is_some_and(|data| data.commits())
            && matches!(asked.stage(), Stage::Over(Ok(())));
        doubled.then(|| {
            format!(
                "minor {minor} is written to its leaf and to the parent that this was committed \
                 to: pause and unpause it with the one that is to be the disk"
            )
        })
    }

    /// Ends one that has stopped: the chain is closed for a moment, unless it is.
    pub fn commit_on(&mut self, env: &Env) {
        self.look_at_leaf();
        let Some(asked) = &mut self.commit else { return };
        match asked.stage() {
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
        let Work::Inner { commit, ending, .. } = &mut asked.work else { return };
        match self.state {
            State::Open => self.come_to_rest(env),
            State::Paused { .. } | State::Closed if ending.is_none() => {
                let commit = Arc::clone(commit);
                *ending = Some(Job::start(&env.waker, move || commit.finish()));
            }
            _ => {}
        }
    }

    /// The disk is closed: what has not come to its end will not.
    pub(super) fn end_leaf_commit(&mut self) {
        self.look_at_leaf();
        if let Some(commit) = self.leaf_commit() {
            commit.over(Err(commit.failure(libc::ECANCELED)));
        }
    }
}
