//! What the engine knows of the chain's files: growth of the leaf, the flush in flight.
use image::Meta;

use crate::disk::FileId;
use crate::engine::chain;
use crate::engine::meta::{MetaCache, View};
use crate::engine::sets::SlotSet;
use crate::pool::Arena;
use crate::transport::SlotId;

/// A file as it was opened.
#[derive(Clone, Copy, Debug)]
pub struct FileInfo {
    /// Its length in bytes.
    pub bytes: u64,
    /// A block device: its size is fixed.
    pub device: bool,
}

/// A file in use.
#[derive(Debug)]
pub struct FileState {
    /// Bytes that exist, with space behind them.
    pub grown: u64,
    /// A block device.
    pub device: bool,
    /// What was over at a smaller number of a request is on the medium; see [`Meta::durable`].
    pub durable: u64,
    growing: bool,
    ahead: u64,
    /// The largest end asked for, and the end being grown to.
    need: u64,
    target: u64,
    waiters: SlotSet,
}

/// Answer to a wish for growth.
#[derive(Debug, PartialEq, Eq)]
pub enum Growth {
    /// It reaches that far already.
    There,
    /// A device cannot grow.
    NoSpace,
    /// The slot was added to those that wait.
    Waiting,
    /// The same, and this range has to be grown now.
    Start {
        /// Offset.
        at: u64,
        /// Length.
        bytes: u64,
    },
}

impl FileState {
    /// The state at open.
    pub fn new(info: &FileInfo, ahead: u32) -> FileState {
        FileState {
            grown: info.bytes,
            device: info.device,
            durable: 0,
            growing: false,
            ahead: u64::from(ahead),
            need: 0,
            target: 0,
            waiters: SlotSet::EMPTY,
        }
    }

    /// A slot needs the file to reach to `end`.
    pub fn want(&mut self, end: u64, slot: SlotId) -> Growth {
        if end <= self.grown {
            return Growth::There;
        }
        if self.device {
            return Growth::NoSpace;
        }
        self.need = self.need.max(end);
        self.waiters.insert(slot);
        if self.growing {
            return Growth::Waiting;
        }
        self.growing = true;
        self.target = self.need + self.ahead;
        Growth::Start { at: self.grown, bytes: self.target - self.grown }
    }

    /// A growth is over: the slots to wake and with what, or the range to try next.
    ///
    /// # Errors
    /// The (offset, length) of another try, without taking space ahead.
    #[allow(clippy::type_complexity)]
    pub fn grew(
        &mut self,
        outcome: Result<(), i32>,
    ) -> Result<(SlotSet, Result<(), i32>), (u64, u64)> {
        let outcome = match outcome {
            Ok(()) | Err(libc::EOPNOTSUPP | libc::ENOSYS) => {
                // Without fallocate (NFS before 4.2) writes beyond the end extend the file themselves.
                self.grown = self.target;
                Ok(())
            }
            Err(libc::ENOSPC | libc::EFBIG | libc::EDQUOT) if self.target > self.need => {
                self.target = self.need;
                return Err((self.grown, self.target - self.grown));
            }
            Err(errno) => Err(errno),
        };
        self.growing = false;
        self.need = 0;
        Ok((self.waiters.take(), outcome))
    }
}

/// The flush of the files that are written.
#[derive(Debug)]
pub struct Flushing {
    /// Its place in the order of requests: what was over at a smaller one it covers.
    pub number: u64,
    /// Files of the one in flight that are not done.
    pub parts: u8,
    /// What came of the others.
    pub outcome: Result<(), i32>,
    /// Slots that wait for it.
    pub joined: SlotSet,
    /// Slots that wait for the next one.
    pub queued: SlotSet,
}

impl Default for Flushing {
    fn default() -> Flushing {
        let none = SlotSet::EMPTY;
        Flushing { number: 0, parts: 0, outcome: Ok(()), joined: none, queued: none }
    }
}

/// The views of all layers.
pub struct Views<'a> {
    /// The cache.
    pub meta: &'a mut MetaCache,
    /// Its memory.
    pub arena: &'a mut Arena,
    /// The files.
    pub files: &'a [FileState],
    /// Requests started so far.
    pub seq: u64,
    /// The oldest one at work.
    pub oldest: u64,
}

impl chain::Views for Views<'_> {
    fn with<R>(&mut self, layer: FileId, f: impl FnOnce(&mut dyn Meta) -> R) -> R {
        let FileState { grown, durable, .. } = self.files[usize::from(layer.0)];
        let (now, oldest) = (self.seq, self.oldest);
        self.meta.begin_call();
        let cache = &mut *self.meta;
        let arena = &mut *self.arena;
        f(&mut View { cache, arena, file: layer, grown, now, oldest, durable })
    }
}
