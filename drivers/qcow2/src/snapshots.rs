//! Internal snapshots, as far as who counts clusters needs them: each has an L1 of its own.
//!
//! An entry: L1 offset u64, L1 entries u32, lengths of id and name u16 each, date u32 + u32 (ns),
//! clock u64 (ns), bytes of VM state u32, length of what else there is u32; then that, id and name,
//! padded to eight bytes. Of what else there is the first eight bytes are the VM state's size, the
//! next eight the disk's.
use std::path::Path;

use image::Storage;

use crate::error::{Error, errno::EINVAL};
use crate::head::{Head, read_zeroed};
use crate::num::{size, word32, word64};

const FIXED: u64 = 40;
/// Bytes of what else there is, of all entries together.
const EXTRA_MAX: u64 = 1024;
const TABLE_MAX: u64 = 64 << 20;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Where its L1 is.
    pub l1_at: u64,
    /// Its entries.
    pub l1_entries: u32,
    /// What it is called by.
    pub id: Vec<u8>,
    /// Its name.
    pub name: Vec<u8>,
    /// Seconds since 1970.
    pub date: u32,
    /// Nanoseconds since then.
    pub date_ns: u32,
    /// Nanoseconds that its machine had run.
    pub clock_ns: u64,
    /// Bytes of its machine's state.
    pub state_bytes: u64,
    /// Size of its disk in bytes, where that is said.
    pub size: Option<u64>,
    /// Instructions that its machine had run, where that is said.
    pub icount: Option<u64>,
}

/// The snapshots of an image, and the bytes of their table.
///
/// # Errors
/// Those of the file; a table that lies.
pub fn snapshots(
    storage: &dyn Storage,
    name: &Path,
    head: &Head,
) -> Result<(Vec<Snapshot>, u64), Error> {
    let bad = |number: usize, why: &str| {
        let why =
            format!("has {why} in entry {number} of its snapshot table: qemu-img check -r all");
        Error::new(name, EINVAL, why)
    };
    let mut all = Vec::new();
    let start = head.snapshots_at();
    if head.header.snapshots > 0 && (start == 0 || !start.is_multiple_of(head.header.cluster())) {
        let why = format!("has its snapshots at {start:#x}, which is no cluster: qemu-img check");
        return Err(Error::new(name, EINVAL, why));
    }
    let mut at = 0u64;
    for number in 0..size(head.header.snapshots.into()) {
        let place = start.checked_add(at).filter(|place| place + FIXED <= head.len);
        let Some(place) = place else { return Err(bad(number, "an entry behind its end")) };
        let mut bytes = vec![0; size(FIXED)];
        let failed = |error| Error::io(name, "its snapshots", &error);
        read_zeroed(storage, place, &mut bytes).map_err(failed)?;
        let extra = u64::from(word32(&bytes, 36));
        let (id, called) = (short(&bytes, 12), short(&bytes, 14));
        if extra > EXTRA_MAX {
            return Err(bad(number, "too much extra data"));
        }
        let mut more = vec![0; size(extra + id + called)];
        read_zeroed(storage, place + FIXED, &mut more).map_err(failed)?;
        all.push(snapshot(&bytes, &more, size(extra), size(id)));
        at += (FIXED + extra + id + called).next_multiple_of(8);
        if at > TABLE_MAX {
            return Err(bad(number, "more than 64 MiB"));
        }
    }
    Ok((all, at))
}

fn short(bytes: &[u8], at: usize) -> u64 {
    u64::from(word32(bytes, at) >> 16)
}

fn snapshot(fixed: &[u8], more: &[u8], extra: usize, id: usize) -> Snapshot {
    let (extra, names) = more.split_at(extra);
    let (id, name) = names.split_at(id);
    let has = |bytes: usize| extra.len() >= bytes;
    Snapshot {
        l1_at: word64(fixed, 0),
        l1_entries: word32(fixed, 8),
        id: id.to_vec(),
        name: name.to_vec(),
        date: word32(fixed, 16),
        date_ns: word32(fixed, 20),
        clock_ns: word64(fixed, 24),
        state_bytes: if has(8) { word64(extra, 0) } else { word32(fixed, 32).into() },
        size: has(16).then(|| word64(extra, 8)),
        icount: has(24).then(|| word64(extra, 16)).filter(|count| *count != u64::MAX),
    }
}
