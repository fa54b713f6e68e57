//! The block allocation table: for every block the sector in the file where its bitmap lies.
use crate::error::VhdError;
use crate::header::Header;
use image::Storage;
use std::path::Path;

/// A block that is not in the file.
pub const UNUSED: u32 = u32::MAX;
/// Most entries that are read: 64 TiB in blocks of 2 MiB, or 2040 GiB in blocks of 64 KiB.
pub const ENTRIES_MAX: u32 = 1 << 25;

/// Bytes read at a time: never more than the file has, whatever the header claims.
const CHUNK_BYTES: usize = 64 << 10;

/// A table in native order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bat {
    /// The entries the disk uses.
    pub used: Vec<u32>,
    /// The entries beyond.
    pub tail: Vec<u32>,
}

/// Reads the table of a disk of that many bytes.
///
/// # Errors
/// A table too small for the disk or outside the file is EINVAL.
pub fn read(
    storage: &dyn Storage,
    name: &Path,
    header: &Header,
    header_at: u64,
    disk_bytes: u64,
) -> Result<Bat, VhdError> {
    let entries = header.max_entries;
    let needed = header.blocks(disk_bytes);
    let wrong = |at: u64, field, why| VhdError::Field {
        name: name.into(),
        field,
        offset: header_at.saturating_add(at),
        why,
        remedy: "restore the image from a backup",
    };
    if needed > u64::from(entries) {
        let why = format!("is {entries}, but the disk has {needed} blocks");
        return Err(wrong(28, "header max table entries", why));
    }
    let file_bytes = storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e))?;
    let end = header.table_offset.checked_add(u64::from(entries) * 4);
    if entries > ENTRIES_MAX || end.is_none_or(|end| end > file_bytes) {
        let why = format!(
            "puts {entries} entries at byte {}, but the file ends at {file_bytes}",
            header.table_offset
        );
        return Err(wrong(16, "header table offset", why));
    }
    let mut used = entries_at(storage, name, header.table_offset, entries)?;
    let tail = used.split_off(usize::try_from(needed).unwrap_or(usize::MAX).min(used.len()));
    Ok(Bat { used, tail })
}

fn entries_at(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    entries: u32,
) -> Result<Vec<u32>, VhdError> {
    let mut left = usize::try_from(entries).unwrap_or(0) * 4;
    // The caller has seen that the file has them all.
    let mut out = Vec::with_capacity(left / 4);
    let mut chunk = vec![0; CHUNK_BYTES.min(left)];
    let mut at = at;
    while left > 0 {
        let now = left.min(chunk.len());
        let part = chunk.get_mut(..now).unwrap_or_default();
        storage
            .read_exact_at(at, part)
            .map_err(|e| VhdError::io(name, "read the block allocation table", at, &e))?;
        out.extend(part.as_chunks::<4>().0.iter().map(|c| u32::from_be_bytes(*c)));
        left -= now;
        at += now as u64;
    }
    Ok(out)
}

/// Whether the bitmap of an entry's block is in the file; else the entry points at nothing.
pub fn reachable(header: &Header, entry: u32, file_bytes: u64) -> bool {
    entry != UNUSED && extent(header, entry).0 + header.bitmap_bytes() <= file_bytes
}

/// The bytes of a table, padded with zeros to a sector as the original does.
pub fn encode(entries: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut out: Vec<u8> = entries.flat_map(u32::to_be_bytes).collect();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// Where a block's bytes are, bitmap and data, from its table entry.
pub fn extent(header: &Header, entry: u32) -> (u64, u64) {
    let start = u64::from(entry) * 512;
    (start, start + header.bitmap_bytes() + u64::from(header.block_bytes))
}

/// The byte after the last used block, or 0.
pub fn blocks_end(header: &Header, used: impl Iterator<Item = u32>) -> u64 {
    used.filter(|e| *e != UNUSED).max().map_or(0, |e| extent(header, e).1)
}

/// The same without entries that point at nothing: one wild number must not make a file reach to
/// it.
pub fn data_end(header: &Header, used: &[u32], file_bytes: u64) -> u64 {
    let there = |entry: &u32| reachable(header, *entry, file_bytes);
    blocks_end(header, used.iter().copied().filter(there))
}

/// What is wrong with the entries of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Blocks that must not be read, sorted: beyond the end of the file, in the headers, or upon
    /// another block.
    pub bad: Vec<u32>,
    /// The first block whose use for writing would destroy other data: block, entry, reason.
    pub harm: Option<(u32, u32, &'static str)>,
}

/// Looks at every used entry. A block whose bitmap is in the file is not bad: on NFS and devices a
/// crash may leave the file ending within the data of the last block, and a read of what is missing
/// fails by itself.
pub fn damage(header: &Header, used: &[u32], end_of_headers: u64, file_bytes: u64) -> Damage {
    let mut out = Damage::default();
    let there = (0_u32..).zip(used).filter(|(_, entry)| **entry != UNUSED);
    let mut sorted: Vec<(u32, u32)> = there.map(|(block, entry)| (*entry, block)).collect();
    sorted.sort_unstable();
    for (entry, block) in &sorted {
        let start = extent(header, *entry).0;
        if start < end_of_headers {
            out.bad.push(*block);
            out.harm.get_or_insert((*block, *entry, "clobbers headers"));
        } else if start + header.bitmap_bytes() > file_bytes {
            out.bad.push(*block);
        }
    }
    // A block in the headers is surely the wrong one; whom it reaches into may be innocent. Among
    // the others, sorted by place and all of one length, whoever overlaps anybody overlaps a
    // neighbour.
    let above = sorted.partition_point(|(entry, _)| extent(header, *entry).0 < end_of_headers);
    for pair in sorted.get(above..).unwrap_or_default().windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if extent(header, *first).1 > extent(header, *second).0 {
            out.bad.extend([*a, *b]);
            out.harm.get_or_insert((*b, *second, "clobbers another block"));
        }
    }
    out.bad.sort_unstable();
    out.bad.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::MemStorage;

    const BLOCK: u32 = 1 + 4096;

    #[test]
    fn damage_is_found_by_kind() {
        let header = Header::new(1536, 8, 2 << 20);
        let file = u64::from(7 + 2 * 4104_u32) * 512;
        let good = damage(&header, &[7, UNUSED, 7 + 4104], 3584, file);
        assert_eq!(good, Damage::default());
        let low = damage(&header, &[2, 7 + 4104], 3584, file);
        assert_eq!((low.bad, low.harm), (vec![0], Some((0, 2, "clobbers headers"))));
        let beyond = damage(&header, &[7, 1 << 20], 3584, file);
        assert_eq!((beyond.bad, beyond.harm), (vec![1], None));
        let upon = damage(&header, &[7, UNUSED, 7 + BLOCK - 1], 3584, file);
        assert_eq!(upon.bad, vec![0, 2]);
        assert_eq!(upon.harm, Some((2, 7 + BLOCK - 1, "clobbers another block")));
    }

    #[test]
    fn an_absurd_entry_count_is_refused_before_memory_is_taken() {
        let header = Header::new(1536, u32::MAX - 1, 2 << 20);
        let storage = MemStorage::new(vec![0; 4096], false);
        let e = read(&storage, Path::new("x"), &header, 512, 10 << 20).unwrap_err();
        assert_eq!(e.errno(), 22, "{e}");
    }

    #[test]
    fn entries_beyond_the_disk_are_the_tail() {
        let header = Header::new(0, 4, 2 << 20);
        let storage = MemStorage::new(encode([1, 2, 3, UNUSED].into_iter()), false);
        let bat = read(&storage, Path::new("x"), &header, 512, (2 << 20) + 512).unwrap();
        assert_eq!((bat.used, bat.tail), (vec![1, 2], vec![3, UNUSED]));
    }
}
