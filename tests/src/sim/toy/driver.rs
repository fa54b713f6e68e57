//! The driver of the toy format.
use image::{
    Action, FileRange, Fill, Image, Meta, MetaList, MetaRef, Needs, Order, Packed, Place, Plan,
    Run, Span, Step, Stop, Want,
};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{
    CLUSTER, CLUSTER_BYTES, COUNTS, ENTRIES, Layout, PACKED, PACKED_BYTES, PIECE, STRIDE, ZEROS,
    place,
};

/// Bugs to be planted, which the simulator has to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToyBug {
    /// None.
    #[default]
    None,
    /// Entries are written with the data and the counts they need.
    EntryWithItsCount,
    /// The L1 points at a table before its count is there.
    TableBeforeItsCount,
    /// A count goes down before the entry that is gone is on the disk.
    CountBeforeTheEntry,
    /// A cluster is used again while old readers may look at it.
    UsedAgainAtOnce,
    /// The zeros of a new table are taken for granted.
    TableNotCleared,
    /// Clusters given back are used again without a count.
    UncountedAgain,
    /// What is new counts as blank wherever it lies.
    AllBlank,
    /// Clusters that were given back show what lies below.
    ZerosShowBelow,
}

/// What all drivers of a world have done.
#[derive(Debug, Default)]
pub struct Seen {
    copied: AtomicU64,
    unpacked: AtomicU64,
    tables: AtomicU64,
    counted_down: AtomicU64,
}

impl Seen {
    fn note(what: &AtomicU64) {
        what.fetch_add(1, Ordering::Relaxed);
    }

    /// In this order.
    pub fn all(&self) -> [u64; 4] {
        let each = [&self.copied, &self.unpacked, &self.tables, &self.counted_down];
        each.map(|what| what.load(Ordering::Relaxed))
    }
}

/// What a plan is.
const OVERWRITE: u64 = 0;
const APPEAR: u64 = 1;
const VANISH: u64 = 2;
const TABLE: u64 = 3;
const COUNT_DOWN: u64 = 4;
const NOTHING: u64 = 5;

/// Users of a run of clusters at once at most, and clusters that wait for something.
const USERS_MAX: usize = 256;
const WAITING_MAX: usize = 4096;
/// Clusters of one plan at most.
const RUN_MAX: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    first: u64,
    count: u64,
    alone: bool,
}

/// An open image.
pub struct Toy {
    layout: Layout,
    l1: Vec<u64>,
    /// The first cluster behind all that were ever counted.
    next: u64,
    users: Vec<User>,
    /// A table that somebody waits for, and one that is made.
    wanted: Option<u64>,
    /// Tables that were tried ahead of need: those below.
    tried: u64,
    /// Clusters that nothing points at any more, and since when.
    dead: Vec<(u64, u64)>,
    /// Clusters without a count, and since when.
    free: Vec<(u64, u64)>,
    bug: ToyBug,
    seen: Arc<Seen>,
}

impl Toy {
    /// The image in these bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn open(bytes: &[u8], bug: ToyBug, seen: Arc<Seen>) -> Result<Toy, String> {
        let layout = Layout::read(bytes)?;
        let word = |at: u64| {
            u64::from_le_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"))
        };
        let counted = |c: &u64| {
            let at = (layout.count_piece(*c) + c % COUNTS * 2) as usize;
            bytes[at..at + 2] != [0, 0]
        };
        let last = (0..layout.clusters).rev().find(counted).expect("the header is counted");
        let uncounted = (layout.first()..last).filter(|c| !counted(c)).map(|c| (c, 0));
        let mut free = Vec::with_capacity(WAITING_MAX);
        free.extend(uncounted.take(WAITING_MAX));
        Ok(Toy {
            layout,
            l1: (0..layout.tables()).map(|table| word(CLUSTER_BYTES + table * 8)).collect(),
            next: last + 1,
            users: Vec::with_capacity(USERS_MAX),
            wanted: None,
            tried: 0,
            dead: Vec::with_capacity(WAITING_MAX),
            free,
            bug,
            seen,
        })
    }

    /// What it needs.
    pub const NEEDS: Needs =
        Needs { meta_bytes: PIECE, fills: true, chores: true, packed: CLUSTER as u32 };

    fn table_piece(&self, cluster: u64) -> Option<MetaRef> {
        let at = self.l1[place(cluster).0 as usize];
        (at != 0).then_some(MetaRef { at, bytes: PIECE })
    }

    fn count_piece(&self, host: u64) -> MetaRef {
        MetaRef { at: self.layout.count_piece(host), bytes: PIECE }
    }

    fn l1_piece(&self, table: u64) -> MetaRef {
        MetaRef { at: self.layout.l1_sector(table), bytes: 512 }
    }

    fn entry(&self, table: &[u8], cluster: u64) -> u64 {
        let at = (place(cluster).1 * STRIDE) as usize;
        u64::from_le_bytes(table[at..at + 8].try_into().expect("eight bytes"))
    }

    fn is_busy(&self, cluster: u64, alone: bool) -> bool {
        self.users.iter().any(|user| {
            (alone || user.alone) && (user.first..user.first + user.count).contains(&cluster)
        })
    }

    fn enter(&mut self, first: u64, count: u64, alone: bool) {
        self.users.push(User { first, count, alone });
    }

    /// The clusters of a span that follow the first one and are as it, by `same`; not beyond its
    /// table, and not of those that others use.
    fn run(&self, span: Span, alone: bool, same: impl Fn(u64) -> bool) -> u64 {
        let (first, last) = (span.start / CLUSTER, (span.end() - 1) / CLUSTER);
        let end = (place(first).0 + 1) * ENTRIES - 1;
        let more = (first + 1..=last.min(end)).take(RUN_MAX as usize - 1);
        1 + more.take_while(|c| same(*c) && !self.is_busy(*c, alone)).count() as u64
    }

    /// The sectors of `span` in `count` clusters from its first.
    fn inside(&self, span: Span, count: u64) -> u32 {
        let end = ((span.start / CLUSTER + count) * CLUSTER).min(span.end());
        (end - span.start) as u32
    }

    /// All sectors of some clusters.
    fn whole(&self, first: u64, count: u64) -> Span {
        let (start, end) = (first * CLUSTER, ((first + count) * CLUSTER).min(self.layout.sectors));
        Span { start, count: (end - start) as u32 }
    }

    /// So many clusters side by side in the file, or fewer; nothing is changed.
    fn room(&self, meta: &dyn Meta, count: u64) -> Result<(u64, u64), Stop> {
        // Where nobody reads any more.
        let oldest = if self.bug == ToyBug::UsedAgainAtOnce { u64::MAX } else { meta.oldest() };
        if let Some((free, _)) = self.free.iter().find(|(_, since)| *since < oldest) {
            return Ok((*free, 1));
        }
        let piece_end = (self.next / COUNTS + 1) * COUNTS;
        let count = count.min(piece_end - self.next).min(self.layout.clusters - self.next);
        if count == 0 {
            return Err(Stop::Fail { errno: libc::ENOSPC, why: "no cluster is free" });
        }
        let end = (self.next + count) * CLUSTER_BYTES;
        match end <= meta.grown() {
            true => Ok((self.next, count)),
            false => Err(Stop::Grow { end, step: CLUSTER_BYTES }),
        }
    }

    /// Takes what `room` has found.
    fn take(&mut self, host: u64, count: u64) {
        match host == self.next {
            true => self.next += count,
            false => self.free.retain(|(free, _)| *free != host),
        }
    }

    /// Changes the counts of some clusters in one piece.
    fn count(&self, meta: &mut dyn Meta, host: u64, count: u64, by: i16) -> u16 {
        let bytes = meta.edit(self.count_piece(host));
        let mut last = 0;
        for host in host..host + count {
            let at = (host % COUNTS * 2) as usize;
            let old = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            last = old.checked_add_signed(by).expect("a count stays a count");
            bytes[at..at + 2].copy_from_slice(&last.to_le_bytes());
        }
        last
    }

    fn overwrite(&mut self, span: Span, byte: u64, count: u64, action: Action) -> Plan {
        let first = span.start / CLUSTER;
        self.enter(first, count, false);
        let skip = span.start % CLUSTER * 512;
        let token = [OVERWRITE << 56 | count << 40 | first, 0];
        Plan { token, ..Plan::of(action, byte + skip, self.inside(span, count)) }
    }

    fn nothing(&mut self, span: Span) -> Plan {
        let first = span.start / CLUSTER;
        self.enter(first, 1, false);
        Plan {
            token: [NOTHING << 56 | 1 << 40 | first, 0],
            ..Plan::of_metadata(self.inside(span, 1))
        }
    }

    /// New clusters for a span. `old`: the entry of the first of them.
    fn appear(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        old: u64,
        action: Action,
    ) -> Result<Plan, Stop> {
        let first = span.start / CLUSTER;
        let r = self.table_piece(first).ok_or(Stop::Chore)?;
        if self.is_busy(first, true) {
            return Err(Stop::Wait);
        }
        let table = meta.get(r)?;
        let wish = match old {
            0 | ZEROS => self.run(span, true, |c| self.entry(table, c) <= ZEROS),
            _ => 1,
        };
        let (host, count) = self.room(meta, wish)?;
        let counts = self.count_piece(host);
        meta.get(counts)?;
        let (whole, part) = (self.whole(first, count), self.inside(span, count));
        let fills = whole != span.first(part);
        if fills && !meta.may_fill() {
            return Err(Stop::Copy);
        }
        // Nothing below can stop.
        let byte = host * CLUSTER_BYTES;
        let fresh = host == self.next && byte >= meta.blank_from();
        let blank = fresh || self.bug == ToyBug::AllBlank;
        let again = host != self.next;
        self.take(host, count);
        if !(again && self.bug == ToyBug::UncountedAgain) {
            self.count(meta, host, count, 1);
        }
        self.enter(first, count, true);
        let gone = if old & PACKED != 0 { (old & !PACKED) / CLUSTER_BYTES } else { 0 };
        let head = self.source(old, 0);
        let tail = match count {
            1 => self.source(old, (span.start - whole.start) as u32 + part),
            _ => self.source(self.entry(meta.get(r)?, first + count - 1), 0),
        };
        let mut plan = Plan {
            fill: fills.then_some(Fill { span: whole, byte, blank, head, tail }),
            along: MetaList::one(counts),
            order: Order::Flush,
            pins: MetaList::two(r, counts),
            token: [APPEAR << 56 | count << 40 | first, gone << 32 | host],
            ..Plan::of(action, byte + span.start % CLUSTER * 512, part)
        };
        if self.bug == ToyBug::EntryWithItsCount {
            self.point(meta, first, count, |i| (host + i) * CLUSTER_BYTES);
            plan.along = MetaList::two(counts, r);
        }
        Ok(plan)
    }

    /// Where the sectors of a cluster are from one of them on that has no cluster of the file.
    fn source(&self, entry: u64, skip: u32) -> Place {
        match entry {
            0 => Place::Below,
            ZEROS if self.bug == ToyBug::ZerosShowBelow => Place::Below,
            ZEROS => Place::Zero,
            packed => {
                let (byte, sectors) = (packed & !PACKED, CLUSTER as u32);
                Place::Packed(Packed { byte, bytes: PACKED_BYTES, sectors, skip })
            }
        }
    }

    /// Whole clusters that shall read as zeros, and whose space is given back.
    fn vanish(&mut self, meta: &mut dyn Meta, span: Span, old: u64) -> Result<Plan, Stop> {
        let first = span.start / CLUSTER;
        if self.is_busy(first, true) {
            return Err(Stop::Wait);
        }
        let r = self.table_piece(first).ok_or(Stop::Wait)?;
        meta.get(r)?;
        self.enter(first, 1, true);
        Ok(Plan {
            pins: MetaList::one(r),
            token: [VANISH << 56 | 1 << 40 | first, gone(old)],
            ..Plan::of_metadata(self.inside(span, 1))
        })
    }

    /// Edits the entries of some clusters in their cached table.
    fn point(&self, meta: &mut dyn Meta, first: u64, count: u64, to: impl Fn(u64) -> u64) {
        let r = self.table_piece(first).expect("its table is there");
        let table = meta.edit(r);
        for i in 0..count {
            let at = (place(first + i).1 * STRIDE) as usize;
            table[at..at + 8].copy_from_slice(&to(i).to_le_bytes());
        }
    }

    /// A new table, for one that is waited for or that soon will be.
    fn make_table(&mut self, meta: &mut dyn Meta, table: u64) -> Result<Plan, Stop> {
        let l1 = self.l1_piece(table);
        meta.get(l1)?;
        let (host, _) = self.room(meta, 1)?;
        let counts = self.count_piece(host);
        meta.get(counts)?;
        self.take(host, 1);
        self.count(meta, host, 1, 1);
        let clear = self.bug != ToyBug::TableNotCleared;
        let early = self.bug == ToyBug::TableBeforeItsCount;
        let action = if clear { Action::Zero { punch: false } } else { Action::Nothing };
        Ok(Plan {
            along: if early { MetaList::EMPTY } else { MetaList::one(counts) },
            order: Order::Flush,
            pins: MetaList::two(l1, counts),
            token: [TABLE << 56 | table, host],
            ..Plan::of(action, host * CLUSTER_BYTES, CLUSTER as u32)
        })
    }

    /// The count of a cluster that nothing points at goes down, when that is on the disk. Who has
    /// begun to read there may go on: it may find zeros where zeros were asked for, and of packed
    /// bytes no hole is made.
    fn count_down(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        let Some((host, since)) = self.dead.first().copied() else { return Ok(None) };
        if meta.durable() <= since && self.bug != ToyBug::CountBeforeTheEntry {
            return Err(Stop::Flush { after: since });
        }
        let (host, packed) = (host & !PACKED, host & PACKED != 0);
        let counts = self.count_piece(host);
        meta.get(counts)?;
        self.dead.swap_remove(0);
        let left = self.count(meta, host, 1, -1);
        let hole = FileRange { at: host * CLUSTER_BYTES, bytes: CLUSTER_BYTES as u32 };
        Ok(Some(Plan {
            along: MetaList::one(counts),
            pins: MetaList::one(counts),
            free: (left == 0 && !packed).then_some(hole),
            token: [COUNT_DOWN << 56, host << 1 | u64::from(left == 0)],
            ..Plan::of_metadata(0)
        }))
    }

    fn plan_zero(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        entry: u64,
        (below_zero, keep): (bool, bool),
    ) -> Result<Plan, Stop> {
        let whole = self.whole(span.start / CLUSTER, 1) == span.first(self.inside(span, 1));
        let there = entry > ZEROS && entry & PACKED == 0;
        match entry {
            ZEROS if !keep => Ok(self.nothing(span)),
            0 if below_zero && !keep => Ok(self.nothing(span)),
            0 | ZEROS => self.appear(meta, span, entry, Action::Zero { punch: false }),
            _ if whole && !keep => self.vanish(meta, span, entry),
            byte if there => Ok(self.overwrite(span, byte, 1, Action::Zero { punch: false })),
            _ => self.appear(meta, span, entry, Action::Zero { punch: false }),
        }
    }
}

/// The cluster of an entry that goes, and whether it was packed.
fn gone(entry: u64) -> u64 {
    ((entry & !PACKED) / CLUSTER_BYTES) | (entry & PACKED)
}

impl Image for Toy {
    fn sectors(&self) -> u64 {
        self.layout.sectors
    }

    fn needs(&self) -> Needs {
        Toy::NEEDS
    }

    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        let cluster = span.start / CLUSTER;
        let Some(r) = self.table_piece(cluster) else {
            let end = (place(cluster).0 + 1) * ENTRIES * CLUSTER;
            let count = span.count.min((end - span.start) as u32);
            return Ok(Run { place: Place::Below, count });
        };
        let table = meta.get(r)?;
        let entry = self.entry(table, cluster);
        let skip = span.start % CLUSTER;
        let (place, step) = match entry {
            0 | ZEROS => (self.source(entry, 0), 0),
            packed if packed & PACKED != 0 => {
                let place = self.source(packed, skip as u32);
                return Ok(Run { place, count: self.inside(span, 1) });
            }
            byte => (Place::At { byte: byte + skip * 512 }, CLUSTER_BYTES),
        };
        let same = |c: u64| self.entry(table, c) == entry + (c - cluster) * step;
        let (last, end) =
            ((span.end() - 1) / CLUSTER, (super::layout::place(cluster).0 + 1) * ENTRIES);
        let more = (cluster + 1..=last).take_while(|c| *c < end && same(*c)).count() as u64;
        Ok(Run { place, count: self.inside(span, 1 + more) })
    }

    fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<(), &'static str> {
        Seen::note(&self.seen.unpacked);
        for (pair, sector) in packed.chunks_exact(16).zip(unit.chunks_exact_mut(512)) {
            sector.chunks_exact_mut(16).for_each(|bytes| bytes.copy_from_slice(pair));
        }
        Ok(())
    }

    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        let first = span.start / CLUSTER;
        if self.is_busy(first, false) || self.users.len() == USERS_MAX {
            return Err(Stop::Wait);
        }
        let entry = match self.table_piece(first) {
            Some(r) => self.entry(meta.get(r)?, first),
            None => 0,
        };
        let there = entry > ZEROS && entry & PACKED == 0;
        let plan = match want {
            Want::Write if there => {
                let r = self.table_piece(first).expect("it has an entry");
                let table = meta.get(r)?;
                let next = |c: u64| self.entry(table, c) == entry + (c - first) * CLUSTER_BYTES;
                let count = self.run(span, false, next);
                Ok(self.overwrite(span, entry, count, Action::Write))
            }
            Want::Write => self.appear(meta, span, entry, Action::Write),
            Want::Zero { below_zero, keep } => {
                self.plan_zero(meta, span, entry, (below_zero, keep))
            }
            Want::Discard { .. } => {
                let whole = self.whole(first, 1) == span.first(self.inside(span, 1));
                match whole && entry > ZEROS {
                    true => self.vanish(meta, span, entry),
                    false => Ok(self.nothing(span)),
                }
            }
        };
        if plan == Err(Stop::Chore) {
            self.wanted = Some(place(first).0);
        }
        plan
    }

    fn chore(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        if let Some(table) = self.wanted.filter(|table| self.l1[*table as usize] == 0) {
            return self.make_table(meta, table).map(Some);
        }
        self.wanted = None;
        self.count_down(meta)
    }

    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step {
        let [head, tail] = plan.token;
        let (kind, count, first) = (head >> 56, head >> 40 & 0xffff, head & 0xff_ffff_ffff);
        let host = tail & 0xffff_ffff;
        match (kind, step) {
            (APPEAR, 1) if self.bug == ToyBug::EntryWithItsCount => Step::NONE,
            (APPEAR, 1) => {
                self.point(meta, first, count, |i| (host + i) * CLUSTER_BYTES);
                Step::of(MetaList::from([self.table_piece(first)]))
            }
            (VANISH, 1) => {
                self.point(meta, first, count, |_| ZEROS);
                Step::of(MetaList::from([self.table_piece(first)]))
            }
            (TABLE, 1) => {
                let r = self.l1_piece(first);
                let at = (first * 8 % 512) as usize;
                meta.edit(r)[at..at + 8].copy_from_slice(&(host * CLUSTER_BYTES).to_le_bytes());
                Step::of(MetaList::one(r))
            }
            (TABLE, 2) if self.bug == ToyBug::TableBeforeItsCount => {
                Step::of(MetaList::one(self.count_piece(host)))
            }
            _ => Step::NONE,
        }
    }

    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        let [head, tail] = plan.token;
        let (kind, count, first) = (head >> 56, head >> 40 & 0xffff, head & 0xff_ffff_ffff);
        match kind {
            TABLE if ok => {
                Seen::note(&self.seen.tables);
                self.l1[first as usize] = (tail & 0xffff_ffff) * CLUSTER_BYTES;
            }
            // On the disk it is pointed at or not; a later one takes its place.
            TABLE => {}
            COUNT_DOWN if ok && tail & 1 == 1 && self.free.len() < WAITING_MAX => {
                self.free.push((tail >> 1, meta.now()));
            }
            COUNT_DOWN => {}
            _ => {
                let user = User { first, count, alone: kind == APPEAR || kind == VANISH };
                let at = self.users.iter().position(|u| *u == user).expect("it was entered");
                self.users.swap_remove(at);
            }
        }
        let gone = match kind {
            APPEAR if tail >> 32 != 0 => tail >> 32 | PACKED,
            VANISH => tail,
            _ => 0,
        };
        if ok && kind == APPEAR && plan.fill.is_some() {
            Seen::note(&self.seen.copied);
        }
        if ok && kind == COUNT_DOWN {
            Seen::note(&self.seen.counted_down);
        }
        // What finds no room here is a leak.
        if ok && gone != 0 && self.dead.len() < WAITING_MAX {
            self.dead.push((gone, meta.now()));
        }
        self.ahead(kind == APPEAR && ok, first) || !self.dead.is_empty()
    }
}

impl Toy {
    /// The table behind one that is being filled is made before it is needed.
    fn ahead(&mut self, appears: bool, cluster: u64) -> bool {
        let next = place(cluster).0 + 1;
        let wants = appears && next >= self.tried.max(1) && (next as usize) < self.l1.len();
        if wants && self.wanted.is_none() && self.l1[next as usize] == 0 {
            (self.wanted, self.tried) = (Some(next), next + 1);
        }
        self.wanted.is_some()
    }
}
