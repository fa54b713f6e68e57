//! Whether an image holds together: every cluster counted as often as it is used, and every entry
//! that says so where its count is exactly one (spec/qcow2.md §2.7).
//!
//! ```text
//!   header, L1, L2, snapshots, bitmaps, count blocks ─► references ┐   too low: corrupt
//!   count blocks of the file ─────────────────────────► counts     ├─► too high: leaked
//!                                            COPIED flags ─────────┘
//! ```
//! Nothing is written here; [`mod@crate::repair`] does that. Sentences are those of qemu-img, which
//! people and scripts know; an image that lies costs time in proportion to its tables, and no more
//! memory than [`MEMORY_MAX`] for each of the two maps.
mod compare;
mod copied;
mod walk;

use std::path::Path;

use image::Storage;

pub use crate::counts::MEMORY_MAX;
use crate::counts::{Counts, TooMuch};
use crate::error::{Error, errno::EFBIG};
use crate::head::Head;
use crate::refcounts::Table;
pub(crate) use copied::Flags;

/// Entries of L2 tables that are looked at, at most: 16 TiB in clusters of 64 KiB in 512 snapshots.
const ENTRIES_MAX: u64 = 1 << 37;

/// What is told while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// A line on something that is wrong, or was made right.
    Line(&'a str),
    /// How much of the L1 is behind us.
    Progress {
        /// Entries that are done.
        done: u64,
        /// All entries.
        total: u64,
    },
}

/// Who is told.
pub type Listener<'a> = &'a mut dyn FnMut(Said<'_>);

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What may cost data.
    pub corruptions: u64,
    /// Clusters that are counted and not used, or counted too often.
    pub leaks: u64,
    /// Corruptions that are repaired.
    pub corruptions_fixed: u64,
    /// Leaks that are repaired.
    pub leaks_fixed: u64,
    /// Clusters of the disk.
    pub total: u64,
    /// Those that are in the file.
    pub allocated: u64,
    /// Those of them that do not follow the one before.
    pub fragmented: u64,
    /// Those that are packed.
    pub compressed: u64,
    /// Where the last cluster that is in use ends.
    pub end: u64,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0
    }
}

/// Examines an image. It may be one that is marked dirty or corrupt.
///
/// # Errors
/// Those of the file; a header that is refused; tables that would need more memory or time than
/// there is for them.
pub fn check(storage: &dyn Storage, name: &Path, said: Listener<'_>) -> Result<Report, Error> {
    let head = Head::read(storage, name)?;
    let mut check = Check::begin(storage, name, &head, said)?;
    check.references()?;
    check.compare();
    check.flags(Flags::Look)?;
    Ok(check.report)
}

/// An examination.
pub(crate) struct Check<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) name: &'a Path,
    pub(crate) head: &'a Head,
    pub(crate) table: Table<'a>,
    /// How often clusters are used.
    pub(crate) uses: Counts,
    /// How often the file says so.
    pub(crate) disk: Counts,
    pub(crate) report: Report,
    /// A table could not be followed: there may be more uses than we know of.
    pub(crate) unsure: bool,
    /// The count blocks or their table are no good.
    pub(crate) rebuild: bool,
    said: Listener<'a>,
    /// COPIED flags of the active tables that are wrong.
    wrong: u64,
    entries: u64,
}

impl<'a> Check<'a> {
    /// Reads what the file says.
    pub(crate) fn begin(
        storage: &'a dyn Storage,
        name: &'a Path,
        head: &'a Head,
        said: Listener<'a>,
    ) -> Result<Check<'a>, Error> {
        let table = Table::read(storage, name, head)?;
        let disk = table.load(head.clusters())?.map_err(|TooMuch| too_much(name))?;
        let total = (head.header.size / 512 * 512).div_ceil(head.header.cluster());
        Ok(Check {
            storage,
            name,
            head,
            table,
            uses: Counts::default(),
            disk,
            report: Report { total, ..Report::default() },
            unsure: false,
            rebuild: false,
            said,
            wrong: 0,
            entries: 0,
        })
    }

    /// Counts all uses, those by the counts included.
    pub(crate) fn references(&mut self) -> Result<(), Error> {
        self.data_references()?;
        self.count_references()?;
        self.count_behind()
    }

    pub(crate) fn say(&mut self, line: &str) {
        (self.said)(Said::Line(line));
    }

    /// A count is made right: one that was too low (`up`) or too high, of a cluster that is in use.
    pub(crate) fn mended(&mut self, line: &str, up: bool, used: bool) {
        let report = &mut self.report;
        let (open, fixed) = match up {
            true => (&mut report.corruptions, &mut report.corruptions_fixed),
            false => (&mut report.leaks, &mut report.leaks_fixed),
        };
        *open = open.saturating_sub(1);
        *fixed += 1;
        // What points at it may have to say something else.
        self.wrong += u64::from(used);
        self.say(line);
    }

    /// Something is wrong that may cost data.
    pub(crate) fn corrupt(&mut self, line: &str) {
        self.report.corruptions += 1;
        self.say(line);
    }
}

/// The error of tables that are too large for this.
pub(crate) fn too_much(name: &Path) -> Error {
    let mib = MEMORY_MAX >> 20;
    let why = format!(
        "uses clusters so far apart, or so often, that counting them takes more than {mib} MiB of \
         memory: qemu-img check"
    );
    Error::new(name, EFBIG, why)
}
