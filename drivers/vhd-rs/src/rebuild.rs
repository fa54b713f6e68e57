//! A batmap made anew: it is a hint which blocks are full, so all that is in it can be learned
//! again.
//!
//! Programs that know no batmap put blocks upon it: qemu begins behind the table. Such blocks move
//! to the end of the image. At every moment the table points at whole blocks, and the map gets its
//! header last.
use crate::batmap;
use crate::closing::renewed;
use crate::edit::{open_to_change, put, refuse_poisoned, write_footers};
use crate::error::{VhdError, errno::ENOSPC};
use crate::header::Header;
use crate::open::{BatmapState, Opened, batmap_header, batmap_place};
use crate::{bat, bat::UNUSED};
use image::Storage;
use std::path::Path;

/// What became of a batmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// It was good, or the image has none.
    Nothing,
    /// It is new; marker and key hash were kept.
    Whole,
    /// It is new; marker and key hash, if there were any, were lost with its header.
    WithoutMarks,
    /// It is as it was: this block cannot be read, so nobody knows what is full.
    Unread(u32),
}

/// Makes a damaged batmap anew. The footers must be good: [`crate::edit::repair`] comes first.
///
/// ```
/// use std::os::unix::fs::FileExt;
/// use vhd_rs::{BatmapState, OpenOptions, files, open, rebuild};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let file = std::fs::File::options().read(true).write(true).open(&name)?;
/// file.write_all_at(b"?", 2048)?; // the cookie of the batmap
/// assert_eq!(rebuild::batmap(&file, &name)?, rebuild::Rebuilt::WithoutMarks);
/// let opened = open(&file, &name, &OpenOptions::default())?;
/// assert!(matches!(opened.batmap, BatmapState::Valid { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// ENOSPC where a block has no room to move to; those of the device.
pub fn batmap(storage: &dyn Storage, name: &Path) -> Result<Rebuilt, VhdError> {
    let mut opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    let (Some(header), BatmapState::Damaged { .. }) = (opened.header.clone(), &opened.batmap)
    else {
        return Ok(Rebuilt::Nothing);
    };
    if let Some(block) = opened.bad_blocks.first() {
        return Ok(Rebuilt::Unread(*block));
    }
    let known = batmap_header(&opened.batmap).is_some();
    let moved = make_room(storage, name, &mut opened, &header)?;
    write_map(storage, name, &opened, &header)?;
    if moved {
        write_footers(storage, name, &opened, true)?;
    }
    Ok(if known { Rebuilt::Whole } else { Rebuilt::WithoutMarks })
}

/// Moves the blocks that lie upon the place of the batmap; whether there were any.
fn make_room(
    storage: &dyn Storage,
    name: &Path,
    o: &mut Opened,
    header: &Header,
) -> Result<bool, VhdError> {
    let (from, to) = batmap_place(header, &o.batmap);
    let upon = |entry: u32| {
        let (start, end) = bat::extent(header, entry);
        entry != UNUSED && start < to && end > from
    };
    let low: Vec<usize> = (0..o.bat.len())
        .filter(|block| o.bat.get(*block).is_some_and(|entry| upon(*entry)))
        .collect();
    let stride = header.bitmap_bytes() + u64::from(header.block_bytes);
    let mut end = o.end_of_data.max(to);
    let step = stride.next_multiple_of(4096);
    if !o.device && !low.is_empty() {
        // Blocks go over the footer, so one stands behind them all first.
        let last = image::end_place(end + low.len() as u64 * step, 0, 0);
        put(storage, name, last, &o.footer.encode())?;
        flush(storage, name)?;
    }
    for block in &low {
        // The data of a block begins on a page (§6).
        let lba = (end.div_ceil(512) + 1).next_multiple_of(8) - 1;
        end = lba * 512 + stride;
        let room = !o.device || end <= o.file_bytes.saturating_sub(512);
        let Some(lba) = u32::try_from(lba).ok().filter(|lba| room && *lba != UNUSED) else {
            let why =
                "a block lies upon the batmap and has no room to move to; make the volume larger";
            return Err(VhdError::request(name, ENOSPC, why));
        };
        let Some(entry) = o.bat.get_mut(*block) else { continue };
        copy(storage, name, bat::extent(header, *entry).0, u64::from(lba) * 512, stride)?;
        flush(storage, name)?;
        let at = header.table_offset + 4 * *block as u64;
        put(storage, name, at, &lba.to_be_bytes())?;
        flush(storage, name)?;
        *entry = lba;
    }
    o.end_of_data = end.max(bat::blocks_end(header, o.bat.iter().copied()));
    Ok(!low.is_empty())
}

fn copy(
    storage: &dyn Storage,
    name: &Path,
    from: u64,
    to: u64,
    bytes: u64,
) -> Result<(), VhdError> {
    const PIECE: u64 = 1 << 20;
    let mut done = 0;
    while done < bytes {
        let mut piece = vec![0; PIECE.min(bytes - done) as usize];
        let failed = |e| VhdError::io(name, "read a block", from + done, &e);
        storage.read_exact_at(from + done, &mut piece).map_err(failed)?;
        put(storage, name, to + done, &piece)?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// The map, from the bitmaps of all blocks, and then its header.
fn write_map(
    storage: &dyn Storage,
    name: &Path,
    o: &Opened,
    header: &Header,
) -> Result<(), VhdError> {
    let BatmapState::Damaged { header_at, .. } = o.batmap else { return Ok(()) };
    let mut map_header = renewed(o, header_at, header.max_entries);
    let mut map = vec![0; 512 * map_header.map_sectors as usize];
    for (block, entry) in (0..).zip(&o.bat).filter(|(_, entry)| **entry != UNUSED) {
        if is_full(storage, name, o, header, (block, *entry))? {
            batmap::set_full(&mut map, block);
        }
    }
    map_header.checksum = map_header.checksum_of(&map, o.footer.current_bytes, header.block_bytes);
    put(storage, name, map_header.map_offset, &map)?;
    flush(storage, name)?;
    put(storage, name, header_at, &map_header.encode())?;
    flush(storage, name)
}

/// Whether all bits of a block are set. A block that the disk ends in is never full (§7.1).
fn is_full(
    storage: &dyn Storage,
    name: &Path,
    o: &Opened,
    header: &Header,
    (block, entry): (u32, u32),
) -> Result<bool, VhdError> {
    let sectors = u64::from(header.block_bytes / 512);
    if (u64::from(block) + 1) * sectors > o.sectors {
        return Ok(false);
    }
    let mut bits = vec![0; usize::try_from(sectors / 8).unwrap_or(512)];
    let at = bat::extent(header, entry).0;
    let failed = |e| VhdError::io(name, "read a bitmap", at, &e);
    storage.read_exact_at(at, &mut bits).map_err(failed)?;
    Ok(bits.iter().all(|byte| *byte == 0xff))
}

fn flush(storage: &dyn Storage, name: &Path) -> Result<(), VhdError> {
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e))
}
