//! Zeros and discards: entries say that parts read as zeros, and whole clusters are given back.
use image::{Action, Meta, MetaList, Plan, Span, Stop};

use crate::driver::Qcow2;
use crate::entry::{Entry, Part, Shape};
use crate::users::{Gone, User, What, Why};
use crate::write::{NOBODY, Spot};

impl Qcow2 {
    /// Whether a span covers its first cluster, as far as the disk has it.
    fn is_whole(&self, span: Span) -> bool {
        let end = (span.start / self.shape.sectors + 1) * self.shape.sectors;
        span.start.is_multiple_of(self.shape.sectors) && span.end() >= end.min(self.sectors)
    }

    pub(crate) fn plan_zero(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        below_zero: bool,
        keep: bool,
    ) -> Result<Plan, Stop> {
        let entry = spot.entry;
        let (whole, placed) = (self.is_whole(span), entry.is_packed() || entry.host() != 0);
        let may_vanish = whole && placed && (entry.is_packed() || !keep);
        if may_vanish && (self.marks() || below_zero) {
            match self.work().space.may_go(meta) {
                Ok(()) => return self.vanish(meta, span, spot),
                Err(true) => return Err(Stop::Chore),
                Err(false) => {}
            }
        }
        if entry.is_packed() {
            let span = self.inside(span, 1);
            return self.plan_data(meta, span, spot, Action::Zero { punch: false });
        }
        let nothing = |part: Part| part == Part::Zero || (part == Part::Below && below_zero);
        if nothing(self.first_part(span, entry)?) && !placed {
            return self.nothing(meta, span, spot, |shape, entry| {
                (0..shape.parts()).all(|part| shape.part(entry, part).is_ok_and(nothing))
            });
        }
        let part = self.whole_parts(span);
        if self.marks() && part.count > 0 {
            return self.mark_zeros(meta, part, spot);
        }
        // Up to the end of the part, which is of one kind.
        let span = self.to_part_end(span);
        match self.first_part(span, entry)? {
            part if nothing(part) => Ok(self.nothing_of(span)),
            _ => self.plan_data(meta, span, spot, Action::Zero { punch: !keep && whole }),
        }
    }

    /// The first sectors of a span, to the end of the part they are in.
    fn to_part_end(&self, span: Span) -> Span {
        let size = self.shape.part_sectors();
        Span::between(span.start, ((span.start / size + 1) * size).min(span.end()))
    }

    /// The whole parts that a span begins with; none if it begins inside one.
    fn whole_parts(&self, span: Span) -> Span {
        let size = self.shape.part_sectors();
        let end = if span.end() == self.sectors { span.end() } else { span.end() / size * size };
        match span.start.is_multiple_of(size) && end > span.start {
            true => Span::between(span.start, end),
            false => Span { count: 0, ..span },
        }
    }

    /// Nothing is to be done for the first sectors of a span, of which there are some.
    fn nothing_of(&self, span: Span) -> Plan {
        Plan { token: [NOBODY, 0], ..Plan::of_metadata(span.count) }
    }

    /// Nothing is to be done for the clusters of which `such` holds, the first of them at least.
    fn nothing(
        &self,
        meta: &dyn Meta,
        span: Span,
        spot: Spot,
        such: impl Fn(Shape, Entry) -> bool,
    ) -> Result<Plan, Stop> {
        let Some((r, _)) = spot.piece else {
            return Ok(self.nothing_of(span.first(self.tableless(span))));
        };
        if !such(self.shape, spot.entry) {
            return Ok(self.nothing_of(self.to_part_end(span)));
        }
        let plain = |_: u64, entry: Entry| {
            !entry.is_packed() && self.shape.check(entry).is_ok() && such(self.shape, entry)
        };
        let count = self.spread((span, spot, meta.get(r)?), false, plain);
        Ok(self.nothing_of(self.inside(span, count)))
    }

    /// Entries say that parts read as zeros; what places they have stay theirs.
    fn mark_zeros(&mut self, meta: &mut dyn Meta, span: Span, spot: Spot) -> Result<Plan, Stop> {
        let (r, _) = self.its_table(spot)?;
        if self.users().keep(spot.cluster, true) {
            return Err(Stop::Wait);
        }
        let plain = |_: u64, entry: Entry| !entry.is_packed() && self.shape.check(entry).is_ok();
        let count = self.spread((span, spot, meta.get(r)?), true, plain);
        let (part, parts) = (self.inside(span, count), self.parts_of(span, count));
        let what = What::Zeros { from: parts.from, to: parts.to };
        let user = self.enter(User { count, alone: true, what, ..self.beside(spot) });
        let pins = MetaList::one(r);
        Ok(Plan { pins, token: [user, 0], ..Plan::of_metadata(part.count) })
    }

    /// Whole clusters lose their places, side by side in the file or packed.
    fn vanish(&mut self, meta: &mut dyn Meta, span: Span, spot: Spot) -> Result<Plan, Stop> {
        let (r, _) = spot.piece.expect("it has an entry");
        if self.users().keep(spot.cluster, true) {
            return Err(Stop::Wait);
        }
        let entry = spot.entry;
        let mut gone = self.zeroed(entry)?;
        let mut count = 1;
        if !entry.is_packed() {
            let end = self.whole_clusters(span);
            let follows = |i: u64, next: Entry| {
                !next.is_packed()
                    && next.host() == entry.host() + i * self.shape.bytes()
                    && self.zeroed(next).is_ok()
            };
            count = self.spread((end, spot, meta.get(r)?), true, follows);
            gone.count = count;
        }
        let part = self.inside(span, count);
        let what = What::Vanish { marked: self.marks() };
        let user = self.enter(User { count, alone: true, what, gone, ..self.beside(spot) });
        let pins = MetaList::one(r);
        Ok(Plan { pins, token: [user, 0], ..Plan::of_metadata(part.count) })
    }

    /// The whole clusters that a span begins with, of which there is one at least.
    fn whole_clusters(&self, span: Span) -> Span {
        let size = self.shape.sectors;
        let end = if span.end() == self.sectors { span.end() } else { span.end() / size * size };
        Span::between(span.start, end)
    }

    /// The clusters of the file that an entry points at, which shall read as zeros.
    fn zeroed(&self, entry: Entry) -> Result<Gone, Stop> {
        if entry.is_packed() {
            return self.moved(entry);
        }
        self.shape.check(entry)?;
        let host = entry.host() / self.shape.bytes();
        self.usable(host)?;
        // Who shares a cluster must not find zeros in it.
        let why = if entry.is_copied() { Why::Zeroed } else { Why::Moved };
        Ok(Gone { host, count: 1, why })
    }

    pub(crate) fn plan_discard(
        &mut self,
        meta: &mut dyn Meta,
        span: Span,
        spot: Spot,
        below_zero: bool,
    ) -> Result<Plan, Stop> {
        let entry = spot.entry;
        let placed = entry.is_packed() || entry.host() != 0;
        if placed && self.is_whole(span) && (self.marks() || below_zero) {
            match self.work().space.may_go(meta) {
                Ok(()) => return self.vanish(meta, span, spot),
                Err(true) => return Err(Stop::Chore),
                // Nobody is promised that space comes back.
                Err(false) => {}
            }
        }
        if placed {
            return Ok(self.nothing_of(self.inside(span, 1)));
        }
        self.nothing(meta, span, spot, |_, entry| entry.host() == 0)
    }
}
