//! What a driver answers when something is to change: a plan in steps, or what has to happen first.
//!
//! ```text
//!   plan ─► step 1: data, copies beside it, `along` ─► (flush) ─► landed(1): step 2 ─► … ─► free
//! ```
use crate::{MetaList, MetaRef, Packed, Place, SECTOR_BYTES, Span};

/// Not an error: what has to happen before the driver can answer. The caller asks again then.
/// A driver that stops has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Bring this piece of metadata into the cache.
    Load(MetaRef),
    /// Another plan on the same block, or a busy cache, has to finish first.
    Wait,
    /// The file must reach to this byte, with space behind it; see [`end_place`].
    Grow {
        /// Bytes the file must have before its end sector.
        end: u64,
        /// Length of the blocks that will follow: ahead is taken in whole ones.
        step: u64,
    },
    /// A flush of the file that begins after the [`Meta::now`](crate::Meta::now) of `after` has to
    /// succeed: memory may not be ahead of the medium by more than this. Asked for once in many
    /// requests.
    Flush {
        /// What was over at this time has to be on the medium.
        after: u64,
    },
    /// The plan copies ([`Plan::fill`]), and the caller has no buffer for that yet
    /// ([`Meta::may_fill`](crate::Meta::may_fill)). It takes one before it holds a plan, so that
    /// nobody who holds a plan waits for one.
    Copy,
    /// A plan of the driver's own has to be carried out first ([`Image::chore`]).
    ///
    /// [`Image::chore`]: crate::Image::chore
    Chore,
    /// The request fails with this errno.
    Fail {
        /// Positive errno.
        errno: i32,
        /// What is wrong, for the log.
        why: &'static str,
    },
}

/// Where the end sector of a file goes that must reach to byte `end` and may be `ahead` bytes
/// longer: into the last sector of a page. Blocks whose data begins on pages have their metadata
/// there, or nothing, so no guest ever reads what an end sector leaves behind.
pub fn end_place(end: u64, step: u64, ahead: u64) -> u64 {
    const PAGE: u64 = 4096;
    let nearest = (end + SECTOR_BYTES).next_multiple_of(PAGE) - SECTOR_BYTES;
    nearest + ahead.checked_div(step).map_or(0, |blocks| blocks * step)
}

/// What a request wants done to the sectors of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// New data.
    Write,
    /// They shall read as zeros.
    Zero {
        /// The layers below read as zeros (or there are none).
        below_zero: bool,
        /// Keep the space (NBD's NO_HOLE).
        keep: bool,
    },
    /// Their contents do not matter any more.
    Discard {
        /// The layers below read as zeros (or there are none).
        below_zero: bool,
    },
}

/// What happens to the file range of a plan in step 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The request's data is written there.
    Write,
    /// The range is made to read as zeros; its space may be given back if `punch`.
    Zero {
        /// Give the space back.
        punch: bool,
    },
    /// The range is given back to the device; it may read as anything afterwards.
    Discard,
    /// Nothing; only metadata changes, if anything does.
    Nothing,
}

/// What lies between two steps of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Nothing: the next step may reach the medium before this one.
    #[default]
    Any,
    /// A flush if the lower disk has a volatile cache and the policy asks for it: without one a
    /// power cut may leave sectors torn whose change nobody has flushed, and no others.
    Policy,
    /// A flush. Without one a power cut could harm what was flushed long ago.
    Flush,
}

/// What a step of a plan writes, after the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Metadata that may point now at what the steps before have written. Empty: the plan is over.
    pub writes: MetaList,
    /// What has to lie between this step and the next.
    pub order: Order,
}

impl Step {
    /// There is none: the plan is over.
    pub const NONE: Step = Step { writes: MetaList::EMPTY, order: Order::Any };

    /// A step that writes these, and no matter when what follows does.
    #[inline]
    pub fn of(writes: MetaList) -> Step {
        Step { writes, order: Order::Any }
    }
}

/// The sectors around a change that share its new unit (a cluster, a subcluster): what they hold is
/// copied, since the whole unit counts once metadata points at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// All of the unit, or units side by side, inside the image: the sectors of the plan lie in it.
    pub span: Span,
    /// Where the unit is in the file.
    pub byte: u64,
    /// It reads as zeros there, on the medium too: those need not be written.
    pub blank: bool,
    /// Where the sectors before those of the plan are now, from the first of the unit on. The
    /// driver says so, since whoever holds a plan must not have to ask it again: the metadata that
    /// tells may be what the plan itself keeps from being read anew.
    pub head: Place,
    /// The same for those behind, from the first of them on.
    pub tail: Place,
}

impl Fill {
    /// Where a sector of the unit is that does not change, `part` being those that do; and how many
    /// follow it likewise.
    pub fn source(&self, part: Span, sector: u64) -> (Place, u32) {
        let (place, from, end) = match sector < part.start {
            true => (self.head, self.span.start, part.start),
            false => (self.tail, part.end(), self.span.end()),
        };
        let skip = Span::between(from, sector).count;
        let place = match place {
            Place::At { byte } => Place::At { byte: byte + u64::from(skip) * SECTOR_BYTES },
            Place::Packed(packed) => Place::Packed(Packed { skip: packed.skip + skip, ..packed }),
            Place::Zero | Place::Below => place,
        };
        (place, Span::between(sector, end).count)
    }
}

/// A range of the image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// Byte offset.
    pub at: u64,
    /// Length in bytes.
    pub bytes: u32,
}

/// Where a change goes, and in which order metadata follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What step 1 does to the file range.
    pub action: Action,
    /// Byte offset of the range in the file.
    pub byte: u64,
    /// How many of the asked sectors this plan covers. With `Action::Write` and `Action::Zero` this
    /// is also the length of the range. None: the plan only prepares, and is asked for again.
    pub count: u32,
    /// What is copied beside the range in step 1.
    pub fill: Option<Fill>,
    /// Metadata that nothing points at yet; written together with the data.
    pub along: MetaList,
    /// What has to lie between step 1 and step 2.
    pub order: Order,
    /// Blocks that must stay cached until `finish`.
    pub pins: MetaList,
    /// What is given back after the last step.
    pub free: Option<FileRange>,
    /// The driver's own marks; the engine only hands them back.
    pub token: [u64; 2],
}

impl Plan {
    /// A change of a range that is there: no metadata follows it.
    #[inline]
    pub fn of(action: Action, byte: u64, count: u32) -> Plan {
        Plan {
            action,
            byte,
            count,
            fill: None,
            along: MetaList::EMPTY,
            order: Order::Any,
            pins: MetaList::EMPTY,
            free: None,
            token: [0; 2],
        }
    }

    /// A change of metadata alone; it covers `count` of the asked sectors.
    #[inline]
    pub fn of_metadata(count: u32) -> Plan {
        Plan::of(Action::Nothing, 0, count)
    }
}
