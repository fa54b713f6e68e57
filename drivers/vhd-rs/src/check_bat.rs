//! The part of the strict list about blocks: where they lie, what their bitmaps say.
use crate::bat;
use crate::batmap;
use crate::check::{Fault, Subject, invalid, io_fault};
use crate::present::Present;

/// Bytes compared with zero at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Blocks must lie between headers and footer and not upon each other.
pub(crate) fn blocks(s: &Subject<'_>) -> Result<(), Fault> {
    if !matches!(s.file_bytes % 512, 0 | 511) {
        return Err(invalid(format!("invalid file size: {:#x}", s.file_bytes)));
    }
    for (block, entry) in allocated(s) {
        let (start, end) = bat::extent(&s.header, entry);
        if start < s.end_of_headers {
            return Err(invalid(format!("block {block} (offset {entry:#x}) clobbers headers")));
        }
        if end > s.limit {
            return Err(invalid(format!("block {block} (offset {entry:#x}) clobbers footer")));
        }
    }
    if s.o.ignore_overlap { Ok(()) } else { overlap(s) }
}

/// Sorted by place, whoever overlaps anybody overlaps a neighbour.
fn overlap(s: &Subject<'_>) -> Result<(), Fault> {
    let mut sorted: Vec<(u32, u32)> = allocated(s).map(|(block, entry)| (entry, block)).collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        let [(first, a), (second, b)] = pair else { continue };
        if bat::extent(&s.header, *first).1 > bat::extent(&s.header, *second).0 {
            return Err(invalid(format!(
                "block {a} (offset {first:#x}) clobbers block {b} (offset {second:#x})"
            )));
        }
    }
    Ok(())
}

fn allocated<'a>(s: &'a Subject<'_>) -> impl Iterator<Item = (u32, u32)> + 'a {
    (0..).zip(s.used.iter().copied()).filter(|(_, entry)| *entry != bat::UNUSED)
}

/// The sectors that are present; looked at, and their opposite compared with zero, only if asked
/// for.
pub(crate) fn bitmaps(s: &Subject<'_>) -> Result<Present, Fault> {
    let sectors = u64::from(s.header.block_bytes / 512);
    let mut present = Present::new(sectors);
    if !s.o.bitmaps && !s.o.stats {
        return Ok(present);
    }
    let mut bitmap = vec![0; usize::try_from(s.header.bitmap_bytes()).unwrap_or(512)];
    for (block, entry) in allocated(s) {
        let start = bat::extent(&s.header, entry).0;
        let failed = |e: &std::io::Error| io_fault("reading bitmap of", s.name, e);
        s.storage.read_exact_at(start, &mut bitmap).map_err(|e| failed(&e))?;
        let set = |n: u64| batmap::is_full(&bitmap, u32::try_from(n).unwrap_or(u32::MAX));
        if s.o.stats {
            present.add(block, &bitmap);
        }
        if s.o.bitmaps {
            zeros_under_clear(s, block, start + s.header.bitmap_bytes(), &set)?;
        }
    }
    Ok(present)
}

fn zeros_under_clear(
    s: &Subject<'_>,
    block: u32,
    data_at: u64,
    set: &dyn Fn(u64) -> bool,
) -> Result<(), Fault> {
    let mut chunk = vec![0; CHUNK_BYTES.min(s.header.block_bytes as usize)];
    let mut sector = 0;
    let failed = |e: &std::io::Error| io_fault("reading data of", s.name, e);
    while sector < u64::from(s.header.block_bytes / 512) {
        s.storage.read_exact_at(data_at + sector * 512, &mut chunk).map_err(|e| failed(&e))?;
        for part in chunk.chunks_exact(512) {
            if !set(sector) && part.iter().any(|b| *b != 0) {
                return Err(invalid(format!(
                    "block {block}, sector {sector}: data under a clear bit"
                )));
            }
            sector += 1;
        }
    }
    Ok(())
}
