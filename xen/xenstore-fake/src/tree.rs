//! The nodes, by absolute path.

use std::collections::BTreeMap;
use xenstore::{Access, Permission};

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Vec<u8>,
    pub permissions: Vec<Permission>,
    /// When it was last changed, itself or the list of its children.
    pub changed: u64,
}

/// The tree.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    clock: u64,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let mut tree = Tree::default();
        let permissions = vec![Permission::new(Access::None, 0)];
        tree.nodes.insert("/".into(), Node { value: Vec::new(), permissions, changed: 0 });
        tree
    }

    /// A value as text.
    pub fn text(&self, path: &str) -> Option<String> {
        self.nodes.get(path).map(|node| String::from_utf8_lossy(&node.value).into_owned())
    }

    /// Is there a node?
    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    pub(crate) fn permissions_text(&self, path: &str) -> Option<String> {
        let node = self.nodes.get(path)?;
        let texts: Vec<String> = node.permissions.iter().map(ToString::to_string).collect();
        Some(texts.join(" "))
    }

    pub(crate) fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    pub(crate) fn children(&self, path: &str) -> Option<Vec<String>> {
        self.nodes.get(path)?;
        let prefix = folder(path);
        let below = self.nodes.range(prefix.clone()..).map(|(name, _)| name);
        let below = below.take_while(|name| name.starts_with(&prefix));
        let names = below.filter_map(|name| name.strip_prefix(&prefix));
        Some(names.filter(|n| !n.is_empty() && !n.contains('/')).map(str::to_owned).collect())
    }

    pub(crate) fn write(&mut self, path: &str, value: &[u8], creator: u32) {
        self.make(path, creator);
        self.clock += 1;
        let clock = self.clock;
        if let Some(node) = self.nodes.get_mut(path) {
            node.value = value.to_vec();
            node.changed = clock;
        }
    }

    /// A node and those above it, where they are missing; they inherit permissions.
    pub(crate) fn make(&mut self, path: &str, creator: u32) {
        if self.nodes.contains_key(path) {
            return;
        }
        let above = parent(path).to_owned();
        self.make(&above, creator);
        self.clock += 1;
        let clock = self.clock;
        let mut permissions = Vec::new();
        if let Some(node) = self.nodes.get_mut(&above) {
            node.changed = clock;
            permissions = node.permissions.clone();
        }
        if let (true, Some(owner)) = (creator != 0, permissions.first_mut()) {
            owner.domid = creator;
        }
        self.nodes.insert(path.into(), Node { value: Vec::new(), permissions, changed: clock });
    }

    pub(crate) fn rm(&mut self, path: &str) -> bool {
        if path == "/" || self.nodes.remove(path).is_none() {
            return false;
        }
        let prefix = folder(path);
        self.nodes.retain(|name, _| !name.starts_with(&prefix));
        self.clock += 1;
        let clock = self.clock;
        if let Some(node) = self.nodes.get_mut(parent(path)) {
            node.changed = clock;
        }
        true
    }

    pub(crate) fn set_permissions(&mut self, path: &str, permissions: Vec<Permission>) -> bool {
        self.clock += 1;
        let clock = self.clock;
        let Some(node) = self.nodes.get_mut(path) else { return false };
        node.permissions = permissions;
        node.changed = clock;
        true
    }

    /// May a domain read, or write, this node? A missing one counts as its parent.
    pub(crate) fn allows(&self, path: &str, domid: u32, write: bool) -> bool {
        let mut path = path;
        let node = loop {
            match self.nodes.get(path) {
                Some(node) => break node,
                None if path == "/" => return false,
                None => path = parent(path),
            }
        };
        let Some(owner) = node.permissions.first() else { return domid == 0 };
        if domid == 0 || owner.domid == domid {
            return true;
        }
        let own = node.permissions[1..].iter().find(|entry| entry.domid == domid);
        match own.unwrap_or(owner).access {
            Access::Both => true,
            Access::Read => !write,
            Access::Write => write,
            Access::None => false,
        }
    }

    pub(crate) fn dump(&self) -> String {
        let line = |(path, node): (&String, &Node)| {
            format!("  {path} = \"{}\"\n", node.value.escape_ascii())
        };
        self.nodes.iter().map(line).collect()
    }
}

pub(crate) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((above, _)) => above,
    }
}

fn folder(path: &str) -> String {
    if path == "/" { "/".into() } else { format!("{path}/") }
}
