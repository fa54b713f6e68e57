//! Where the data of a disk is: its images, their files, and what of their metadata is in memory.
use request::disk::FileId;

use crate::chain::{Chain, Layer};
use crate::files::FileState;
use crate::meta::MetaCache;

/// The map of a disk.
pub struct Map {
    /// The images; `None` while none are open.
    pub chain: Option<Chain>,
    /// Their files, by number.
    pub files: Vec<FileState>,
    /// Their metadata.
    pub meta: MetaCache,
    /// Size of the disk in sectors of 512 bytes.
    pub sectors: u64,
}

impl Map {
    /// The image that takes writes.
    pub fn top(&self) -> FileId {
        self.chain.as_ref().map_or(FileId(0), Chain::top)
    }

    /// An image.
    pub fn layer(&self, file: FileId) -> &Layer {
        let chain = self.chain.as_ref().expect("a request runs on a chain");
        &chain.layers[usize::from(file.0)]
    }
}
