//! What tasks wait for besides xenstore: times, and sockets to tapdisks.

use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

/// Tokens below are the daemon's own.
const FIRST_TOKEN: usize = 16;

/// Shared by all tasks.
#[derive(Clone)]
pub(crate) struct Reactor {
    inner: Rc<RefCell<Inner>>,
}

struct Inner {
    registry: Registry,
    next: usize,
    sockets: HashMap<Token, Socket>,
    timers: BTreeMap<(Instant, usize), Waker>,
}

#[derive(Default)]
struct Socket {
    ready: bool,
    waker: Option<Waker>,
}

impl Reactor {
    pub fn new(registry: Registry) -> Reactor {
        let (sockets, timers) = (HashMap::new(), BTreeMap::new());
        let inner = Inner { registry, next: FIRST_TOKEN, sockets, timers };
        Reactor { inner: Rc::new(RefCell::new(inner)) }
    }

    /// The next time somebody waits for.
    pub fn next_time(&self) -> Option<Instant> {
        self.inner.borrow().timers.keys().next().map(|(at, _)| *at)
    }

    /// Wake those whose time has come.
    pub fn tick(&self, now: Instant) {
        let mut inner = self.inner.borrow_mut();
        while let Some(first) = inner.timers.first_entry() {
            if first.key().0 > now {
                break;
            }
            first.remove().wake();
        }
    }

    /// An event of mio.
    pub fn ready(&self, token: Token) {
        if let Some(socket) = self.inner.borrow_mut().sockets.get_mut(&token) {
            socket.ready = true;
            if let Some(waker) = socket.waker.take() {
                waker.wake();
            }
        }
    }

    /// Sleep until then.
    pub async fn until(&self, at: Instant) {
        let timer = Timer { reactor: self, key: RefCell::new(None) };
        std::future::poll_fn(|cx| {
            if at <= Instant::now() {
                return Poll::Ready(());
            }
            timer.set(at, cx.waker());
            Poll::Pending
        })
        .await;
    }

    /// Watch a socket for as long as the result lives.
    pub fn register<S: Source>(&self, mut source: S) -> io::Result<Registered<S>> {
        let mut inner = self.inner.borrow_mut();
        let token = Token(inner.next);
        inner.next += 1;
        inner.registry.register(&mut source, token, Interest::READABLE | Interest::WRITABLE)?;
        inner.sockets.insert(token, Socket::default());
        Ok(Registered { reactor: self.clone(), token, source })
    }
}

struct Timer<'a> {
    reactor: &'a Reactor,
    key: RefCell<Option<(Instant, usize)>>,
}

impl Timer<'_> {
    fn set(&self, at: Instant, waker: &Waker) {
        let mut inner = self.reactor.inner.borrow_mut();
        let mut key = self.key.borrow_mut();
        let key = *key.get_or_insert_with(|| {
            inner.next += 1;
            (at, inner.next)
        });
        inner.timers.insert(key, waker.clone());
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if let Some(key) = *self.key.borrow() {
            self.reactor.inner.borrow_mut().timers.remove(&key);
        }
    }
}

/// A socket that mio knows.
pub(crate) struct Registered<S: Source> {
    reactor: Reactor,
    token: Token,
    pub source: S,
}

impl<S: Source> Registered<S> {
    /// Wait until something may have changed; edge-triggered, so try until it would block before.
    pub async fn changed(&self) {
        std::future::poll_fn(|cx| {
            let mut inner = self.reactor.inner.borrow_mut();
            let Some(socket) = inner.sockets.get_mut(&self.token) else { return Poll::Pending };
            if std::mem::take(&mut socket.ready) {
                return Poll::Ready(());
            }
            socket.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl<S: Source> Drop for Registered<S> {
    fn drop(&mut self) {
        let mut inner = self.reactor.inner.borrow_mut();
        inner.sockets.remove(&self.token);
        // It is closed next; that mio does not know it any more changes nothing.
        let _ = inner.registry.deregister(&mut self.source);
    }
}

/// The first of two to be done.
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Poll both; the other one stays as it is.
pub(crate) async fn either<A, B>(
    first: &mut (impl Future<Output = A> + Unpin),
    second: &mut (impl Future<Output = B> + Unpin),
) -> Either<A, B> {
    std::future::poll_fn(|cx| {
        if let Poll::Ready(value) = std::pin::Pin::new(&mut *first).poll(cx) {
            return Poll::Ready(Either::First(value));
        }
        std::pin::Pin::new(&mut *second).poll(cx).map(Either::Second)
    })
    .await
}
