//! Which parts of a disk an image holds, and where: for who tells it or copies it, one L2 table in
//! memory at a time.
use std::path::Path;

use image::Storage;

use crate::entry::{OFFSET, PACKED, PARTS, ZERO};
use crate::error::{Error, errno::EIO};
use crate::head::read_zeroed;
use crate::num::{size, word64};
use crate::opened::Opened;

/// What an image has for a range of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes in its file.
    Data {
        /// From this byte on.
        at: u64,
    },
    /// Zeros.
    Zero {
        /// Space that is kept for it.
        at: Option<u64>,
    },
    /// Packed bytes.
    Packed,
    /// Nothing: it is what lies below.
    Below,
}

impl Kind {
    /// The same, so many bytes further on.
    fn after(self, bytes: u64) -> Kind {
        match self {
            Kind::Data { at } => Kind::Data { at: at + bytes },
            Kind::Zero { at } => Kind::Zero { at: at.map(|at| at + bytes) },
            Kind::Packed | Kind::Below => self,
        }
    }
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub bytes: u64,
    /// What is there.
    pub kind: Kind,
}

/// The map of an image that is open.
pub struct Map<'a> {
    storage: &'a dyn Storage,
    name: &'a Path,
    opened: &'a Opened,
    table: Vec<u8>,
    /// Which table that is.
    loaded: Option<u64>,
}

impl<'a> Map<'a> {
    /// Of an image.
    pub fn new(storage: &'a dyn Storage, name: &'a Path, opened: &'a Opened) -> Map<'a> {
        let table = vec![0; size(opened.header.cluster())];
        Map { storage, name, opened, table, loaded: None }
    }

    /// The extent from a byte of the disk on, as far as one L2 table tells; the byte is a sector's
    /// first, inside the disk.
    ///
    /// # Errors
    /// Those of the file; tables that lie.
    pub fn at(&mut self, start: u64) -> Result<Extent, Error> {
        let header = &self.opened.header;
        let covers = header.entries() * header.cluster();
        let end = ((start / covers + 1) * covers).min(header.size.next_multiple_of(512));
        let word = self.opened.l1.get(size(start / covers)).copied().unwrap_or(0);
        if word & OFFSET == 0 {
            return Ok(Extent { start, bytes: end - start, kind: Kind::Below });
        }
        self.load(word & OFFSET)?;
        let part = header.cluster() / if header.extended { PARTS } else { 1 };
        let first = self.kind(start, start % covers)?;
        let mut upto = start;
        while upto < end && self.kind(upto, upto % covers)? == first.after(upto - start) {
            upto = (upto / part + 1) * part;
        }
        Ok(Extent { start, bytes: upto.min(end) - start, kind: first })
    }

    fn load(&mut self, at: u64) -> Result<(), Error> {
        if self.loaded == Some(at) {
            return Ok(());
        }
        let bytes = self.opened.header.cluster();
        if !at.is_multiple_of(bytes) || at >= self.opened.bytes {
            return Err(self.damaged(&format!("has an L2 table at {at:#x}")));
        }
        self.loaded = None;
        let failed = |error| Error::io(self.name, "an L2 table", &error);
        read_zeroed(self.storage, at, &mut self.table).map_err(failed)?;
        self.loaded = Some(at);
        Ok(())
    }

    fn damaged(&self, why: &str) -> Error {
        Error::new(self.name, EIO, format!("{why}: see qcow2-util check"))
    }

    /// What a byte of the disk is; `inside` is where it is in what the table covers.
    fn kind(&self, byte: u64, inside: u64) -> Result<Kind, Error> {
        let header = &self.opened.header;
        let (cluster, each) = (header.cluster(), header.entry_bytes());
        let place = size(inside / cluster * each);
        let word = word64(&self.table, place);
        if word & PACKED != 0 {
            return Ok(Kind::Packed);
        }
        let (host, skip) = (word & OFFSET, inside % cluster);
        if !host.is_multiple_of(cluster) {
            return Err(self.damaged(&format!("has the L2 entry {word:#x} for byte {byte}")));
        }
        let at = (host != 0).then_some(host + skip);
        let (there, zero) = match header.extended {
            false => (at.is_some() && word & ZERO == 0, word & ZERO != 0),
            true => {
                let (parts, number) = (word64(&self.table, place + 8), skip / (cluster / PARTS));
                (parts >> number & 1 == 1, parts >> (number + 32) & 1 == 1)
            }
        };
        match (there, zero, at) {
            (true, true, _) | (true, false, None) => {
                Err(self.damaged(&format!("has wrong subclusters for byte {byte}")))
            }
            (true, false, Some(at)) => Ok(Kind::Data { at }),
            (false, true, at) => Ok(Kind::Zero { at }),
            (false, false, _) => Ok(Kind::Below),
        }
    }
}
