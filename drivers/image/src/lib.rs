//! What a disk image format is to the rest of the program.
//!
//! A format driver is pure: over metadata that somebody else caches it answers where sectors lie
//! ([`Image::map`]) and where a change goes and in which order its metadata follows
//! ([`Image::plan`], [`Image::landed`]). It never does I/O, never waits and never allocates once it
//! is open. The same driver therefore runs under the daemon's engine, under the simulator and under
//! the small blocking executor of the offline tools.
//!
//! ```text
//!   map(span)  ──► Run { At byte | Zero | Below }          or Stop { Load, Wait, Grow, Fail }
//!   plan(span) ──► Plan ─► phase 1: data + `along` ─► landed(1) ─► phase 2 … ─► free ─► finish
//! ```
#![forbid(unsafe_code)]

pub mod blocking;
mod holder;
mod layer;
mod lock;
mod node;
pub mod place;
mod storage;
mod thin;
pub mod unfinished;

pub use holder::{Holder, holder};
pub use layer::{Changes, Cipher, Purpose};
pub use lock::{acquire, try_lock};
pub use node::{Node, NodeError, Odd, is_write_protected, open_or_make};
pub use storage::{MemStorage, Storage};
pub use thin::is_thin;

/// Bytes of a guest sector. Everything a guest addresses is counted in these, also on devices with
/// larger sectors.
pub const SECTOR_BYTES: u64 = 512;

/// Guest sectors: a start and a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// First sector of 512 bytes.
    pub start: u64,
    /// Number of sectors.
    pub count: u32,
}

impl Span {
    /// The sector after the last one.
    pub fn end(self) -> u64 {
        self.start + u64::from(self.count)
    }

    /// What is left after the first `done` sectors.
    pub fn skip(self, done: u32) -> Span {
        assert!(done <= self.count, "skipping past the end of a span");
        Span { start: self.start + u64::from(done), count: self.count - done }
    }

    /// The first sectors, at most `count` of them.
    pub fn first(self, count: u32) -> Span {
        Span { start: self.start, count: self.count.min(count) }
    }
}

/// A piece of an image's own file that holds metadata: the unit of caching and of metadata writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MetaRef {
    /// Byte offset in the file.
    pub at: u64,
    /// Length in bytes, at most the cache's unit.
    pub bytes: u16,
}

/// At most four pieces of metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaList {
    items: [Option<MetaRef>; 4],
}

impl MetaList {
    /// No metadata.
    pub const EMPTY: MetaList = MetaList { items: [None; 4] };

    /// A list of one.
    pub fn one(r: MetaRef) -> MetaList {
        MetaList { items: [Some(r), None, None, None] }
    }

    /// A list of two.
    pub fn two(a: MetaRef, b: MetaRef) -> MetaList {
        MetaList { items: [Some(a), Some(b), None, None] }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.items.iter().all(Option::is_none)
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = MetaRef> + '_ {
        self.items.iter().flatten().copied()
    }
}

impl From<[Option<MetaRef>; 4]> for MetaList {
    fn from(items: [Option<MetaRef>; 4]) -> MetaList {
        MetaList { items }
    }
}

/// Where the first `count` sectors of a span are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The place of all of them.
    pub place: Place,
    /// How many sectors of the asked span share that place; at least one.
    pub count: u32,
}

/// The place of a run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this image's file, from this byte on.
    At {
        /// Byte offset in the file.
        byte: u64,
    },
    /// Nowhere: they read as zeros, whatever lies below.
    Zero,
    /// Not in this image: ask the parent; zeros if there is none.
    Below,
}

/// Not an error: what has to happen before the driver can answer. The caller asks again then.
/// A driver that stops has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Bring this piece of metadata into the cache.
    Load(MetaRef),
    /// Another plan on the same block, or a busy cache, has to finish first.
    Wait,
    /// The file must reach to this byte, with space behind it; see [`end_place`].
    Grow {
        /// Bytes the file must have before its end sector.
        end: u64,
        /// Length of the blocks that will follow: ahead is taken in whole ones.
        step: u64,
    },
    /// A flush of the file that begins after the [`Meta::now`] of `after` has to succeed: memory
    /// may
    /// not be ahead of the medium by more than this. Asked for once in many requests.
    Flush {
        /// What was over at this time has to be on the medium.
        after: u64,
    },
    /// The request fails with this errno.
    Fail {
        /// Positive errno.
        errno: i32,
        /// What is wrong, for the log.
        why: &'static str,
    },
}

/// Where the end sector of a file goes that must reach to byte `end` and may be `ahead` bytes
/// longer: into the last sector of a page. Blocks whose data begins on pages have their metadata
/// there, or nothing, so no guest ever reads what an end sector leaves behind.
pub fn end_place(end: u64, step: u64, ahead: u64) -> u64 {
    const PAGE: u64 = 4096;
    let nearest = (end + SECTOR_BYTES).next_multiple_of(PAGE) - SECTOR_BYTES;
    nearest + ahead.checked_div(step).map_or(0, |blocks| blocks * step)
}

/// What a request wants done to the sectors of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// New data.
    Write,
    /// They shall read as zeros.
    Zero {
        /// The layers below read as zeros (or there are none).
        below_zero: bool,
        /// Keep the space (NBD's NO_HOLE).
        keep: bool,
    },
    /// Their contents do not matter any more.
    Discard {
        /// The layers below read as zeros (or there are none).
        below_zero: bool,
    },
}

/// What happens to the file range of a plan in phase 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request's data is written there.
    Write,
    /// The range is made to read as zeros; its space may be given back if `punch`.
    Zero {
        /// Give the space back.
        punch: bool,
    },
    /// The range is given back to the device; it may read as anything afterwards.
    Discard,
    /// Nothing; only metadata changes, if anything does.
    Nothing,
}

/// Where a change goes, and in which order metadata follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What phase 1 does to the file range.
    pub action: Action,
    /// Byte offset of the range in the file.
    pub byte: u64,
    /// How many of the asked sectors this plan covers. With `Action::Write` and `Action::Zero` this
    /// is also the length of the range. None: the plan only prepares, and is asked for again.
    pub count: u32,
    /// Metadata that nothing points at yet; written together with the data.
    pub along: MetaList,
    /// Blocks that must stay cached until `finish`.
    pub pins: MetaList,
    /// File range (byte, bytes) that is given back after the last phase.
    pub free: Option<(u64, u32)>,
    /// A barrier (a flush of the lower disk) belongs between phase 1 and 2 if that disk has a
    /// volatile cache and the policy asks for it.
    pub barrier: bool,
    /// The driver's own marks; the engine only hands them back.
    pub token: [u64; 2],
}

/// The metadata cache and the file, as one layer sees them.
pub trait Meta {
    /// A cached piece.
    ///
    /// # Errors
    /// [`Stop::Load`] if it is not there, [`Stop::Wait`] if it is on its way out.
    fn get(&self, r: MetaRef) -> Result<&[u8], Stop>;
    /// A cached and pinned piece, to change. Nothing is written until a driver returns it from
    /// [`Image::landed`] or lists it in [`Plan::along`].
    fn edit(&mut self, r: MetaRef) -> &mut [u8];
    /// A piece that is not on the disk yet, all zeros.
    ///
    /// # Errors
    /// [`Stop::Wait`] if the cache has no room just now.
    fn create(&mut self, r: MetaRef) -> Result<&mut [u8], Stop>;
    /// Whether the cached piece is what the disk holds: no write of it is queued or in flight. A
    /// bit found set in a piece that is not clean may not be on the disk yet.
    fn clean(&self, r: MetaRef) -> bool;
    /// Bytes of the file that exist, with space behind them.
    fn grown(&self) -> u64;
    /// A number that grows with every request started.
    fn now(&self) -> u64;
    /// The `now` of the oldest request still at work: what was freed before it, nobody reads.
    fn oldest(&self) -> u64;
    /// What was over at a smaller `now` is on the medium: the file was flushed since. 0 before the
    /// first flush of a session, when even what is read may be in a volatile cache alone.
    fn durable(&self) -> u64;
    /// What lies from this byte on, up to [`Meta::grown`], was never written: zeros, on the medium
    /// too. `u64::MAX` where nobody knows.
    fn blank_from(&self) -> u64 {
        u64::MAX
    }
}

/// An open image of some format.
pub trait Image: Send {
    /// Size in sectors of 512 bytes.
    fn sectors(&self) -> u64;

    /// Where the first sectors of `span` are. `span` lies inside the image.
    ///
    /// # Errors
    /// What must happen first.
    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop>;

    /// Whether the disk holds for certain what [`Image::map`] says of a span. Not after a write of
    /// a
    /// table has failed, until it is written again: zeros above must not rely on it.
    fn certain(&self, _span: Span) -> bool {
        true
    }

    /// Where the first sectors of `span` go. Loads and checks everything, then changes.
    ///
    /// # Errors
    /// What must happen first; nothing was changed then.
    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop>;

    /// Phase `phase` (from 1) is on the disk. Edits what may point at it now; the result is what
    /// the next phase writes. An empty list ends the plan.
    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, phase: u8) -> MetaList;

    /// The plan is over. With `ok` false some operation of it failed and what is on the disk is not
    /// known; the driver takes back what it edited.
    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool);

    /// The sector a file of this image always ends with while it is written; `None` for devices and
    /// for formats without one. Whoever makes the file longer writes it at the new end, and that
    /// write is what moves the end: so a file never ends with a guest's sector.
    fn end_sector(&self) -> Option<[u8; SECTOR_BYTES as usize]> {
        None
    }

    /// What has to be written when the image is closed after use. May allocate.
    fn closing(&mut self) -> Closing {
        Closing::default()
    }
}

/// The last writes of an image.
#[derive(Debug, Default)]
pub struct Closing {
    /// Metadata of which the disk may hold an older state, after a write that failed; written
    /// first.
    pub repairs: Vec<(u64, Vec<u8>)>,
    /// Writes in order.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Further writes, before each of which all that was written is on the disk.
    pub last: Vec<(u64, Vec<u8>)>,
    /// New length of a regular file, which ends with the first of `writes`.
    pub truncate: Option<u64>,
}

impl Closing {
    /// Does all of it, and waits until it is on the disk.
    ///
    /// # Errors
    /// The first one of the file; nothing is done after it.
    pub fn apply(&self, storage: &dyn Storage) -> std::io::Result<()> {
        if self.repairs.is_empty() && self.writes.is_empty() && self.last.is_empty() {
            return Ok(());
        }
        for (at, bytes) in &self.repairs {
            storage.write_at(*at, bytes)?;
        }
        for (i, (at, bytes)) in self.writes.iter().enumerate() {
            match self.truncate.filter(|_| i == 0) {
                Some(_) => end_with(storage, *at, bytes)?,
                None => storage.write_at(*at, bytes)?,
            }
        }
        for (at, bytes) in &self.last {
            storage.sync()?;
            storage.write_at(*at, bytes)?;
        }
        storage.sync()
    }
}

/// Makes a file end with these bytes, which go behind everything that is still wanted. On a full
/// disk they take the space of what is not.
///
/// # Errors
/// Those of the file; it ends as before then.
pub fn end_with(storage: &dyn Storage, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    let len = at.saturating_add(bytes.len() as u64);
    if let Err(e) = storage.write_at(at, bytes) {
        if e.kind() != std::io::ErrorKind::StorageFull || storage.is_device() {
            return Err(e);
        }
        storage.give_back(len, storage.len()?.saturating_sub(SECTOR_BYTES));
        storage.write_at(at, bytes)?;
    }
    cut(storage, len)
}

/// Cuts a file behind what was just written there: the old end goes when the new one is on the
/// disk.
///
/// # Errors
/// Those of the file.
pub fn cut(storage: &dyn Storage, len: u64) -> std::io::Result<()> {
    if !storage.is_device() && storage.len()? > len {
        storage.sync()?;
    }
    storage.set_len(len)
}
