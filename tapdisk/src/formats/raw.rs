//! Raw files and devices, and what an NBD server has: sector n of the disk is sector n of it.
use std::path::Path;

use image::{Image, Storage};
use vhd_rs::descent::Descent;

use super::probed::{self, Access};
use super::{DirectFile, Layer, Medium, OpenError};

/// A raw image.
pub struct Probed {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// What it is at its beginning, if that is an image of another format.
    pub inner: Option<&'static str>,
}

impl Probed {
    /// Of a server's export, whose bytes are not looked at.
    pub fn remote(sectors: u64) -> Probed {
        Probed { sectors, sector_size: 512, inner: None }
    }
}

/// How images begin that have a driver of their own, and its name.
const BEGINNINGS: [(&[u8], &str); 2] = [(b"conectix", "vhd"), (b"QFI\xfb", "qcow2")];

/// The driver of what begins so.
fn inner(file: &DirectFile) -> Option<&'static str> {
    let mut first = [0; 512];
    // Who cannot read it will be told so when a guest does.
    file.read_at(0, &mut first).ok()?;
    BEGINNINGS.iter().find(|(bytes, _)| first.starts_with(bytes)).map(|(_, name)| *name)
}

/// Of a file or device.
pub fn probe(
    file: &DirectFile,
    path: &Path,
    access: Access,
) -> Result<Box<dyn probed::Probed>, OpenError> {
    let sector_size = access.sector_size;
    let bytes = file.len().map_err(|e| OpenError::io(path, "learn the size of", &e))?;
    let sectors = bytes / u64::from(sector_size) * u64::from(sector_size / 512);
    if sectors == 0 {
        let text = format!(
            "{} has {bytes} bytes, less than one sector; give it the size of the disk with truncate -s",
            show::path(path)
        );
        return Err(OpenError::new(libc::EINVAL, text));
    }
    Ok(Box::new(Probed { sectors, sector_size, inner: inner(file) }))
}

impl probed::Probed for Probed {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn notes(&self, path: &Path) -> Vec<String> {
        let Some(name) = self.inner else { return Vec::new() };
        let path = show::path(path);
        vec![format!(
            "{path} is an image of the format {name}, and is served raw: the guest sees its bytes \
             and not the disk in it, and what it writes destroys the image; {name}:{path} serves \
             the disk"
        )]
    }

    fn join(&self, descent: &mut Descent, layer: &Layer) -> Result<(), OpenError> {
        let file: Option<&dyn Storage> = match &layer.file {
            Medium::Local(file) => Some(file),
            Medium::Remote(_) => None,
        };
        Ok(descent.raw(&layer.path, file)?)
    }

    fn end_is_fixed(&self) -> bool {
        true
    }

    fn driver(self: Box<Self>, layer: &Layer, _ours: bool) -> Result<Box<dyn Image>, OpenError> {
        Ok(Box::new(raw::Raw::new(self.sectors, layer.file.is_device())))
    }
}
