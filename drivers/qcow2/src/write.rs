//! Where a change goes, and in which order its metadata follows (docs/spec/qcow2.md §2.6):
//!
//! | change | step 1 | step 2 | then |
//! |---|---|---|---|
//! | a place that stays | data | | |
//! | new clusters | data, the rest of them copied, counts | entries | old ones: dead |
//! | further parts of a cluster | data, the rest of the parts copied | entry | |
//! | zeros | | entries | |
//! | whole clusters given back | | entries | dead |
//! | dead (a chore, after a flush) | counts | | holes |
//! | an L2 table (a chore) | zeros, count | L1 entry | |
//! | a count block (a chore) | zeros | its own count | table entry |
//!
//! A count may be too high on the disk, which is a leak; nothing points at what is not there. Where
//! nothing was copied, data and counts may reach a volatile cache's medium after what points at
//! them: then sectors that nobody has flushed are torn, and counts too low, which the mark of a
//! dirty image has mended before it is written again. Version 2 has no such mark, and flushes.
use image::{Action, Fill, Meta, MetaList, MetaRef, Order, Place, Plan, Span, Stop, Want};

use crate::bug::Bug;
use crate::driver::Qcow2;
use crate::entry::{Entry, Part, Shape, damaged};
use crate::num::{size, wide};
use crate::space::{NoRoom, Room, Space};
use crate::users::{Gone, User, Users, What, Why};

/// What it takes to write an image.
pub struct Work {
    pub space: Space,
    pub users: Users,
    /// A table that somebody waits for, or that will be needed soon.
    pub wanted_table: Option<u64>,
    /// Tables below this one were tried ahead of need.
    pub tried: u64,
    /// A count block that somebody waits for.
    pub wanted_block: Option<u64>,
}

impl Work {
    /// Nobody is at work.
    pub fn new(space: Space) -> Work {
        Work { space, users: Users::default(), wanted_table: None, tried: 0, wanted_block: None }
    }
}

/// The number in the token of a plan that has no user.
pub(crate) const NOBODY: u64 = u64::MAX;

/// The first cluster of what is asked: where its entry is, and what it says.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    pub cluster: u64,
    pub piece: Option<(MetaRef, usize)>,
    pub entry: Entry,
}

/// Clusters of the disk, in parts: from part `from` of the first to before part `to` of the last.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub first: u64,
    pub count: u64,
    pub from: u64,
    pub to: u64,
}

impl Qcow2 {
    pub(crate) fn work(&mut self) -> &mut Work {
        self.work.as_mut().expect("it is written")
    }

    pub(crate) fn users(&self) -> &Users {
        &self.work.as_ref().expect("it is written").users
    }

    pub(crate) fn marks(&self) -> bool {
        self.header.version >= 3
    }

    /// Where the first sectors of a span go.
    pub(crate) fn plan_change(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        want: Want,
    ) -> Result<Plan, Stop> {
        let cluster = span.start / self.shape.sectors;
        if self.users().is_full() || self.users().keep(cluster, false) {
            return Err(Stop::Wait);
        }
        let piece = self.piece(cluster)?;
        let entry = match piece {
            Some((r, at)) => self.shape.get(meta.get(r)?, at),
            None => Entry::default(),
        };
        if !entry.is_packed() {
            self.shape.check(entry)?;
        }
        let spot = Spot { cluster, piece, entry };
        match want {
            Want::Write => self.plan_data(meta, span, spot, Action::Write),
            Want::Zero { below_zero, keep } => self.plan_zero(meta, span, spot, below_zero, keep),
            Want::Discard { below_zero } => self.plan_discard(meta, span, spot, below_zero),
        }
    }

    /// New data, or zeros where entries cannot say so.
    pub(crate) fn plan_data(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        action: Action,
    ) -> Result<Plan, Stop> {
        let Spot { entry, .. } = spot;
        if entry.is_packed() || entry.host() == 0 || !entry.is_copied() {
            return self.appear(meta, span, spot, action);
        }
        match self.first_part(span, entry)? {
            Part::Here => self.overwrite(meta, span, spot, action),
            Part::Zero | Part::Below => self.join(meta, span, spot, action),
        }
    }

    /// What the first sector of a span is; not of a packed cluster.
    pub(crate) fn first_part(&self, span: Span, entry: Entry) -> Result<Part, Stop> {
        let inside = span.start % self.shape.sectors;
        self.shape.part(entry, inside / self.shape.part_sectors())
    }

    /// The sectors of a span that lie in its first `count` clusters.
    pub(crate) fn inside(&self, span: Span, count: u64) -> Span {
        let end = (span.start / self.shape.sectors + count) * self.shape.sectors;
        Span::between(span.start, end.min(span.end()))
    }

    /// All sectors of parts.
    pub(crate) fn sectors_of(&self, parts: Parts) -> Span {
        let Shape { sectors, .. } = self.shape;
        let size = self.shape.part_sectors();
        let start = parts.first * sectors + parts.from * size;
        let end = (parts.first + parts.count - 1) * sectors + parts.to * size;
        Span::between(start, end.min(self.sectors))
    }

    /// The parts that the sectors of a span in its first clusters lie in.
    pub(crate) fn parts_of(&self, span: Span, count: u64) -> Parts {
        let (sectors, size) = (self.shape.sectors, self.shape.part_sectors());
        let last = self.inside(span, count).end() - 1;
        Parts {
            first: span.start / sectors,
            count,
            from: span.start % sectors / size,
            to: last % sectors / size + 1,
        }
    }

    /// Whether a cluster of the file may be changed: no table lies there.
    pub(crate) fn usable(&self, host: u64) -> Result<(), Stop> {
        let space = &self.work.as_ref().expect("it is written").space;
        match () {
            () if self.tables.owns(host) => Err(damaged("an L2 entry points at a table")),
            () if !space.counted(host) => {
                Err(damaged("an L2 entry points behind all that is counted"))
            }
            () => Ok(()),
        }
    }

    /// Clusters behind the first that `same` holds for, with the first: of a span, in a piece, and
    /// that nobody uses who keeps this plan away. `same` is told how many come before.
    pub(crate) fn spread(
        &self,
        (span, spot, piece): (Span, Spot, &[u8]),
        alone: bool,
        same: impl Fn(u64, Entry) -> bool,
    ) -> u64 {
        let at = spot.piece.map_or(0, |(_, at)| at);
        let last = (span.end() - 1) / self.shape.sectors;
        let entries = wide((piece.len() - at) / self.shape.entry_bytes());
        let more = entries.min(last + 1 - spot.cluster);
        1 + (1..more)
            .take_while(|i| {
                let entry = self.shape.get(piece, at + size(*i) * self.shape.entry_bytes());
                same(*i, entry) && !self.users().keep(spot.cluster + i, alone)
            })
            .fold(0, |n, _| n + 1)
    }

    // ---- plans ---------------------------------------------------------------------------------

    /// Data goes where it is already.
    fn overwrite(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        action: Action,
    ) -> Result<Plan, Stop> {
        let (r, at) = spot.piece.expect("it has an entry");
        let piece = meta.get(r)?;
        let host = spot.entry.host() / self.shape.bytes();
        self.usable(host)?;
        let run = self.run(span, piece, at)?;
        let span = span.first(run.count);
        let fits = |i: u64, entry: Entry| {
            entry.is_copied() && !entry.is_packed() && self.usable(host + i).is_ok()
        };
        let count = self.spread((span, spot, piece), false, fits);
        let span = self.inside(span, count);
        let byte = spot.entry.host() + span.start % self.shape.sectors * 512;
        let user = self.enter(User { count, ..self.beside(spot) });
        Ok(Plan { token: [user, 0], ..Plan::of(action, byte, span.count) })
    }

    pub(crate) fn beside(&self, spot: Spot) -> User {
        User {
            first: spot.cluster,
            count: 1,
            alone: false,
            what: What::Beside,
            gone: Gone::NONE,
            taken: Gone::NONE,
            pointed: false,
        }
    }

    pub(crate) fn enter(&mut self, user: User) -> u64 {
        self.work().users.enter(user)
    }

    /// New clusters.
    fn appear(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        action: Action,
    ) -> Result<Plan, Stop> {
        let (r, at) = self.its_table(spot)?;
        if self.users().keep(spot.cluster, true) {
            return Err(Stop::Wait);
        }
        let gone = self.moved(spot.entry)?;
        let piece = meta.get(r)?;
        let empty = |_: u64, entry: Entry| {
            !entry.is_packed() && entry.host() == 0 && self.shape.check(entry).is_ok()
        };
        let count = match gone.count {
            0 => self.spread((span, spot, piece), true, empty),
            _ => 1,
        };
        let room = self.room(meta, count)?;
        let part = self.inside(span, room.count);
        let mut parts = self.parts_of(span, room.count);
        if gone.count > 0 {
            (parts.from, parts.to) = (0, self.shape.parts());
        }
        let unit = self.sectors_of(parts);
        let piece = meta.get(r)?;
        let last = self.shape.get(piece, at + size(room.count - 1) * self.shape.entry_bytes());
        let head = self.source(spot.entry, unit.start)?;
        let tail =
            if part.end() == unit.end() { Place::Zero } else { self.source(last, part.end())? };
        let (counts, first) = self.tables.count_piece(room.host).expect("room is counted");
        meta.get(counts)?;
        if unit != part && !meta.may_fill() {
            return Err(Stop::Copy);
        }
        let gone = self.may_move(meta, gone)?;
        // Nothing below can stop.
        self.work().space.take(room);
        let bytes = meta.edit(counts);
        (0..room.count).for_each(|i| self.tables.set_count(bytes, first + size(i), 1));
        let host = room.host * self.shape.bytes();
        let byte = |sector: u64| host + (sector - spot.cluster * self.shape.sectors) * 512;
        let fill = Fill { span: unit, byte: byte(unit.start), blank: room.blank, head, tail };
        let plan = Plan {
            fill: (unit != part).then_some(fill),
            along: MetaList::one(counts),
            order: self.order(),
            pins: MetaList::two(r, counts),
            ..Plan::of(action, byte(part.start), part.count)
        };
        let what = What::Data { host: room.host, from: parts.from, to: parts.to };
        let taken = Gone { host: room.host, count: room.count, why: Why::Unused };
        let user = User { count: room.count, alone: true, what, gone, taken, ..self.beside(spot) };
        if self.has(Bug::EntryWithItsCount) {
            self.point(meta, &user);
            let along = MetaList::two(counts, r);
            return Ok(Plan { token: [self.enter(user), 0], along, ..plan });
        }
        Ok(Plan { token: [self.enter(user), 0], ..plan })
    }

    /// What lies between data and what points at it, if nothing is copied.
    fn order(&self) -> Order {
        if self.marks() { Order::Policy } else { Order::Flush }
    }

    /// The piece of the table with an entry; a table is made where there is none.
    pub(crate) fn its_table(&mut self, spot: Spot) -> Result<(MetaRef, usize), Stop> {
        let table = self.tables.l2_table_of(spot.cluster);
        spot.piece.ok_or_else(|| {
            self.work().wanted_table = Some(table);
            Stop::Chore
        })
    }

    /// Room for so many clusters, or fewer.
    pub(crate) fn room(&mut self, meta: &dyn Meta, count: u64) -> Result<Room, Stop> {
        let work = self.work.as_mut().expect("it is written");
        match work.space.room(&self.tables, meta, count) {
            Ok(room) => Ok(room),
            Err(NoRoom::Block(block)) => {
                work.wanted_block = Some(block);
                Err(Stop::Chore)
            }
            Err(NoRoom::Stop(stop)) => Err(stop),
        }
    }

    /// The clusters of the file that an entry points at, which will not be in place any more.
    pub(crate) fn moved(&self, entry: Entry) -> Result<Gone, Stop> {
        let bytes = self.shape.bytes();
        let gone = match () {
            () if entry.is_packed() => {
                let packed = self.packed_range(entry.word)?;
                let host = packed.0 / bytes;
                Gone { host, count: packed.1.div_ceil(bytes) - host, why: Why::Moved }
            }
            () if entry.host() == 0 => return Ok(Gone::NONE),
            () => {
                let same = |part| self.shape.part(entry, part);
                if (1..self.shape.parts()).any(|part| same(part) != same(0)) {
                    return Err(damaged("a cluster of several kinds of subclusters is shared"));
                }
                Gone { host: entry.host() / bytes, count: 1, why: Why::Moved }
            }
        };
        (gone.host..gone.host + gone.count).try_for_each(|host| self.usable(host))?;
        Ok(gone)
    }

    /// What goes is remembered until it is counted down; where there is no room for that just now,
    /// it leaks until the next repair.
    fn may_move(&mut self, meta: &dyn Meta, gone: Gone) -> Result<Gone, Stop> {
        match self.work().space.may_go(meta) {
            _ if gone.count == 0 => Ok(gone),
            _ if self.has(Bug::MovedForgotten) => Ok(Gone::NONE),
            Ok(()) => Ok(gone),
            Err(true) => Err(Stop::Chore),
            Err(false) => {
                self.work().space.leak();
                Ok(Gone::NONE)
            }
        }
    }

    /// Where the sectors of a cluster that is copied are, from one of them on.
    fn source(&self, entry: Entry, sector: u64) -> Result<Place, Stop> {
        let inside = sector % self.shape.sectors;
        if entry.is_packed() {
            return Ok(Place::Packed(self.packed(entry.word, inside)?));
        }
        Ok(match self.shape.part(entry, inside / self.shape.part_sectors())? {
            Part::Here => Place::At { byte: entry.host() + inside * 512 },
            Part::Zero if self.has(Bug::ZerosShowBelow) => Place::Below,
            Part::Zero => Place::Zero,
            Part::Below => Place::Below,
        })
    }

    /// Further parts of a cluster that has its place.
    fn join(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        action: Action,
    ) -> Result<Plan, Stop> {
        let (r, _) = spot.piece.expect("it has an entry");
        if self.users().keep(spot.cluster, true) {
            return Err(Stop::Wait);
        }
        meta.get(r)?;
        let entry = spot.entry;
        self.usable(entry.host() / self.shape.bytes())?;
        let all = self.parts_of(span, 1);
        let absent = |part: &u64| self.shape.part(entry, *part).is_ok_and(|p| p != Part::Here);
        let to = (all.from..all.to).take_while(absent).last().map_or(all.from, |part| part + 1);
        let unit = self.sectors_of(Parts { to, ..all });
        let part = Span::between(span.start, span.end().min(unit.end()));
        let head = self.source(entry, unit.start)?;
        let tail = self.source(entry, unit.end() - 1)?;
        if unit != part && !meta.may_fill() {
            return Err(Stop::Copy);
        }
        let sectors = self.shape.sectors;
        let byte = |sector: u64| entry.host() + sector % sectors * 512;
        let fill = Fill { span: unit, byte: byte(unit.start), blank: false, head, tail };
        let host = entry.host() / self.shape.bytes();
        let what = What::Data { host, from: all.from, to };
        let user = self.enter(User { alone: true, what, ..self.beside(spot) });
        Ok(Plan {
            fill: (unit != part).then_some(fill),
            order: self.order(),
            pins: MetaList::one(r),
            token: [user, 0],
            ..Plan::of(action, byte(part.start), part.count)
        })
    }
}
