//! A commit of the top to its parent while the disk is in use (docs/commit.md).
//!
//! ```text
//!   changes ─► base ─► top                       as with a mirror
//!   piece   ─► looked for in the top ─► read ─► written into base ─► next … ─► flush ─► concluded
//! ```
//! The top hides everything that is written into base, so a reader sees no difference, and a base
//! that fails costs the commit alone. Pieces are slots that nobody asked for: at most four of
//! the large ones, so they need no memory of their own. A guest's change and a piece exclude each
//! other as with the local cache: what a change touches meanwhile is not written by the piece, as
//! the change itself goes to base; and a change waits for a piece that is being written. After the
//! end changes go to both until the chain is taken away, so that either may be the disk from then
//! on.
use image::{Place, Purpose, Span, Stop};

use crate::cache::Local;
use crate::chain::{Chain, Found};
use crate::limits::LARGE_BYTES;
use crate::sets::SlotSet;
use crate::slot::{Slot, State};
use crate::{Bug, Engine};
use request::disk::{Disk, FileId};
use request::{Owner, Request, SlotId, Verb};

/// Pieces that are at work at once.
const PIECES: u16 = 4;
/// Sectors of a piece at most.
const PIECE: u32 = LARGE_BYTES / 512;
/// Sectors that one question is about at most.
const ASKED: u64 = 1 << 24;
/// Runs that are looked at before others have their turn.
const RUNS_MAX: u32 = 8;

/// Where a commit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// There is none.
    #[default]
    Off,
    /// Pieces are written.
    Copying,
    /// All are, and the flush is under way.
    Flushing,
    /// Base holds the disk, and gets every change as the top does.
    Concluded,
    /// It was given up: base gets nothing more. Positive errno.
    Failed(i32),
}

/// A commit.
#[derive(Debug, Default)]
pub struct Commit {
    stage: Stage,
    base: Option<FileId>,
    /// The first sector that no piece has.
    next: u64,
    /// All sectors.
    end: u64,
    /// When all pieces were over, in the order of requests.
    copied: Option<u64>,
    /// Pieces at work.
    busy: u16,
    /// No new piece begins: the disk is to come to rest.
    held: bool,
    /// The last large slot that came free was left to the guest.
    left_one: bool,
}

impl Commit {
    /// What the roles of a chain ask for.
    pub fn of(chain: &Chain) -> Commit {
        let base = chain.secondary().filter(|secondary| secondary.purpose == Purpose::Base);
        let stage = if base.is_some() { Stage::Copying } else { Stage::Off };
        let base = base.map(|base| base.file);
        Commit { stage, base, end: chain.sectors(), ..Commit::default() }
    }

    /// The image that is committed to.
    pub fn base(&self) -> Option<FileId> {
        self.base
    }

    /// Whether base may be the disk from now on.
    pub fn is_concluded(&self) -> bool {
        self.stage == Stage::Concluded
    }

    /// Whether it was given up, and this is the image: nothing more begins there.
    #[inline]
    pub fn has_lost(&self, file: FileId) -> bool {
        matches!(self.stage, Stage::Failed(_)) && self.base == Some(file)
    }

    /// Whether a failure ends it.
    fn can_fail(&self) -> bool {
        matches!(self.stage, Stage::Copying | Stage::Flushing)
    }

    /// No new piece begins, or pieces begin again.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Whether there are pieces.
    pub fn has_pieces(&self) -> bool {
        self.busy > 0
    }

    /// Whether there are, or will be.
    pub fn wants_care(&self) -> bool {
        self.busy > 0 || self.stage == Stage::Copying
    }

    fn wants_slot(&self) -> bool {
        let more = self.busy == 0 || (self.next < self.end && self.busy < PIECES);
        self.stage == Stage::Copying && !self.held && more
    }
}

impl<D: Disk> Engine<D> {
    /// Where the commit is, and how many sectors of the top have been looked at.
    pub fn commit(&self) -> (Stage, u64) {
        (self.commit.stage, self.commit.next)
    }

    /// Whether pieces are at work.
    pub fn has_pieces(&self) -> bool {
        self.commit.has_pieces()
    }

    /// Gives the commit up, unless it is over: base gets nothing more.
    #[cold]
    #[inline(never)]
    pub fn give_up_commit(&mut self, errno: i32) {
        if !self.commit.can_fail() {
            return;
        }
        self.commit.stage = Stage::Failed(errno);
        if let Some(chain) = &mut self.map.chain {
            chain.lose_second();
        }
        // It is flushed on, for the plans that are at work there: it stays a parent.
    }

    /// A change was to go to a base that gets nothing more.
    #[cold]
    #[inline(never)]
    pub(super) fn pass_lost_base(&mut self, id: SlotId) {
        match self.slot(id).local.commits {
            true => self.complete(id),
            false => self.retarget(id),
        }
    }

    /// A request has failed. Where base has the change and the top has not they would differ.
    #[cold]
    #[inline(never)]
    pub(super) fn a_change_failed(&mut self, id: SlotId) {
        let slot = self.slot(id);
        let on_top = slot.request.verb.changes() && slot.target == self.map.top();
        if let Some(errno) = slot.error.filter(|_| on_top) {
            self.give_up_commit(errno);
        }
    }

    /// Whether a piece could begin now.
    #[inline]
    pub(super) fn can_begin_piece(&self) -> bool {
        self.commit.stage == Stage::Copying && self.could_begin_piece()
    }

    #[cold]
    #[inline(never)]
    fn could_begin_piece(&self) -> bool {
        self.commit.wants_slot() && !self.table.large_free.is_empty()
    }

    /// Gives free slots to pieces.
    pub(super) fn begin_pieces(&mut self) {
        while self.can_begin_piece() {
            let id = self.table.large_free.pop().expect("there is one");
            self.begin_piece(SlotId(id));
        }
    }

    /// A large slot has come free: whether it goes to a piece. Where there are never free ones each
    /// second does, so that guest and commit both go on.
    #[inline]
    pub(super) fn passes_to_piece(&mut self, id: SlotId) -> bool {
        self.commit.stage == Stage::Copying && self.takes_its_turn(id)
    }

    #[cold]
    #[inline(never)]
    fn takes_its_turn(&mut self, id: SlotId) -> bool {
        if !self.commit.wants_slot() {
            return false;
        }
        self.commit.left_one = !self.commit.left_one;
        if !self.commit.left_one {
            self.begin_piece(id);
        }
        !self.commit.left_one
    }

    #[cold]
    #[inline(never)]
    fn begin_piece(&mut self, id: SlotId) {
        let local = Local { commits: true, ..Local::default() };
        let since = self.io.now;
        self.table[id] = Slot { state: State::Piece, since, local, ..Slot::free() };
        self.commit.busy += 1;
        self.table.begin(id);
    }

    /// Looks for the next piece.
    #[cold]
    #[inline(never)]
    pub(super) fn piece_on(&mut self, id: SlotId) {
        if let Some(errno) = self.slot(id).error {
            self.give_up_commit(errno);
        }
        if self.commit.stage != Stage::Copying || self.commit.held {
            return self.end_piece(id);
        }
        // Nothing is being read yet, so nobody has to wait for it.
        self.table[id].seq = self.table.next_seq();
        let (top, end) = (self.map.top(), self.commit.end);
        for _ in 0..RUNS_MAX {
            let start = self.commit.next;
            if start >= end {
                return self.last_piece(id);
            }
            let count = (end - start).min(ASKED);
            let span = Span { start, count: u32::try_from(count).expect("it fits") };
            let (mut views, chain) = self.views();
            let run = match chain.map_one(&mut views, top, span).expect("inside the disk") {
                Ok(run) => run,
                Err(stop) => return self.stop(id, top, stop),
            };
            let span = span.first(run.count);
            match run.place {
                Place::Below => self.commit.next = span.end(),
                Place::At { .. } | Place::Packed(_) => {
                    return self.take_piece(id, span.first(PIECE), Verb::Read);
                }
                Place::Zero if self.rules.bug == Bug::ZerosNotCommitted => {
                    self.commit.next = span.end();
                }
                Place::Zero => match self.below_piece(span) {
                    Err((file, stop)) => return self.stop(id, file, stop),
                    // Below it are zeros as well.
                    Ok((Found::Zero, count)) if self.certain(1, span.first(count)) => {
                        self.commit.next = span.first(count).end();
                    }
                    Ok((_, count)) => {
                        let zero = Verb::Zero { keep: false, fast: false, fua: false };
                        return self.take_piece(id, span.first(count.min(PIECE)), zero);
                    }
                },
            }
        }
    }

    /// What lies below the top.
    #[inline(never)]
    fn below_piece(&mut self, span: Span) -> Result<(Found, u32), (FileId, Stop)> {
        self.map(1, span)
    }

    /// From here on the slot is one of a request of our own: data is read first, zeros are written
    /// at once.
    fn take_piece(&mut self, id: SlotId, span: Span, verb: Verb) {
        self.commit.next = span.end();
        let target = self.map.top();
        let slot = &mut self.table[id];
        slot.request = Request { verb: Verb::Read, span, owner: Owner::default() };
        (slot.cursor, slot.target, slot.coded) = (0, target, 0);
        slot.taken_over = false;
        slot.local = Local { commits: true, ..Local::default() };
        slot.state = State::Dispatch;
        self.note_overlaps(id);
        if verb != Verb::Read {
            self.table[id].local.note(0, span.count);
            self.write_piece(id, verb);
        }
    }

    fn write_piece(&mut self, id: SlotId, verb: Verb) {
        let (seq, base) = (self.table.next_seq(), self.commit.base.expect("there is a commit"));
        let slot = &mut self.table[id];
        (slot.request.verb, slot.cursor, slot.target, slot.coded) = (verb, 0, base, 0);
        (slot.seq, slot.local.writing, slot.state) = (seq, true, State::Dispatch);
    }

    /// A piece was read, written or flushed, well or badly.
    #[cold]
    #[inline(never)]
    pub(super) fn piece_done(&mut self, id: SlotId) {
        assert!(self.slot(id).pending == 0, "nothing is left behind");
        let slot = &mut self.table[id];
        let (verb, error) = (slot.request.verb, slot.error);
        if std::mem::take(&mut slot.local.writing) {
            // Changes wait for it.
            self.table.progress = true;
        } else if error.is_none() && verb == Verb::Read && slot.local.wanted() != 0 {
            return match self.commit.stage {
                Stage::Copying => self.write_piece(id, Verb::Write { fua: false }),
                _ => self.end_piece(id),
            };
        }
        if let Some(errno) = error {
            self.give_up_commit(errno);
        } else if verb == Verb::Flush && self.commit.stage == Stage::Flushing {
            self.commit.stage = Stage::Concluded;
        }
        let others_wait = self.table.large_free.is_empty();
        if self.commit.stage != Stage::Copying || others_wait {
            return self.end_piece(id);
        }
        let slot = &mut self.table[id];
        (slot.state, slot.request) = (State::Piece, Slot::free().request);
    }

    /// There is nothing left to look at. Whoever is the last makes sure that all is on the disk.
    fn last_piece(&mut self, id: SlotId) {
        if self.commit.busy > 1 {
            return self.end_piece(id);
        }
        // What changes took from the pieces is in base when these are over.
        let seq = self.slot(id).seq;
        let copied = *self.commit.copied.get_or_insert(seq);
        let mut working = match self.rules.bug == Bug::ConcludedBesideChanges {
            true => SlotSet::EMPTY,
            false => self.table.working,
        };
        let older = std::iter::from_fn(|| working.pop()).map(|other| self.slot(other));
        if older.into_iter().any(|other| other.request.verb.changes() && other.seq < copied) {
            return self.retry_later(id);
        }
        if self.rules.bug == Bug::ConcludedTooEarly {
            self.commit.stage = Stage::Concluded;
            return self.end_piece(id);
        }
        self.commit.stage = Stage::Flushing;
        self.table[id].request.verb = Verb::Flush;
        self.sync(id);
    }

    #[cold]
    #[inline(never)]
    fn end_piece(&mut self, id: SlotId) {
        self.table.end(id);
        self.commit.busy -= 1;
        self.watch();
        let slot = &mut self.table[id];
        (slot.local, slot.state, slot.error) = (Local::default(), State::Free, None);
        self.table.large_free.push(id.0);
    }
}
