//! A new refcount table with new blocks, in clusters that nothing uses; the header points at them
//! last.
use std::path::Path;

use image::Storage;

use crate::check::too_much;
use crate::count::Width;
use crate::counts::{Counts, TooMuch};
use crate::error::{Error, errno::ENOSPC};
use crate::head::Head;
use crate::num::{size, wide};
use crate::refcounts::per_block;

/// Offset of the table's offset in the header, with its length behind.
const TABLE_FIELDS: u64 = 48;
/// Largest table in bytes.
const TABLE_MAX: u64 = 8 << 20;

/// Where the new one goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plan {
    /// First cluster: of the table, with the blocks behind.
    start: u64,
    table: u64,
    /// Numbers of the blocks that there are.
    blocks: Vec<u64>,
}

impl Plan {
    fn end(&self) -> u64 {
        self.start + self.table + wide(self.blocks.len())
    }
}

/// Writes it, and lets the header point at it. `counts` are those of everything but the counts;
/// `taken` is what must not be written over meanwhile.
pub(crate) fn replace(
    storage: &dyn Storage,
    name: &Path,
    head: &Head,
    mut counts: Counts,
    taken: &Counts,
) -> Result<(), Error> {
    let plan = place(storage, name, head, &counts, taken)?;
    for cluster in plan.start..plan.end() {
        counts.add(cluster).map_err(|TooMuch| too_much(name))?;
    }
    let failed = |error| Error::not_written(name, "new count blocks", &error);
    let cluster = head.header.cluster();
    if !storage.is_device() && plan.end() * cluster > head.len {
        storage.set_len(plan.end() * cluster).map_err(failed)?;
    }
    write(storage, head, &plan, &counts).map_err(failed)?;
    storage.sync().map_err(failed)?;
    let mut fields = (plan.start * cluster).to_be_bytes().to_vec();
    let clusters = u32::try_from(plan.table).expect("a table of 8 MiB at most");
    fields.extend(clusters.to_be_bytes());
    storage.write_at(TABLE_FIELDS, &fields).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// Finds room: behind everything in a file, in a gap of a device.
fn place(
    storage: &dyn Storage,
    name: &Path,
    head: &Head,
    counts: &Counts,
    taken: &Counts,
) -> Result<Plan, Error> {
    let (cluster, order) = (head.header.cluster(), head.header.refcount_order);
    let each = per_block(cluster, order);
    let used: Vec<u64> = blocks_of(counts, each);
    let end = head.len / cluster;
    let no_room = |clusters: u64| {
        let bytes = clusters * cluster;
        let why = format!("has no {bytes} bytes free side by side for new count blocks: make room");
        Error::new(name, ENOSPC, why)
    };
    let mut plan = Plan { start: 0, table: 1, blocks: used.clone() };
    // More blocks count more blocks; it ends since a block counts many.
    for _ in 0..64 {
        let clusters = plan.table + wide(plan.blocks.len());
        plan.start = match storage.is_device() {
            true => taken.free_run(1, end, clusters).ok_or_else(|| no_room(clusters))?,
            false => head.clusters().max(taken.last().map_or(0, |last| last + 1)),
        };
        let mut blocks = used.clone();
        blocks.extend(plan.start / each..=(plan.end() - 1) / each);
        blocks.sort_unstable();
        blocks.dedup();
        let table = ((blocks.last().map_or(0, |last| last + 1)) * 8).div_ceil(cluster);
        if table * cluster > TABLE_MAX {
            return Err(no_room(table));
        }
        if (table, &blocks) == (plan.table, &plan.blocks) {
            return Ok(plan);
        }
        plan = Plan { table, blocks, ..plan };
    }
    Err(no_room(plan.table + wide(plan.blocks.len())))
}

/// Numbers of the blocks that have something to count.
fn blocks_of(counts: &Counts, each: u64) -> Vec<u64> {
    let next = |from: u64| counts.next_used(from).map(|cluster| cluster / each);
    std::iter::successors(next(0), |block| next((block + 1) * each)).collect()
}

fn write(storage: &dyn Storage, head: &Head, plan: &Plan, counts: &Counts) -> std::io::Result<()> {
    let (cluster, order) = (head.header.cluster(), head.header.refcount_order);
    let each = per_block(cluster, order);
    let mut table = vec![0; size(plan.table * cluster)];
    let mut block = vec![0; size(cluster)];
    for (number, at) in plan.blocks.iter().zip(plan.start + plan.table..) {
        block.fill(0);
        let mut from = number * each;
        while let Some(used) = counts.next_used(from).filter(|used| used / each == *number) {
            Width::new(order).set(&mut block, size(used % each), counts.get(used).into());
            from = used + 1;
        }
        let place = size(*number * 8);
        table[place..place + 8].copy_from_slice(&(at * cluster).to_be_bytes());
        storage.write_at(at * cluster, &block)?;
    }
    storage.write_at(plan.start * cluster, &table)
}
