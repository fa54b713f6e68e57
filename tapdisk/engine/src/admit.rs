//! The stage of admission: what is checked and noted of a request before the machine sees it, and
//! whether a change may begin. Rates have a file of their own (`throttle.rs`).
use image::Span;

use crate::slot::Cause;
use crate::{Bug, Engine};
use request::disk::{Disk, FileId};
use request::{Request, SlotId, Verb};

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// An older one has to end first.
    Wait,
    /// What it was to change is left behind.
    Pass,
}

impl<D: Disk> Engine<D> {
    /// A request has come and was checked: what it changes is noted before any disk does it.
    #[inline]
    pub(super) fn admit(&mut self, id: SlotId, request: &Request, wrong: Option<Wrong>) {
        match wrong {
            None => {
                if self.watches {
                    self.look_closely(id);
                }
                self.note_change(request);
            }
            Some(wrong) => {
                let file = self.map.top();
                self.table.fail(id, wrong.cause(file));
            }
        }
    }

    /// What is looked at only where something asks for it.
    #[cold]
    #[inline(never)]
    fn look_closely(&mut self, id: SlotId) {
        self.note_overlaps(id);
        if self.throttle.is_on() {
            self.charge_or_wait(id);
        }
    }

    /// Whether a change may be planned now.
    #[inline]
    pub(super) fn may_change(&self, id: SlotId) -> Verdict {
        match () {
            () if self.commit.has_lost(self.slot(id).target) => Verdict::Pass,
            () if self.overlaps_populate(id) || self.behind_a_mirrored_change(id) => Verdict::Wait,
            () => Verdict::Go,
        }
    }

    /// Whether a change has to wait for an older one of the same sectors: they would else land in
    /// the mirror in one order and in the top in the other, and which of them is read would change
    /// when the mirror takes over. So is a piece of a commit that is being written. An older one
    /// never waits for a younger one.
    fn behind_a_mirrored_change(&self, id: SlotId) -> bool {
        let slot = self.slot(id);
        let mirrors = self.map.chain.as_ref().and_then(|chain| chain.secondary());
        if slot.cursor > 0 || self.rules.bug == Bug::MirrorInAnyOrder {
            return false;
        }
        if mirrors.is_none_or(|secondary| !secondary.mirrors()) {
            return false;
        }
        let beside = self.rules.bug == Bug::ChangeBesideAPiece;
        let meets = |a: Span, b: Span| a.start < b.end() && b.start < a.end();
        let mut working = self.table.working;
        std::iter::from_fn(|| working.pop()).any(|other| {
            let other = self.slot(other);
            other.request.verb.changes()
                && other.seq < slot.seq
                && !(beside && other.local.commits)
                && meets(other.request.span, slot.request.span)
        })
    }

    /// A change is about to be made: the changed-block log knows before any disk does.
    fn note_change(&mut self, request: &Request) {
        if !request.verb.changes() {
            return;
        }
        if self.events.taken_over {
            self.stats.redirected += u64::from(request.span.count);
        }
        if let Some(changes) = self.map.chain.as_mut().and_then(|chain| chain.changes.as_mut()) {
            changes.mark(request.span);
        }
    }

    /// Why a request must not reach a driver (spec/drivers.md §3).
    pub(super) fn wrong(&self, slot: SlotId, request: &Request) -> Option<Wrong> {
        let span = request.span;
        if self.map.chain.is_none() {
            return Some(Wrong::Closed);
        }
        if request.verb == Verb::Flush {
            return None;
        }
        let end = span.start.checked_add(u64::from(span.count));
        if span.count == 0 || end.is_none_or(|end| end > self.map.sectors) {
            return Some(Wrong::Outside);
        }
        let unit = u64::from(self.rules.policy.sector_size / 512);
        if !span.start.is_multiple_of(unit) || !u64::from(span.count).is_multiple_of(unit) {
            return Some(Wrong::Parts);
        }
        let fits =
            u64::from(span.count) * 512 <= u64::from(self.rules.limits.slot_buf(slot.0).bytes);
        match request.verb {
            Verb::Read if !fits => Some(Wrong::Long),
            Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. }
                if self.rules.policy.read_only =>
            {
                Some(Wrong::ReadOnly)
            }
            Verb::Write { .. } if !fits => Some(Wrong::Long),
            _ => None,
        }
    }
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Closed,
    Outside,
    Parts,
    Long,
    ReadOnly,
}

impl Wrong {
    #[cold]
    fn cause(self, file: FileId) -> Cause {
        let (errno, why) = match self {
            Wrong::Closed => (libc::ESHUTDOWN, "the disk is closed"),
            Wrong::Outside => (libc::EINVAL, "the request ends after the disk, or has no sectors"),
            Wrong::Parts => (libc::EINVAL, "the request is not of whole sectors of the disk"),
            Wrong::Long => (libc::EINVAL, "the request is longer than its buffer"),
            Wrong::ReadOnly => (libc::EPERM, "the disk is read-only"),
        };
        Cause { file, errno, why }
    }
}
