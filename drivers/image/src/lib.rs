//! What a disk image format is to the rest of the program.
//!
//! A format driver is pure: over metadata that somebody else caches it answers where sectors lie
//! ([`Image::map`]) and where a change goes and in which order its metadata follows
//! ([`Image::plan`], [`Image::landed`]). It never does I/O, never waits and never allocates once it
//! is open. The same driver therefore runs under the daemon's engine, under the simulator and under
//! the small blocking executor of the offline tools.
//!
//! ```text
//!   map(span)  ──► Run { At byte | Packed | Zero | Below }   or Stop { Load, Wait, Grow, Copy, … }
//!   plan(span) ──► Plan ─► step 1: data + fill + `along` ─► landed(1): step 2 … ─► free ─► finish
//! ```
#![forbid(unsafe_code)]

pub mod blocking;
mod closing;
mod holder;
mod layer;
mod lock;
mod meta;
mod node;
pub mod place;
mod plan;
pub mod qemu;
mod storage;
mod thin;
pub mod unfinished;

pub use closing::{Closing, cut, end_with};
pub use holder::{Holder, holder, is_shared};
pub use layer::{Changes, Cipher, Purpose};
pub use lock::{acquire, try_lock};
pub use meta::{Meta, MetaList, MetaRef};
pub use node::{Node, NodeError, Odd, is_write_protected, open_or_make};
pub use plan::{Action, FileRange, Fill, Order, Plan, Step, Stop, Want, end_place};
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

    /// From one sector to before another.
    pub fn between(start: u64, end: u64) -> Span {
        Span { start, count: (end - start) as u32 }
    }

    /// How many sectors lie before this one.
    pub fn before(self, sector: u64) -> u32 {
        Span::between(self.start, sector).count
    }

    /// Its bytes.
    pub fn bytes(self) -> usize {
        bytes_of(self.count)
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

/// Bytes of so many sectors.
pub fn bytes_of(sectors: u32) -> usize {
    sectors as usize * 512
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
    /// In this image's file, packed: a unit of several sectors is unpacked as a whole
    /// ([`Image::unpack`]).
    Packed(Packed),
    /// Nowhere: they read as zeros, whatever lies below.
    Zero,
    /// Not in this image: ask the parent; zeros if there is none.
    Below,
}

/// Where packed sectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Byte offset of the packed unit in the file; of any alignment.
    pub byte: u64,
    /// How many bytes it has there at most.
    pub bytes: u32,
    /// Sectors of the unit, unpacked.
    pub sectors: u32,
    /// Which of them is the first of the run.
    pub skip: u32,
}

/// What a format needs of whoever serves it, beyond what every format does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of its largest piece of metadata.
    pub meta_bytes: u16,
    /// Its changes may copy ([`Plan::fill`]).
    pub fills: bool,
    /// It has plans of its own ([`Image::chore`]).
    pub chores: bool,
    /// Sectors of its largest packed unit; 0: it has none.
    pub packed: u32,
}

impl Needs {
    /// Sectors of metadata, and nothing else.
    pub const NONE: Needs = Needs { meta_bytes: 512, fills: false, chores: false, packed: 0 };
}

/// An open image of some format.
pub trait Image: Send {
    /// Size in sectors of 512 bytes.
    fn sectors(&self) -> u64;

    /// What it needs; the same as long as it is open.
    fn needs(&self) -> Needs {
        Needs::NONE
    }

    /// Where the first sectors of `span` are. `span` lies inside the image.
    ///
    /// # Errors
    /// What must happen first.
    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop>;

    /// Unpacks a unit of [`Place::Packed`], whose sectors fill `unit`. Allocates nothing.
    ///
    /// # Errors
    /// What is wrong with it, for the log: the read fails.
    fn unpack(&self, _packed: &[u8], _unit: &mut [u8]) -> Result<(), &'static str> {
        Err("a format without packed units has one")
    }

    /// Whether the disk holds for certain what [`Image::map`] says of a span. Not after a write of
    /// a table has failed, until it is written again: zeros above must not rely on it.
    fn certain(&self, _span: Span) -> bool {
        true
    }

    /// Where the first sectors of `span` go. Loads and checks everything, then changes.
    ///
    /// # Errors
    /// What must happen first; nothing was changed then.
    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop>;

    /// The next plan of the driver's own, which no request asks for: a table made ahead of need,
    /// counts that go down. It covers no sectors of a request: with `Action::Zero` its `count` is
    /// the length of the range, and it never copies. Asked for after [`Stop::Chore`] and when
    /// [`Image::finish`] says so, until there is none or one fails. What requests wait for comes
    /// first: they ask again when it is over, and fail with it.
    ///
    /// # Errors
    /// What must happen first; it is asked again then.
    fn chore(&mut self, _meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        Ok(None)
    }

    /// Step `step` (from 1) is on the disk. Edits what may point at it now; the result is the next
    /// step.
    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step;

    /// The plan is over. With `ok` false some operation of it failed and what is on the disk is not
    /// known; the driver takes back what it edited. True if it has a chore now.
    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool;

    /// From now on somebody else changes the image, in sectors alone that an image above it hides:
    /// what it points at may lie behind what was the end of its file.
    fn changed_by_others(&mut self) {}

    /// Whether what loses its place stays as it is until this is taken back: others still read
    /// there, by tables of before.
    fn keep_places(&mut self, _keep: bool) {}

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
