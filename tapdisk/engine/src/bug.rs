//! Bugs to be planted, which the simulator has to find: in builds for debugging, and with the
//! feature `canary`. Installed programs are neither (`make install` refuses others).

/// A program that can be made wrong.
pub const CAN_BE_PLANTED: bool = cfg!(any(debug_assertions, feature = "canary"));

/// What can be planted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// What has become the top counts as one that always was.
    AlwaysTheTop,
    /// Changes that overlap go to mirror and top in any order.
    MirrorInAnyOrder,
    /// What the local cache keeps is marked before it is on the medium.
    KeptWithoutBarrier,
    /// What a lower image is not sure of counts as zeros.
    DoubtIsZero,
    /// What is beside a change in its new unit is not copied.
    FillForgotten,
    /// It is copied from below the image that changes, whatever that holds there.
    CopiedFromBelow,
    /// No flush between the steps of a plan, even where the format needs one.
    OrderForgotten,
    /// What is copied need not be on the medium before metadata points at it.
    CopiesLoose,
    /// What a guest has changed since it was read is committed nevertheless.
    PieceOverAChange,
    /// A change does not wait for a piece of a commit that is being written.
    ChangeBesideAPiece,
    /// A change does not go to the base of a commit.
    ChangesPassBase,
    /// Zeros of the top are not committed.
    ZerosNotCommitted,
    /// A commit is over when all is written, flushed or not.
    ConcludedTooEarly,
    /// The top lets go of what it holds where the base of a commit has zeros, flushed or not.
    ReliesOnBase,
    /// A commit is over while changes are under way that pieces have left something to.
    ConcludedBesideChanges,
}

/// What is planted: without the feature nothing, and the compiler knows it.
#[derive(Debug, Default)]
pub struct Planted(#[cfg(any(debug_assertions, feature = "canary"))] Bug);

impl Planted {
    /// Plants it.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn plant(&mut self, bug: Bug) {
        self.0 = bug;
    }
}

impl PartialEq<Bug> for Planted {
    #[cfg(any(debug_assertions, feature = "canary"))]
    fn eq(&self, bug: &Bug) -> bool {
        self.0 == *bug
    }

    #[cfg(not(any(debug_assertions, feature = "canary")))]
    fn eq(&self, bug: &Bug) -> bool {
        *bug == Bug::None
    }
}
