//! Merging layers of a chain into one image: coalesce into a parent, conversion into a new image;
//! and what else looks at all data: the map of a disk, giving space back.
//!
//! ```text
//!   child ──┐  blocks the child has, bitmaps, runs       ┌─► data ─► flush ─► bitmaps, table ─► …
//!   (more) ─┴────────────────────────────────────────────┘        … ─► flush ─► footers, batmap
//!            several threads, each with a block            one batch after the other
//! ```
//! Only what the upper layers have is read, and only that is written. The upper layers are never
//! changed; whatever happens to the process, the machine or the power, the disk as seen through
//! them stays the same, every sector of the target is its old or its new one, and a second run
//! finishes the work of a first one that was cut off. The simulator in this module's tests checks
//! that.
//!
//! ```
//! use vhd_rs::coalesce::{Options, coalesce};
//!
//! let dir = tempfile::tempdir()?;
//! let (base, child) = (dir.path().join("base.vhd"), dir.path().join("child.vhd"));
//! vhd_rs::files::create(&base, 16 << 20, None, false)?;
//! vhd_rs::files::snapshot(&child, &base, &Default::default())?;
//! let moved = coalesce(&child, &Options::default(), &mut |_| {})?;
//! assert_eq!(moved.sectors, 0); // nothing was written to the child
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
mod chunk;
pub mod compact;
pub mod convert;
mod machine;
pub mod map;
mod mask;
mod medium;
mod memory;
mod pump;
mod reads;
mod source;
mod stack;
mod target;

#[cfg(test)]
mod sim;

use std::fmt;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use machine::Machine;
use source::Source;
use target::Target;

use crate::error::VhdError;
use crate::lock::Others;

/// How to coalesce.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Into this ancestor instead of the parent; the images between are merged too.
    pub into: Option<PathBuf>,
    /// Of a new block that is only partly written, leave the rest as it is, on devices too (files
    /// have holes there).
    pub sparse: bool,
    /// Bytes a second, about.
    pub rate: Option<NonZeroU64>,
    /// What to do when somebody else is writing one of the images.
    pub others: Others,
}

/// How far it has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Blocks that are done.
    pub blocks: u32,
    /// Blocks there are to do.
    pub blocks_total: u32,
    /// All blocks of the disk before this one are done.
    pub upto: u32,
    /// Blocks of the disk.
    pub blocks_disk: u32,
    /// Bytes written.
    pub bytes: u64,
    /// Since the beginning.
    pub elapsed: Duration,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Sectors that the upper layers had.
    pub sectors: u64,
    /// Bytes written; zeros that were there already or are holes do not count.
    pub bytes: u64,
}

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Opening an image.
    Open,
    /// The image has no parent to coalesce into.
    NoParent,
    /// Finding the parent's file.
    FindParent,
    /// Moving data, or making sure that it can be moved.
    Move,
}

/// Why it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// The image concerned.
    pub name: PathBuf,
    /// The error.
    pub error: VhdError,
}

impl Failure {
    fn at(step: Step, name: &Path) -> impl FnOnce(VhdError) -> Failure {
        let name = name.to_path_buf();
        move |error| Failure { step, name, error }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failure {}

/// Merges an image into its parent, or into an ancestor.
///
/// # Errors
/// EINVAL for an image without parent, EBUSY for one that is being written, ERANGE for a parent
/// that is too small, ENOSPC when the parent has no room; the parent is a good image in any case,
/// and except for ENOSPC and I/O errors it is untouched.
pub fn coalesce(
    name: &Path,
    o: &Options,
    report: &mut dyn FnMut(&Progress),
) -> Result<Done, Failure> {
    let stack = stack::Stack::open(name, o)?;
    let into = stack.target.name.clone();
    merge(stack.sources, &stack.target, stack.table, o.rate, report)
        .map_err(Failure::at(Step::Move, &into))
}

/// Moves everything that the sources have into the target.
fn merge(
    sources: Vec<Source>,
    target: &Target,
    table: Option<machine::Table>,
    rate: Option<NonZeroU64>,
    report: &mut dyn FnMut(&Progress),
) -> Result<Done, VhdError> {
    let started = Instant::now();
    let chunks = chunks(&sources, target);
    let (total, all) = (chunks.len() as u32, target.chunks());
    let machine = begin(target, chunks, table);
    let tell = |machine: &Machine| Progress {
        blocks: machine.chunks_done,
        blocks_total: total,
        upto: machine.first_open().unwrap_or(all),
        blocks_disk: all,
        bytes: machine.bytes,
        elapsed: started.elapsed(),
    };
    let machine = pump::run(machine, &sources, target, rate, tell, report)?;
    end(target, machine)
}

/// The chunks in which any source has something.
fn chunks(sources: &[Source], target: &Target) -> Vec<u32> {
    let touched = |chunk: &u32| {
        let start = u64::from(*chunk) * u64::from(target.chunk);
        sources.iter().any(|s| s.touches(start, target.sectors_of(*chunk)))
    };
    (0..target.chunks()).filter(touched).collect()
}

/// A machine, with its file made ready.
fn begin(target: &Target, chunks: Vec<u32>, mut table: Option<machine::Table>) -> Machine {
    let missing = table.as_ref().map_or(0, |t| t.missing(&chunks));
    let ready = match &mut table {
        Some(table) if !chunks.is_empty() => table.ready(&*target.medium, &target.name, missing),
        _ => Ok(false),
    };
    let mut machine = Machine::new(&target.name, chunks, table);
    match ready {
        Ok(false) => {}
        Ok(true) => machine.begun(Ok(())),
        Err(e) => machine.begun(Err(e)),
    }
    machine
}

/// The closing writes, after the machine's last flush.
fn end(target: &Target, machine: Machine) -> Result<Done, VhdError> {
    let done = Done { sectors: machine.sectors, bytes: machine.bytes };
    let (closing, failed) = machine.close();
    let closed = closing
        .map_or(Ok(()), |closing| closing.apply(&*target.medium))
        .map_err(|e| VhdError::io(&target.name, "close the image", 0, &e));
    match failed {
        Some(e) => Err(e),
        None => closed.map(|()| done),
    }
}
