//! An image that was opened and looked at: what each format says of it. The file of a format
//! ([`super::raw`], [`super::vhd`]) and its row in [`super::kind::FORMATS`] are all that there is of
//! it in the daemon.
use std::path::Path;

use image::{Cipher, Image};
use vhd_rs::descent::Descent;
use vhd_rs::parents::Found as Parent;

use super::{DirectFile, Key, Kind, Layer, OpenError};

/// How an image is to be used.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// It will be written.
    pub writable: bool,
    /// Logical sector size of its file's device; 512 for files.
    pub sector_size: u32,
}

/// Looks at an image; changes nothing.
pub type Probe = fn(&DirectFile, &Path, Access) -> Result<Box<dyn Probed>, OpenError>;

/// What an image turned out to be.
pub trait Probed {
    /// Size of the disk in sectors of 512 bytes.
    fn sectors(&self) -> u64;

    /// Logical sector size of the disk in bytes.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Takes its place below the images that are open.
    ///
    /// # Errors
    /// It does not belong there.
    fn join(&self, descent: &mut Descent, layer: &Layer) -> Result<(), OpenError>;

    /// The parent that it names.
    ///
    /// # Errors
    /// It is not to be found, or may not be opened.
    fn parent(&self, _layer: &Layer) -> Result<Option<(Kind, Parent)>, OpenError> {
        Ok(None)
    }

    /// What its data is encrypted with.
    ///
    /// # Errors
    /// No key, another key, or one for an image that is not encrypted.
    fn cipher(
        &self,
        _path: &Path,
        _key: Option<&Key>,
    ) -> Result<Option<Box<dyn Cipher>>, OpenError> {
        Ok(None)
    }

    /// Sentences for the log: what works, but not as one may think.
    fn notes(&self, _path: &Path) -> Vec<String> {
        Vec::new()
    }

    /// The end of its file means something, and must not move.
    fn end_is_fixed(&self) -> bool;

    /// Blocks that are there but not known to be full: reads keep coming back to their bitmaps.
    fn bitmaps(&self) -> usize {
        0
    }

    /// Its driver. One that will be written is made ready for it, as the very last step; one that
    /// another holds (`ours` is false) is opened anew before it is.
    ///
    /// # Errors
    /// Those of the storage.
    fn driver(self: Box<Self>, layer: &Layer, ours: bool) -> Result<Box<dyn Image>, OpenError>;
}
