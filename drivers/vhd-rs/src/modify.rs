//! Changes to what an image says about its parent and its own end: `vhd-util modify`.
//!
//! Everything is checked before the first byte is written, so that a refused change leaves the
//! image as it was.
use crate::bat::{self, UNUSED};
use crate::beside::Beside;
use crate::chain::{self, Identity};
use crate::edit::{open_to_change, put, refuse_poisoned};
use crate::error::{
    VhdError,
    errno::{EINVAL, ELOOP, ENAMETOOLONG, ENOSYS},
};
use crate::footer::FOOTER_BYTES;
use crate::header::{HEADER_BYTES, Header};
use crate::locator::{self, Locator};
use crate::open::{OpenOptions, Opened};
use crate::parents::Bond;
use crate::{DiskType, descent, files, open, path};
use image::Storage;
use std::fs::File;
use std::path::Path;

/// Moments at which a test may stop a change (`VHD_UTIL_TEST_FAIL_…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Nothing is written yet.
    ReparentBegin,
    /// The first locator is written.
    ReparentLocator,
    /// All is written.
    ReparentEnd,
    /// The journal holds the metadata, and the footers are poisoned.
    ResizeBegin,
    /// Blocks have been moved out of the way.
    ResizeDataMoved,
    /// Table, batmap, locators and header are new; the footers are not.
    ResizeMetadataMoved,
    /// All is written, but not committed.
    ResizeEnd,
}

/// Sets the parent of a differencing image in the file `name`: unique id, name, time stamp and the
/// texts of all locators that this crate writes. The texts go into the areas that are there.
///
/// ```
/// # use vhd_rs::{files, lock, modify, open};
/// # let dir = tempfile::tempdir()?;
/// # let (old, new) = (dir.path().join("old.vhd"), dir.path().join("new.vhd"));
/// # let leaf = dir.path().join("leaf.vhd");
/// files::create(&old, 16 << 20, None, false)?;
/// files::create(&new, 16 << 20, None, false)?;
/// files::snapshot(&leaf, &old, &files::SnapshotOptions::default())?;
///
/// let file = lock::open_to_change(&leaf, lock::Others::Refuse)?;
/// modify::set_parent(&file, &leaf, &new, false, &|_| ())?;
/// let parent = vhd_rs::chain::parent_of(&file, &leaf)?.unwrap();
/// assert_eq!(open::resolve_parent(&leaf, &parent)?, new.canonicalize()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL if the image has no parent; ELOOP if it would be its own ancestor; ENAMETOOLONG if the
/// path does not fit; those of opening the parent. The image is unchanged then.
pub fn set_parent(
    file: &File,
    name: &Path,
    parent: &Path,
    raw: bool,
    at: &dyn Fn(Point),
) -> Result<(), VhdError> {
    reparent((file, file, false), name, (parent, raw), at)
}

/// The same beside a tapdisk that writes the image: header and texts are what it never writes. It
/// takes the new parent when it opens the image anew, after a pause.
///
/// # Errors
/// As for [`set_parent`].
pub fn set_parent_beside(
    image: &Beside,
    name: &Path,
    parent: &Path,
    raw: bool,
    at: &dyn Fn(Point),
) -> Result<(), VhdError> {
    reparent((image.file(), image, image.is_running()), name, (parent, raw), at)
}

/// `file` to read, `storage` to write, beside a disk that is running or not.
fn reparent(
    (file, storage, running): (&File, &dyn Storage, bool),
    name: &Path,
    (parent, raw): (&Path, bool),
    at: &dyn Fn(Point),
) -> Result<(), VhdError> {
    let opened = open_to_change(file, name)?;
    refuse_poisoned(name, &opened.footer)?;
    let Some(header) = opened.header.as_ref().filter(|_| opened.kind == DiskType::Differencing)
    else {
        let why = "only a differencing image has a parent; take a snapshot instead";
        return Err(VhdError::request(name, EINVAL, why));
    };
    let mut header = header.clone();
    let uuid = match raw {
        true => {
            files::whole_sectors(&chain::open_file(parent, false)?, parent)?;
            None
        }
        false => Some(uuid_of(parent)?),
    };
    let bond = Bond::new(name, parent, uuid)?;
    header.parent_uuid = uuid.unwrap_or_default();
    let texts = describe(file, name, &mut header, parent, raw)?;
    texts.iter().try_for_each(|(at, text)| has_its_area(name, &opened, (*at, text), running))?;
    at(Point::ReparentBegin);
    bond.vouch(name, file, parent)?;
    for (n, (place, area)) in texts.iter().enumerate() {
        put(storage, name, *place, area)?;
        if n == 0 {
            at(Point::ReparentLocator);
        }
    }
    sync(storage, name)?;
    put(storage, name, opened.footer.data_offset, &header.encode())?;
    at(Point::ReparentEnd);
    sync(storage, name)?;
    bond.forget(name, file)
}

/// Whether a text lies where nothing else does. Beside a running disk also where nothing else will:
/// before all blocks, since new ones come behind the headers that were there when it was opened.
fn has_its_area(
    name: &Path,
    opened: &Opened,
    (at, text): (u64, &[u8]),
    running: bool,
) -> Result<(), VhdError> {
    let Some(header) = &opened.header else { return Ok(()) };
    let end = at.saturating_add(text.len() as u64);
    let table = (header.table_offset, header.table_offset.saturating_add(header.table_bytes()));
    let head = opened.footer.data_offset;
    let others = [
        (0, FOOTER_BYTES as u64),
        (head, head.saturating_add(HEADER_BYTES as u64)),
        table,
        open::batmap_place(header, &opened.batmap),
    ];
    let on_others = others.iter().any(|(from, to)| at < *to && end > *from);
    let first = opened.bat.iter().filter(|entry| **entry != UNUSED).min();
    let first = first.map_or(opened.end_of_headers, |entry| bat::extent(header, *entry).0);
    let on_blocks = match running {
        true => end > first.min(opened.end_of_headers),
        false => open::overlapped(header, opened.bat.iter().copied(), (at, end)),
    };
    if on_others || on_blocks {
        let why = format!(
            "the locator at byte {at} lies where something else is or may come; run vhd-util \
             check, or take a snapshot over the new parent instead"
        );
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(())
}

/// Puts the parent into the header; what has to be written into the areas of the locators.
fn describe(
    file: &File,
    name: &Path,
    header: &mut Header,
    parent: &Path,
    raw: bool,
) -> Result<Vec<(u64, Vec<u8>)>, VhdError> {
    header.parent_timestamp = files::modified(parent)?;
    not_below(file, name, parent, raw)?;
    let home = chain::canonical_new(name)?;
    let to =
        path::canonical(parent).map_err(|e| VhdError::io(parent, "resolve the path", 0, &e))?;
    let relative = path::relative(&home, &to);
    let base = relative.file_name().and_then(std::ffi::OsStr::to_str);
    let base = base.ok_or_else(|| crate::create::not_utf8(name))?;
    if !header.set_parent_name(base) {
        return Err(too_long(name));
    }
    texts(name, header, &relative)
}

fn uuid_of(parent: &Path) -> Result<[u8; 16], VhdError> {
    let file = chain::open_file(parent, false)?;
    let options = OpenOptions { read_only: true, for_io: true, ..OpenOptions::default() };
    let opened = open::open(&file, parent, &options)?;
    descent::nameable(parent, opened.footer.uuid)
}

/// An image must not become its own ancestor: every reader of it would go round in circles.
fn not_below(file: &File, name: &Path, parent: &Path, raw: bool) -> Result<(), VhdError> {
    let own: Option<Identity> = chain::identity(file).ok();
    let mut depth = 0;
    let walked = chain::walk(parent, raw, |stop, _| {
        depth += 1;
        if chain::identity(&stop.file).ok() == own {
            let why = "the new parent is this image or stands on it; choose another one";
            return Err(VhdError::request(name, ELOOP, why));
        }
        stop.parent()
    });
    match walked {
        // What stands further down may be missing just now; only circles are refused.
        Err(e) if e.errno() != ELOOP && depth > 0 => {}
        other => other?,
    }
    // A chain that was too long already may get shorter in steps.
    let before = chain::depth(name, false).unwrap_or(0);
    if depth < before { Ok(()) } else { descent::room_above(name, depth) }
}

fn texts(
    name: &Path,
    header: &mut Header,
    relative: &Path,
) -> Result<Vec<(u64, Vec<u8>)>, VhdError> {
    let mut out = Vec::new();
    let ours = |l: &&mut Locator| matches!(l.code, locator::MACX | locator::W2KU | locator::W2RU);
    for slot in header.locators.iter_mut().filter(ours) {
        let text =
            locator::text_of(slot.code, relative).ok_or_else(|| crate::create::not_utf8(name))?;
        let area = slot.area_bytes().ok().and_then(|bytes| usize::try_from(bytes).ok());
        let area = area.filter(|area| text.len() <= *area && text.len() <= 2 * 4096);
        let mut bytes = text;
        slot.length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.resize(area.ok_or_else(|| too_long(name))?, 0);
        out.push((slot.offset, bytes));
    }
    if out.is_empty() {
        let why = "no locator of a kind that can be written; take a snapshot instead";
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(out)
}

fn too_long(name: &Path) -> VhdError {
    let why = "the parent's path does not fit into the locators; move the images together";
    VhdError::request(name, ENAMETOOLONG, why)
}

/// Writes the trailing footer so that the image ends at `bytes`, in a file or on a device that is
/// larger or about to be made smaller. Nothing else is written, and nothing is cut off.
///
/// ```
/// use vhd_rs::{files, lock, modify};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// modify::set_physical_size(&file, &name, 8192)?;
/// assert_eq!(file.metadata()?.len(), 8192);
/// assert!(modify::set_physical_size(&file, &name, 512).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL if the data or a footer does not fit before that byte, or the image is fixed; EIO if a
/// part of it is cut off.
pub fn set_physical_size(storage: &dyn Storage, name: &Path, bytes: u64) -> Result<(), VhdError> {
    let opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    opened.refuse_cut(name)?;
    let least = opened.end_of_data.saturating_add(512);
    if bytes < least || !bytes.is_multiple_of(512) {
        let why = format!(
            "cannot end at byte {bytes}: data and footer need {least}, in sectors of 512 bytes"
        );
        return Err(VhdError::request(name, EINVAL, why));
    }
    if opened.kind == DiskType::Fixed && bytes != least {
        let why = "the footer of a fixed image stands right behind its data";
        return Err(VhdError::request(name, EINVAL, why));
    }
    put(storage, name, bytes - 512, &opened.footer.encode())?;
    sync(storage, name)
}

/// Gives all blocks back: the disk reads as its parent, or as zeros. A file is cut to its metadata.
///
/// # Errors
/// ENOSYS for fixed images; those of the device.
pub fn zero_data(storage: &dyn Storage, name: &Path) -> Result<(), VhdError> {
    let mut opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    let Some(header) = &opened.header.clone() else {
        let why = "the blocks of a fixed image cannot be given back; create it anew";
        return Err(VhdError::request(name, ENOSYS, why));
    };
    crate::heal(storage, name, &mut opened, 512)?;
    let table = vec![UNUSED; opened.bat.len() + opened.bat_tail.len()];
    put(storage, name, header.table_offset, &bat::encode(table.iter().copied()))?;
    sync(storage, name)?;
    let empty = Opened { bat: vec![UNUSED; opened.bat.len()], bad_blocks: Vec::new(), ..opened };
    let none = vec![0; empty.full.len()];
    let closing = crate::closing(&empty, &empty.bat, &none);
    closing.apply(storage).map_err(|e| VhdError::io(name, "write the footers", 0, &e))
}

fn sync(storage: &dyn Storage, name: &Path) -> Result<(), VhdError> {
    storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e))
}
