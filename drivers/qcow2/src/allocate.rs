//! Clusters side by side, in an image that nobody has open: for tables that do not fit any more.
use std::path::Path;

use image::Storage;

use crate::check::too_much;
use crate::counts::{Counts, TooMuch};
use crate::error::{Error, errno::ENOSPC};
use crate::head::Head;
use crate::num::size;
use crate::rebuild;
use crate::refcounts::Table;

/// Takes `clusters` clusters that nobody uses and counts them; the byte where they begin.
pub(crate) fn allocate(storage: &dyn Storage, name: &Path, clusters: u64) -> Result<u64, Error> {
    let head = Head::read(storage, name)?;
    let table = Table::read(storage, name, &head)?;
    let cluster = head.header.cluster();
    let full = |TooMuch| too_much(name);
    let mut counts = table.load(head.clusters())?.map_err(full)?;
    let start = place(storage, name, &head, &counts, clusters)?;
    let all = start..start + clusters;
    if all.clone().all(|cluster| table.block_at(table.place(cluster).0).is_some()) {
        change(&table, all, 1)?;
        let failed = |error| Error::not_written(name, "its counts", &error);
        storage.sync().map_err(failed)?;
        return Ok(start * cluster);
    }
    // Some have no block that counts them: all get new ones, with these counted.
    let mut taken = counts.clone();
    for number in all {
        counts.add(number).map_err(full)?;
        taken.add(number).map_err(full)?;
    }
    without_old(&head, &table, &mut counts).map_err(full)?;
    rebuild::replace(storage, name, &head, counts, &taken)?;
    Ok(start * cluster)
}

/// Behind everything in a file, in a gap of a device.
fn place(
    storage: &dyn Storage,
    name: &Path,
    head: &Head,
    counts: &Counts,
    clusters: u64,
) -> Result<u64, Error> {
    let cluster = head.header.cluster();
    if !storage.is_device() {
        return Ok(counts.last().map_or(0, |last| last + 1));
    }
    let no_room = || {
        let why = format!("has no {} bytes free side by side: make room", clusters * cluster);
        Error::new(name, ENOSPC, why)
    };
    counts.free_run(1, head.len / cluster, clusters).ok_or_else(no_room)
}

/// Without the clusters of the refcount table and its blocks.
fn without_old(head: &Head, table: &Table<'_>, counts: &mut Counts) -> Result<(), TooMuch> {
    let cluster = head.header.cluster();
    let first = head.header.table_at / cluster;
    let own = first..first + u64::from(head.header.table_clusters);
    let blocks = (0..table.entries.len()).filter_map(|number| table.block_at(number));
    for number in own.chain(blocks.map(|at| at / cluster)) {
        counts.set(number, counts.get(number).saturating_sub(1))?;
    }
    Ok(())
}

/// Gives clusters back, which nothing points at any more.
pub(crate) fn release(
    storage: &dyn Storage,
    name: &Path,
    first: u64,
    clusters: u64,
) -> Result<(), Error> {
    let head = Head::read(storage, name)?;
    let table = Table::read(storage, name, &head)?;
    change(&table, first..first + clusters, 0)?;
    let cluster = head.header.cluster();
    storage.give_back(first * cluster, (first + clusters) * cluster);
    storage.sync().map_err(|error| Error::not_written(name, "its counts", &error))
}

/// Writes one count for all of them, block by block.
fn change(table: &Table<'_>, clusters: std::ops::Range<u64>, count: u64) -> Result<(), Error> {
    let mut from = clusters.start;
    while from < clusters.end {
        let (number, first) = table.place(from);
        let here = (clusters.end - from).min(table.per_block() - u64::try_from(first).unwrap_or(0));
        if let Some(at) = table.block_at(number) {
            let counts: Vec<(usize, u64)> =
                (first..first + size(here)).map(|place| (place, count)).collect();
            table.change(at, &counts)?;
        }
        from += here;
    }
    Ok(())
}
