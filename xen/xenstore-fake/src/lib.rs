//! A xenstored for tests, in this process: real sockets, real packets, a tree in memory.
//!
//! ```text
//!   Fake ── sockets, one a domain ──► serve: a thread a connection
//!     │ write, rm, get, wait                │ requests
//!     └──────────────► World ◄──────────────┘   tree · transactions · watches · faults
//! ```
//!
//! Like the real one: a transaction fails with EAGAIN when something it has touched has changed
//! meanwhile, a removed node fires watches above and below it, permissions are asked for every
//! domain but 0, a watch fires once at its start. Unlike the real one: no quotas, and nothing
//! outlives the process.
#![forbid(unsafe_code)]

mod serve;
mod tree;
mod world;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use world::World;

pub use tree::Tree;

/// Longest wait for a change, before the test fails.
const WAIT: Duration = Duration::from_secs(20);

/// The store. Gone, with its sockets, when dropped.
pub struct Fake {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    world: Mutex<World>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Wait until `done` says so.
    pub(crate) fn wait_while(&self, mut waiting: impl FnMut(&World) -> bool) {
        let mut world = self.lock();
        while waiting(&world) {
            world = self.changed.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Fake {
    /// An empty store with a socket for domain 0.
    ///
    /// # Panics
    /// Where there can be no temporary directory or socket.
    pub fn start() -> Fake {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let shared = Arc::new(Shared { world: Mutex::new(World::new()), changed: Condvar::new() });
        let fake = Fake { dir, shared };
        fake.listen(0);
        fake
    }

    /// Serve a domain on a socket of its own, from now on.
    ///
    /// # Panics
    /// Where there can be no socket.
    pub fn listen(&self, domid: u32) -> PathBuf {
        let path = self.socket(domid);
        if !path.exists() {
            serve::listen(&path, domid, Arc::clone(&self.shared));
        }
        path
    }

    /// The socket of a domain.
    pub fn socket(&self, domid: u32) -> PathBuf {
        self.dir.path().join(format!("domain{domid}"))
    }

    /// Its folder, for other files of a test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Set a value, as domain 0 would.
    pub fn write(&self, path: &str, value: &str) {
        self.write_all(&[(path, value)]);
    }

    /// Set values in one transaction.
    pub fn write_all(&self, nodes: &[(&str, &str)]) {
        let mut world = self.shared.lock();
        for (path, value) in nodes {
            world.tree.write(path, value.as_bytes(), 0);
        }
        for (path, _) in nodes {
            world.fire(path, false);
        }
        drop(world);
        self.shared.notify();
    }

    /// Remove a node and what is below.
    pub fn rm(&self, path: &str) {
        let mut world = self.shared.lock();
        if world.tree.rm(path) {
            world.fire(path, true);
        }
        drop(world);
        self.shared.notify();
    }

    /// A value, if it is there.
    pub fn get(&self, path: &str) -> Option<String> {
        self.shared.lock().tree.text(path)
    }

    /// The permissions, as text: `n0 r5`.
    pub fn permissions(&self, path: &str) -> Option<String> {
        self.shared.lock().tree.permissions_text(path)
    }

    /// Set permissions, as text: `n5 r3`.
    ///
    /// # Panics
    /// For text that is none, or a node that is not there.
    pub fn grant(&self, path: &str, permissions: &str) {
        let parse = |word: &str| xenstore::Permission::parse(word.as_bytes()).expect("n5");
        let list = permissions.split(' ').map(parse).collect();
        assert!(self.shared.lock().tree.set_permissions(path, list), "{path} is not there");
    }

    /// Wait until the tree looks like this; `what` is said when it never does.
    ///
    /// # Panics
    /// After 20 s, with the whole tree.
    pub fn wait(&self, what: &str, mut done: impl FnMut(&Tree) -> bool) {
        let end = Instant::now() + WAIT;
        let mut world = self.shared.lock();
        while !done(&world.tree) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never came: {what}; the store:\n{}", world.tree.dump());
            let waited = self.shared.changed.wait_timeout(world, left);
            world = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait until a node has this value.
    ///
    /// # Panics
    /// As [`Fake::wait`].
    pub fn wait_for(&self, path: &str, value: &str) {
        self.wait(&format!("{path} = {value}"), |tree| tree.text(path).as_deref() == Some(value));
    }

    /// Wait until a node is gone.
    ///
    /// # Panics
    /// As [`Fake::wait`].
    pub fn wait_gone(&self, path: &str) {
        self.wait(&format!("{path} gone"), |tree| tree.text(path).is_none());
    }

    /// Wait until what clients have open looks like this: transactions, watches, requests so far.
    ///
    /// # Panics
    /// As [`Fake::wait`].
    pub fn wait_clients(&self, what: &str, mut done: impl FnMut(&Usage) -> bool) {
        let end = Instant::now() + WAIT;
        let mut world = self.shared.lock();
        loop {
            let usage = world.usage();
            if done(&usage) {
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never came: {what}; {usage:?}");
            let waited = self.shared.changed.wait_timeout(world, left);
            world = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What clients have open now.
    pub fn usage(&self) -> Usage {
        self.shared.lock().usage()
    }

    /// Close all connections, as a xenstored that is restarted.
    pub fn kick_all(&self) {
        self.shared.lock().kick_all();
        self.shared.notify();
    }

    /// Fail the next transactions with EAGAIN at their commit.
    pub fn conflict_next(&self, count: u32) {
        self.shared.lock().faults.conflicts = count;
    }

    /// Refuse everything about paths that end like this with EACCES, domain 0 too; empty: nothing.
    pub fn deny(&self, suffix: &str) {
        self.shared.lock().faults.deny = suffix.to_owned();
    }

    /// Answer nothing until [`Fake::release`].
    pub fn hold(&self) {
        self.shared.lock().faults.held = true;
    }

    /// Go on.
    pub fn release(&self) {
        self.shared.lock().faults.held = false;
        self.shared.notify();
    }

    /// Let a domain be known, or not, and say so to those who watch.
    pub fn set_introduced(&self, domid: u32, introduced: bool) {
        let mut world = self.shared.lock();
        match introduced {
            true => world.introduced.insert(domid),
            false => world.introduced.remove(&domid),
        };
        world.fire(if introduced { "@introduceDomain" } else { "@releaseDomain" }, false);
        drop(world);
        self.shared.notify();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let mut world = self.shared.lock();
        world.over = true;
        world.faults.held = false;
        world.kick_all();
        drop(world);
        self.shared.notify();
    }
}

/// What clients have open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Connections.
    pub connections: usize,
    /// Connections ever made.
    pub accepted: u64,
    /// Open transactions.
    pub transactions: usize,
    /// The paths of watches, sorted.
    pub watches: Vec<String>,
    /// Requests since the start.
    pub requests: u64,
}
