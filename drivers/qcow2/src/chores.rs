//! The driver's own plans: L2 tables, count blocks, counts that go down (the last rows of the table
//! in [`crate::write`]).
use image::{Action, FileRange, Meta, MetaList, Order, Plan, Step, Stop};

use crate::bug::Bug;
use crate::driver::{Qcow2, narrow};
use crate::entry::COPIED;
use crate::num::size;
use crate::users::{Gone, User, What, Why};

impl Qcow2 {
    /// The next of them; what is waited for comes first.
    pub(crate) fn next_chore(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        match self.next_table(meta) {
            Ok(None) => {}
            // Where no cluster is free, one may be soon.
            Err(Stop::Fail { errno, why }) => {
                let other = self.count_down(meta)?;
                return other.map(Some).ok_or(Stop::Fail { errno, why });
            }
            other => return other,
        }
        self.count_down(meta)
    }

    /// A table or a block that somebody waits for.
    fn next_table(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        if let Some(plan) = self.next_block(meta)? {
            return Ok(Some(plan));
        }
        let Some(table) = self.work().wanted_table else { return Ok(None) };
        if self.tables.has_l2_table(table) {
            self.work().wanted_table = None;
            return Ok(None);
        }
        match self.make_table(meta, table) {
            // There is no room without another block.
            Err(Stop::Chore) => self.next_block(meta),
            made => made.map(Some),
        }
    }

    fn next_block(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        let Some(block) = self.work().wanted_block else { return Ok(None) };
        if self.tables.has_block(block) {
            self.work().wanted_block = None;
            return Ok(None);
        }
        self.make_block(meta, block).map(Some)
    }

    fn user(what: What, taken: Gone) -> User {
        User { first: 0, count: 0, alone: false, what, gone: Gone::NONE, taken, pointed: false }
    }

    fn make_table(&mut self, meta: &mut dyn Meta, table: u64) -> Result<Plan, Stop> {
        let (l1, _) = self.tables.l1_sector(table);
        meta.get(l1)?;
        let room = self.room(meta, 1)?;
        let (counts, at) = self.tables.count_piece(room.host).expect("room is counted");
        meta.get(counts)?;
        // Nothing below can stop.
        self.work().space.take(room);
        self.tables.set_count(meta.edit(counts), at, 1);
        let taken = Gone { host: room.host, count: 1, why: Why::Unused };
        let user = Qcow2::user(What::Table { table, host: room.host }, taken);
        let plan = self.cleared(room.host, room.blank || self.has(Bug::TableNotCleared));
        let order = if self.has(Bug::TableAtOnce) { Order::Any } else { Order::Flush };
        Ok(Plan {
            along: MetaList::one(counts),
            order,
            pins: MetaList::two(l1, counts),
            token: [self.work().users.enter(user), 0],
            ..plan
        })
    }

    /// A cluster of the file becomes zeros, if it is not.
    fn cleared(&self, host: u64, blank: bool) -> Plan {
        match blank {
            true => Plan::of_metadata(0),
            false => {
                let count = narrow(self.shape.sectors);
                Plan::of(Action::Zero { punch: false }, host * self.shape.bytes(), count)
            }
        }
    }

    /// A count block goes behind everything, where it counts itself.
    fn make_block(&mut self, meta: &mut dyn Meta, block: u64) -> Result<Plan, Stop> {
        let (sector, _) = self.tables.block_sector(block);
        meta.get(sector)?;
        let room = self.work().space.behind(meta, 1)?;
        assert!(self.tables.block_of(room.host) == block, "the block that is next is wanted");
        let (counts, at) = self.tables.count_piece_in(room.host * self.shape.bytes(), room.host);
        let piece = meta.create(counts)?;
        // Nothing below can stop.
        self.tables.set_count(piece, at, 1);
        self.work().space.take(room);
        let user = Qcow2::user(What::Block { block, host: room.host }, Gone::NONE);
        let plan = self.cleared(room.host, room.blank);
        Ok(Plan {
            order: Order::Flush,
            pins: MetaList::two(sector, counts),
            token: [self.work().users.enter(user), 0],
            ..plan
        })
    }

    /// A step of a table or block is on the disk.
    pub(crate) fn chore_landed(
        &mut self,
        meta: &mut dyn Meta,
        user: &User,
        (number, step): (u64, u8),
    ) -> Step {
        let bytes = self.shape.bytes();
        let (r, at, word) = match (user.what, step) {
            (What::Table { table, host }, 1) => {
                let (r, at) = self.tables.l1_sector(table);
                (r, at, (host * bytes) | COPIED)
            }
            (What::Block { host, .. }, 1) => {
                let (counts, _) = self.tables.count_piece_in(host * bytes, host);
                return Step { writes: MetaList::one(counts), order: Order::Flush };
            }
            (What::Block { block, host }, 2) => {
                let (r, at) = self.tables.block_sector(block);
                (r, at, host * bytes)
            }
            _ => return Step::NONE,
        };
        meta.edit(r)[at..at + 8].copy_from_slice(&word.to_be_bytes());
        self.work().users.get(number).pointed = true;
        // A block is on the medium before anything is counted there, so that a repair finds it.
        let order = if step == 2 { Order::Flush } else { Order::Any };
        Step { writes: MetaList::one(r), order }
    }

    /// A table is there.
    pub(crate) fn table_made(&mut self, table: u64, host: u64) {
        self.tables.set_l2_table(table, (host * self.shape.bytes()) | COPIED);
        self.tables.own(host);
    }

    /// The table behind one that is being filled is made before it is needed.
    pub(crate) fn look_ahead(&mut self, cluster: u64) {
        let next = self.tables.l2_table_of(cluster) + 1;
        let there = next >= self.tables.l2_tables() || self.tables.has_l2_table(next);
        let work = self.work();
        if !there && next >= work.tried && work.wanted_table.is_none() {
            (work.wanted_table, work.tried) = (Some(next), next + 1);
        }
    }

    /// Counts of clusters that nothing points at go down, once that is on the medium.
    fn count_down(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        let work = self.work.as_mut().expect("it is written");
        let Some(gone) = work.space.next_dead(&self.tables, meta)? else { return Ok(None) };
        let Some((counts, at)) = self.tables.count_piece(gone.host) else {
            work.space.going(gone);
            work.space.stayed();
            return Ok(Some(Plan { token: [u64::MAX, 0], ..Plan::of_metadata(0) }));
        };
        let piece = meta.get(counts)?;
        let left = |i: u64| match (gone.why, self.tables.count(piece, at + size(i))) {
            (Why::Unused, _) => Some(0),
            (_, count) => count.checked_sub(1),
        };
        // Those whose counts become nothing, or the first alone.
        let free = (0..gone.count).take_while(|i| left(*i) == Some(0)).fold(0, |n, _| n + 1);
        let (count, left) = (free.max(1), left(0));
        work.space.going(Gone { count, ..gone });
        let Some(left) = left else {
            // Nobody counted it: whose it is, a repair has to find out.
            work.space.stayed();
            return Ok(Some(Plan { token: [u64::MAX, 0], ..Plan::of_metadata(0) }));
        };
        let bytes = meta.edit(counts);
        (0..count).for_each(|i| self.tables.set_count(bytes, at + size(i), left));
        let cluster = self.shape.bytes();
        let hole = FileRange { at: gone.host * cluster, bytes: narrow(count * cluster) };
        let user = Qcow2::user(What::Down { free: free > 0 }, Gone::NONE);
        Ok(Some(Plan {
            along: MetaList::one(counts),
            pins: MetaList::one(counts),
            free: (free > 0 && gone.why == Why::Zeroed).then_some(hole),
            token: [work.users.enter(user), 0],
            ..Plan::of_metadata(0)
        }))
    }
}
