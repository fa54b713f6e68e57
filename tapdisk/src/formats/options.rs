//! What a disk is opened with.
use std::sync::Arc;

use tap_ctl::messages::Text;

use super::Key;

/// What to open and how: the arguments of OPEN that stay in force over every pause.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// `type:path`.
    pub name: Text,
    /// Refuse writes.
    pub read_only: bool,
    /// `-D`: what is never written goes through the page cache.
    pub page_cache: bool,
    /// `-r`.
    pub local_cache: bool,
    /// `-E`: the key.
    pub key: Option<Arc<Key>>,
    /// `-2`: the secondary, `type:path`.
    pub secondary: Option<Text>,
    /// `-s`: it takes over when the leaf has no space; else it is a mirror.
    pub standby: bool,
    /// It has taken over: the leaf is only read.
    pub taken_over: bool,
    /// `-C`: the changed-block log.
    pub log: Option<Text>,
    /// `-e`: the NBD socket of the disk that stands in for the leaf's parents.
    pub parent: Option<Text>,
}
