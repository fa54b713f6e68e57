//! Changes of a header: what lies below an image, how large its disk is.
//!
//! The header is read again for each, since the storage manager writes into it by itself. What does
//! not lie in its first sector goes first, to where nothing of the old state is, then that sector:
//! a crash in between leaves the old state or the new one.
use std::path::Path;

use image::Storage;

use crate::encode;
use crate::error::{Error, errno::EINVAL};
use crate::extension::{self, extensions};
use crate::head::Head;
use crate::header::{Backing, READ_BYTES};
use crate::num::{size, wide, word32, word64};

const SECTOR: usize = 512;
/// Longest name of what is below.
const NAME_MAX: usize = 1023;

/// Says what lies below an image from now on, or nothing. Everything else stays, unknown extensions
/// included; data is not touched, so the new one has to hold what the old one did.
///
/// # Errors
/// Those of the file; a header without room for it.
pub fn set_backing(
    storage: &dyn Storage,
    name: &Path,
    backing: Option<&Backing>,
) -> Result<(), Error> {
    let head = Head::read(storage, name)?;
    let full = |why: &str| Error::new(name, EINVAL, format!("has no room for that: {why}"));
    let text = backing.map_or(&b""[..], |backing| &backing.name);
    if text.len() > NAME_MAX {
        return Err(full("a backing name has 1023 bytes at most"));
    }
    let fields = head.bytes.get(..head.fields_end());
    let mut new = fields.ok_or_else(|| full("its header_length is wrong"))?.to_vec();
    new.extend(encode::extensions(kept(&head, backing).into_iter()));
    let old = (word64(&head.bytes, 8), u64::from(word32(&head.bytes, 16)));
    let room = head.header.cluster().min(wide(READ_BYTES));
    let at = name_place(wide(new.len()), wide(text.len()), old, room);
    let at = at.ok_or_else(|| full("its first cluster is full"))?;
    // Nothing that lies behind the extensions is cut off.
    let end = size(room).min(head.bytes.len()).max(new.len());
    new.resize(end, 0);
    if backing.is_some() {
        let (first, last) = (size(at), size(at) + text.len());
        new.resize(new.len().max(last), 0);
        // The old name stays until the new one counts.
        let (old_first, old_last) = (size(old.0.min(room)), size((old.0 + old.1).min(room)));
        if old.0 != 0 && old_last <= end && (last <= old_first || first >= old_last) {
            keep(&mut new, &head.bytes, old_first..old_last);
        }
        new[first..last].copy_from_slice(text);
    }
    encode::name_fields(&mut new, if backing.is_some() { at } else { 0 }, text.len());
    write(storage, name, &head.bytes, &new)
}

/// Copies a range of the old bytes, where the new ones have nothing.
fn keep(new: &mut [u8], old: &[u8], range: std::ops::Range<usize>) {
    let both = new.get_mut(range.clone()).zip(old.get(range));
    if let Some((new, old)) = both.filter(|(new, _)| new.iter().all(|byte| *byte == 0)) {
        new.copy_from_slice(old);
    }
}

/// The extensions that there will be, the format of what is below first.
fn kept<'a>(head: &'a Head, backing: Option<&'a Backing>) -> Vec<(u32, &'a [u8])> {
    let format = backing.and_then(|backing| backing.format.as_deref());
    let format = format.map(|format| (extension::BACKING_FORMAT, format));
    let others = extensions(head.extension_bytes());
    let others = others.filter(|(kind, _)| *kind != extension::BACKING_FORMAT);
    format.into_iter().chain(others).collect()
}

/// Where a name goes: behind the extensions, or behind the old name if it would lie over it.
fn name_place(from: u64, bytes: u64, old: (u64, u64), room: u64) -> Option<u64> {
    let old_end = old.0 + old.1;
    let free = |at: u64| old.0 == 0 || at + bytes <= old.0 || at >= old_end;
    let fits = |at: &u64| at + bytes <= room;
    let behind = old_end.next_multiple_of(8).max(from);
    let choices = [from, behind];
    let best = choices.into_iter().filter(fits).find(|at| free(*at));
    best.or_else(|| Some(from).filter(fits))
}

/// Writes what differs, the first sector last.
fn write(storage: &dyn Storage, name: &Path, old: &[u8], new: &[u8]) -> Result<(), Error> {
    let failed = |error| Error::not_written(name, "its header", &error);
    let sectors = new.chunks(SECTOR).enumerate().rev();
    for (number, sector) in sectors {
        let first = number * SECTOR;
        if old.get(first..first + sector.len()) == Some(sector) {
            continue;
        }
        if number == 0 {
            storage.sync().map_err(failed)?;
        }
        storage.write_at(wide(first), sector).map_err(failed)?;
    }
    storage.sync().map_err(failed)
}
