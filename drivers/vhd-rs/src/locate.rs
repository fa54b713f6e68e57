//! Finding the footer and the header of an image (§2.3).
use crate::believe::{self, Found};
use crate::error::{VhdError, errno::EINVAL};
use crate::footer::{DiskType, FOOTER_BYTES, Footer, FooterFault};
use crate::foreign;
use crate::header::{HEADER_BYTES, Header, HeaderFault};
use image::Storage;
use std::path::Path;
use std::time::Duration;

/// Where a footer was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterAt {
    /// In the last 512 bytes.
    Trailing,
    /// In the last 511 bytes: made before Virtual PC 2004.
    Trailing511,
    /// Only at offset 0.
    Copy,
}

/// Footer and header, before anything else is believed.
#[derive(Clone, Debug)]
pub struct Headers {
    /// The footer.
    pub footer: Footer,
    /// Where it was found.
    pub found: FooterAt,
    /// Its byte offset.
    pub footer_at: u64,
    /// The header of a dynamic or differencing disk.
    pub header: Option<Header>,
    /// Size of the file or device.
    pub file_bytes: u64,
    /// A block device.
    pub device: bool,
}

/// Footer and header, from the best place that has them.
///
/// # Errors
/// EPIPE for an empty file, EIO for one shorter than a footer, EINVAL for what is no VHD.
pub fn headers(storage: &dyn Storage, name: &Path, retries: u32) -> Result<Headers, VhdError> {
    let file_bytes = length(storage, name)?;
    let copy = footer_in(storage, name, 0, FOOTER_BYTES)?.ok();
    let last = trailing(storage, name, file_bytes)?;
    let found = believe::choose(storage, name, last, copy.as_ref(), file_bytes)?;
    let (footer, found, footer_at) = found.ok_or_else(|| no_footer(storage, name, file_bytes))?;
    assemble(storage, name, retries, footer, found, footer_at, copy, file_bytes)
}

/// The same from the copy at offset 0 only (`-b` of several commands).
///
/// # Errors
/// As for [`headers`].
pub fn headers_of_copy(
    storage: &dyn Storage,
    name: &Path,
    retries: u32,
) -> Result<Headers, VhdError> {
    let file_bytes = length(storage, name)?;
    let copy = footer_in(storage, name, 0, FOOTER_BYTES)?;
    let copy = copy.map_err(|_| no_footer(storage, name, 512))?;
    refuse_fixed(storage, name, file_bytes)?;
    assemble(storage, name, retries, copy.clone(), FooterAt::Copy, 0, Some(copy), file_bytes)
}

/// Refuses to look for a copy in a fixed disk: its first bytes are its guest's.
///
/// # Errors
/// EINVAL for a fixed disk; those of the file.
pub(crate) fn refuse_fixed(
    storage: &dyn Storage,
    name: &Path,
    file_bytes: u64,
) -> Result<(), VhdError> {
    match trailing(storage, name, file_bytes)? {
        Some((footer, _, at))
            if footer.kind == DiskType::Fixed
                && believe::fits(&footer, at, storage.is_device()) =>
        {
            let why = "a fixed image has no copy of its footer at byte 0; look without -b or -f";
            Err(VhdError::request(name, EINVAL, why))
        }
        _ => Ok(()),
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one image, named once")]
fn assemble(
    storage: &dyn Storage,
    name: &Path,
    retries: u32,
    mut footer: Footer,
    found: FooterAt,
    footer_at: u64,
    copy: Option<Footer>,
    file_bytes: u64,
) -> Result<Headers, VhdError> {
    if footer.by_tap() && footer.creator_version == 1 {
        let why = "made by version 0.1 of XenServer's tools, whose bitmaps nobody reads any more";
        return Err(VhdError::request(name, EINVAL, why));
    }
    if let (true, Some(copy)) = (footer.early_tap(), &copy) {
        footer.hidden = copy.hidden;
    }
    let header = match footer.kind {
        DiskType::Dynamic | DiskType::Differencing => {
            Some(header(storage, name, footer.data_offset, retries)?)
        }
        DiskType::Fixed | DiskType::None | DiskType::Other(_) => None,
    };
    let device = storage.is_device();
    Ok(Headers { footer, found, footer_at, header, file_bytes, device })
}

fn length(storage: &dyn Storage, name: &Path) -> Result<u64, VhdError> {
    match storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e))? {
        0 => Err(VhdError::Empty { name: name.into() }),
        bytes if bytes < 511 => Err(too_short(storage, name, bytes)),
        bytes => Ok(bytes),
    }
}

/// What is shorter than a footer: EIO as ever, unless it is known to be something else.
pub(crate) fn too_short(storage: &dyn Storage, name: &Path, bytes: u64) -> VhdError {
    let known = foreign::named(storage, name);
    known.unwrap_or_else(|| VhdError::Short { name: name.into(), bytes })
}

fn no_footer(storage: &dyn Storage, name: &Path, file_bytes: u64) -> VhdError {
    foreign::named(storage, name).unwrap_or_else(|| VhdError::Field {
        name: name.into(),
        field: "footer",
        offset: file_bytes.saturating_sub(512),
        why: "is missing or damaged, and so is the copy at byte 0".into(),
        remedy: "this is not a VHD image, or it must be restored from a backup",
    })
}

fn footer_in(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
    bytes: usize,
) -> Result<Result<Footer, FooterFault>, VhdError> {
    let mut buf = [0; FOOTER_BYTES];
    let part = buf.get_mut(..bytes).unwrap_or_default();
    storage.read_at(at, part).map_err(|e| VhdError::io(name, "read the footer", at, &e))?;
    Ok(Footer::parse(&buf))
}

fn trailing(
    storage: &dyn Storage,
    name: &Path,
    file_bytes: u64,
) -> Result<Option<Found>, VhdError> {
    if let Some(at) = file_bytes.checked_sub(512)
        && let Ok(footer) = footer_in(storage, name, at, 512)?
    {
        return Ok(Some((footer, FooterAt::Trailing, at)));
    }
    match file_bytes.checked_sub(511) {
        Some(at) if at % 512 == 0 => {
            Ok(footer_in(storage, name, at, 511)?.ok().map(|f| (f, FooterAt::Trailing511, at)))
        }
        _ => Ok(None),
    }
}

/// Reads a header, several times if asked to.
fn header(storage: &dyn Storage, name: &Path, at: u64, retries: u32) -> Result<Header, VhdError> {
    let end = at.saturating_add(HEADER_BYTES as u64);
    // A file that ends within its header is damaged, not half written.
    let whole = storage.len().is_ok_and(|bytes| bytes >= end);
    let mut left = if whole { retries } else { 0 };
    loop {
        let header = header_once(storage, name, at)?;
        match header.fault() {
            None => return Ok(header),
            Some(fault) if left > 0 && !fault.adds_up() => {
                std::thread::sleep(Duration::from_secs(1));
            }
            Some(fault) => return Err(bad_header(name, at, &header, fault)),
        }
        left -= 1;
    }
}

/// What is wrong with a header at that byte: damage, or what no program of ours can serve.
pub(crate) fn bad_header(name: &Path, at: u64, header: &Header, fault: HeaderFault) -> VhdError {
    let (field, offset) = fault.field();
    let (why, remedy) = match header.unsupported(fault) {
        Some(why) => (why, "convert the image with the program that made it"),
        None => ("is not what a VHD header has".into(), "restore the image from a backup"),
    };
    VhdError::Field { name: name.into(), field, offset: at.saturating_add(offset), why, remedy }
}

/// The header at a place as it is now; `None` for what is none.
pub(crate) fn header_quick(
    storage: &dyn Storage,
    name: &Path,
    at: u64,
) -> Result<Option<Header>, VhdError> {
    Ok(Some(header_once(storage, name, at)?).filter(|header| header.fault().is_none()))
}

fn header_once(storage: &dyn Storage, name: &Path, at: u64) -> Result<Header, VhdError> {
    let mut bytes = [0; HEADER_BYTES];
    // Absurd offsets read as nothing instead of failing in the kernel with a puzzling number.
    if i64::try_from(at).is_ok() {
        storage
            .read_at(at, &mut bytes)
            .map_err(|e| VhdError::io(name, "read the header", at, &e))?;
    }
    Ok(Header::decode(&bytes))
}
