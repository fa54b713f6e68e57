//! Everything behind the sockets: the tree, what is open on it, and the faults that were asked for.

use crate::Usage;
use crate::tree::Tree;
use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use xenstore::wire::{Kind, Packet};

/// Faults on demand.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub conflicts: u32,
    pub deny: String,
    pub held: bool,
}

/// Of one client.
pub(crate) struct Connection {
    pub domid: u32,
    pub stream: UnixStream,
    /// (path as it was given, absolute path, token)
    pub watches: Vec<(String, String, String)>,
}

/// A transaction: its own copy of the tree, and what it has touched.
pub(crate) struct Transaction {
    pub connection: u64,
    pub tree: Tree,
    /// As it began.
    pub start: Tree,
    /// Absolute paths with the time of their last change when the transaction began; `None`: not
    /// there.
    pub touched: HashMap<String, Option<u64>>,
    /// What to do at the commit, in order.
    pub changes: Vec<Change>,
}

#[derive(Clone)]
pub(crate) enum Change {
    Write(String, Vec<u8>),
    Make(String),
    Rm(String),
    Permissions(String, Vec<xenstore::Permission>),
}

pub(crate) struct World {
    pub tree: Tree,
    pub connections: HashMap<u64, Connection>,
    pub transactions: HashMap<u32, Transaction>,
    pub introduced: BTreeSet<u32>,
    pub faults: Faults,
    pub requests: u64,
    pub accepted: u64,
    pub over: bool,
    next: u32,
}

impl World {
    pub fn new() -> World {
        World {
            tree: Tree::new(),
            connections: HashMap::new(),
            transactions: HashMap::new(),
            introduced: BTreeSet::from([0]),
            faults: Faults::default(),
            requests: 0,
            accepted: 0,
            over: false,
            next: 0,
        }
    }

    pub fn usage(&self) -> Usage {
        let watches = self.connections.values().flat_map(|connection| &connection.watches);
        let mut watches: Vec<String> = watches.map(|(path, _, _)| path.clone()).collect();
        watches.sort();
        Usage {
            connections: self.connections.len(),
            accepted: self.accepted,
            transactions: self.transactions.len(),
            watches,
            requests: self.requests,
        }
    }

    pub fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub fn kick_all(&mut self) {
        for connection in self.connections.values() {
            // It may be gone already, which is what was wanted.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    pub fn forget(&mut self, connection: u64) {
        self.connections.remove(&connection);
        self.transactions.retain(|_, transaction| transaction.connection != connection);
    }

    /// Tell those who watch that this node has changed, or has gone with all below it.
    pub fn fire(&self, path: &str, removed: bool) {
        for connection in self.connections.values() {
            for (given, absolute, token) in &connection.watches {
                let below = path == absolute
                    || absolute == "/"
                    || path.strip_prefix(absolute.as_str()).is_some_and(|r| r.starts_with('/'));
                let above = removed
                    && absolute.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
                let home = format!("/local/domain/{}/", connection.domid);
                let seen = if above { absolute.as_str() } else { path };
                let seen = match given.starts_with('/') || given.starts_with('@') {
                    true => seen,
                    false => seen.strip_prefix(&home).unwrap_or(seen),
                };
                if below || above {
                    send_event(&connection.stream, seen, token);
                }
            }
        }
    }

    /// Commit; `false`: something else has changed what it touched.
    pub fn commit(&mut self, transaction: Transaction) -> bool {
        if self.faults.conflicts > 0 {
            self.faults.conflicts -= 1;
            return false;
        }
        let now = |path: &String| self.tree.node(path).map(|node| node.changed);
        if transaction.touched.iter().any(|(path, before)| now(path) != *before) {
            return false;
        }
        for change in &transaction.changes {
            match change.clone() {
                Change::Write(path, value) => self.tree.write(&path, &value, 0),
                Change::Make(path) => self.tree.make(&path, 0),
                Change::Rm(path) => drop(self.tree.rm(&path)),
                Change::Permissions(path, list) => drop(self.tree.set_permissions(&path, list)),
            }
        }
        for change in &transaction.changes {
            match change {
                Change::Write(path, _) | Change::Make(path) | Change::Permissions(path, _) => {
                    self.fire(path, false);
                }
                Change::Rm(path) => self.fire(path, true),
            }
        }
        true
    }
}

pub(crate) fn send_event(mut stream: &UnixStream, path: &str, token: &str) {
    let payload = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"].concat();
    let packet = Packet { kind: Kind::WatchEvent as u32, id: 0, tx: 0, payload };
    // A client that has gone needs no events.
    let _ = stream.write_all(&packet.encode());
}
