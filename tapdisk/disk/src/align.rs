//! Whole units to the file, whatever the engine asks for: formats of 512-byte sectors on disks of
//! 4096.
//!
//! ```text
//!   push ─┬─ file of 512: as it is ────────────────────────────────────────────────────► inner disk
//!         └─ change ─► locks ─┬─ whole units ─────────────────────────────────────────► inner disk
//!   read ─────────────────────┴─ parts ─► bounce buffer ─► read │ read, merge, write ─► inner disk
//! ```
//! A write of parts of units reads all units it touches, puts its bytes in and writes them back. A
//! read or write of several sectors is thus one operation of the inner disk at a time, so the inner
//! disk needs no more depth than the engine asked for.
//!
//! **A rewrite never loses another change of the same units**: see `locks`. Reads take no lock, for
//! a rewrite writes the bytes around its own as they are.
//!
//! Progress: an operation waits first for earlier changes, then for a bounce buffer, then for the
//! device, and whoever holds a buffer waits for the device only. One buffer is enough.
//!
//! A file that ends inside a unit is made longer, with zeros, by a write to its last unit: O_DIRECT
//! can not write less. A format that finds something by the end of its file must not be served so.
//!
//! Nothing here allocates after `open`.
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use host::arena::{Arena, Buf};
use request::disk::{Disk, FileId, Kind, Op, Tag};

mod locks;
#[cfg(test)]
mod tests;
mod unit;

use locks::Locks;
pub use unit::alignment_of;

/// The engine's unit: every operation is made of these.
const SECTOR: u32 = 512;
/// The largest unit: what the arena's pieces are aligned to.
const UNIT_MAX: u32 = 4096;
/// Bytes of a bounce buffer: the longest operation, and a unit at each end.
pub const BOUNCE_BYTES: u32 = (64 << 10) + 2 * UNIT_MAX;
/// Bounce buffers of a disk normally. Fewer make misaligned operations wait, not stop.
pub const BOUNCES: u32 = 8;
/// Marks the inner disk's tags of operations that have an entry here.
const OURS: Tag = 1 << 31;
/// Files that eight bits can name.
const FILES: usize = 256;
/// Transfers in a row that end at the same byte inside a unit: there the file ends.
const SAME_END: u8 = 3;
/// Transfers in a row that get no whole unit further, before the device is called broken.
const STALLS_MAX: u8 = 16;

/// Bytes of arena for the normal number of bounce buffers.
pub fn reserve_bytes() -> usize {
    (BOUNCES * BOUNCE_BYTES) as usize
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none.
    Free,
    /// Waits for earlier changes of its units.
    Locked,
    /// Waits for a bounce buffer.
    Queued,
    /// With the inner disk as it came.
    Direct,
    /// Its units are being read, for the caller.
    Reading,
    /// Its units are being read, to be written again.
    Filling,
    /// Its units are being written.
    Writing,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    op: Op,
    unit: u32,
    bounce: Buf,
    moved: Moved,
}

impl Entry {
    const FREE: Entry = Entry {
        state: State::Free,
        op: Op { file: FileId(0), kind: Kind::Sync, at: 0, buf: Buf::NONE },
        unit: SECTOR,
        bounce: Buf::NONE,
        moved: Moved::NOTHING,
    };

    /// Bytes of the first unit before the operation's.
    fn head(&self) -> u32 {
        (self.op.at % u64::from(self.unit)) as u32
    }

    /// Where its bytes end in the bounce buffer. Of an operation that is longer than the buffer the
    /// first part is done, and the engine goes on after it.
    fn tail(&self) -> u32 {
        (self.head() + self.op.buf.bytes).min(BOUNCE_BYTES)
    }

    /// Bytes of all units it touches.
    fn total(&self) -> u32 {
        self.tail().next_multiple_of(self.unit)
    }

    /// How many of the caller's bytes lie before `end` of the bounce buffer.
    fn visible(&self, end: u32) -> u32 {
        end.min(self.tail()).saturating_sub(self.head())
    }

    /// The first `bytes` of the operation, in the bounce buffer and in the caller's memory.
    fn parts(&self, bytes: u32) -> (Buf, Buf) {
        (self.bounce.part(self.head(), bytes), self.op.buf.part(0, bytes))
    }

    /// Offset and length, and memory if there is any, are whole units: it can go as it is.
    fn whole(&self) -> bool {
        let unit = self.unit;
        let buf = self.op.buf;
        range(&self.op)
            .is_none_or(|r| r.start % u64::from(unit) == 0 && r.end % u64::from(unit) == 0)
            && buf.offset.is_multiple_of(unit)
    }

    /// It writes bytes that are not its own, here or in the kernel.
    fn rewrites(&self) -> bool {
        let unit = u64::from(self.unit);
        range(&self.op).is_some_and(|r| r.start % unit != 0 || r.end % unit != 0)
    }
}

/// The bytes of the file that an operation is about; `None` for a flush.
fn range(op: &Op) -> Option<std::ops::Range<u64>> {
    let bytes = match op.kind {
        Kind::Read | Kind::Write => u64::from(op.buf.bytes),
        Kind::Zero { bytes, .. } | Kind::Discard { bytes } | Kind::Grow { bytes } => bytes,
        Kind::Sync => return None,
    };
    Some(op.at..op.at.checked_add(bytes).expect("an operation ends before the end of numbers"))
}

/// How far a transfer to or from a bounce buffer got.
#[derive(Clone, Copy, Debug)]
struct Moved {
    /// Whole units that are done, in bytes.
    done: u32,
    /// Where the last transfer ended.
    end: u32,
    same: u8,
    stalls: u8,
}

enum Step {
    /// Again from `done`.
    More,
    /// Over: so many bytes are there, all or up to the end of the file.
    Over(u32),
    /// It gets no further.
    Stuck,
}

impl Moved {
    const NOTHING: Moved = Moved { done: 0, end: 0, same: 0, stalls: 0 };

    /// `bytes` more were moved, of which `enough` are needed.
    fn advance(&mut self, bytes: u32, unit: u32, enough: u32) -> Step {
        let end = self.done + bytes;
        self.same = if end == self.end { self.same + 1 } else { 1 };
        if end >= enough || bytes == 0 || self.same == SAME_END {
            return Step::Over(end);
        }
        let done = end - end % unit;
        self.stalls = if done > self.done { 0 } else { self.stalls + 1 };
        (self.done, self.end) = (done, end);
        if self.stalls > STALLS_MAX { Step::Stuck } else { Step::More }
    }
}

/// A disk over one that takes whole units only.
pub struct Aligned<D: Disk> {
    inner: D,
    /// Unit of each file in bytes.
    units: Box<[u32; FILES]>,
    /// By the engine's tag.
    entries: Box<[Entry]>,
    locks: Locks,
    /// Bounce buffers that nobody uses.
    bounces: Vec<Buf>,
    bounces_max: usize,
    /// Those that wait for one.
    waiting: VecDeque<Tag>,
    /// Results of what needed nothing to be done.
    done: VecDeque<Tag>,
    /// Something was given to the inner disk since the last `submit`, perhaps by `reap`.
    given: bool,
}

impl<D: Disk> Aligned<D> {
    /// Puts itself over `inner`, whose depth is `depth`, with tags below it. `reserve` is the piece
    /// of the arena for bounce buffers, [`reserve_bytes`] normally; without room for one, only
    /// files that take sectors of 512 bytes can be served.
    pub fn open(inner: D, reserve: Buf, depth: u32) -> Aligned<D> {
        assert!(depth < OURS, "a bit of the tag is ours");
        assert!(reserve.offset.is_multiple_of(UNIT_MAX), "bounce buffers are aligned");
        let end = reserve.offset as usize + reserve.bytes as usize;
        assert!(end <= inner.arena_ref().bytes(), "bounce buffers lie in the arena");
        let piece = |i: u32| reserve.part(i * BOUNCE_BYTES, BOUNCE_BYTES);
        let bounces: Vec<Buf> = (0..reserve.bytes / BOUNCE_BYTES).rev().map(piece).collect();
        let depth = depth as usize;
        Aligned {
            inner,
            units: Box::new([SECTOR; FILES]),
            entries: vec![Entry::FREE; depth].into(),
            locks: Locks::new(depth),
            bounces_max: bounces.len(),
            bounces,
            waiting: VecDeque::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            given: false,
        }
    }

    /// Tells what alignment `FileId(i)` needs in bytes (see [`alignment_of`]); those not named need 512.
    /// Called before `set_files`, while nothing is in flight.
    ///
    /// # Errors
    /// EINVAL for what cannot be served; nothing is changed.
    pub fn set_alignments(&mut self, units: &[u32]) -> io::Result<()> {
        let idle = self.entries.iter().all(|e| e.state == State::Free);
        assert!(idle, "alignments change only while nothing is in flight");
        let mut all = [SECTOR; FILES];
        for (slot, unit) in all.iter_mut().zip(units) {
            *slot = self.checked(*unit)?;
        }
        *self.units = all;
        Ok(())
    }

    fn checked(&self, unit: u32) -> io::Result<u32> {
        let unit = unit.max(SECTOR);
        let text = if !unit.is_power_of_two() || unit > UNIT_MAX {
            format!("a file needs operations of {unit} bytes; {SECTOR} to {UNIT_MAX} are served")
        } else if unit > SECTOR && self.bounces_max == 0 {
            format!("a file needs operations of {unit} bytes, and no memory was reserved for that")
        } else {
            return Ok(unit);
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// The disk below.
    pub fn inner(&mut self) -> &mut D {
        &mut self.inner
    }

    /// The disk below, to look at.
    pub fn inner_ref(&self) -> &D {
        &self.inner
    }

    /// Gives the disk below back.
    pub fn into_inner(self) -> D {
        self.inner
    }

    /// Plants the bug that the locks are there for, which the simulator has to find.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn without_locks(&mut self) {
        self.locks.on = false;
    }

    // ---- the way down --------------------------------------------------------------------------

    /// An operation on a file of large units.
    fn admit(&mut self, tag: Tag, mut op: Op, unit: u32) {
        if let Kind::Discard { bytes } = op.kind {
            let (at, bytes) = whole_inside(op.at, bytes, unit);
            (op.at, op.kind) = (at, Kind::Discard { bytes });
            if bytes == 0 {
                return self.done.push_back(tag);
            }
        }
        let entry = Entry { state: State::Locked, op, unit, ..Entry::FREE };
        let slot = self.entries.get_mut(tag as usize).expect("tags are below the depth");
        assert!(slot.state == State::Free, "a tag is used once at a time");
        *slot = entry;
        let changes = match op.kind {
            Kind::Read => false,
            Kind::Write | Kind::Zero { .. } | Kind::Discard { .. } => true,
            Kind::Sync | Kind::Grow { .. } => unreachable!("these go straight through"),
        };
        if !changes || self.lock(tag, &entry) {
            self.begin(tag);
        }
    }

    fn lock(&mut self, tag: Tag, e: &Entry) -> bool {
        let unit = u64::from(e.unit);
        let r = range(&e.op).expect("what changes has a range");
        let units = r.start - r.start % unit..r.end.next_multiple_of(unit);
        self.locks.take(tag, e.op.file, units, e.rewrites())
    }

    /// Nothing stands in the way any more, except perhaps the lack of a buffer.
    fn begin(&mut self, tag: Tag) {
        let e = &mut self.entries[tag as usize];
        let data = matches!(e.op.kind, Kind::Read | Kind::Write);
        if !data || e.whole() {
            e.state = State::Direct;
            let op = e.op;
            return self.give(tag, op);
        }
        match self.bounces.pop() {
            Some(bounce) => self.carry(tag, bounce),
            None => {
                e.state = State::Queued;
                self.waiting.push_back(tag);
            }
        }
    }

    /// Begins an operation through a bounce buffer.
    fn carry(&mut self, tag: Tag, bounce: Buf) {
        let e = &mut self.entries[tag as usize];
        e.bounce = bounce;
        let parts = e.head() != 0 || !e.tail().is_multiple_of(e.unit);
        e.state = match (e.op.kind == Kind::Read, parts) {
            (true, _) => State::Reading,
            (false, true) => State::Filling,
            (false, false) => return self.write_back(tag),
        };
        self.transfer(tag);
    }

    /// The units are in the bounce buffer: the operation's bytes go in, and all is written.
    fn write_back(&mut self, tag: Tag) {
        let e = &mut self.entries[tag as usize];
        let (there, here) = e.parts(e.visible(BOUNCE_BYTES));
        (e.state, e.moved) = (State::Writing, Moved::NOTHING);
        self.inner.arena().copy(here, there);
        self.transfer(tag);
    }

    /// Gives the inner disk what is left of a transfer of units.
    fn transfer(&mut self, tag: Tag) {
        let e = &self.entries[tag as usize];
        let (done, total) = (e.moved.done, e.total());
        let kind = if e.state == State::Writing { Kind::Write } else { Kind::Read };
        let at = e.op.at - u64::from(e.head()) + u64::from(done);
        let buf = e.bounce.part(done, total - done);
        let op = Op { file: e.op.file, kind, at, buf };
        self.give(tag, op);
    }

    fn give(&mut self, tag: Tag, op: Op) {
        self.given = true;
        self.inner.push(tag | OURS, op);
    }

    // ---- the way up ----------------------------------------------------------------------------

    /// Takes a result of the inner disk. `None` if the operation goes on.
    fn proceed(&mut self, tag: Tag, result: Result<u32, i32>) -> Option<Result<u32, i32>> {
        let e = &mut self.entries[tag as usize];
        let (n, enough) = match (e.state, result) {
            (State::Free | State::Locked | State::Queued, _) => {
                unreachable!("a result belongs to what the inner disk was given")
            }
            (State::Direct, Err(libc::EINVAL)) if by_hand_instead(e) => {
                return Some(Err(libc::EOPNOTSUPP));
            }
            (State::Direct, _) | (_, Err(_)) => return Some(result),
            (State::Reading, Ok(n)) => (n, e.tail()),
            (State::Filling | State::Writing, Ok(n)) => (n, e.total()),
        };
        match e.moved.advance(n, e.unit, enough) {
            Step::More => {
                self.transfer(tag);
                None
            }
            Step::Over(end) => self.moved(tag, end),
            Step::Stuck => Some(Err(libc::EIO)),
        }
    }

    /// A transfer is over: the first `end` bytes of the units are in the bounce buffer, or in the
    /// file.
    fn moved(&mut self, tag: Tag, end: u32) -> Option<Result<u32, i32>> {
        let e = self.entries[tag as usize];
        let visible = e.visible(end);
        match e.state {
            State::Reading => {
                let (there, here) = e.parts(visible);
                self.inner.arena().copy(there, here);
                Some(Ok(visible))
            }
            State::Filling => {
                // What lies behind the end of the file reads as zeros when the file is longer.
                let behind = e.bounce.part(end, e.total() - end);
                self.inner.arena().slice_mut(behind).fill(0);
                self.write_back(tag);
                None
            }
            State::Writing => Some(Ok(visible)),
            State::Free | State::Locked | State::Queued | State::Direct => {
                unreachable!("it moves nothing")
            }
        }
    }

    /// Gives back what an operation held, to those that waited for it.
    fn finish(&mut self, tag: Tag) {
        let e = std::mem::replace(&mut self.entries[tag as usize], Entry::FREE);
        if e.bounce != Buf::NONE {
            match self.waiting.pop_front() {
                Some(next) => self.carry(next, e.bounce),
                None => self.bounces.push(e.bounce),
            }
        }
        if e.op.kind != Kind::Read {
            self.locks.release(tag);
            while let Some(next) = self.locks.woken() {
                self.begin(next);
            }
        }
    }
}

/// A device refuses to zero parts of units; the engine then writes zeros, and those writes are
/// aligned here. A file takes any range.
fn by_hand_instead(e: &Entry) -> bool {
    matches!(e.op.kind, Kind::Zero { .. }) && e.rewrites()
}

/// The whole units inside a range: offset and length.
fn whole_inside(at: u64, bytes: u64, unit: u32) -> (u64, u64) {
    let unit = u64::from(unit);
    let (from, end) = (at.next_multiple_of(unit), at + bytes);
    (from, (end - end % unit).saturating_sub(from))
}

impl<D: Disk> Disk for Aligned<D> {
    fn push(&mut self, tag: Tag, op: Op) {
        let unit = self.units[usize::from(op.file.0)];
        if unit == SECTOR || matches!(op.kind, Kind::Sync | Kind::Grow { .. }) {
            return self.inner.push(tag, op);
        }
        self.admit(tag, op, unit);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.given = false;
        self.inner.submit()
    }

    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        if let Some(tag) = self.done.pop_front() {
            return Some((tag, Ok(0)));
        }
        // Each round takes a result of the inner disk, which makes none before the next `submit`.
        loop {
            let (tag, result) = self.inner.reap()?;
            if tag & OURS == 0 {
                return Some((tag, result));
            }
            let tag = tag & !OURS;
            if let Some(outcome) = self.proceed(tag, result) {
                self.finish(tag);
                return Some((tag, outcome));
            }
        }
    }

    /// Also true when `reap` has given the inner disk the next part of something: the caller goes
    /// round once more and submits it before it sleeps.
    fn has_finished(&self) -> bool {
        self.given || !self.done.is_empty() || self.inner.has_finished()
    }

    fn arena(&mut self) -> &mut Arena {
        self.inner.arena()
    }

    fn arena_ref(&self) -> &Arena {
        self.inner.arena_ref()
    }

    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        self.inner.set_files(fds)
    }

    fn wake_fd(&self) -> RawFd {
        self.inner.wake_fd()
    }

    fn submit_and_wait(&mut self, watch: RawFd, timeout: Duration) -> Option<io::Result<()>> {
        if !self.done.is_empty() {
            return Some(self.submit());
        }
        self.given = false;
        self.inner.submit_and_wait(watch, timeout)
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
