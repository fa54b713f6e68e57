//! What is done next, and in which order: a pure machine that hands out jobs and is told how they
//! ended. It never does I/O; threads run its jobs, and the simulator does, with power cuts.
//!
//! ```text
//!   Move chunk ─┐
//!   Move chunk ─┼─► landed ─► Flush ─► Write (bitmaps, table) ─► settled … ─► Flush ─► closing
//!   Move chunk ─┘                                                               (footers, batmap)
//! ```
//! Moves go on while a batch that landed is flushed and its metadata written. So on the disk
//! nothing ever points at data that is not there: the daemon's crash order (spec/vhd.md §10), a
//! batch at a time. What was killed in between is started again from the beginning: the layers
//! still hide the target.
use std::collections::{BTreeMap, VecDeque};

use super::mask::Mask;
use super::target::{Moved, Place};
use crate::bat::{self, UNUSED};
use crate::batmap;
use crate::error::VhdError;
use crate::open::Opened;

/// Chunks whose metadata is written together.
const BATCH: usize = 64;
/// Table entries in a sector.
const PER_SECTOR: u32 = 128;

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Move a chunk into its place.
    Move {
        /// The chunk.
        chunk: u32,
        /// Where it goes.
        place: Place,
    },
    /// Wait until everything that landed is on the disk.
    Flush,
    /// Write these pieces, in any order.
    Write(Vec<(u64, Vec<u8>)>),
}

/// The answer to "what now?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This.
    Do(Job),
    /// Something that is at work must end first.
    Wait,
    /// Nothing; all of it is on the disk but the closing writes.
    Over,
}

/// A chunk whose data has been written.
#[derive(Clone, Debug)]
struct Landed {
    chunk: u32,
    lba: u32,
    /// The table must point at it.
    new: bool,
    bitmap: Option<Mask>,
    full: bool,
}

/// What the batch that landed first is at.
#[derive(Debug)]
enum Commit {
    Idle,
    Flushing(Vec<Landed>),
    Flushed(Vec<Landed>),
    Writing(Vec<Landed>),
    /// The last flush, after which the closing writes may follow.
    Settling,
    Settled,
}

/// Table of a target with blocks.
pub(super) struct Table {
    opened: Opened,
    bat: Vec<u32>,
    full: Vec<u8>,
    next_lba: u64,
    /// Places that were handed out and not needed.
    spare: Vec<u32>,
    /// The byte a block must end at or before, on a device.
    limit: Option<u64>,
}

/// The machine.
pub(super) struct Machine {
    chunks: VecDeque<u32>,
    table: Option<Table>,
    moving: Vec<u32>,
    landed: Vec<Landed>,
    commit: Commit,
    /// The first failure; no chunk is begun after it.
    failed: Option<VhdError>,
    /// The metadata on the disk is not known: nothing more may be written.
    lost: bool,
    changed: bool,
    name: std::path::PathBuf,
    pub(super) sectors: u64,
    pub(super) bytes: u64,
    pub(super) chunks_done: u32,
}

impl Table {
    /// The table of an image that was opened for writing.
    pub(super) fn new(mut opened: Opened) -> Table {
        let bat = std::mem::take(&mut opened.bat);
        let full = std::mem::take(&mut opened.full);
        let limit = opened.device.then(|| opened.file_bytes.saturating_sub(512));
        Table {
            next_lba: opened.end_of_data.div_ceil(512),
            spare: if opened.device { gaps(&opened, &bat) } else { Vec::new() },
            bat,
            full,
            limit,
            opened,
        }
    }

    fn stride(&self) -> u64 {
        (self.opened.bitmap_bytes() + self.opened.block_bytes()) / 512
    }

    /// The byte that the file reaches to if this many blocks are added.
    pub(super) fn end_with(&self, blocks: u64) -> u64 {
        // Every block may need a page more so that its data begins at one.
        self.next_lba.saturating_add(blocks.saturating_mul(self.stride() + 7)).saturating_mul(512)
    }

    /// How many of these blocks are not there yet.
    pub(super) fn missing(&self, chunks: &[u32]) -> u64 {
        chunks.iter().filter(|c| self.entry(**c) == UNUSED).count() as u64
    }

    /// Makes an image ready to be written, and a file for that many more blocks: what lies behind
    /// its last block, such as the trailing footer or leavings of a crash, must not show up in new
    /// blocks. A footer at the far end stands for the image until it is closed. Whether the file
    /// was made longer.
    ///
    /// # Errors
    /// Those of the file, ENOSPC before anything is lost.
    pub(super) fn ready(
        &mut self,
        medium: &dyn super::medium::Medium,
        name: &std::path::Path,
        blocks: u64,
    ) -> Result<bool, VhdError> {
        self.opened.bat = std::mem::take(&mut self.bat);
        let healed = crate::heal(medium, name, &mut self.opened, 512);
        self.bat = std::mem::take(&mut self.opened.bat);
        healed?;
        if blocks == 0 || self.opened.device {
            return Ok(false);
        }
        let (end, far) = (self.opened.end_of_data, self.end_with(blocks));
        let failed = |doing| move |e: std::io::Error| VhdError::io(name, doing, end, &e);
        let footer = self.opened.footer.encode();
        medium.write_at(far, &footer).map_err(failed("make the file longer"))?;
        medium.sync().map_err(failed("make the file longer"))?;
        medium.write_at(end, &[0; 512]).map_err(failed("write zeros"))?;
        Ok(true)
    }

    fn entry(&self, block: u32) -> u32 {
        self.bat.get(block as usize).copied().unwrap_or(UNUSED)
    }

    /// A place for a new block.
    fn place(&mut self) -> Option<Place> {
        if let Some(lba) = self.spare.pop() {
            return Some(Place::New { lba, lead: false });
        }
        let lba = aligned(self.next_lba);
        let end = lba + self.stride();
        if end > u64::from(UNUSED) || self.limit.is_some_and(|limit| end * 512 > limit) {
            return None;
        }
        let lead = lba - 7 >= self.next_lba;
        self.next_lba = end;
        Some(Place::New { lba: lba as u32, lead })
    }

    fn sector_bytes(&self, sector: u32) -> Vec<u8> {
        let entries = self.bat.iter().chain(&self.opened.bat_tail);
        let from = (sector * PER_SECTOR) as usize;
        bat::encode(entries.skip(from).take(PER_SECTOR as usize).copied())
    }
}

/// The next LBA whose data begins on a 4 KiB boundary (spec/vhd.md §6).
pub(super) fn aligned(lba: u64) -> u64 {
    (lba + 1).next_multiple_of(8) - 1
}

/// Room between blocks: on a device space is scarce, and stale bytes under clear bits do no harm.
fn gaps(opened: &Opened, bat: &[u32]) -> Vec<u32> {
    let stride = (opened.bitmap_bytes() + opened.block_bytes()) / 512;
    let mut used: Vec<u64> = bat.iter().filter(|e| **e != UNUSED).map(|e| u64::from(*e)).collect();
    used.sort_unstable();
    let mut out = Vec::new();
    for pair in used.windows(2) {
        let mut lba = aligned(pair[0] + stride);
        while lba + stride <= pair[1] {
            out.push(lba as u32);
            lba = aligned(lba + stride);
        }
    }
    out.reverse();
    out
}

impl Machine {
    /// A machine that moves these chunks into an image with a table, or without.
    pub(super) fn new(name: &std::path::Path, chunks: Vec<u32>, table: Option<Table>) -> Machine {
        Machine {
            chunks: chunks.into(),
            table,
            moving: Vec::new(),
            landed: Vec::new(),
            commit: Commit::Idle,
            failed: None,
            lost: false,
            changed: false,
            name: name.into(),
            sectors: 0,
            bytes: 0,
            chunks_done: 0,
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self) -> Next {
        if let Some(job) = self.commit_job() {
            return Next::Do(job);
        }
        if let (None, Some(chunk)) = (&self.failed, self.chunks.front().copied()) {
            if let Some(place) = self.place_of(chunk) {
                self.chunks.pop_front();
                self.moving.push(chunk);
                return Next::Do(Job::Move { chunk, place });
            }
            if self.failed.is_some() {
                return self.next();
            }
        }
        match self.commit {
            Commit::Settled => Next::Over,
            Commit::Idle | Commit::Flushing(_) | Commit::Flushed(_) => Next::Wait,
            Commit::Writing(_) | Commit::Settling => Next::Wait,
        }
    }

    /// A step of the commit, if one can be made.
    fn commit_job(&mut self) -> Option<Job> {
        let idle = self.moving.is_empty() && (self.chunks.is_empty() || self.failed.is_some());
        match std::mem::replace(&mut self.commit, Commit::Idle) {
            Commit::Idle if self.lost && idle => self.commit = Commit::Settled,
            Commit::Idle if self.landed.len() >= BATCH || (idle && !self.landed.is_empty()) => {
                self.commit = Commit::Flushing(std::mem::take(&mut self.landed));
                return Some(Job::Flush);
            }
            Commit::Idle if idle && self.changed => {
                self.commit = Commit::Settling;
                return Some(Job::Flush);
            }
            Commit::Idle if idle => self.commit = Commit::Settled,
            Commit::Flushed(batch) => {
                let job = Job::Write(self.metadata(&batch));
                self.commit = Commit::Writing(batch);
                return Some(job);
            }
            other => self.commit = other,
        }
        None
    }

    /// Bitmaps of a batch, and the table sectors that point at its new blocks.
    fn metadata(&mut self, batch: &[Landed]) -> Vec<(u64, Vec<u8>)> {
        let mut writes = Vec::new();
        for done in batch {
            let at = u64::from(done.lba) * 512;
            writes.extend(done.bitmap.as_ref().map(|bits| (at, bits.bitmap())));
        }
        let Some(table) = &mut self.table else { return writes };
        let mut sectors = BTreeMap::new();
        for done in batch.iter().filter(|done| done.new) {
            if let Some(entry) = table.bat.get_mut(done.chunk as usize) {
                *entry = done.lba;
            }
            sectors.insert(done.chunk / PER_SECTOR, ());
        }
        let at = table.opened.header.as_ref().map_or(0, |h| h.table_offset);
        for sector in sectors.into_keys() {
            writes.push((at + u64::from(sector) * 512, table.sector_bytes(sector)));
        }
        writes
    }

    /// Where a chunk goes; `None` while nothing can be said because there is no room.
    fn place_of(&mut self, chunk: u32) -> Option<Place> {
        let Some(table) = &mut self.table else { return Some(Place::Flat) };
        let lba = table.entry(chunk);
        if lba != UNUSED {
            return Some(Place::There { lba, full: batmap::is_full(&table.full, chunk) });
        }
        let place = table.place();
        if place.is_none() && self.moving.is_empty() {
            let why = "there is no room for another block; make the volume larger";
            self.fail(VhdError::request(&self.name.clone(), 28, why));
        }
        place
    }

    /// A chunk has been moved, or not.
    pub(super) fn moved(&mut self, chunk: u32, place: Place, result: Result<Moved, VhdError>) {
        self.moving.retain(|c| *c != chunk);
        let moved = match result {
            Ok(moved) => moved,
            Err(e) => return self.fail(e),
        };
        self.chunks_done += 1;
        self.sectors += u64::from(moved.sectors);
        self.bytes += moved.bytes;
        self.changed |= moved.sectors > 0;
        let (bitmap, full) = (moved.bitmap, moved.full);
        match place {
            Place::Flat => {}
            Place::There { lba, .. } => {
                let known = |t: &Table| batmap::is_full(&t.full, chunk);
                if bitmap.is_some() || (full && !self.table.as_ref().is_some_and(known)) {
                    self.landed.push(Landed { chunk, lba, new: false, bitmap, full });
                }
            }
            Place::New { lba, .. } if moved.used => {
                self.landed.push(Landed { chunk, lba, new: true, bitmap, full });
            }
            Place::New { lba, .. } => {
                if let Some(table) = &mut self.table {
                    table.spare.push(lba);
                }
            }
        }
    }

    /// A flush has ended.
    pub(super) fn flushed(&mut self, result: Result<(), VhdError>) {
        match (std::mem::replace(&mut self.commit, Commit::Idle), result) {
            (Commit::Flushing(batch), Ok(())) => self.commit = Commit::Flushed(batch),
            (Commit::Settling, Ok(())) => self.commit = Commit::Settled,
            (_, Ok(())) => unreachable!("only what was asked for ends"),
            (_, Err(e)) => self.lose(e),
        }
    }

    /// The metadata of a batch has been written.
    pub(super) fn written(&mut self, result: Result<(), VhdError>) {
        let batch = match (std::mem::replace(&mut self.commit, Commit::Idle), result) {
            (Commit::Writing(batch), Ok(())) => batch,
            (_, Ok(())) => unreachable!("only what was asked for ends"),
            (_, Err(e)) => return self.lose(e),
        };
        let Some(table) = &mut self.table else { return };
        for done in batch.iter().filter(|done| done.full) {
            batmap::set_full(&mut table.full, done.chunk);
        }
    }

    /// The image was changed before the first job, so that closing writes are due in any case.
    pub(super) fn begun(&mut self, result: Result<(), VhdError>) {
        self.changed = true;
        if let Err(e) = result {
            self.fail(e);
        }
    }

    fn fail(&mut self, e: VhdError) {
        self.failed.get_or_insert(e);
    }

    /// What the disk holds is not known any more: as after a crash, the copy of the footer at 0 and
    /// the table stand for themselves, and nothing more is written.
    fn lose(&mut self, e: VhdError) {
        self.landed.clear();
        self.lost = true;
        self.fail(e);
    }

    /// The first chunk that is not behind us; `None` when all are.
    pub(super) fn first_open(&self) -> Option<u32> {
        let waiting = self.chunks.front().copied();
        self.moving.iter().copied().chain(waiting).min()
    }

    /// The closing writes, if there are any, and the first failure.
    pub(super) fn close(self) -> (Option<image::Closing>, Option<VhdError>) {
        let closing = match &self.table {
            Some(table) if self.changed && !self.lost => {
                Some(crate::closing(&table.opened, &table.bat, &table.full))
            }
            _ => None,
        };
        (closing, self.failed)
    }
}
