//! A larger disk in an image that nobody has open.
//!
//! ```text
//!   larger L1 (in clusters of its own) ─► sync ─► header: L1 ─► sync ─► old L1 given back
//!   new range made zeros where a parent is longer ─► closed ─► header: size ─► sync
//! ```
//! The size comes last: what the disk will show is right before anybody sees it.
use std::path::Path;

use image::blocking::Writer;
use image::{Span, Storage};

use crate::allocate::{allocate, release};
use crate::check::check;
use crate::driver::Qcow2;
use crate::error::{
    Error,
    errno::{EFBIG, EINVAL},
};
use crate::head::{Head, open_any, words};
use crate::layout::{SIZE_MAX, Shape};
use crate::num::{size, wide};
use crate::opened::Opened;
use crate::ready::ready;
use crate::repair::{What, repair};

/// Where the size, the length of the L1 and its offset are.
const SIZE_AT: u64 = 24;
const L1_AT: u64 = 36;
/// Sectors that are made zeros at once.
const STEP: u64 = 1 << 21;

/// Whether to make it so large changes nothing that those notice who read it as it is: its L1 stays
/// where it is, no cluster moves, and nothing has to be repaired. `below` as in [`grow`].
pub fn grows_in_place(opened: &Opened, bytes: u64, below: u64) -> bool {
    let header = &opened.header;
    let cluster = header.cluster();
    let shape = Shape::of(header);
    let room = (u64::from(header.l1_entries) * 8).next_multiple_of(cluster);
    bytes >= header.size
        && shape.holds(bytes)
        && shape.l1_entries(bytes) * 8 <= room
        && header.size.is_multiple_of(cluster)
        && below <= header.size
        && !opened.needs_repair()
}

/// Makes the disk larger. `below` is the size of what lies below it in bytes, 0 for nothing: where
/// that is longer than the disk was, its data must not come to light.
///
/// # Errors
/// A smaller size; one that is too large for its clusters; those of writing. What was done by then
/// does no harm.
pub fn grow(storage: &dyn Storage, name: &Path, bytes: u64, below: u64) -> Result<(), Error> {
    let opened = open_any(storage, name)?;
    opened.may_be_written(name)?;
    // Tables are written: they have to be where only they are.
    let found = match opened.needs_repair() {
        true => repair(storage, name, What::All, &mut |_| ())?,
        false => check(storage, name, &mut |_| ())?,
    };
    if found.corruptions > 0 {
        let why = "has errors that have to be repaired first: see qcow2-util check -r all";
        return Err(Error::new(name, EINVAL, why));
    }
    let header = opened.header;
    let shape = Shape::of(&header);
    if bytes < header.size {
        let why = format!("has {} bytes and does not become smaller", header.size);
        return Err(Error::new(name, EINVAL, why));
    }
    if bytes > SIZE_MAX || !bytes.is_multiple_of(512) || !shape.holds(bytes) {
        let why = format!("cannot have {bytes} bytes in clusters of {}", shape.cluster());
        return Err(Error::new(name, EFBIG, why));
    }
    if shape.l1_entries(bytes) > header.l1_entries.into() {
        lengthen(storage, name, shape.l1_entries(bytes))?;
    }
    cover(storage, name, bytes, below)?;
    let failed = |error| Error::not_written(name, "its size", &error);
    storage.write_at(SIZE_AT, &bytes.to_be_bytes()).map_err(failed)?;
    storage.sync().map_err(failed)
}

/// Gives it an L1 of so many entries.
fn lengthen(storage: &dyn Storage, name: &Path, entries: u64) -> Result<(), Error> {
    let head = Head::read(storage, name)?;
    let (cluster, old_at) = (head.header.cluster(), head.header.l1_at);
    let old_entries = u64::from(head.header.l1_entries);
    let old_bytes = (old_entries * 8).next_multiple_of(cluster);
    let failed = |error| Error::not_written(name, "its L1 table", &error);
    let count = u32::try_from(entries).expect("an L1 has 32 MiB at most");
    if entries * 8 <= old_bytes {
        // The rest of its last cluster may hold anything on a device.
        let zeros = vec![0; size((entries - old_entries) * 8)];
        storage.write_at(old_at + old_entries * 8, &zeros).map_err(failed)?;
        storage.sync().map_err(failed)?;
        storage.write_at(L1_AT, &count.to_be_bytes()).map_err(failed)?;
        return storage.sync().map_err(failed);
    }
    let old = words(storage, name, old_at, old_entries, "its L1 table")?;
    let clusters = (entries * 8).div_ceil(cluster);
    let new_at = allocate(storage, name, clusters)?;
    let mut table: Vec<u8> = old.iter().flat_map(|word| word.to_be_bytes()).collect();
    table.resize(size(clusters * cluster), 0);
    storage.write_at(new_at, &table).map_err(failed)?;
    storage.sync().map_err(failed)?;
    let mut fields = count.to_be_bytes().to_vec();
    fields.extend(new_at.to_be_bytes());
    storage.write_at(L1_AT, &fields).map_err(failed)?;
    storage.sync().map_err(failed)?;
    release(storage, name, old_at / cluster, old_bytes / cluster)
}

/// What comes into the disk reads as zeros: also the rest of its last cluster, and what a parent
/// has there.
fn cover(storage: &dyn Storage, name: &Path, bytes: u64, below: u64) -> Result<(), Error> {
    let Opened { header, l1, bytes: len } = open_any(storage, name)?;
    let cluster = header.cluster();
    let rest = header.size.next_multiple_of(cluster).min(bytes);
    let end = bytes.min(below.next_multiple_of(512)).max(rest);
    let old = header.size / 512 * 512;
    if old >= end {
        return Ok(());
    }
    let head = Head::read(storage, name)?;
    let entries = head.header.size.max(bytes).div_ceil(cluster).div_ceil(header.entries());
    debug_assert!(wide(l1.len()) <= entries, "it has what the disk needs");
    let l1 = words(storage, name, header.l1_at, entries, "its L1 table")?;
    let mut larger = header;
    larger.size = bytes;
    let failed = |error| Error::not_written(name, "zeros", &error);
    let opened = Opened { header: larger, l1, bytes: len };
    let mut image = Qcow2::to_write(ready(storage, name, opened)?);
    let mut writer = Writer::new(&mut image, storage).map_err(failed)?.with_barriers(true);
    for first in (old / 512..end / 512).step_by(size(STEP)) {
        let span = Span::between(first, (first + STEP).min(end / 512));
        // Not so below, as far as anybody knows.
        writer.zero(span, below <= first * 512, false).map_err(failed)?;
    }
    writer.close().map_err(failed)
}
