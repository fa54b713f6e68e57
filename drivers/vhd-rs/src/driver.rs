//! The I/O driver of VHD: pure, over the BAT in memory and bitmaps in somebody's cache.
//!
//! A block of the disk is either not in the file (its BAT entry is unused) or is a bitmap sector
//! followed by its data. The crash order of every change (spec/vhd.md §10), as plans:
//! ```text
//!   overwrite, bits set     data
//!   new sectors of a block  data                       ─► bitmap sector
//!   new block               data ∥ bitmap with bits    ─► BAT sector     (at a clear place)
//!   give a block back       BAT sector                 ─► hole
//!   clear places            bitmaps of zeros           ─► (a flush)
//! ```
//! Nothing on the disk points at a new block before its bitmap and data are there, so it needs no
//! zeroing: a sector counts only where its bit is set. A request that finds a bit set which is not
//! on the disk yet joins the write of that bitmap, so its answer cannot come before it.
//!
//! No block is marked full in the batmap of an image that is being written ([`crate::heal()`]):
//! found again at the same place with fewer sectors, a mark would bring back what was zeroed.
//!
//! A new block goes to a clear place: one that no table on the medium points at, and whose bitmap
//! is zeros there. So even if a volatile cache lets the table reach the medium first and then loses
//! the rest, no sector but those just written changes. Where a file was made longer a place is
//! clear as it is. Any other place is cleared when nobody can be reading there any more, and counts
//! from the next flush on; that flush also brings the table to the medium that took a block away
//! from the place, be it this session's or that of a process that was killed. Several places are
//! cleared at once, so that a flush is asked for once in sixteen new blocks at most, and not at all
//! where the guest flushes often enough.
use std::cell::Cell;

use image::{
    Action, Closing, FileRange, Image, Meta, MetaList, MetaRef, Order, Place, Plan, Run, Span,
    Step, Stop, Want,
};

use crate::open::Opened;

/// BAT entry of a block that is not in the file.
pub const UNUSED: u32 = u32::MAX;

/// Bytes of a bitmap, and of a BAT sector.
const SECTOR: u64 = 512;
/// BAT entries in a sector.
const PER_SECTOR: u64 = 128;
/// Blocks looked at in one answer for a long span.
const BLOCKS_MAX: u32 = 1024;
/// Requests that can have plans at work at once, twice over.
const USERS_MAX: usize = 1024;
/// Blocks given back that are remembered; further ones are found again at the next open.
const FREED_MAX: usize = 1024;
/// Places that are cleared ahead.
const CLEAR_MAX: usize = 16;
/// Places that one plan clears.
const CLEARED_AT_ONCE: usize = 3;

/// An open VHD.
pub struct Vhd {
    opened: Opened,
    sectors: u64,
    block_sectors: u32,
    table_at: u64,
    /// One entry a block; what is on the disk.
    bat: Vec<u32>,
    /// Blocks all of whose sectors are there, on the disk: the bitmap need not be read.
    full: Vec<Cell<u8>>,
    /// Blocks with plans at work.
    users: Vec<User>,
    /// For each BAT sector the number of the last write of it that failed, 0 if none did: the disk
    /// may hold something else than memory. Settled by writing it with the next change that relies
    /// on it.
    doubts: Vec<u32>,
    failures: u32,
    /// Places of blocks that were given back, and clear ones.
    places: Vec<Room>,
    /// Places that are being cleared.
    clearing: usize,
    next_lba: u64,
    /// The byte a block must end at or before, on a device.
    limit: Option<u64>,
    fixed: bool,
    dirty: bool,
    /// Planted: a new block does not wait for others on its block.
    careless: bool,
}

/// Room for a block.
#[derive(Clone, Copy, Debug)]
struct Room {
    lba: u32,
    /// The number of the newest request when it became what it is.
    stamp: u64,
    /// Its bitmap was written with zeros.
    clear: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    block: u32,
    /// Plans at work; `EXCLUSIVE` while the block appears or goes.
    count: u32,
}

const EXCLUSIVE: u32 = u32::MAX;

/// Doubts are numbered up to here; from then on they stay until the image is closed.
const DOUBT_MAX: u32 = (1 << 24) - 1;

/// What a plan does, in its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Only data.
    Plain,
    /// Data, then these bits.
    Bits { first: u32, count: u32 },
    /// A new block at this LBA.
    Appear { lba: u32 },
    /// The block goes.
    Vanish,
    /// The bitmaps written along are those of clear places.
    Clear,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    block: u32,
    first: u32,
    count: u32,
    /// From its first sector to its last one, or to the end of the disk.
    whole: bool,
}

impl Vhd {
    /// A driver over an image that was opened. On a block device, where space is scarce and stale
    /// bytes under clear bits do no harm, the space between blocks is used again.
    pub fn new(mut opened: Opened) -> Vhd {
        let dirty = opened.marks_are_off();
        let bat = std::mem::take(&mut opened.bat);
        let full = std::mem::take(&mut opened.full).into_iter().map(Cell::new).collect();
        let (block_bytes, table_at) =
            opened.header.as_ref().map_or((2 << 20, 0), |h| (h.block_bytes, h.table_offset));
        let mut vhd = Vhd {
            sectors: opened.sectors,
            block_sectors: block_bytes / 512,
            table_at,
            doubts: vec![0; bat.len().div_ceil(PER_SECTOR as usize)],
            failures: 0,
            bat,
            full,
            users: Vec::with_capacity(USERS_MAX),
            places: Vec::with_capacity(FREED_MAX + CLEAR_MAX),
            clearing: 0,
            next_lba: opened.end_of_data.div_ceil(SECTOR),
            limit: opened.device.then(|| opened.file_bytes - SECTOR),
            fixed: opened.header.is_none(),
            dirty,
            careless: false,
            opened,
        };
        if vhd.limit.is_some() {
            vhd.find_gaps();
        }
        vhd
    }

    /// Asks for the closing writes even if nothing was written: the trailing footer was made
    /// invalid at open, or was found damaged.
    pub fn set_dirty(&mut self) {
        self.dirty = true;
    }

    /// Plants a bug: a new block does not wait for others on its block. The simulator has to find
    /// it.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn appear_beside_others(&mut self) {
        self.careless = true;
    }

    /// What was found at open.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    fn stride(&self) -> u64 {
        u64::from(self.block_sectors) + 1
    }

    /// Whole blocks' room before and between used blocks, from an earlier session's blocks that
    /// were given back.
    fn find_gaps(&mut self) {
        let mut used: Vec<u64> =
            self.bat.iter().filter(|e| **e != UNUSED).map(|e| u64::from(*e)).collect();
        used.sort_unstable();
        let mut from = self.opened.end_of_headers.div_ceil(SECTOR);
        for block in used {
            let mut lba = aligned(from);
            while lba + self.stride() <= block && self.places.len() < FREED_MAX {
                self.places.push(Room { lba: lba as u32, stamp: 0, clear: false });
                lba = aligned(lba + self.stride());
            }
            from = block + self.stride();
        }
    }

    fn part(&self, span: Span) -> Part {
        let size = u64::from(self.block_sectors);
        let (block, first) = ((span.start / size) as u32, (span.start % size) as u32);
        let count = span.count.min(self.block_sectors - first);
        let end = span.start + u64::from(count);
        let whole = first == 0 && (count == self.block_sectors || end == self.sectors);
        Part { block, first, count, whole }
    }

    fn entry(&self, block: u32) -> Result<u32, Stop> {
        if self.opened.bad_blocks.binary_search(&block).is_ok() {
            return Err(Stop::Fail { errno: 5, why: "the BAT entry points outside the file" });
        }
        Ok(self.bat[block as usize])
    }

    /// A run up to the first sector that cannot be read.
    fn readable(&self, part: Part, run: Run) -> Result<Run, Stop> {
        match self.opened.lost_in(part.block, part.first, run.count) {
            None => Ok(run),
            Some((first, _)) if first > part.first => Ok(Run { count: first - part.first, ..run }),
            Some(_) => Err(Stop::Fail { errno: 5, why: "the sector's place is another's too" }),
        }
    }

    fn bitmap(lba: u32) -> MetaRef {
        MetaRef { at: u64::from(lba) * SECTOR, bytes: SECTOR as u16 }
    }

    fn bat_sector(&self, block: u32) -> MetaRef {
        let at = self.table_at + u64::from(block) / PER_SECTOR * SECTOR;
        MetaRef { at, bytes: SECTOR as u16 }
    }

    fn data_at(lba: u32, first: u32) -> u64 {
        (u64::from(lba) + 1 + u64::from(first)) * SECTOR
    }

    fn is_full(&self, block: u32) -> bool {
        self.full[block as usize / 8].get() & (0x80 >> (block % 8)) != 0
    }

    fn set_full(&self, block: u32, on: bool) {
        let (byte, bit) = (&self.full[block as usize / 8], 0x80 >> (block % 8));
        byte.set(if on { byte.get() | bit } else { byte.get() & !bit });
    }

    /// Remembers that a block is full, if every bit of it is on the disk.
    fn learn_full(&self, meta: &dyn Meta, block: u32, lba: u32) {
        let r = Self::bitmap(lba);
        if meta.clean(r) && meta.get(r).is_ok_and(|bits| all_set(bits, 0, self.sectors_of(block))) {
            self.set_full(block, true);
        }
    }

    fn sectors_of(&self, block: u32) -> u32 {
        let start = u64::from(block) * u64::from(self.block_sectors);
        (self.sectors - start).min(u64::from(self.block_sectors)) as u32
    }

    /// How many sectors from `span`'s start on lie in blocks that are not in the file.
    fn unused_run(&self, span: Span) -> u32 {
        self.run_of(span, |_| false)
    }

    /// The same, as far as one write of a BAT sector settles what is in doubt.
    fn settled_run(&self, span: Span) -> u32 {
        let first = self.part(span).block;
        let other = |block: u32| u64::from(block) / PER_SECTOR != u64::from(first) / PER_SECTOR;
        self.run_of(span, |block| other(block) && self.doubt(block) != 0)
    }

    fn run_of(&self, span: Span, ends: impl Fn(u32) -> bool) -> u32 {
        let mut count = 0;
        for _ in 0..BLOCKS_MAX {
            let part = self.part(span.skip(count));
            let used = self.bat[part.block as usize] != UNUSED;
            if used || self.user(part.block) == EXCLUSIVE || ends(part.block) {
                break;
            }
            count += part.count;
            if count == span.count {
                break;
            }
        }
        count
    }

    // ---- who is at work on a block -------------------------------------------------------------

    fn user(&self, block: u32) -> u32 {
        self.users.iter().find(|u| u.block == block).map_or(0, |u| u.count)
    }

    fn enter(&mut self, block: u32, count: u32) {
        match self.users.iter_mut().find(|u| u.block == block) {
            Some(user) => {
                assert!(count != EXCLUSIVE, "who needs a block alone finds nobody there");
                assert!(user.count < EXCLUSIVE - count, "nobody enters where somebody is alone");
                user.count += count;
            }
            None => {
                assert!(self.users.len() < USERS_MAX, "fewer plans than users");
                self.users.push(User { block, count });
            }
        }
    }

    fn leave(&mut self, block: u32) {
        let i = self.users.iter().position(|u| u.block == block).expect("a plan entered its block");
        let user = &mut self.users[i];
        if user.count != EXCLUSIVE && user.count > 1 {
            user.count -= 1;
        } else {
            self.users.swap_remove(i);
        }
    }

    // ---- plans ---------------------------------------------------------------------------------

    /// The BAT sector of a block in the cache, made from the table in memory if it is not there.
    fn hold_bat(&self, meta: &mut dyn Meta, block: u32) -> Result<MetaRef, Stop> {
        let r = self.bat_sector(block);
        match meta.get(r) {
            Ok(_) => return Ok(r),
            Err(Stop::Load(_)) => {}
            Err(stop) => return Err(stop),
        }
        self.fill_bat(meta.create(r)?, u64::from(block) / PER_SECTOR);
        Ok(r)
    }

    fn fill_bat(&self, bytes: &mut [u8], sector: u64) {
        let entries =
            self.bat.iter().chain(&self.opened.bat_tail).skip((sector * PER_SECTOR) as usize);
        for (to, entry) in bytes.chunks_exact_mut(4).zip(entries) {
            to.copy_from_slice(&entry.to_be_bytes());
        }
    }

    fn doubt(&self, block: u32) -> u32 {
        self.doubts[block as usize / PER_SECTOR as usize]
    }

    fn set_doubt(&mut self, block: u32) {
        self.failures = (self.failures + 1).min(DOUBT_MAX);
        self.doubts[block as usize / PER_SECTOR as usize] = self.failures;
    }

    /// Where a new block goes, and which of the places that is, if there is a clear one; changes
    /// nothing.
    fn room(&self, meta: &dyn Meta) -> Result<Option<(u32, Option<usize>)>, Stop> {
        if !self.opened.bad_blocks.is_empty() {
            // A new block could end up where such an entry points.
            let why = "no block is added while a BAT entry points outside the file";
            return Err(Stop::Fail { errno: 5, why });
        }
        let ready = |room: &Room| room.clear && room.stamp < meta.durable();
        if let Some(i) = self.first_place(ready) {
            return Ok(Some((self.places[i].lba, Some(i))));
        }
        if self.is_worth_clearing(meta) {
            return Ok(None);
        }
        Ok(self.blank_room(meta).map(|lba| (lba, None)))
    }

    /// Whether a place of before is to be cleared now, for when the next flush comes.
    fn is_worth_clearing(&self, meta: &dyn Meta) -> bool {
        self.clearing == 0 && self.ahead() < CLEAR_MAX && self.first_old(meta).is_some()
    }

    /// The first place of a block given back where nobody reads any more.
    fn first_old(&self, meta: &dyn Meta) -> Option<usize> {
        self.first_place(|room| !room.clear && room.stamp < meta.oldest())
    }

    /// The next place behind everything, if nothing was ever written there: it is clear as it is.
    fn blank_room(&self, meta: &dyn Meta) -> Option<u32> {
        let (lba, end) = self.next_room().filter(|_| self.limit.is_none())?;
        (Self::bitmap(lba).at >= meta.blank_from() && end <= meta.grown()).then_some(lba)
    }

    /// Clear places.
    fn ahead(&self) -> usize {
        self.places.iter().filter(|room| room.clear).count()
    }

    /// The first place in the file of such places, so that blocks stay in the order they came in.
    fn first_place(&self, such: impl Fn(&Room) -> bool) -> Option<usize> {
        let places = self.places.iter().enumerate().filter(|(_, room)| such(room));
        places.min_by_key(|(_, room)| room.lba).map(|(i, _)| i)
    }

    /// Clears further places, or says what has to happen before there is one.
    fn clear(&mut self, meta: &mut dyn Meta) -> Result<Plan, Stop> {
        if self.clearing > 0 {
            // One after the other: a later place that is ready first would leave a gap before it.
            return Err(Stop::Wait);
        }
        let most = CLEAR_MAX.saturating_sub(self.ahead()).min(CLEARED_AT_ONCE);
        let mut pieces = [None; 4];
        for (i, piece) in pieces.iter_mut().enumerate().take(most) {
            let Some((lba, freed)) = self.unclear(meta) else { break };
            let bitmap = Self::bitmap(lba);
            match meta.create(bitmap) {
                Ok(_) => *piece = Some(bitmap),
                Err(stop) if i == 0 => return Err(stop),
                Err(_) => break,
            }
            match freed {
                Some(freed) => drop(self.places.swap_remove(freed)),
                None => self.next_lba = u64::from(lba) + self.stride(),
            }
            self.clearing += 1;
        }
        if pieces[0].is_none() {
            return Err(self.no_room());
        }
        self.dirty = true;
        Ok(Plan {
            along: MetaList::from(pieces),
            pins: MetaList::from(pieces),
            token: token(0, Change::Clear, 0),
            ..Plan::of_metadata(0)
        })
    }

    /// A place that can be cleared: that of a block given back, where nobody reads any more, or a
    /// new one that was written before.
    fn unclear(&self, meta: &dyn Meta) -> Option<(u32, Option<usize>)> {
        if let Some(i) = self.first_old(meta) {
            return Some((self.places[i].lba, Some(i)));
        }
        if self.blank_room(meta).is_some() {
            return None;
        }
        let (lba, end) = self.next_room()?;
        (end <= self.limit.unwrap_or_else(|| meta.grown())).then_some((lba, None))
    }

    /// The next place behind everything, and the byte where it ends.
    fn next_room(&self) -> Option<(u32, u64)> {
        let lba = aligned(self.next_lba);
        let fits = lba + self.stride() <= u64::from(UNUSED);
        fits.then_some((lba as u32, (lba + self.stride()) * SECTOR))
    }

    /// What has to happen when no place is clear and none can be cleared now.
    fn no_room(&self) -> Stop {
        if let Some(after) = self.places.iter().filter(|r| r.clear).map(|r| r.stamp).min() {
            return Stop::Flush { after };
        }
        match self.next_room().filter(|_| self.limit.is_none()) {
            Some((_, end)) => Stop::Grow { end, step: self.stride().next_multiple_of(8) * SECTOR },
            None => Stop::Fail { errno: 28, why: "no room for another block in the image" },
        }
    }

    fn appear(&mut self, meta: &mut dyn Meta, part: Part, action: Action) -> Result<Plan, Stop> {
        if self.user(part.block) != 0
            && !(cfg!(any(debug_assertions, feature = "canary")) && self.careless)
        {
            return Err(Stop::Wait);
        }
        let bat = self.hold_bat(meta, part.block)?;
        let Some((lba, place)) = self.room(meta)? else { return self.clear(meta) };
        let r = Self::bitmap(lba);
        set_bits(meta.create(r)?, part.first, part.count);
        // Nothing below can stop.
        match place {
            Some(place) => drop(self.places.swap_remove(place)),
            None => self.next_lba = u64::from(lba) + self.stride(),
        }
        self.enter(part.block, EXCLUSIVE);
        self.dirty = true;
        Ok(Plan {
            along: MetaList::one(r),
            order: Order::Policy,
            pins: MetaList::two(r, bat),
            token: token(part.block, Change::Appear { lba }, 0),
            ..Plan::of(action, Self::data_at(lba, part.first), part.count)
        })
    }

    /// A change of data in a block that is there; `mark` if bits must be set for it to count.
    fn change(
        &mut self,
        meta: &mut dyn Meta,
        part: Part,
        lba: u32,
        action: Action,
        mark: bool,
    ) -> Result<Plan, Stop> {
        let r = Self::bitmap(lba);
        let (doubt, bat) = self.settle(meta, part.block)?;
        let marked = !mark
            || self.is_full(part.block)
            || (all_set(meta.get(r)?, part.first, part.count) && meta.clean(r));
        let bits = Change::Bits { first: part.first, count: part.count };
        self.enter(part.block, 1);
        self.dirty = true;
        Ok(Plan {
            along: bat.map_or(MetaList::EMPTY, MetaList::one),
            order: if marked { Order::Any } else { Order::Policy },
            pins: MetaList::from([bat, (!marked).then_some(r)]),
            token: token(part.block, if marked { Change::Plain } else { bits }, doubt),
            ..Plan::of(action, Self::data_at(lba, part.first), part.count)
        })
    }

    fn vanish(&mut self, meta: &mut dyn Meta, part: Part, lba: u32) -> Result<Plan, Stop> {
        if self.user(part.block) != 0 {
            return Err(Stop::Wait);
        }
        let bat = self.hold_bat(meta, part.block)?;
        self.enter(part.block, EXCLUSIVE);
        self.dirty = true;
        Ok(Plan {
            pins: MetaList::one(bat),
            free: Some(FileRange {
                at: u64::from(lba) * SECTOR,
                bytes: (self.stride() * SECTOR) as u32,
            }),
            token: token(part.block, Change::Vanish, 0),
            ..Plan::of_metadata(part.count)
        })
    }

    /// Nothing changes, if the disk holds what memory says.
    fn nothing(&mut self, meta: &mut dyn Meta, part: Part, count: u32) -> Result<Plan, Stop> {
        let (doubt, bat) = self.settle(meta, part.block)?;
        self.enter(part.block, 1);
        let along = bat.map_or(MetaList::EMPTY, MetaList::one);
        Ok(Plan {
            along,
            pins: along,
            token: token(part.block, Change::Plain, doubt),
            ..Plan::of_metadata(count)
        })
    }

    /// A block's doubt, and the BAT sector to be written so that there is none.
    fn settle(&self, meta: &mut dyn Meta, block: u32) -> Result<(u32, Option<MetaRef>), Stop> {
        match self.doubt(block) {
            0 => Ok((0, None)),
            doubt => Ok((doubt, Some(self.hold_bat(meta, block)?))),
        }
    }

    fn plan_fixed(&self, span: Span, want: Want) -> Plan {
        let action = match want {
            Want::Write => Action::Write,
            Want::Zero { keep, .. } => Action::Zero { punch: !keep },
            Want::Discard { .. } if self.limit.is_some() => Action::Discard,
            Want::Discard { .. } => Action::Zero { punch: true },
        };
        // A Zero plan's length in bytes fits 32 bits.
        Plan::of(action, span.start * SECTOR, span.count.min(1 << 22))
    }

    fn plan_zero(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        below_zero: bool,
        keep: bool,
    ) -> Result<Plan, Stop> {
        let part = self.part(span);
        let lba = self.entry(part.block)?;
        let action = Action::Zero { punch: !keep };
        match lba {
            UNUSED if below_zero && !keep => self.nothing(meta, part, self.settled_run(span)),
            UNUSED => self.appear(meta, part, action),
            _ if part.whole && below_zero && !keep => self.vanish(meta, part, lba),
            _ => self.change(meta, part, lba, action, !below_zero),
        }
    }

    fn plan_discard(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        below_zero: bool,
    ) -> Result<Plan, Stop> {
        let part = self.part(span);
        let lba = self.entry(part.block)?;
        match lba {
            UNUSED => self.nothing(meta, part, self.settled_run(span)),
            _ if part.whole && below_zero => self.vanish(meta, part, lba),
            // Less than a page gives nothing back.
            _ if part.count < 16 => self.nothing(meta, part, part.count),
            _ if self.limit.is_some() => self.change(meta, part, lba, Action::Discard, false),
            _ => self.change(meta, part, lba, Action::Zero { punch: true }, false),
        }
    }
}

impl Image for Vhd {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        if self.fixed {
            return Ok(Run { place: Place::At { byte: span.start * SECTOR }, count: span.count });
        }
        let part = self.part(span);
        let lba = self.entry(part.block)?;
        if lba == UNUSED {
            let count = self.unused_run(span).max(part.count);
            return Ok(Run { place: Place::Below, count });
        }
        let at = Place::At { byte: Self::data_at(lba, part.first) };
        if self.is_full(part.block) {
            return self.readable(part, Run { place: at, count: part.count });
        }
        let (set, count) = run(meta.get(Self::bitmap(lba))?, part.first, part.count);
        if set && count == part.count {
            self.learn_full(meta, part.block, lba);
        }
        match set {
            true => self.readable(part, Run { place: at, count }),
            false => Ok(Run { place: Place::Below, count }),
        }
    }

    fn certain(&self, span: Span) -> bool {
        let per_sector = u64::from(self.block_sectors) * PER_SECTOR;
        let first = (span.start / per_sector) as usize;
        let last = (span.end().saturating_sub(1) / per_sector) as usize;
        self.doubts.iter().skip(first).take(last.saturating_sub(first) + 1).all(|doubt| *doubt == 0)
    }

    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        if self.fixed {
            self.dirty = true;
            return Ok(self.plan_fixed(span, want));
        }
        let part = self.part(span);
        if self.user(part.block) == EXCLUSIVE || self.users.len() == USERS_MAX {
            return Err(Stop::Wait);
        }
        match want {
            Want::Zero { below_zero, keep } => self.plan_zero(meta, span, below_zero, keep),
            Want::Discard { below_zero } => self.plan_discard(meta, span, below_zero),
            Want::Write => match self.entry(part.block)? {
                UNUSED => self.appear(meta, part, Action::Write),
                lba => self.change(meta, part, lba, Action::Write, true),
            },
        }
    }

    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step {
        if step > 1 {
            return Step::NONE;
        }
        let (block, change, _) = parse(plan.token);
        let writes = match change {
            Change::Plain | Change::Clear => MetaList::EMPTY,
            Change::Bits { first, count } => {
                let r = Self::bitmap(self.bat[block as usize]);
                set_bits(meta.edit(r), first, count);
                MetaList::one(r)
            }
            Change::Appear { lba } => self.point(meta, block, lba),
            Change::Vanish => self.point(meta, block, UNUSED),
        };
        Step::of(writes)
    }

    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        if self.fixed {
            return false;
        }
        let (block, change, doubt) = parse(plan.token);
        if change == Change::Clear {
            self.cleared(meta, plan, ok);
            return false;
        }
        if ok && doubt != 0 && doubt == self.doubt(block) && doubt < DOUBT_MAX {
            self.doubts[block as usize / PER_SECTOR as usize] = 0;
        }
        let old = self.bat[block as usize];
        match change {
            Change::Plain | Change::Clear => {}
            Change::Bits { .. } if ok => self.learn_full(meta, block, old),
            Change::Bits { .. } => {}
            // What the disk says is not known: memory's view is written with the next change here.
            Change::Appear { .. } | Change::Vanish if !ok => {
                self.point(meta, block, old);
                self.set_doubt(block);
            }
            Change::Appear { lba } => {
                self.bat[block as usize] = lba;
                self.learn_full(meta, block, lba);
            }
            Change::Vanish => {
                self.bat[block as usize] = UNUSED;
                self.set_full(block, false);
                if self.places.len() < FREED_MAX {
                    self.places.push(Room { lba: old, stamp: meta.now(), clear: false });
                }
            }
        }
        self.leave(block);
        false
    }

    fn end_sector(&self) -> Option<[u8; 512]> {
        (self.limit.is_none() && !self.fixed).then(|| self.opened.footer.encode())
    }

    fn closing(&mut self) -> Closing {
        if !self.dirty {
            return Closing::default();
        }
        self.dirty = false;
        if self.fixed {
            return crate::closing(&self.opened, &[], &[]);
        }
        let last = (self.bat.len() - 1) as u32;
        if self.sectors_of(last) < self.block_sectors {
            // Not all bits of it are set: after a resize the mark would be a lie.
            self.set_full(last, false);
        }
        let full: Vec<u8> = self.full.iter().map(Cell::get).collect();
        let mut closing = crate::closing(&self.opened, &self.bat, &full);
        for sector in (0..self.doubts.len()).filter(|s| self.doubts[*s] != 0) {
            let mut bytes = vec![0; SECTOR as usize];
            self.fill_bat(&mut bytes, sector as u64);
            closing.repairs.push((self.table_at + sector as u64 * SECTOR, bytes));
        }
        closing
    }
}

impl Vhd {
    /// Places were cleared; from the next flush on they count, if it went well.
    fn cleared(&mut self, meta: &dyn Meta, plan: &Plan, ok: bool) {
        for piece in plan.along.iter() {
            self.clearing -= 1;
            let lba = (piece.at / SECTOR) as u32;
            if self.places.len() < FREED_MAX + CLEAR_MAX {
                self.places.push(Room { lba, stamp: meta.now(), clear: ok });
            }
        }
    }

    /// Edits a block's entry in the cached BAT sector.
    fn point(&self, meta: &mut dyn Meta, block: u32, lba: u32) -> MetaList {
        let r = self.bat_sector(block);
        let at = (u64::from(block) % PER_SECTOR) as usize * 4;
        meta.edit(r)[at..at + 4].copy_from_slice(&lba.to_be_bytes());
        MetaList::one(r)
    }
}

/// The next LBA whose data begins on a 4 KiB boundary (spec/vhd.md §6).
fn aligned(lba: u64) -> u64 {
    (lba + 1).next_multiple_of(8) - 1
}

fn token(block: u32, step: Change, doubt: u32) -> [u64; 2] {
    let (kind, a, b) = match step {
        Change::Plain => (0u64, 0, 0),
        Change::Bits { first, count } => (1, first, count),
        Change::Appear { lba } => (2, lba, 0),
        Change::Vanish => (3, 0, 0),
        Change::Clear => (4, 0, 0),
    };
    let head = kind << 56 | u64::from(doubt) << 32 | u64::from(block);
    [head, u64::from(a) << 32 | u64::from(b)]
}

/// Block, step and the doubt that the plan settles.
fn parse(token: [u64; 2]) -> (u32, Change, u32) {
    let (a, b) = ((token[1] >> 32) as u32, token[1] as u32);
    let step = match token[0] >> 56 {
        0 => Change::Plain,
        1 => Change::Bits { first: a, count: b },
        2 => Change::Appear { lba: a },
        3 => Change::Vanish,
        4 => Change::Clear,
        _ => unreachable!("tokens are made by `token`"),
    };
    (token[0] as u32, step, (token[0] >> 32) as u32 & DOUBT_MAX)
}

/// The bit of a sector and the length of the run of equal bits it begins, at most `count`.
fn run(bits: &[u8], first: u32, count: u32) -> (bool, u32) {
    let word = |i: u32| {
        let at = i as usize * 8;
        u64::from_be_bytes(bits[at..at + 8].try_into().expect("eight bytes"))
    };
    let set = word(first / 64) << (first % 64) >> 63 == 1;
    let mut length = 0;
    while length < count {
        let at = first + length;
        let shifted = if set { !word(at / 64) } else { word(at / 64) } << (at % 64);
        let room = 64 - at % 64;
        let same = shifted.leading_zeros().min(room);
        length += same;
        if same < room {
            break;
        }
    }
    (set, length.min(count))
}

fn all_set(bits: &[u8], first: u32, count: u32) -> bool {
    run(bits, first, count) == (true, count)
}

fn set_bits(bits: &mut [u8], first: u32, count: u32) {
    let mut at = first;
    let end = first + count;
    while at < end {
        let n = (8 - at % 8).min(end - at);
        bits[at as usize / 8] |= (0xffu8 << (8 - n)) >> (at % 8);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_placed_so_that_data_begins_on_a_page() {
        for lba in 0..64 {
            let at = aligned(lba);
            assert!(at >= lba && at < lba + 8 && at % 8 == 7, "{lba} -> {at}");
        }
    }

    #[test]
    fn runs_agree_with_a_bit_by_bit_count() {
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut next = |n: u64| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 33) % n
            };
            let mut bits = [0u8; 512];
            for _ in 0..next(6) {
                let first = next(4096) as u32;
                let count = next(u64::from(4096 - first)) as u32;
                set_bits(&mut bits, first, count);
                assert!(count == 0 || all_set(&bits, first, count));
            }
            let first = next(4096) as u32;
            let count = 1 + next(u64::from(4096 - first)) as u32;
            let bit = |s: u32| bits[s as usize / 8] & (0x80 >> (s % 8)) != 0;
            let slow = (first..first + count).take_while(|s| bit(*s) == bit(first)).count() as u32;
            assert_eq!(run(&bits, first, count), (bit(first), slow));
        }
    }

    #[test]
    fn tokens_keep_what_they_are_given() {
        for step in [
            Change::Plain,
            Change::Bits { first: 4095, count: 4096 },
            Change::Appear { lba: UNUSED - 1 },
            Change::Vanish,
            Change::Clear,
        ] {
            assert_eq!(parse(token(1_044_479, step, 77)), (1_044_479, step, 77));
        }
    }
}
