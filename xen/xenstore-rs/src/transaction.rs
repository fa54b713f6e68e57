//! A transaction: all its changes at once, or none.

use crate::error::Error;
use crate::perms::Permission;
use crate::request::Request;
use crate::store::{Store, present};

/// An open transaction. Dropped without a commit, it ends without its changes.
pub struct Transaction {
    store: Store,
    number: u32,
    epoch: u64,
    open: bool,
}

impl Transaction {
    pub(crate) async fn start(store: &Store) -> Result<Transaction, Error> {
        let epoch = store.epoch();
        let number = store.ask(Request::start()).await?.number()?;
        Ok(Transaction { store: store.clone(), number, epoch, open: true })
    }

    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        self.open = false;
        self.store.ask(Request::end(self.number, true)).await.map(drop)
    }

    /// See [`Store::read`].
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let request = Request::read(path)?.within(self.number);
        present(self.store.ask(request).await.map(|reply| reply.payload))
    }

    /// See [`Store::write`].
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn write(&self, path: &str, value: &[u8]) -> Result<(), Error> {
        let request = Request::write(path, value)?.within(self.number);
        self.store.ask(request).await.map(drop)
    }

    /// See [`Store::mkdir`].
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn mkdir(&self, path: &str) -> Result<(), Error> {
        let request = Request::mkdir(path)?.within(self.number);
        self.store.ask(request).await.map(drop)
    }

    /// See [`Store::rm`].
    ///
    /// # Errors
    /// See [`Store::read`].
    pub async fn rm(&self, path: &str) -> Result<bool, Error> {
        let request = Request::rm(path)?.within(self.number);
        Ok(present(self.store.ask(request).await)?.is_some())
    }

    /// The names of the children, if they fit into one packet; `None`: there is no such node.
    ///
    /// # Errors
    /// See [`Store::read`]; E2BIG.
    pub async fn directory(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let request = Request::directory(path)?.within(self.number);
        present(self.store.ask(request).await)?.map(|reply| reply.names()).transpose()
    }

    /// See [`Store::set_permissions`].
    ///
    /// # Errors
    /// See [`Store::permissions`].
    pub async fn set_permissions(&self, path: &str, list: &[Permission]) -> Result<(), Error> {
        let request = Request::set_perms(path, list)?.within(self.number);
        self.store.ask(request).await.map(drop)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.open {
            self.store.tell(Request::end(self.number, false), self.epoch);
        }
    }
}
