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
    Ok(Box::new(Probed { sectors, sector_size }))
}

impl probed::Probed for Probed {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
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
