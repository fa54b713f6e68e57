//! Making blocks of an image present: with what the disk reads there ([`fill`]), or as they lie on
//! the medium ([`mark`]).
use crate::bat::{self, UNUSED};
use crate::batmap;
use crate::chain::Chain;
use crate::driver::Vhd;
use crate::edit::{open_to_change, put, refuse_poisoned};
use crate::error::{
    VhdError,
    errno::{EINVAL, ENOSPC, EOVERFLOW, ERANGE},
};
use crate::open::{self, OpenOptions, Opened};
use image::Storage;
use image::blocking::Writer;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;

/// Sectors copied at a time.
const PIECE: u64 = 4096;

/// Writes every sector of the disk into the image, read through the chain: nothing is asked of the
/// parents any more. With the key of an encrypted chain, the zeros that are written are encrypted
/// too. (The original also fills entries of the table beyond the disk.)
///
/// ```
/// use vhd_rs::{files, fill, lock, open};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 4 << 20, None, false)?;
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// fill::fill(&file, &name, None)?;
/// let opened = open(&file, &name, &vhd_rs::OpenOptions::default())?;
/// assert!(opened.bat.iter().all(|entry| *entry != vhd_rs::bat::UNUSED));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL for a fixed image, or an encrypted one without key; ENOKEY for a wrong key; those of
/// opening the chain, and of the files.
pub fn fill(file: &File, name: &Path, key: Option<&[u8]>) -> Result<(), VhdError> {
    let options = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut opened = open::open(file, name, &options)?;
    fillable(name, &opened)?;
    let chain = Chain::open(name)?.unlock(key)?;
    crate::heal(file, name, &mut opened, 512)?;
    let sectors = opened.sectors;
    let mut image = Vhd::new(opened);
    let failed = |at: u64| move |e| VhdError::io(name, "fill the image", at * 512, &e);
    let mut writer = Writer::new(&mut image, file).map_err(failed(0))?;
    let done = copy_up(&chain, &mut writer, name, sectors);
    // A footer at the far end stands for the image until here, so what was filled stays filled.
    let closed = writer.close().map_err(failed(sectors));
    done.and(closed)
}

/// Writes all sectors that the chain shows.
fn copy_up(
    chain: &Chain,
    writer: &mut Writer<'_>,
    name: &Path,
    sectors: u64,
) -> Result<(), VhdError> {
    let failed = |at: u64| move |e| VhdError::io(name, "fill the image", at * 512, &e);
    let mut buf = vec![0; (PIECE * 512) as usize];
    let mut at = 0;
    while at < sectors {
        let count = PIECE.min(sectors - at);
        let piece = buf.get_mut(..(count * 512) as usize).unwrap_or_default();
        chain.read(at, piece)?;
        if let Some(cipher) = chain.cipher() {
            cipher.encrypt(at, piece);
        }
        writer.write(at, piece).map_err(failed(at))?;
        at += count;
    }
    Ok(())
}

fn fillable(name: &Path, opened: &Opened) -> Result<(), VhdError> {
    if opened.header.is_none() {
        return Err(VhdError::request(name, EINVAL, "a fixed image is full already"));
    }
    if !opened.bad_blocks.is_empty() {
        let why = "entries of the table are damaged; run vhd-util check";
        return Err(VhdError::request(name, EINVAL, why));
    }
    // Filling would go on and end there, with a part of the work done.
    opened.refuse_cut(name)
}

/// Allocates the blocks of these sectors that are not there, with all bits set and no data written:
/// they show what lies on the medium. Blocks that are there stay as they are. (The original
/// replaces them, and loses what they held.)
///
/// # Errors
/// EINVAL for a fixed image; ERANGE beyond the end of the disk; EOVERFLOW and ENOSPC where blocks
/// find no place; those of the device.
pub fn mark(
    storage: &dyn Storage,
    name: &Path,
    sectors: Option<RangeInclusive<u64>>,
) -> Result<(), VhdError> {
    let mut opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    fillable(name, &opened)?;
    let Some(header) = &opened.header.clone() else { return Ok(()) };
    let end = opened.sectors.saturating_sub(1);
    let range = sectors.unwrap_or(0..=end);
    if *range.end() > end {
        let why = format!("sector {} lies past the end of the disk", range.end());
        return Err(VhdError::request(name, ERANGE, why));
    }
    let per_block = u64::from(header.block_bytes) / 512;
    let mut table: Vec<u32> = opened.bat.clone();
    let mut full = opened.full.clone();
    let mut next = opened.end_of_data.div_ceil(512);
    let mut new = Vec::new();
    for block in range.start() / per_block..=range.end() / per_block {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        let Some(entry) = table.get_mut(index).filter(|entry| **entry == UNUSED) else { continue };
        let lba = (next + 1).next_multiple_of(8) - 1;
        *entry = u32::try_from(lba).ok().filter(|lba| *lba != UNUSED).ok_or_else(|| {
            let why = format!("sector offset for extent {block} exceeds the 2 TB limit");
            VhdError::request(name, EOVERFLOW, why)
        })?;
        next = bat::extent(header, *entry).1 / 512;
        let count = per_block.min(opened.sectors - block * per_block);
        if count == per_block {
            batmap::set_full(&mut full, u32::try_from(block).unwrap_or(u32::MAX));
        }
        new.push((lba * 512, count));
    }
    if opened.device && next * 512 > opened.file_bytes.saturating_sub(512) {
        let why = "the device is too small for these blocks; make it larger";
        return Err(VhdError::request(name, ENOSPC, why));
    }
    let sync = || storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e));
    crate::heal(storage, name, &mut opened, 512)?;
    // The end with its footer, bitmaps, and then what points at them.
    if !opened.device {
        put(storage, name, next * 512, &opened.footer.encode())?;
        sync()?;
    }
    for (at, count) in new {
        put(storage, name, at, &ones(count, header.bitmap_bytes()))?;
    }
    sync()?;
    let entries = table.iter().chain(&opened.bat_tail).copied();
    put(storage, name, header.table_offset, &bat::encode(entries))?;
    sync()?;
    let closing = crate::closing(&opened, &table, &full);
    closing.apply(storage).map_err(|e| VhdError::io(name, "write the footers", 0, &e))
}

/// A bitmap with the first `count` bits set.
fn ones(count: u64, bytes: u64) -> Vec<u8> {
    let mut bits = vec![0; usize::try_from(bytes).unwrap_or(512)];
    for sector in 0..u32::try_from(count).unwrap_or(u32::MAX) {
        batmap::set_full(&mut bits, sector);
    }
    bits
}
