//! Small changes to existing images: footers, hidden flag, marker.
use crate::batmap::BatmapHeader;
use crate::beside::Beside;
use crate::error::{
    VhdError,
    errno::{EINVAL, ENOSPC},
};
use crate::footer::{COOKIE, FOOTER_BYTES, Footer};
use crate::open::{self, BatmapState, OpenOptions, Opened};
use crate::rescue::Lost;
use crate::{DiskType, FooterAt};
use image::Storage;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use std::fs::File;
use std::path::Path;

/// Where the marker of an image without batmap is kept.
const MARKER: &str = "user.com.citrix.xenclient.backend.marker";

/// Writes both footers at their places and cuts a file to its end (§2.4). With `copy_only` the copy
/// at 0 is believed even if the trailing footer is good.
///
/// ```
/// use vhd_rs::{edit, files, lock};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let good = std::fs::read(&name)?;
/// std::fs::write(&name, &good[..3072])?; // the footer is cut off
///
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// edit::repair(&file, &name, false, files::new_uuid(&name)?)?;
/// assert_eq!(std::fs::read(&name)?, good);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As for opening, and those of the device.
pub fn repair(
    storage: &dyn Storage,
    name: &Path,
    copy_only: bool,
    new_uuid: [u8; 16],
) -> Result<(), VhdError> {
    let mut opened = match copy_only {
        true => open::open_copy(storage, name, &OpenOptions::default())?,
        false => open_to_change(storage, name)?,
    };
    refuse_poisoned(name, &opened.footer)?;
    if opened.footer.uuid == [0; 16] {
        opened.footer.uuid = new_uuid;
    }
    write_footers(storage, name, &opened, true)
}

/// What [`repair`] cannot bring back: sectors that the image should have and has not. Read before
/// it, for what a repair makes longer reads as zeros from then on.
///
/// # Errors
/// As for opening.
pub fn lost(storage: &dyn Storage, name: &Path, copy_only: bool) -> Result<Vec<Lost>, VhdError> {
    let o = OpenOptions { read_only: true, ..OpenOptions::default() };
    let opened = match copy_only {
        true => open::open_copy(storage, name, &o)?,
        false => open::open(storage, name, &o)?,
    };
    Ok(opened.lost)
}

/// Sets the hidden flag in both footers. On a full device hiding falls back to the copy at 0.
///
/// ```
/// use vhd_rs::{OpenOptions, edit, files, lock, open};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// edit::set_hidden(&file, &name, 1)?;
/// edit::set_marker(&file, &name, 200)?;
/// let opened = open(&file, &name, &OpenOptions::default())?;
/// assert_eq!((opened.footer.hidden, edit::marker(&file, &opened.batmap)), (1, 200));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As for opening, and those of the device.
pub fn set_hidden(storage: &dyn Storage, name: &Path, value: u8) -> Result<(), VhdError> {
    let mut opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    opened.footer.hidden = value;
    if !opened.cut.is_empty() {
        // A footer at the end would make zeros of what is cut off, and nobody could tell any more.
        put(storage, name, 0, &opened.footer.encode())?;
        return storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e));
    }
    match write_footers(storage, name, &opened, false) {
        Err(e) if e.errno() == ENOSPC && value != 0 && opened.kind.is_dynamic() => {
            put(storage, name, 0, &opened.footer.encode())
        }
        other => other,
    }
}

/// The same beside a tapdisk that writes the image. In a file only the copy at 0 is written: where
/// the file ends, the disk may put a block at this very moment. It brings the other footer in line
/// when it is closed or paused. A device ends where it ends, and a fixed image has that footer
/// only.
///
/// # Errors
/// As for [`set_hidden`]; EINVAL for a footer that cannot be believed.
pub fn set_hidden_beside(image: &Beside, name: &Path, value: u8) -> Result<(), VhdError> {
    if !image.is_running() {
        return set_hidden(image, name, value);
    }
    let opened = open_to_change(image, name)?;
    refuse_poisoned(name, &opened.footer)?;
    let footer = Footer { hidden: value, ..opened.footer.clone() }.encode();
    let last = opened.file_bytes.saturating_sub(FOOTER_BYTES as u64);
    let stands = opened.footer_found == FooterAt::Trailing;
    // As many blocks as no disk makes while two sectors are written.
    const FAR: u64 = 1 << 30;
    let safe = opened.device && last.saturating_sub(opened.end_of_data) >= FAR;
    match (opened.kind.is_dynamic(), stands) {
        (true, _) => {
            if stands && safe {
                put(image, name, last, &footer)?;
            }
            put(image, name, 0, &footer)?;
        }
        (false, true) => put(image, name, last, &footer)?,
        (false, false) => {
            let why = "has its footer where a running disk changes it; pause the disk first";
            return Err(VhdError::request(name, EINVAL, why));
        }
    }
    image.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e))
}

/// Sets the marker: in the batmap header and nothing else (the original also wipes the map, E09),
/// or in an extended attribute of an image that has no batmap.
///
/// # Errors
/// EINVAL for a damaged batmap; as for opening, and those of the device or file system.
pub fn set_marker(file: &File, name: &Path, value: u8) -> Result<(), VhdError> {
    let opened = open_to_change(file, name)?;
    refuse_poisoned(name, &opened.footer)?;
    match &opened.batmap {
        BatmapState::Valid { header_at, header } => {
            let header = BatmapHeader { marker: value, ..header.clone() };
            put(file, name, *header_at, &header.encode())?;
            file.sync_all().map_err(|e| VhdError::io(name, "flush the image", *header_at, &e))
        }
        BatmapState::Absent => fsetxattr(file, MARKER, &[value], XattrFlags::empty())
            .map_err(|e| VhdError::io(name, "store the marker as an attribute", 0, &e.into())),
        BatmapState::Damaged { .. } => {
            let why = "the batmap that holds the marker is damaged; run vhd-util check";
            Err(VhdError::request(name, EINVAL, why))
        }
    }
}

/// The marker of an image (§7.2); 0 if none was ever set.
pub fn marker(file: &File, batmap: &BatmapState) -> u8 {
    let mut value = [0; 4];
    match open::batmap_header(batmap) {
        Some(header) => header.marker,
        None => fgetxattr(file, MARKER, &mut value).map_or(0, |_| value[0]),
    }
}

pub(crate) fn open_to_change(storage: &dyn Storage, name: &Path) -> Result<Opened, VhdError> {
    open::open(storage, name, &OpenOptions::default())
}

/// Refuses an image in the middle of a resize, as all commands but the reading ones do (§7.5).
///
/// # Errors
/// EINVAL.
pub fn refuse_poisoned(name: &Path, footer: &Footer) -> Result<(), VhdError> {
    if footer.poisoned() {
        let why = "the image is in the middle of a resize; run vhd-util revert with its journal";
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(())
}

/// Order of §2.4: trailing footer, truncate, copy. `move_it` puts a file's trailing footer right
/// behind the data; otherwise it stays where it was found, if it was.
pub(crate) fn write_footers(
    storage: &dyn Storage,
    name: &Path,
    o: &Opened,
    move_it: bool,
) -> Result<(), VhdError> {
    let footer = Footer { cookie: COOKIE, ..o.footer.clone() }.encode();
    let trailing = match o.footer_found {
        FooterAt::Trailing => Some(o.file_bytes.saturating_sub(512)),
        FooterAt::Trailing511 => Some(o.file_bytes.saturating_sub(511)),
        FooterAt::Copy => None,
    };
    // What stands there may be a guest's copy of it.
    let trailing = trailing.filter(|at| *at >= o.end_of_data);
    let (at, cut) = match (o.kind, o.device, trailing) {
        (DiskType::Fixed, _, _) => (o.end_of_data, false),
        (_, true, _) => (o.file_bytes.saturating_sub(512), false),
        (_, false, Some(at)) if !move_it => (at, false),
        (_, false, _) => (o.end_of_data, true),
    };
    put(storage, name, at, &footer)?;
    if cut {
        let end = at.saturating_add(512);
        image::cut(storage, end).map_err(|e| VhdError::io(name, "cut the file", end, &e))?;
    }
    if o.kind.is_dynamic() {
        put(storage, name, 0, &footer)?;
    }
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e))
}

pub(crate) fn put(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    bytes: &[u8],
) -> Result<(), VhdError> {
    storage.write_at(at, bytes).map_err(|e| VhdError::io(name, "write the image", at, &e))
}
