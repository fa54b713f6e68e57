//! What the engine knows of the chain's files: growth of the leaf, the flush in flight.
use image::{Meta, SECTOR_BYTES, end_place};

use crate::chain;
use crate::meta::{MetaCache, View};
use crate::sets::SlotSet;
use host::arena::{Arena, Buf};
use request::SlotId;
use request::disk::{FileId, FileInfo, Kind};

/// How often the space taken ahead doubles, as a factor: from 32 MiB to 256.
const AHEAD_FACTOR: u64 = 8;

/// A file in use.
///
/// ```text
///   want ─► Space (taken ahead, the file stays as long as it is)
///             ─► End (one write of the last page: the end moves and its sector stands there)
///             ─► Flush (the new length is on the disk) ─► blocks may go below
/// ```
/// So whenever this process ends, or the power, the file ends with its end sector; and what stood
/// at the old end is written over only when the new one is on the disk.
#[derive(Debug)]
pub struct FileState {
    /// Bytes that blocks may use: those before the end sector.
    pub grown: u64,
    /// A block device.
    pub device: bool,
    /// See [`FileInfo::thin`].
    pub thin: bool,
    /// What was over at a smaller number of a request is on the medium; see [`Meta::durable`].
    pub durable: u64,
    /// From here on to `grown` nothing was ever written; see [`Meta::blank_from`].
    pub blank_from: u64,
    stage: Option<Stage>,
    /// Space to take ahead with the next growth: twice that of the last one, up to `ahead_max`, so
    /// that a disk which is filled waits for ever fewer flushes.
    ahead: u64,
    ahead_max: u64,
    /// The page that a file ends with: zeros, or an end sector in its last 512 bytes.
    end_page: Buf,
    /// Bytes that the file has or may have, after a growth that failed.
    length: u64,
    /// The largest end asked for, the length of what follows it, and where the end sector goes.
    need: u64,
    step: u64,
    place: u64,
    waiters: SlotSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Space,
    End,
    Flush,
}

/// What to do next for a growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Todo {
    /// What: space, a write or a flush.
    pub kind: Kind,
    /// Offset.
    pub at: u64,
    /// What to write.
    pub buf: Buf,
}

/// Answer to what asks for growth.
#[derive(Debug, PartialEq, Eq)]
pub enum Growth {
    /// It reaches that far already.
    There,
    /// A device cannot grow.
    NoSpace,
    /// The slot was added to those that wait.
    Waiting,
    /// The same, and this has to be done now.
    Start(Todo),
}

impl FileState {
    /// The state at open. `zeros` is a page of them.
    pub fn new(info: &FileInfo, ahead: u32, zeros: Buf) -> FileState {
        FileState {
            grown: info.bytes,
            device: info.device,
            thin: info.thin,
            durable: 0,
            blank_from: if info.device { u64::MAX } else { info.bytes },
            stage: None,
            ahead: u64::from(ahead),
            ahead_max: u64::from(ahead) * AHEAD_FACTOR,
            end_page: zeros,
            length: info.bytes,
            need: 0,
            step: 0,
            place: 0,
            waiters: SlotSet::EMPTY,
        }
    }

    /// The file ends with the last sector of this page, now and always.
    pub fn set_end(&mut self, page: Buf) {
        self.end_page = page;
        self.grown = self.length.saturating_sub(SECTOR_BYTES);
    }

    /// A slot needs room for blocks up to `end`; more blocks of `step` bytes will follow.
    pub fn want(&mut self, end: u64, step: u64, slot: SlotId) -> Growth {
        if end <= self.grown {
            return Growth::There;
        }
        if self.device {
            return Growth::NoSpace;
        }
        self.need = self.need.max(end);
        self.step = step;
        self.waiters.insert(slot);
        if self.stage.is_some() {
            return Growth::Waiting;
        }
        Growth::Start(self.begin(self.ahead))
    }

    /// Where the end goes with so much space ahead: never before an end that was tried already.
    fn place_for(&self, ahead: u64) -> u64 {
        let place = end_place(self.need, self.step, ahead);
        let short = self.length.saturating_sub(place + SECTOR_BYTES);
        place + short.next_multiple_of(self.step.max(u64::from(self.end_page.bytes)))
    }

    /// The space first.
    fn begin(&mut self, ahead: u64) -> Todo {
        self.place = self.place_for(ahead);
        let bytes = self.place + SECTOR_BYTES - self.length;
        if bytes == 0 {
            return self.end();
        }
        self.stage = Some(Stage::Space);
        Todo { kind: Kind::Grow { bytes }, at: self.length, buf: Buf::NONE }
    }

    /// The end sector, with the page it lies in where nothing else does.
    fn end(&mut self) -> Todo {
        self.stage = Some(Stage::End);
        let page = self.end_page;
        let start = self.place + SECTOR_BYTES - u64::from(page.bytes);
        let skip = if start >= self.need.max(self.grown + SECTOR_BYTES) {
            0
        } else {
            page.bytes - SECTOR_BYTES as u32
        };
        let buf = page.part(skip, page.bytes - skip);
        Todo { kind: Kind::Write, at: start + u64::from(skip), buf }
    }

    /// A step of a growth is over: the slots to wake and with what, or the next step.
    ///
    /// # Errors
    /// What has to be done next.
    #[allow(clippy::type_complexity)]
    pub fn grew(&mut self, outcome: Result<(), i32>) -> Result<(SlotSet, Result<(), i32>), Todo> {
        let stage = self.stage.expect("a growth is at work");
        let outcome = match (stage, outcome) {
            // Without fallocate (NFS) the write of the end leaves a hole before it.
            (Stage::Space, Ok(()) | Err(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                return Err(self.end());
            }
            (Stage::Space | Stage::End, Err(libc::ENOSPC | libc::EFBIG | libc::EDQUOT))
                if self.place > self.place_for(0) =>
            {
                return Err(self.begin(0));
            }
            (Stage::End, outcome) => {
                // Also after a failure the file may be that long, and end in that sector.
                self.length = self.length.max(self.place + SECTOR_BYTES);
                self.blank_from = self.blank_from.max(match outcome {
                    Ok(()) => self.grown + SECTOR_BYTES,
                    Err(_) => self.length,
                });
                if outcome.is_ok() {
                    self.stage = Some(Stage::Flush);
                    return Err(Todo { kind: Kind::Sync, at: 0, buf: Buf::NONE });
                }
                outcome
            }
            (Stage::Flush, Ok(())) => {
                self.grown = self.place;
                self.ahead = (self.ahead * 2).min(self.ahead_max);
                Ok(())
            }
            (Stage::Flush, Err(errno)) => {
                self.blank_from = self.blank_from.max(self.length);
                Err(errno)
            }
            (Stage::Space, Err(errno)) => Err(errno),
        };
        self.stage = None;
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
    /// One of them that failed, and that the disk goes on without.
    pub lost: Option<(FileId, i32)>,
    /// What came of the others.
    pub outcome: Result<(), (FileId, i32)>,
    /// Files that requests have been written to since the chain was attached.
    pub written: [Option<FileId>; 2],
    /// Slots that wait for it.
    pub joined: SlotSet,
    /// Slots that wait for the next one.
    pub queued: SlotSet,
}

impl Default for Flushing {
    fn default() -> Flushing {
        let none = SlotSet::EMPTY;
        Flushing {
            number: 0,
            parts: 0,
            lost: None,
            outcome: Ok(()),
            written: [None; 2],
            joined: none,
            queued: none,
        }
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
    /// The request has a buffer to copy through.
    pub fills: bool,
}

impl chain::Views for Views<'_> {
    fn with<R>(&mut self, layer: FileId, f: impl FnOnce(&mut dyn Meta) -> R) -> R {
        let FileState { grown, durable, blank_from, .. } = self.files[usize::from(layer.0)];
        let (now, oldest, fills) = (self.seq, self.oldest, self.fills);
        self.meta.begin_call();
        let cache = &mut *self.meta;
        let arena = &mut *self.arena;
        let file = layer;
        f(&mut View { cache, arena, file, grown, now, oldest, durable, blank_from, fills })
    }
}
