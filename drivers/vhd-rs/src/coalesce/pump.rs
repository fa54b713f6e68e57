//! Threads that run the machine's jobs, and the one that reports.
use std::num::NonZeroU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Progress;
use super::machine::{Job, Machine, Next};
use super::memory::Pages;
use super::source::Source;
use super::target::Target;
use crate::error::VhdError;

/// Chunks on the way at once: a few keep a virtual disk busy, the rest hide its slow moments.
const THREADS: usize = 8;
/// A limit on the rate needs no depth, and keeps to it better with less under way.
const THREADS_LIMITED: usize = 2;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What all threads share.
struct Shared<'a> {
    state: Mutex<State>,
    /// Something ended, so that there may be something to do.
    ended: Condvar,
    sources: &'a [Source],
    target: &'a Target,
    rate: Option<NonZeroU64>,
}

struct State {
    machine: Machine,
    /// No chunk is begun before: keeps to the rate.
    due: Instant,
    over: bool,
}

/// Runs a machine to its end.
///
/// # Errors
/// EAGAIN or ENOMEM if not one thread can be started; nothing has been done then.
pub(super) fn run(
    machine: Machine,
    sources: &[Source],
    target: &Target,
    rate: Option<NonZeroU64>,
    mut tell: impl FnMut(&Machine) -> Progress,
    report: &mut dyn FnMut(&Progress),
) -> Result<Machine, VhdError> {
    let state = State { machine, due: Instant::now(), over: false };
    let shared = Shared { state: Mutex::new(state), ended: Condvar::new(), sources, target, rate };
    let threads = if rate.is_some() { THREADS_LIMITED } else { THREADS };
    std::thread::scope(|scope| {
        let mut failed = None;
        for i in 0..threads {
            let begun = target.memory().and_then(|pages| {
                std::thread::Builder::new()
                    .spawn_scoped(scope, || shared.work(pages))
                    .map_err(|e| VhdError::io(&target.name, "start a thread", 0, &e))
            });
            if let (0, Err(e)) = (i, begun) {
                failed = Some(e);
                break;
            }
        }
        match failed {
            Some(e) => Err(e),
            None => {
                shared.report(&mut tell, report);
                Ok(())
            }
        }
    })?;
    Ok(shared.state.into_inner().unwrap_or_else(PoisonError::into_inner).machine)
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(
        &self,
        tell: &mut impl FnMut(&Machine) -> Progress,
        report: &mut dyn FnMut(&Progress),
    ) {
        let mut state = self.lock();
        let mut told = Instant::now();
        while !state.over {
            let left = TELL.saturating_sub(told.elapsed());
            if left.is_zero() {
                let progress = tell(&state.machine);
                drop(state);
                report(&progress);
                told = Instant::now();
                state = self.lock();
                continue;
            }
            (state, _) =
                self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        let progress = tell(&state.machine);
        drop(state);
        report(&progress);
    }

    /// Takes jobs until all is over.
    fn work(&self, mut pages: Pages) {
        let _guard = Guard(self);
        let mut state = self.lock();
        while !state.over {
            let wait = state.due.saturating_duration_since(Instant::now());
            if self.rate.is_some() && !wait.is_zero() {
                (state, _) =
                    self.ended.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            match state.machine.next() {
                Next::Over => state.over = true,
                Next::Wait => {
                    state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                Next::Do(job) => {
                    // Another may have something to do as well.
                    self.ended.notify_all();
                    drop(state);
                    state = self.run(job, &mut pages);
                }
            }
            self.ended.notify_all();
        }
    }

    fn run(&self, job: Job, pages: &mut Pages) -> MutexGuard<'_, State> {
        match job {
            Job::Move { chunk, place } => {
                let result = self.target.fill(self.sources, chunk, place, pages);
                let mut state = self.lock();
                let bytes = result.as_ref().map_or(0, |moved| moved.bytes);
                if let Some(rate) = self.rate {
                    let cost = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
                    state.due = state.due.max(Instant::now()) + cost;
                }
                state.machine.moved(chunk, place, result);
                state
            }
            Job::Flush => {
                let result = self.target.flush();
                let mut state = self.lock();
                state.machine.flushed(result);
                state
            }
            Job::Write(pieces) => {
                let result = self.target.write(&pieces);
                let mut state = self.lock();
                state.machine.written(result);
                state
            }
        }
    }
}

/// Ends all threads when one of them panics: nobody may wait for what it had in hand.
struct Guard<'a, 'b>(&'a Shared<'b>);

impl Drop for Guard<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().over = true;
            self.0.ended.notify_all();
        }
    }
}
