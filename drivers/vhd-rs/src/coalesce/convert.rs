//! Conversion: a whole chain, or a raw image, into a new image that stands alone.
//!
//! It is a coalesce of all layers into an empty image: the same threads, the same zeros left out,
//! the same sharing of space where the file system can.
//!
//! ```
//! use vhd_rs::coalesce::convert::{Format, Options, convert};
//!
//! let dir = tempfile::tempdir()?;
//! let (disk, flat) = (dir.path().join("disk.vhd"), dir.path().join("disk.raw"));
//! vhd_rs::files::create(&disk, 16 << 20, None, false)?;
//! convert(&disk, &flat, &Options { format: Format::Raw, ..Options::default() }, &mut |_| {})?;
//! assert_eq!(std::fs::metadata(&flat)?.len(), 16 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
use std::fs::File;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use image::Storage;
use image::unfinished::Unfinished;

use super::machine::Table;
use super::medium::FileMedium;
use super::source::{self, Source};
use super::target::Target;
use super::{Done, Progress, stack};
use crate::chain;
use crate::create::{self, NewImage};
use crate::error::{VhdError, errno::ENOSPC};
use crate::files::{self, new_uuid, now};
use crate::footer::{DiskType, Footer};
use crate::lock::{Others, lock, settled};
use crate::open::{self, OpenOptions};
use crate::rescue::Lost;
use crate::secret::Bytes;

/// What the new image is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A VHD that takes the space of its data.
    #[default]
    Dynamic,
    /// A VHD of all its bytes (with holes, on a file).
    Fixed,
    /// The bytes of the disk (with holes, on a file).
    Raw,
}

/// How to convert.
#[derive(Default)]
pub struct Options {
    /// What the new image is.
    pub format: Format,
    /// The old image is raw, whatever it looks like.
    pub raw: bool,
    /// The key of an encrypted chain. The new image is not encrypted.
    pub key: Option<Bytes>,
    /// Bytes a second, about.
    pub rate: Option<NonZeroU64>,
    /// What to do when somebody is writing the old image.
    pub others: Others,
}

/// A conversion that came to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Converted {
    /// What was done.
    pub done: Done,
    /// What could not be read, and is zeros in the new image: of which image, and which sectors.
    pub missing: Vec<(PathBuf, Lost)>,
}

/// Makes a new image of what an image and its parents show. Of damaged tables everything is taken
/// that can be read; the rest is named.
///
/// # Errors
/// Those of the old images and of the file system, EINVAL for an encrypted chain without its key
/// and ENOKEY for a wrong one, EEXIST if the new file is there already. A new file that could not
/// be completed is removed.
pub fn convert(
    from: &Path,
    to: &Path,
    o: &Options,
    report: &mut dyn FnMut(&Progress),
) -> Result<Converted, VhdError> {
    let sources = layers(from, o.raw, Some(o.others))?;
    let mut sources: Vec<Source> = sources.into_iter().map(Source::rescued).collect();
    sources.iter_mut().try_for_each(|source| source.unlock(o.key.as_deref()))?;
    let bytes = sources.first().map_or(0, Source::sectors).saturating_mul(512);
    let missing = source::missing(&sources)?;
    if o.format != Format::Raw {
        files::not_empty(to, bytes)?;
    }
    let (file, made) = new_file(to)?;
    let unfinished = made.then(|| Unfinished::begin(to));
    let done = fill(to, file, bytes, o, sources, report)?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(Converted { done, missing })
}

/// An image and all its parents, for reading. With `others` the image must not be at work.
pub(super) fn layers(
    name: &Path,
    raw: bool,
    others: Option<Others>,
) -> Result<Vec<Source>, VhdError> {
    let mut sources = Vec::new();
    chain::walk(name, raw, |stop, descent| {
        match (sources.is_empty(), others) {
            (true, Some(others)) => lock(&stop.file, &stop.path, others)?,
            // A parent may be written, by a coalesce, in ways that nobody above sees; but not by
            // the dead. The lock itself is let go of.
            (false, Some(others)) => {
                settled(&chain::open_file(&stop.path, false)?, &stop.path, others)?;
            }
            (_, None) => {}
        }
        let failed = |e| VhdError::io(&stop.path, "learn about the file", 0, &e);
        let file = stop.file.try_clone().map_err(failed)?;
        let medium = FileMedium::of(file, false).map_err(failed)?;
        let Some(opened) = stop.open(&medium, descent)? else {
            let bytes = Storage::len(&medium).map_err(failed)?;
            // Of a parent, whole sectors are the disk's; of a file that is converted, all bytes are
            // kept.
            let bytes = if sources.is_empty() { bytes } else { bytes / 512 * 512 };
            sources.push(Source::raw(&stop.path, Box::new(medium), bytes));
            return Ok(None);
        };
        let parent = opened.parent.clone();
        sources.push(Source::vhd(&stop.path, Box::new(medium), opened));
        Ok(parent)
    })?;
    Ok(sources)
}

/// A file that was not there, or a device that was; whether it was made.
fn new_file(to: &Path) -> Result<(File, bool), VhdError> {
    use std::os::unix::fs::FileTypeExt;
    let device = std::fs::metadata(to).is_ok_and(|m| m.file_type().is_block_device());
    let mut options = File::options();
    options.read(true).write(true).create_new(!device);
    let failed = |e| VhdError::io(to, "create the file", 0, &e);
    Ok((options.open(to).map_err(failed)?, !device))
}

fn fill(
    to: &Path,
    file: File,
    bytes: u64,
    o: &Options,
    sources: Vec<Source>,
    report: &mut dyn FnMut(&Progress),
) -> Result<Done, VhdError> {
    let (target, table) = match o.format {
        Format::Dynamic => dynamic(to, file, bytes)?,
        Format::Fixed | Format::Raw => (flat(to, file, bytes, o.format)?, None),
    };
    let done = super::merge(sources, &target, table, o.rate, report)?;
    target.flush()?;
    Ok(done)
}

fn dynamic(to: &Path, file: File, bytes: u64) -> Result<(Target, Option<Table>), VhdError> {
    let new = NewImage { bytes, room_bytes: bytes, uuid: new_uuid(to)?, timestamp: now() };
    create::dynamic(&file, to, &new, None)?;
    let medium = medium(to, file)?;
    let opened = open::open(&medium, to, &OpenOptions { for_io: true, ..OpenOptions::default() })?;
    stack::target(to, medium, Some(opened), false, true)
}

/// An image of all bytes, which are zeros at first.
fn flat(to: &Path, file: File, bytes: u64, format: Format) -> Result<Target, VhdError> {
    let failed = |doing| move |e: std::io::Error| VhdError::io(to, doing, 0, &e);
    let footer = match format {
        Format::Fixed => 512,
        Format::Raw | Format::Dynamic => 0,
    };
    let all = bytes.saturating_add(footer);
    if file.is_device() {
        let room = Storage::len(&file).map_err(failed("learn the size"))?;
        if room < all {
            let why = format!("the device has {room} bytes, and {all} are needed");
            return Err(VhdError::request(to, ENOSPC, why));
        }
        file.zero_at(0, bytes, false).map_err(failed("write zeros"))?;
    }
    Storage::set_len(&file, all).map_err(failed("make the file longer"))?;
    if format == Format::Fixed {
        let at = match file.is_device() {
            true => Storage::len(&file).map_err(failed("learn the size"))? - 512,
            false => bytes,
        };
        let footer = Footer::new(DiskType::Fixed, bytes, new_uuid(to)?, now()).encode();
        Storage::write_at(&file, at, &footer).map_err(failed("write the footer"))?;
    }
    let (target, _) = stack::target(to, medium(to, file)?, None, false, true)?;
    Ok(Target { sectors: bytes / 512, fresh: true, ..target })
}

fn medium(to: &Path, file: File) -> Result<FileMedium, VhdError> {
    FileMedium::of(file, true).map_err(|e| VhdError::io(to, "learn about the file", 0, &e))
}
