//! The secondary: a mirror that gets every change first, or a standby that takes over
//! (spec/operations.md §4.4).
//!
//! ```text
//!   change ─► target = mirror ─► landed ─► target = top ─► landed ─► done
//!                  │ remote, failed             │ ENOSPC
//!                  └─► go on without it         └─► the secondary is the top now: target = it, from the start
//! ```
//! A change is one request to one image after the other, each in the phases of its own format; a
//! target that changes means the request starts anew there. So nothing is acknowledged that is not
//! where reads look.

use super::chain::Secondary;
use super::{Bug, Engine};
use image::Purpose;
use request::SlotId;
use request::disk::{Disk, FileId};

/// What is to be done about a failure of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// Nothing helps: it is answered with its error.
    None,
    /// It went to what is not written to any more: it starts anew on the top.
    StartAnew,
    /// The remote mirror is left behind, and it starts anew.
    LoseMirror,
    /// The top has no space left: the secondary is the top from now on, and it starts anew.
    TakeOver,
}

impl<D: Disk> Engine<D> {
    /// Where a new change goes first.
    pub(super) fn first_target(&self) -> FileId {
        let mirror = self.map.chain.as_ref().and_then(|chain| chain.secondary());
        let passes =
            |s: &Secondary| s.purpose == Purpose::Base && self.rules.bug == Bug::ChangesPassBase;
        mirror.filter(|s| s.mirrors() && !passes(s)).map_or(self.map.top(), |s| s.file)
    }

    /// All of a change is in its target: whether it has to start anew on the top as well.
    pub(super) fn belongs_on_top(&self, id: SlotId) -> bool {
        let slot = self.slot(id);
        if !slot.request.verb.changes() || slot.local.writing {
            return false;
        }
        // The top since the request started there: what became the top in between was changed as a
        // mirror, over what lay below a mirror; a zero that was nothing to it may be something now.
        let always =
            slot.taken_over == self.events.taken_over || self.rules.bug == Bug::AlwaysTheTop;
        slot.target != self.map.top() || !always
    }

    /// What is to be done about a request that has failed.
    fn after_failure(&self, id: SlotId, errno: i32) -> Recovery {
        let slot = self.slot(id);
        if !slot.request.verb.changes() || slot.local.writing {
            return Recovery::None;
        }
        let full = errno == libc::ENOSPC;
        let secondary = self.map.chain.as_ref().and_then(|chain| chain.secondary());
        if slot.target == self.map.top() {
            let standby = secondary.is_some() && full;
            return if standby { Recovery::TakeOver } else { Recovery::None };
        }
        if self.may_be_left_behind(slot.target) {
            return Recovery::LoseMirror;
        }
        // The top of before: the secondary has taken over since.
        let stale = secondary.map(|secondary| secondary.file) != Some(slot.target);
        if stale && full { Recovery::StartAnew } else { Recovery::None }
    }

    /// A request has failed: lets it start anew where that helps. False if it does not.
    pub(super) fn recover(&mut self, id: SlotId, errno: i32) -> bool {
        let target = self.slot(id).target;
        match self.after_failure(id, errno) {
            Recovery::None => return false,
            Recovery::StartAnew => {}
            Recovery::LoseMirror => self.lose_mirror(target, errno),
            Recovery::TakeOver => {
                let chain = self.map.chain.as_mut().expect("a request runs on a chain");
                if !chain.take_over() {
                    return false;
                }
                self.events.taken_over = true;
                self.flushing.written = [Some(self.map.top()), Some(target)];
            }
        }
        self.retarget(id);
        true
    }

    /// Whether a failure of this file costs the mirror, or the commit, alone: the disk goes on
    /// without it. Also after it has.
    pub(super) fn may_be_left_behind(&self, file: FileId) -> bool {
        let secondary = self.map.chain.as_ref().and_then(|chain| chain.secondary());
        let is = secondary.filter(|secondary| secondary.file == file);
        let is = is.is_some_and(|secondary| match secondary.purpose {
            Purpose::Mirror => secondary.remote,
            // Whoever believes the commit's end may use base alone from then on.
            Purpose::Base => !self.commit.is_concluded(),
            Purpose::Standby => false,
        });
        is || self.events.mirror_lost == Some(file) || self.commit.has_lost(file)
    }

    /// The disk goes on without its remote mirror, or without the commit.
    pub(super) fn lose_mirror(&mut self, file: FileId, errno: i32) {
        if self.commit.base() == Some(file) {
            return self.give_up_commit(errno);
        }
        if self.events.mirror_lost == Some(file) {
            return;
        }
        if let Some(chain) = &mut self.map.chain {
            chain.lose_second();
        }
        self.events.mirror_lost = Some(file);
        self.flushing.written = [Some(self.map.top()), None];
    }

    /// The request starts anew on the top, with its data as it came.
    pub(super) fn retarget(&mut self, id: SlotId) {
        self.make_plain(id);
        let top = self.map.top();
        let slot = &mut self.table[id];
        slot.error = None;
        slot.cursor = 0;
        slot.target = top;
        slot.taken_over = self.events.taken_over;
        if self.events.taken_over {
            self.stats.redirected += u64::from(slot.request.span.count);
        }
    }
}
