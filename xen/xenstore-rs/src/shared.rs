//! What the clones of a store share: the connection, and who waits for which reply.

use crate::client::{Client, Tag};
use crate::error::Error;
use crate::reply::Reply;
use crate::request::Request;
use crate::store::Store;
use crate::wire::Kind;
use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
pub(crate) struct Shared {
    pub client: Option<Client>,
    pub slots: HashMap<Tag, Slot>,
    pub watches: u64,
    pub tags: u64,
    /// Which connection it is; watches and transactions of former ones are gone with them.
    pub epoch: u64,
    /// Requests were added outside of a turn.
    pub fresh: bool,
}

/// What becomes of a reply.
pub(crate) enum Slot {
    Waiting(Waker),
    Came(Result<Reply, Error>),
    /// Nobody waits any more.
    Abandoned,
}

impl Shared {
    pub fn came(&mut self, tag: Tag, result: Result<Reply, Error>) {
        match self.slots.get_mut(&tag) {
            Some(slot @ Slot::Waiting(_)) => {
                let Slot::Waiting(waker) = std::mem::replace(slot, Slot::Came(result)) else {
                    return;
                };
                waker.wake();
            }
            Some(Slot::Abandoned) => {
                self.slots.remove(&tag);
                self.undo(result);
            }
            Some(Slot::Came(_)) | None => {}
        }
    }

    /// A transaction that nobody knows of any more is ended.
    pub fn undo(&mut self, result: Result<Reply, Error>) {
        let Ok(reply) = result else { return };
        if let (Kind::TransactionStart, Ok(number)) = (reply.kind, reply.number()) {
            self.submit(Request::end(number, false), Slot::Abandoned);
        }
    }

    /// `None`: there is no connection.
    pub fn submit(&mut self, request: Request, slot: Slot) -> Option<Tag> {
        let tag = Tag(self.tags);
        self.client.as_mut()?.submit(tag, request);
        self.tags += 1;
        self.fresh = true;
        self.slots.insert(tag, slot);
        Some(tag)
    }

    pub fn fail(&mut self, error: &Error) {
        for (_, slot) in self.slots.iter_mut() {
            if let Slot::Waiting(waker) = slot {
                let waker = std::mem::replace(waker, Waker::noop().clone());
                *slot = Slot::Came(Err(error.clone()));
                waker.wake();
            }
        }
        self.slots.retain(|_, slot| matches!(slot, Slot::Came(_)));
    }
}

/// A request on its way.
pub(crate) struct Asking {
    pub store: Store,
    /// `None`: there was no connection.
    pub tag: Option<Tag>,
    pub epoch: u64,
}

impl Future for Asking {
    type Output = Result<Reply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let gone = || Poll::Ready(Err(Error::Lost { reason: "there is none".to_owned() }));
        let Some(tag) = this.tag else { return gone() };
        let mut shared = this.store.shared.borrow_mut();
        match shared.slots.remove(&tag) {
            Some(Slot::Came(result)) => {
                this.tag = None;
                Poll::Ready(result)
            }
            Some(Slot::Waiting(_)) => {
                shared.slots.insert(tag, Slot::Waiting(cx.waker().clone()));
                Poll::Pending
            }
            Some(Slot::Abandoned) | None => gone(),
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(tag) = self.tag else { return };
        let mut shared = self.store.shared.borrow_mut();
        let same = shared.epoch == self.epoch;
        match shared.slots.remove(&tag) {
            Some(Slot::Waiting(_)) if same => drop(shared.slots.insert(tag, Slot::Abandoned)),
            Some(Slot::Came(result)) if same => shared.undo(result),
            _ => {}
        }
    }
}
