//! A bell: rung any number of times, it wakes once. How a disk learns that it has to be looked at.

use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};

/// One listener, any number of ringers, on one thread.
#[derive(Debug, Default)]
pub struct Bell {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Bell {
    /// Wake the listener, now or when it listens.
    pub fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Has it been rung since it was last heard?
    pub fn is_rung(&self) -> bool {
        self.rung.get()
    }

    /// Wait until it has been rung, and hear it.
    pub async fn heard(&self) {
        std::future::poll_fn(|cx| {
            if self.rung.replace(false) {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
