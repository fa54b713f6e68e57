//! Tasks: futures that are polled when they were woken, on one thread. No runtime is needed for
//! that.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of this thread.
#[derive(Clone, Default)]
pub(crate) struct Tasks {
    tasks: Rc<RefCell<HashMap<u64, Option<Task>>>>,
    ready: Arc<Ready>,
    next: Rc<RefCell<u64>>,
}

#[derive(Default)]
struct Ready {
    numbers: Mutex<VecDeque<u64>>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Woken {
    number: u64,
    ready: Arc<Ready>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let mut numbers = self.ready.lock();
        if !numbers.contains(&self.number) {
            numbers.push_back(self.number);
        }
    }
}

impl Tasks {
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let number = self.next.replace_with(|next| *next + 1);
        self.tasks.borrow_mut().insert(number, Some(Box::pin(task)));
        self.ready.lock().push_back(number);
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.lock().is_empty()
    }

    /// Poll every task that is ready now, once.
    pub fn run(&self) {
        let due = std::mem::take(&mut *self.ready.lock());
        for number in due {
            // Out of the map while it is polled: it may spawn others.
            let Some(mut task) = self.tasks.borrow_mut().get_mut(&number).and_then(Option::take)
            else {
                continue;
            };
            let waker = Waker::from(Arc::new(Woken { number, ready: Arc::clone(&self.ready) }));
            let done = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
            let mut tasks = self.tasks.borrow_mut();
            match done {
                true => drop(tasks.remove(&number)),
                false => drop(tasks.insert(number, Some(task))),
            }
        }
    }

    /// Drop them all.
    pub fn clear(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bell::Bell;

    #[test]
    fn a_task_runs_when_it_was_woken_and_only_then() {
        let (tasks, bell, count) = (Tasks::default(), Rc::new(Bell::default()), Rc::default());
        let (heard, counted): (Rc<Bell>, Rc<RefCell<u32>>) = (Rc::clone(&bell), Rc::clone(&count));
        tasks.spawn(async move {
            loop {
                heard.heard().await;
                *counted.borrow_mut() += 1;
            }
        });
        tasks.run();
        assert!(!tasks.has_ready() && *count.borrow() == 0);
        bell.ring();
        bell.ring();
        assert!(tasks.has_ready());
        tasks.run();
        assert_eq!((*count.borrow(), tasks.has_ready()), (1, false));
    }

    #[test]
    fn tasks_may_spawn_tasks() {
        let (tasks, done) = (Tasks::default(), Rc::new(Bell::default()));
        let (more, ring) = (tasks.clone(), Rc::clone(&done));
        tasks.spawn(async move { more.spawn(async move { ring.ring() }) });
        tasks.run();
        tasks.run();
        assert!(done.is_rung() && !tasks.has_ready());
    }
}
