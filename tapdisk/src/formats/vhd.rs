//! VHDs: chains, encryption, what their metadata says and what is wrong with it.
use std::path::Path;

use disk::align::alignment_of;
use image::{Cipher, Image, Storage};
use vhd_rs::descent::Descent;
use vhd_rs::driver::{UNUSED, Vhd};
use vhd_rs::parents::{Found as Parent, find};
use vhd_rs::{BatmapState, DiskType, FooterAt, OpenOptions, Opened};

use super::probed::{self, Access};
use super::{DirectFile, Key, Kind, Layer, Medium, OpenError};

/// A VHD.
struct Probed(Opened);

/// Of a file or device.
pub fn probe(
    file: &DirectFile,
    path: &Path,
    access: Access,
) -> Result<Box<dyn probed::Probed>, OpenError> {
    // A damaged header of a leaf may be one that another host is just writing; the caller of a
    // resume tries again anyway, and a plain open answers at once.
    let how = OpenOptions { read_only: !access.writable, for_io: true, header_retries: 0 };
    Ok(Box::new(Probed(vhd_rs::open(file, path, &how)?)))
}

impl probed::Probed for Probed {
    fn sectors(&self) -> u64 {
        self.0.sectors
    }

    fn join(&self, descent: &mut Descent, layer: &Layer) -> Result<(), OpenError> {
        Ok(descent.vhd(&layer.path, &self.0)?)
    }

    fn parent(&self, layer: &Layer) -> Result<Option<(Kind, Parent)>, OpenError> {
        let (Some(parent), Medium::Local(file)) = (&self.0.parent, &layer.file) else {
            return Ok(None);
        };
        let kind = if parent.uuid.is_some() { Kind::Vhd } else { Kind::Raw };
        Ok(Some((kind, find(&layer.path, file.file(), parent)?)))
    }

    /// An encrypted image without its key would be served as noise.
    fn cipher(&self, path: &Path, key: Option<&Key>) -> Result<Option<Box<dyn Cipher>>, OpenError> {
        let (errno, why) = match (&self.0.key_hash, key) {
            (None, None) => return Ok(None),
            (Some(stored), Some(key)) if vhd_rs::key::fits(stored, key.bytes()) => {
                return Ok(Some(Box::new(key.cipher())));
            }
            (Some(_), Some(_)) => (libc::ENOKEY, "is encrypted with another key"),
            (Some(_), None) => (libc::EINVAL, "is encrypted: open it with its key (open -E)"),
            (None, Some(_)) => {
                (libc::EINVAL, "is not encrypted, but a key was given: open it without -E")
            }
        };
        Err(OpenError::new(errno, format!("{} {why}", show::path(path))))
    }

    fn notes(&self, path: &Path) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.0.bad_blocks.is_empty() {
            let (n, first) = (self.0.bad_blocks.len(), self.0.bad_blocks[0]);
            notes.push(format!(
                "{}: {n} blocks, the first of them {first}, lie outside the file and read as errors; \
                 run vhd-util check",
                show::path(path)
            ));
        }
        if let Some(first) = self.0.lost.first() {
            notes.push(format!(
                "{}: {first}{}; they read as errors, and vhd-util convert gives the rest",
                show::path(path),
                match self.0.lost.len() - 1 {
                    0 => String::new(),
                    more => format!(", and {more} more such ranges"),
                }
            ));
        }
        if let Some(first) = self.0.cut.first() {
            notes.push(format!("{}: {first}; they read as zeros from now on", show::path(path)));
        }
        notes
    }

    fn end_is_fixed(&self) -> bool {
        self.0.kind == DiskType::Fixed
    }

    /// Without a batmap most blocks turn out full when their bitmap is read once, so it is not
    /// asked for again.
    fn bitmaps(&self) -> usize {
        if self.0.batmap == BatmapState::Absent {
            return 0;
        }
        let used = (0..).zip(&self.0.bat).filter(|(_, entry)| **entry != UNUSED);
        used.filter(|(block, _)| !vhd_rs::batmap::is_full(&self.0.full, *block)).count()
    }

    /// The footers of one that will be written are made whole.
    fn driver(self: Box<Self>, layer: &Layer, ours: bool) -> Result<Box<dyn Image>, OpenError> {
        let mut opened = self.0;
        let damaged = opened.footer_found != FooterAt::Trailing;
        if let (true, Medium::Local(file)) = (layer.writable && ours, &layer.file) {
            let unit = if file.is_device() { 512 } else { alignment_of(file.file()) };
            vhd_rs::heal(file, &layer.path, &mut opened, unit.into())?;
        }
        let mut vhd = Vhd::new(opened);
        if layer.writable && damaged {
            vhd.set_dirty();
        }
        Ok(Box::new(vhd))
    }
}
