//! Makes the counts of an image right again, after a crash for example.
//!
//! ```text
//!   no good blocks? ─► new table and blocks in free clusters ─► sync ─► header ─► sync ─► again
//!   counts too low up ─► sync ─► COPIED off ─► sync ─► counts too high down ─► sync ─► COPIED on
//!                        ─► sync ─► dirty and corrupt marks off ─► sync
//! ```
//! A crash in between leaves what was there before, or less of it: a count is never lower than it
//! was while something may rely on it, a flag never set before its count is right, and the marks go
//! last. Counts go down only if all tables could be followed. What is used is never written over:
//! tables that overlap something else stay as they are and are reported.
use std::collections::BTreeMap;
use std::path::Path;

use image::Storage;

use crate::check::{Check, Flags, Listener, Report, Said, too_much};
use crate::counts::{Counts, TooMuch};
use crate::error::{Error, errno::EINVAL};
use crate::head::Head;
use crate::rebuild;

/// What is to be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Counts that are too high.
    Leaks,
    /// Wrong counts and flags of every kind.
    All,
}

/// Repairs an image that nobody else has open. The marks dirty and corrupt are cleared if nothing
/// is wrong any more; otherwise they stay, and [`Report::is_clean`] is false.
///
/// # Errors
/// As of [`crate::check()`]; those of writing; no room for new count blocks.
pub fn repair(
    storage: &dyn Storage,
    name: &Path,
    what: What,
    said: Listener<'_>,
) -> Result<Report, Error> {
    let mut fixed = Report::default();
    let head = Head::read(storage, name)?;
    let mut check = Check::begin(storage, name, &head, said)?;
    check.references()?;
    if what == What::All && needs_rebuild(&check) {
        check.compare();
        fixed.corruptions_fixed = check.report.corruptions.max(1);
        check.say("Rebuilding refcount structure");
        let (used, unsure) = (std::mem::take(&mut check.uses), check.unsure);
        rebuild(storage, name, &head, used, unsure)?;
        let head = Head::read(storage, name)?;
        let mut again = Check::begin(storage, name, &head, said)?;
        again.references()?;
        if needs_rebuild(&again) {
            let why = "has count blocks that are no good, and new ones are none either: \
                       qemu-img convert";
            return Err(Error::new(name, EINVAL, why));
        }
        let report = mend(&mut again, what)?;
        fixed.corruptions_fixed = fixed.corruptions_fixed.saturating_sub(report.corruptions);
        return Ok(sum(report, fixed));
    }
    mend(&mut check, what)
}

/// New count blocks. `used` are all uses with those by the old ones; there may be more.
fn rebuild(
    storage: &dyn Storage,
    name: &Path,
    head: &Head,
    used: Counts,
    unsure: bool,
) -> Result<(), Error> {
    // It has been said once.
    let mut silent = |_: Said<'_>| ();
    let mut check = Check::begin(storage, name, head, &mut silent)?;
    check.data_references()?;
    let (mut counts, disk) = (std::mem::take(&mut check.uses), std::mem::take(&mut check.disk));
    drop(check);
    let mut taken = used;
    if unsure {
        // What a table says that could not be followed is known to the old counts at best.
        for counts in [&mut counts, &mut taken] {
            keep(counts, &disk, head.clusters()).map_err(|TooMuch| too_much(name))?;
        }
    }
    rebuild::replace(storage, name, head, counts, &taken)
}

/// Counts are never lower than they were.
fn keep(counts: &mut Counts, old: &Counts, end: u64) -> Result<(), TooMuch> {
    let mut from = 0;
    while let Some(cluster) = old.next_used(from).filter(|cluster| *cluster < end) {
        counts.set(cluster, counts.get(cluster).max(old.get(cluster)))?;
        from = cluster + 1;
    }
    Ok(())
}

fn sum(report: Report, before: Report) -> Report {
    Report {
        corruptions_fixed: report.corruptions_fixed + before.corruptions_fixed,
        leaks_fixed: report.leaks_fixed + before.leaks_fixed,
        ..report
    }
}

/// Whether a count cannot be put right where it is: its block is no good or is not there.
fn needs_rebuild(check: &Check<'_>) -> bool {
    let absent = |cluster: u64| check.table.block_at(check.table.place(cluster).0).is_none();
    check.rebuild
        || check.uses.pages_unlike(&check.disk).into_iter().any(|first| {
            check.unlike(first).iter().any(|one| one.count < one.uses && absent(one.cluster))
        })
}

/// Counts and flags in place.
fn mend(check: &mut Check<'_>, what: What) -> Result<Report, Error> {
    check.compare();
    if what == What::All {
        change(check, Way::Up)?;
        check.flags(Flags::Clear)?;
        sync(check)?;
    }
    // What could not be followed may use what seems free; blocks that are no good are not written.
    if !check.unsure && !check.rebuild {
        change(check, Way::Down)?;
    }
    let clean = check.report.is_clean();
    check.flags(if what == What::All || clean { Flags::Mend } else { Flags::Look })?;
    sync(check)?;
    if check.report.is_clean() {
        Head::mark_clean(check.storage, check.name)?;
    }
    Ok(check.report)
}

fn sync(check: &Check<'_>) -> Result<(), Error> {
    check.storage.sync().map_err(|error| Error::not_written(check.name, "its tables", &error))
}

/// Which counts change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Those too low.
    Up,
    /// Those too high.
    Down,
}

/// Writes counts, and reads them again.
fn change(check: &mut Check<'_>, way: Way) -> Result<(), Error> {
    let mut changed = false;
    for first in check.uses.pages_unlike(&check.disk) {
        let mut blocks: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
        for one in check.unlike(first) {
            let up = one.count < one.uses;
            let (number, place) = check.table.place(one.cluster);
            let Some(block) = check.table.block_at(number) else { continue };
            if up != (way == Way::Up) {
                continue;
            }
            blocks.entry(block).or_default().push((place, one.uses.into()));
            check.mended(&one.line("Repairing", check), up, one.uses > 0);
        }
        changed |= !blocks.is_empty();
        for (block, counts) in &blocks {
            check.table.change(*block, counts)?;
        }
    }
    if changed {
        sync(check)?;
        check.reload()?;
        give_back(check);
    }
    Ok(())
}

/// The space of what is not used and not counted.
fn give_back(check: &Check<'_>) {
    let cluster = check.head.header.cluster();
    let mut from = 0;
    while let Some(first) = check.disk.next_free(from, check.head.clusters()) {
        let end = check.disk.next_used(first).unwrap_or(check.head.clusters());
        check.storage.give_back(first * cluster, (end * cluster).min(check.head.len));
        from = end;
    }
}
