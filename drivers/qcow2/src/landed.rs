//! What follows the first step of a plan: entries point at what it has written, and what went is
//! given back.
use image::{Closing, Meta, MetaList, Plan, Step};

use crate::bug::Bug;
use crate::driver::Qcow2;
use crate::entry::{COPIED, Entry};
use crate::header::FEATURES_AT;
use crate::num::size;
use crate::users::{User, What};
use crate::write::NOBODY;

impl Qcow2 {
    /// A step of a plan is on the disk.
    pub(crate) fn step_landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step {
        let [number, _] = plan.token;
        if number == NOBODY {
            return Step::NONE;
        }
        let user = *self.work().users.get(number);
        let writes = match (user.what, step) {
            (What::Beside | What::Down { .. }, _) => return Step::NONE,
            (What::Data { .. } | What::Zeros { .. } | What::Vanish { .. }, 1) => {
                self.point(meta, &user)
            }
            (What::Data { .. } | What::Zeros { .. } | What::Vanish { .. }, _) => return Step::NONE,
            (What::Table { .. } | What::Block { .. }, _) => {
                return self.chore_landed(meta, &user, (number, step));
            }
        };
        self.work().users.get(number).pointed = true;
        Step::of(writes)
    }

    /// Entries say now what a plan has done.
    pub(crate) fn point(&self, meta: &mut dyn Meta, user: &User) -> MetaList {
        let piece = self.piece(user.first).ok().flatten();
        let (r, at) = piece.expect("its table is there as long as the image is open");
        let (shape, bytes) = (self.shape, meta.edit(r));
        for i in 0..user.count {
            let at = at + size(i) * shape.entry_bytes();
            let old = shape.get(bytes, at);
            let ends = |from: u64, to: u64| {
                let from = if i == 0 { from } else { 0 };
                (from, if i + 1 == user.count { to } else { shape.parts() })
            };
            let new = match user.what {
                What::Data { host, from, to } => {
                    let (from, to) = ends(from, to);
                    let new = shape.with_data(old, (host + i) * shape.bytes(), from, to);
                    let copied = if self.has(Bug::CopiedForgotten) { 0 } else { new.word };
                    Entry { word: new.word & !COPIED | copied & COPIED, ..new }
                }
                What::Zeros { from, to } => {
                    let (from, to) = ends(from, to);
                    shape.with_zeros(old, from, to)
                }
                What::Vanish { marked: true } => shape.zeros(),
                What::Vanish { marked: false } => Entry::default(),
                What::Beside | What::Table { .. } | What::Block { .. } | What::Down { .. } => old,
            };
            shape.put(bytes, at, new);
        }
        MetaList::one(r)
    }

    /// A plan is over. True if there is something of the driver's own to do.
    pub(crate) fn plan_over(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        let [number, _] = plan.token;
        if number == NOBODY {
            return false;
        }
        let user = self.work().users.leave(number);
        let now = meta.now();
        match user.what {
            What::Down { free } if ok => self.work().space.gone(free, meta),
            What::Down { .. } => self.work().space.stayed(),
            What::Table { table, host } if ok => self.table_made(table, host),
            What::Block { block, host } if ok => self.tables.set_block(block, host),
            _ if ok => self.work().space.go(user.gone, now),
            _ if user.pointed => self.work().space.leak(),
            _ => self.work().space.go(user.taken, now),
        }
        if ok && user.taken.count > 0 {
            self.look_ahead(user.first);
        }
        let work = self.work();
        work.wanted_table.is_some() || work.wanted_block.is_some() || work.space.has_dead()
    }

    /// The last writes: a file ends with its last cluster, and is clean if all counts are right.
    pub(crate) fn last_writes(&mut self) -> Closing {
        let Some(work) = &self.work else { return Closing::default() };
        let clean = self.marks() && !work.space.leaks();
        let features = (self.header.features_without_dirty()).to_be_bytes().to_vec();
        Closing {
            truncate: Some(work.space.end()),
            last: clean.then_some((FEATURES_AT, features)).into_iter().collect(),
            ..Closing::default()
        }
    }
}
