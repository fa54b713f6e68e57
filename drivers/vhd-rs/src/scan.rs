//! What a storage manager wants to know of every image of a repository, from as few reads as
//! possible.
//!
//! A fast look believes the footer copy at byte 0 and reads the first 4 KiB, the last sector, and
//! the parent's locator where that lies elsewhere: no table, no batmap. The last sector tells a
//! fixed disk, whose guest could write a copy of its own choice.
use crate::batmap::{BatmapHeader, KeyHash};
use crate::edit;
use crate::error::{VhdError, errno::EINVAL};
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::{HEADER_BYTES, Header};
use crate::open::{self, BatmapState, Parent};
use crate::{foreign, locate};
use image::Storage;
use std::fs::File;
use std::path::Path;

/// Bytes that a fast look reads first: footer copy and header.
const FIRST_BYTES: usize = 4096;

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The footer at the end, and the copy at 0 where that is damaged.
    Full,
    /// The copy at 0 only. A fixed image has none.
    Fast,
}

/// What was found in one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Size of the file or device in bytes.
    pub size: u64,
    /// The hidden byte of the footer.
    pub hidden: u8,
    /// The marker, if it was asked for.
    pub marker: u8,
    /// The key hash, if it was asked for and there is one.
    pub key_hash: Option<KeyHash>,
    /// The parent of a differencing image.
    pub parent: Option<Parent>,
}

/// Why there are no facts: what was being done, in the words that callers know, and the error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanFault {
    /// As in `opening file`.
    pub doing: &'static str,
    /// The error.
    pub error: VhdError,
}

/// Looks at an image.
///
/// ```
/// use vhd_rs::{files, scan};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 16 << 20, None, false)?;
/// let file = std::fs::File::open(&name)?;
/// let facts = scan::facts(&file, &name, scan::Look::Fast).expect("an image");
/// assert_eq!((facts.capacity, facts.size, facts.parent), (16 << 20, 3584, None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What went wrong, and while what was being done.
pub fn facts(storage: &dyn Storage, name: &Path, look: Look) -> Result<Facts, ScanFault> {
    let fault = |doing| move |error| ScanFault { doing, error };
    let (footer, header) = headers(storage, name, look).map_err(fault("opening file"))?;
    let size = storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e));
    let size = size.map_err(fault("getting physical size"))?;
    let parent = match (&header, footer.kind) {
        (Some(header), DiskType::Differencing) => {
            Some(first_locator(storage, name, header).map_err(fault("finding parent"))?)
        }
        _ => None,
    };
    Ok(Facts {
        capacity: footer.current_bytes,
        size,
        hidden: footer.hidden,
        parent,
        ..Facts::default()
    })
}

/// Adds marker and key hash: one more read.
pub fn add_marks(facts: &mut Facts, storage: &dyn Storage, name: &Path, look: Look) {
    let Ok((footer, Some(header))) = headers(storage, name, look) else { return };
    let expected = footer.by_tap() && footer.creator_version > 1;
    let Some(at) = header.batmap_at().filter(|_| expected) else { return };
    let mut bytes = [0; crate::batmap::BATMAP_HEADER_BYTES];
    if storage.read_exact_at(at, &mut bytes).is_ok()
        && let Ok(header) = BatmapHeader::parse(&bytes)
    {
        facts.marker = header.marker;
        facts.key_hash = header.key_hash();
    }
}

/// Marker and key hash of an image that has no batmap to hold them.
pub fn add_attribute(facts: &mut Facts, file: &File) {
    if facts.marker == 0 {
        facts.marker = edit::marker(file, &BatmapState::Absent);
    }
    if facts.key_hash.is_none() {
        let name = Path::new("");
        facts.key_hash = open::key_attribute(file, name).ok().flatten();
    }
}

fn headers(
    storage: &dyn Storage,
    name: &Path,
    look: Look,
) -> Result<(Footer, Option<Header>), VhdError> {
    match look {
        Look::Full => locate::headers(storage, name, 0).map(|found| (found.footer, found.header)),
        Look::Fast => fast_headers(storage, name),
    }
}

fn fast_headers(storage: &dyn Storage, name: &Path) -> Result<(Footer, Option<Header>), VhdError> {
    let mut first = [0; FIRST_BYTES];
    let failed = |e| VhdError::io(name, "read the footer copy", 0, &e);
    let got = storage.read_at(0, &mut first).map_err(failed)?;
    let first = first.get(..got).unwrap_or_default();
    match got {
        0 => return Err(VhdError::Empty { name: name.into() }),
        1..511 => return Err(locate::too_short(storage, name, got as u64)),
        _ => {}
    }
    let wrong = |field, offset, why: &str| VhdError::Field {
        name: name.into(),
        field,
        offset,
        why: why.into(),
        remedy: "a fixed image has no copy there; scan without -f",
    };
    let footer = Footer::parse(first.get(..FOOTER_BYTES).unwrap_or(first));
    let footer = footer.map_err(|_| {
        let known = foreign::named(storage, name);
        known.unwrap_or_else(|| wrong("footer copy", 0, "is missing or damaged"))
    })?;
    if footer.by_tap() && footer.creator_version == 1 {
        let why = "made by version 0.1 of XenServer's tools, whose bitmaps nobody reads any more";
        return Err(VhdError::request(name, EINVAL, why));
    }
    if !footer.kind.is_dynamic() {
        return Err(wrong("disk type", 60, "is neither dynamic nor differencing"));
    }
    let file_bytes = storage.len().map_err(failed)?;
    locate::refuse_fixed(storage, name, file_bytes)?;
    let at = footer.data_offset;
    let mut other = [0; HEADER_BYTES];
    let within = usize::try_from(at).ok().and_then(|at| first.get(at..)?.get(..HEADER_BYTES));
    let bytes = match within {
        Some(bytes) => bytes,
        None if i64::try_from(at).is_ok() => {
            let failed = |e| VhdError::io(name, "read the header", at, &e);
            storage.read_at(at, &mut other).map_err(failed)?;
            &other
        }
        None => &other,
    };
    let header = Header::decode(bytes);
    match header.fault() {
        Some(fault) => Err(locate::bad_header(name, at, &header, fault)),
        None => Ok((footer, Some(header))),
    }
}

/// The locators in order, as far as the first that decodes.
fn first_locator(storage: &dyn Storage, name: &Path, header: &Header) -> Result<Parent, VhdError> {
    let uuid = Some(header.parent_uuid).filter(|uuid| uuid != &[0; 16]);
    let first = header.locators.iter().find_map(|l| open::locator_path(storage, l));
    let why = "no parent locator can be read; set the parent with vhd-util modify -p";
    let first = first.ok_or_else(|| VhdError::request(name, EINVAL, why))?;
    Ok(Parent { uuid, candidates: vec![first] })
}

/// All locators of the parent, for who wants to find it.
pub fn parent_of(storage: &dyn Storage, name: &Path, look: Look) -> Option<Parent> {
    let (footer, header) = headers(storage, name, look).ok()?;
    let header = header.filter(|_| footer.kind == DiskType::Differencing)?;
    Some(open::parent_of(storage, &header))
}
