//! Before an image is written: both footers say the same, the trailing one stands where it belongs,
//! and no block is marked full.
//!
//! A driver writes over the place of the trailing footer, and from then on the copy at byte 0 is
//! the only one that a crash leaves for certain. So the copy is mended first, and is on the disk
//! before anything else is written; and a file is cut behind its data, where its footer then
//! stands. Leavings of a killed process go with that: what no table entry points at would show up
//! under clear bits of new blocks.
//!
//! A mark of the batmap is a promise about a block, and blocks go while an image is written. Marks
//! are in memory then; a clean close puts them back.
use crate::edit::put;
use crate::error::VhdError;
use crate::footer::{DiskType, FOOTER_BYTES};
use crate::locate::FooterAt;
use crate::open::{self, BatmapState, Opened};
use image::Storage;
use std::path::Path;

/// Makes the footers of an image whole, and takes the marks of full blocks off. Writes nothing
/// where they are, and not to a poisoned image. `unit` is what writes of the file are made of, 512
/// if they may be of any length: a footer that shares a larger unit with a block goes to the unit's
/// end.
///
/// ```
/// use image::Storage;
/// use vhd_rs::{OpenOptions, files, heal, lock, open};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let good = std::fs::read(&name)?;
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// Storage::write_at(&file, 0, &[0; 512])?; // the copy is lost
///
/// let mut opened = open(&file, &name, &OpenOptions { for_io: true, ..Default::default() })?;
/// heal(&file, &name, &mut opened, 512)?;
/// assert_eq!(std::fs::read(&name)?, good);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of the file.
pub fn heal(storage: &dyn Storage, name: &Path, o: &mut Opened, unit: u64) -> Result<(), VhdError> {
    if o.footer.poisoned() {
        return Ok(());
    }
    let footer = o.footer.encode();
    if o.kind.is_dynamic() {
        stand(storage, name, 0, &footer)?;
        take_marks_off(storage, name, o)?;
    }
    let Some(at) = place(o, unit) else { return Ok(()) };
    let end = at.saturating_add(FOOTER_BYTES as u64);
    if o.device || o.file_bytes == end {
        stand(storage, name, at, &footer)?;
    } else if let Err(e) = image::end_with(storage, at, &footer).and_then(|()| storage.sync()) {
        // A disk may be too full to move it; where it stands behind the data it is as good.
        let last = o.file_bytes.saturating_sub(512);
        return match last >= at && stands(storage, name, last, &footer)? {
            true => Ok(()),
            false => Err(VhdError::io(name, "write the footer", at, &e)),
        };
    } else {
        o.file_bytes = end;
    }
    o.footer_found = FooterAt::Trailing;
    Ok(())
}

/// Takes all marks off the disk; `o.full` keeps them. They are gone when this returns, the zeros in
/// the map come with a later flush. A part of [`heal`], for the simulator.
///
/// # Errors
/// Those of the file.
#[doc(hidden)]
pub fn take_marks_off(storage: &dyn Storage, name: &Path, o: &mut Opened) -> Result<(), VhdError> {
    let BatmapState::Valid { header_at, header } = &mut o.batmap else { return Ok(()) };
    let mut map = vec![0; 512 * header.map_sectors as usize];
    let failed = |e| VhdError::io(name, "read the batmap", header.map_offset, &e);
    storage.read_at(header.map_offset, &mut map).map_err(failed)?;
    let marked = map.iter().any(|byte| *byte != 0);
    if !header.says_nothing() {
        *header = header.without_marks();
        put(storage, name, *header_at, &header.encode())?;
        storage.sync().map_err(|e| VhdError::io(name, "flush the image", *header_at, &e))?;
    }
    if marked {
        map.fill(0);
        put(storage, name, header.map_offset, &map)?;
    }
    Ok(())
}

/// Where the trailing footer belongs, if it may be written there.
fn place(o: &Opened, unit: u64) -> Option<u64> {
    if o.kind == DiskType::Fixed {
        return (o.footer_found == FooterAt::Trailing511).then_some(o.end_of_data);
    }
    // Where entries point at nothing, the file's end says which do.
    let header = o.header.as_ref().filter(|_| o.bad_blocks.is_empty())?;
    let last = o.file_bytes.saturating_sub(512);
    if o.device {
        let upon = open::overlapped(header, o.bat.iter().copied(), (last, o.file_bytes));
        return (!upon).then_some(last);
    }
    let shared = unit > 512 && !o.end_of_data.is_multiple_of(unit);
    Some(if shared { image::end_place(o.end_of_data, 0, 0) } else { o.end_of_data })
}

/// Puts a footer at a place that has not got it, and waits until it is there.
fn stand(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    footer: &[u8; FOOTER_BYTES],
) -> Result<(), VhdError> {
    if stands(storage, name, at, footer)? {
        return Ok(());
    }
    put(storage, name, at, footer)?;
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", at, &e))
}

fn stands(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    footer: &[u8; FOOTER_BYTES],
) -> Result<bool, VhdError> {
    let mut there = [0; FOOTER_BYTES];
    let failed = |e| VhdError::io(name, "read the footer", at, &e);
    Ok(storage.read_at(at, &mut there).map_err(failed)? == there.len() && there == *footer)
}
