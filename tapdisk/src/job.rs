//! Work that waits for storage, off the main thread: opening and closing images.
//!
//! Hung storage then holds up one disk's open or close, and neither the other disks nor `tap-ctl
//! list`.
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use mio::Waker;

use crate::confine;
use host::sys;

/// Stack of a worker in bytes, of which 38 KiB were used when it was measured. All of it is locked
/// in memory while the work goes on.
const STACK_BYTES: usize = 256 << 10;

/// Work under way, with an answer at its end.
#[derive(Debug)]
pub struct Job<T> {
    answer: Receiver<T>,
}

impl<T: Send + 'static> Job<T> {
    /// Starts `work`. When it is over `waker` fires and [`Job::take`] has the answer. Where no
    /// thread can be had it is done at once.
    pub fn start(waker: &Arc<Waker>, work: impl FnOnce() -> T + Send + 'static) -> Job<T> {
        let (sender, answer) = channel();
        let theirs = Arc::clone(waker);
        // In a cell that both the thread and the fallback can take it from.
        let work = Arc::new(std::sync::Mutex::new(Some(work)));
        let shared = Arc::clone(&work);
        let run = move || {
            let work = shared.lock().ok().and_then(|mut work| work.take());
            if let Some(work) = work {
                // Nobody listens any more only when the process ends.
                let _ = sender.send(confine::with_all(work));
                let _ = theirs.wake();
            }
        };
        let thread = std::thread::Builder::new().name("tapdisk-job".into()).stack_size(STACK_BYTES);
        let there = run.clone();
        let spawned = thread.spawn(move || {
            let _stack = sys::LentStack::of_this_thread();
            there();
        });
        if spawned.is_err() {
            run();
        }
        Job { answer }
    }

    /// The answer, or the work itself, which goes on.
    ///
    /// # Errors
    /// It is not over.
    pub fn poll(self) -> Result<T, Job<T>> {
        self.take().ok_or(self)
    }

    /// The answer, once.
    pub fn take(&self) -> Option<T> {
        match self.answer.try_recv() {
            Ok(answer) => Some(answer),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("a worker ended without an answer"),
        }
    }
}

/// A waker that wakes nobody, for tests.
///
/// # Errors
/// Those of epoll.
pub fn idle_waker() -> io::Result<(mio::Poll, Arc<Waker>)> {
    let poll = mio::Poll::new()?;
    let waker = Waker::new(poll.registry(), mio::Token(0))?;
    Ok((poll, Arc::new(waker)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_with_a_wake_up() {
        let (mut poll, waker) = idle_waker().unwrap();
        let job = Job::start(&waker, || 42);
        let mut events = mio::Events::with_capacity(1);
        poll.poll(&mut events, None).unwrap();
        assert_eq!(job.take(), Some(42));
    }
}
