//! Bugs to be planted, which the simulator has to find.
#[cfg(any(debug_assertions, feature = "canary"))]
use crate::driver::Qcow2;

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// Entries are written with the data and the counts they need.
    EntryWithItsCount,
    /// The L1 points at a table before it is cleared and counted.
    TableAtOnce,
    /// A count goes down before the entry that is gone is on the disk.
    CountBeforeTheEntry,
    /// A cluster is used again while old readers may look at it.
    UsedAgainAtOnce,
    /// Clusters are used again while holes are made in their place.
    UsedBeforeTheHole,
    /// What is new counts as blank wherever it lies.
    AllBlank,
    /// The zeros of a new table are taken for granted.
    TableNotCleared,
    /// Clusters that were given back show what lies below.
    ZerosShowBelow,
    /// Entries do not say that their cluster counts one.
    CopiedForgotten,
    /// The mark of a dirty image goes as it is opened.
    CleanTooEarly,
    /// Old clusters of what moved are not counted down.
    MovedForgotten,
}

#[cfg(any(debug_assertions, feature = "canary"))]
impl Qcow2 {
    /// Plants one.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn plant(&mut self, bug: Bug) {
        self.bug = bug;
        if let Some(work) = &mut self.work {
            work.space.plant(bug);
        }
    }
}
