//! The store as futures: one a request, and watches that clean up behind themselves.
//!
//! Everything that is dropped half-way is undone: the reply of a dropped request is thrown away, a
//! transaction whose future was dropped is ended without its changes, a watch goes with its
//! [`Watch`].

use crate::client::{Client, Event};
use crate::error::{Errno, Error};
use crate::link::Link;
use crate::perms::Permission;
use crate::reply::{Children, Next, Reply};
use crate::request::Request;
use crate::shared::{Asking, Shared, Slot};
use crate::transaction::Transaction;
use mio::event::Source;
use mio::{Interest, Registry, Token};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::Waker;

/// How often a transaction is tried.
const TRIES_MAX: u32 = 32;
/// How often a long directory that keeps changing is read.
const PARTS_MAX: u32 = 4096;

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    /// The number of the [`Watch`].
    pub watch: u64,
    /// What has changed, relative if the watch was.
    pub path: String,
}

/// A handle to the store. Its clones share one connection, which can be lost and made again.
#[derive(Clone, Default)]
pub struct Store {
    pub(crate) shared: Rc<RefCell<Shared>>,
}

impl Store {
    /// A store without a connection: every request fails until [`Store::connect`].
    pub fn new() -> Store {
        Store::default()
    }

    /// Use this connection from now on.
    ///
    /// # Errors
    /// What mio says.
    pub fn connect(&self, link: Link, registry: &Registry, token: Token) -> io::Result<()> {
        let mut client = Client::new(link);
        let interest = Interest::READABLE | Interest::WRITABLE;
        client.source().register(registry, token, interest)?;
        self.disconnect(registry, "it was made anew");
        let mut shared = self.shared.borrow_mut();
        shared.client = Some(client);
        shared.epoch += 1;
        Ok(())
    }

    /// Give up the connection; what waits for a reply gets an error.
    pub fn disconnect(&self, registry: &Registry, reason: &str) {
        let mut shared = self.shared.borrow_mut();
        if let Some(mut client) = shared.client.take() {
            // It is closed in a moment; that it cannot be taken out of the poll changes nothing.
            let _ = client.source().deregister(registry);
        }
        shared.fail(&Error::Lost { reason: reason.to_owned() });
    }

    /// Is there a connection?
    pub fn is_connected(&self) -> bool {
        self.shared.borrow().client.is_some()
    }

    /// Requests that have no reply yet.
    pub fn outstanding(&self) -> usize {
        self.shared.borrow().client.as_ref().map_or(0, Client::outstanding)
    }

    /// Was something asked since the last turn, so that one is due without waiting?
    pub fn wants_turn(&self) -> bool {
        self.shared.borrow().fresh
    }

    /// Send and receive what is possible now. Wakes the futures whose replies have come; wakers and
    /// `on_watch` must only take notes, and not use the store.
    ///
    /// # Errors
    /// [`Error::Lost`]; the futures that waited get the same.
    pub fn turn(&self, mut on_watch: impl FnMut(Fired)) -> Result<(), Error> {
        let mut shared = self.shared.borrow_mut();
        shared.fresh = false;
        loop {
            let Some(client) = &mut shared.client else { return Ok(()) };
            match client.next_event() {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Fired { path, token })) => {
                    if let Ok(watch) = token.parse() {
                        on_watch(Fired { watch, path });
                    }
                }
                Ok(Some(Event::Reply { tag, kind, about, result })) => {
                    shared.came(tag, result.map(|payload| Reply { kind, about, payload }));
                }
                Err(error) => {
                    shared.client = None;
                    shared.fail(&error);
                    return Err(error);
                }
            }
        }
    }

    pub(crate) fn ask(&self, request: Request) -> Asking {
        let mut shared = self.shared.borrow_mut();
        let tag = shared.submit(request, Slot::Waiting(Waker::noop().clone()));
        Asking { store: self.clone(), tag, epoch: shared.epoch }
    }

    /// Ask for something whose reply nobody waits for.
    pub(crate) fn tell(&self, request: Request, epoch: u64) {
        if self.shared.borrow().epoch == epoch {
            drop(self.ask(request));
        }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.shared.borrow().epoch
    }

    /// The value; `None`: there is no such node.
    ///
    /// # Errors
    /// As all of these: xenstored refuses, the request does not fit, the connection is lost.
    pub async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        present(self.ask(Request::read(path)?).await.map(|reply| reply.payload))
    }

    /// Set the value, and make what is missing above it.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.ask(Request::write(path, value)?).await.map(drop)
    }

    /// Make a node.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn mkdir(&self, path: &str) -> Result<(), Error> {
        self.ask(Request::mkdir(path)?).await.map(drop)
    }

    /// Remove a node and what is below; `false`: it was not there.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn rm(&self, path: &str) -> Result<bool, Error> {
        Ok(present(self.ask(Request::rm(path)?).await)?.is_some())
    }

    /// The names of the children, however many; `None`: there is no such node.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn directory(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        match self.ask(Request::directory(path)?).await {
            Ok(reply) => reply.names().map(Some),
            Err(error) if error.is(Errno::TooBig) => self.directory_in_parts(path).await,
            Err(error) => present(Err(error)),
        }
    }

    async fn directory_in_parts(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let mut children = Children::default();
        let mut offset = 0;
        for _ in 0..PARTS_MAX {
            let reply = self.ask(Request::directory_part(path, offset)?).await;
            let Some(reply) = present(reply)? else { return Ok(None) };
            match children.take(&reply)? {
                Next::From(next) => offset = next,
                Next::Done(names) => return Ok(Some(names)),
            }
        }
        Err(Error::Contended { tries: PARTS_MAX })
    }

    /// The permissions, the owner's entry first.
    ///
    /// # Errors
    /// See [`Store::read`]; here a missing node is an error, too.
    pub async fn permissions(&self, path: &str) -> Result<Vec<Permission>, Error> {
        self.ask(Request::get_perms(path)?).await?.permissions()
    }

    /// Set the permissions.
    ///
    /// # Errors
    /// See [`Store::permissions`].
    pub async fn set_permissions(&self, path: &str, list: &[Permission]) -> Result<(), Error> {
        self.ask(Request::set_perms(path, list)?).await.map(drop)
    }

    /// The path of a domain's folder.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn domain_path(&self, domid: u32) -> Result<String, Error> {
        self.ask(Request::domain_path(domid)).await?.text()
    }

    /// Does xenstored know this domain? It does not, once the domain has begun to go.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn is_domain_introduced(&self, domid: u32) -> Result<bool, Error> {
        self.ask(Request::is_domain_introduced(domid)).await?.truth()
    }

    /// A number for a watch to be made with [`Store::watch`].
    pub fn watch_number(&self) -> u64 {
        let mut shared = self.shared.borrow_mut();
        shared.watches += 1;
        shared.watches
    }

    /// Have [`Store::turn`] report changes at and below `path` under this number, until the
    /// [`Watch`] is dropped. It fires once at the start.
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn watch(&self, path: &str, number: u64) -> Result<Watch, Error> {
        let (token, epoch) = (number.to_string(), self.epoch());
        let request = Request::watch(path, &token)?;
        // Before the request is sent: a future dropped half-way takes the watch with it.
        let mut watch = Watch { store: self.clone(), path: path.to_owned(), number, epoch };
        match self.ask(request).await {
            Ok(_) => Ok(watch),
            Err(error) => {
                watch.epoch = u64::MAX;
                Err(error)
            }
        }
    }

    /// Do something in a transaction, again and again while other changes come in between.
    ///
    /// # Errors
    /// Those of `body`, which end the transaction without its changes; [`Error::Contended`].
    pub async fn transact<T, E: From<Error>>(
        &self,
        body: impl AsyncFn(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 0..TRIES_MAX {
            let transaction = Transaction::start(self).await?;
            let value = body(&transaction).await?;
            match transaction.commit().await {
                Ok(()) => return Ok(value),
                Err(error) if error.is(Errno::Again) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { tries: TRIES_MAX }.into())
    }
}

/// A watch, for as long as this lives.
pub struct Watch {
    store: Store,
    path: String,
    number: u64,
    epoch: u64,
}

impl Watch {
    /// Its number in [`Fired`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Is the connection that it was made on still there?
    pub fn is_live(&self) -> bool {
        self.store.is_connected() && self.store.epoch() == self.epoch
    }

    /// What it watches.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Ok(request) = Request::unwatch(&self.path, &self.number.to_string()) {
            self.store.tell(request, self.epoch);
        }
    }
}

/// ENOENT is an answer.
pub(crate) fn present<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is(Errno::NoEnt) => Ok(None),
        Err(error) => Err(error),
    }
}
