//! An image is made ready to be written: what is wrong with its tables is found before anything is
//! changed, then it is marked dirty (docs/spec/qcow2.md §2.7).
use std::path::Path;

use image::Storage;

use crate::allocate::{allocate, release};
use crate::count::Width;
use crate::entry::{COPIED, OFFSET};
use crate::error::{
    Error,
    errno::{EACCES, EIO, ENOSPC, EROFS},
};
use crate::header::{AUTOCLEAR_AT, FEATURES_AT, Header, TABLE_AT, TABLE_BYTES_MAX, incompatible};
use crate::num::{size, wide};
use crate::opened::{Opened, open};
use crate::own::Own;
use crate::repair::{What, repair};
use crate::space::Space;

const PAGE: u64 = 4096;

/// An image that may be written.
#[derive(Debug)]
pub struct Ready {
    pub(crate) opened: Opened,
    /// Byte of each count block.
    pub(crate) blocks: Vec<u64>,
    pub(crate) own: Own,
    pub(crate) space: Space,
}

impl Opened {
    /// Whether an image like this may be written.
    ///
    /// # Errors
    /// Why not, and what to do.
    pub fn may_be_written(&self, name: &Path) -> Result<(), Error> {
        let header = &self.header;
        if header.corrupt {
            let why = "is marked corrupt and is not written: repair it with qcow2-util check -r \
                       all, or open it with -R";
            return Err(Error::new(name, EACCES, why));
        }
        if header.snapshots > 0 {
            let why = format!(
                "has {} internal snapshots and is not written: take them away with qemu-img \
                 snapshot -d, or open it with -R",
                header.snapshots
            );
            return Err(Error::new(name, EROFS, why));
        }
        Ok(())
    }

    /// Whether its counts have to be looked at before it is written.
    pub fn needs_repair(&self) -> bool {
        let shared = |word: &u64| word & OFFSET != 0 && word & COPIED == 0;
        self.header.dirty || self.l1.iter().any(shared)
    }
}

/// Makes an image ready: its counts are repaired if it was not closed, and it is marked dirty.
///
/// # Errors
/// What is wrong with it and cannot be repaired; those of the storage.
pub fn ready(storage: &dyn Storage, name: &Path, opened: Opened) -> Result<Ready, Error> {
    opened.may_be_written(name)?;
    if !opened.needs_repair() {
        return ready_as_it_is(storage, name, opened);
    }
    let report = repair(storage, name, What::All, &mut |_| {})?;
    if !report.is_clean() {
        let why = format!(
            "was not closed, and has {} errors and {} leaked clusters that cannot be repaired",
            report.corruptions, report.leaks
        );
        return Err(damaged(name, &why));
    }
    ready_as_it_is(storage, name, open(storage, name)?)
}

fn ready_as_it_is(storage: &dyn Storage, name: &Path, opened: Opened) -> Result<Ready, Error> {
    let header = &opened.header;
    let blocks = read_blocks(storage, name, header)?;
    let (own, highest) = own_clusters(name, &opened, &blocks)?;
    let next = first_uncounted(storage, name, header, &blocks)?;
    if wide(blocks.len()) < blocks_wanted(header) && longer_table(storage, name, header)? {
        // The rest may be what it is about to be, as while a disk is made larger.
        let Header { table_at, table_clusters, .. } = open(storage, name)?.header;
        let header = Header { table_at, table_clusters, ..opened.header };
        return ready_as_it_is(storage, name, Opened { header, ..opened });
    }
    let cluster = header.cluster();
    let device = storage.is_device();
    let file = |what: &'static str| move |error| Error::io(name, what, &error);
    let bytes = storage.len().map_err(file("its length"))?;
    if highest >= next {
        return Err(damaged(
            name,
            &format!("has a table in cluster {highest}, which is not counted"),
        ));
    }
    let room = if device { bytes / cluster } else { (i64::MAX.unsigned_abs() >> 1) / cluster };
    if next > room {
        let why = format!("uses {next} clusters, and the device has {room}");
        return Err(damaged(name, &why));
    }
    let in_block = Width::new(header.refcount_order).counts_in(cluster);
    let countable = wide(blocks.len()).saturating_mul(in_block);
    let space = Space::new(cluster, next, room.min(countable), device);
    // It ends on a page while it is written: storage with sectors of 4096 bytes has no other end.
    let end = bytes.max(next * cluster).next_multiple_of(PAGE);
    if !device && bytes < end {
        storage.set_len(end).map_err(file("it cannot be made longer"))?;
    }
    mark_dirty(storage, header).map_err(file("its mark cannot be written"))?;
    Ok(Ready { opened, blocks, own, space })
}

fn damaged(name: &Path, why: &str) -> Error {
    Error::new(name, EIO, format!("{why}: see qcow2-util check, and repair it with -r all"))
}

/// Count blocks that a full disk needs, with all its tables.
fn blocks_wanted(header: &Header) -> u64 {
    let cluster = header.cluster();
    let in_block = Width::new(header.refcount_order).counts_in(cluster);
    let data = header.size.div_ceil(cluster);
    let l1 = (u64::from(header.l1_entries) * 8).div_ceil(cluster);
    let counted = 1 + l1 + data.div_ceil(header.entries()) + data;
    // Blocks and their table count themselves.
    let blocks = counted.div_ceil(in_block) + 1;
    let table = (blocks * 8).div_ceil(cluster) + 1;
    (counted + blocks + table).div_ceil(in_block) + 1
}

/// The count table becomes long enough for a full disk, while nobody has the image open: it does
/// not move later. False where there is no room for it: what can be counted can be used.
fn longer_table(storage: &dyn Storage, name: &Path, header: &Header) -> Result<bool, Error> {
    let cluster = header.cluster();
    let clusters = (blocks_wanted(header) * 8).div_ceil(cluster);
    if clusters <= header.table_clusters.into() || clusters * cluster > TABLE_BYTES_MAX {
        return Ok(false);
    }
    let failed = |error| Error::not_written(name, "its refcount table", &error);
    // A crash on the way leaves clusters that nobody uses.
    mark_dirty(storage, header).map_err(failed)?;
    let at = match allocate(storage, name, clusters) {
        Ok(at) => at,
        Err(error) if error.errno() == ENOSPC => return Ok(false),
        Err(error) => return Err(error),
    };
    let Header { table_at, table_clusters, .. } = open(storage, name)?.header;
    let mut table = vec![0; size(clusters * cluster)];
    let old = u64::from(table_clusters) * cluster;
    storage.read_at(table_at, &mut table[..size(old)]).map_err(failed)?;
    storage.write_at(at, &table).and_then(|()| storage.sync()).map_err(failed)?;
    let mut fields = at.to_be_bytes().to_vec();
    fields.extend(u32::try_from(clusters).expect("8 MiB at most").to_be_bytes());
    storage.write_at(TABLE_AT, &fields).and_then(|()| storage.sync()).map_err(failed)?;
    release(storage, name, table_at / cluster, table_clusters.into())?;
    Ok(true)
}

/// The count table.
fn read_blocks(storage: &dyn Storage, name: &Path, header: &Header) -> Result<Vec<u64>, Error> {
    let bytes = u64::from(header.table_clusters) * header.cluster();
    // `check` has seen that it has 8 MiB at most.
    let table = read(storage, header.table_at, bytes)
        .map_err(|error| Error::io(name, "its refcount table", &error))?;
    let blocks: Vec<u64> =
        table.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect();
    let bad = |block: &u64| !block.is_multiple_of(header.cluster()) || *block > OFFSET;
    match blocks.iter().position(bad) {
        None => Ok(blocks),
        Some(i) => {
            Err(damaged(name, &format!("has a refcount table whose entry {i} is {:#x}", blocks[i])))
        }
    }
}

/// Bytes of a file; what lies behind its end reads as zeros.
fn read(storage: &dyn Storage, at: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut all = vec![0; size(bytes)];
    storage.read_at(at, &mut all)?;
    Ok(all)
}

/// The clusters of all tables, each of which is in one place alone; and the highest.
fn own_clusters(name: &Path, opened: &Opened, blocks: &[u64]) -> Result<(Own, u64), Error> {
    let Opened { header, l1, .. } = opened;
    let cluster = header.cluster();
    let l1_clusters = (u64::from(header.l1_entries) * 8).div_ceil(cluster);
    let table_clusters = u64::from(header.table_clusters);
    let fixed = size(1 + l1_clusters + table_clusters);
    // One for every table and block that there may be: it does not grow while it is used.
    let mut own = Own::with_room(fixed + l1.len() + blocks.len());
    let mut highest = 0;
    let mut add = |what: &str, host: u64| {
        highest = highest.max(host);
        match own.insert(host) {
            true => Ok(()),
            false => {
                Err(damaged(name, &format!("has {what} in cluster {host}, which is another's")))
            }
        }
    };
    add("its header", 0)?;
    let first = header.l1_at / cluster;
    (first..first + l1_clusters).try_for_each(|host| add("its L1 table", host))?;
    let first = header.table_at / cluster;
    (first..first + table_clusters).try_for_each(|host| add("its refcount table", host))?;
    let present = blocks.iter().filter(|block| **block != 0);
    present.map(|block| block / cluster).try_for_each(|host| add("a refcount block", host))?;
    for (i, word) in l1.iter().enumerate().filter(|(_, word)| **word & OFFSET != 0) {
        let at = word & OFFSET;
        if !at.is_multiple_of(cluster) || word & !OFFSET & !COPIED != 0 {
            return Err(damaged(name, &format!("has an L1 entry {i} of {word:#x}")));
        }
        add("an L2 table", at / cluster)?;
    }
    Ok((own, highest))
}

/// The first cluster of the file behind all that are counted.
fn first_uncounted(
    storage: &dyn Storage,
    name: &Path,
    header: &Header,
    blocks: &[u64],
) -> Result<u64, Error> {
    let (cluster, width) = (header.cluster(), Width::new(header.refcount_order));
    let in_block = width.counts_in(cluster);
    for (i, block) in blocks.iter().enumerate().rev().filter(|(_, block)| **block != 0) {
        let counts = read(storage, *block, cluster)
            .map_err(|error| Error::io(name, "a refcount block", &error))?;
        // A byte at a time first: most of the last block is empty.
        let Some(byte) = counts.iter().rposition(|byte| *byte != 0) else { continue };
        let end = width.counts_in(wide(byte).next_multiple_of(8) + 8).min(in_block);
        if let Some(at) = (0..end).rev().find(|at| width.get(&counts, size(*at)) != 0) {
            return Ok(wide(i) * in_block + at + 1);
        }
    }
    Err(damaged(name, "has a refcount table that counts nothing"))
}

/// Whoever opens it next looks at its counts; what it has of features that writing makes untrue
/// goes. Single fields of the header: SM changes others at any time (docs/spec/qcow2.md §5.3).
fn mark_dirty(storage: &dyn Storage, header: &Header) -> std::io::Result<()> {
    if header.version >= 3 {
        let features = header.features_without_dirty() | incompatible::DIRTY;
        storage.write_at(FEATURES_AT, &features.to_be_bytes())?;
        storage.write_at(AUTOCLEAR_AT, &[0; 8])?;
    }
    storage.sync()
}
