//! Making the disk of an image larger.
//!
//! [`fast`] writes two footers, where the metadata has room. [`Growth`] makes room: the table and
//! the batmap grow, locators and the first blocks move out of their way, and a journal keeps what
//! was there.
//!
//! ```text
//!   journal: metadata ─► poison ─► per block: journal, copy to the end ─► table, batmap, locators, header
//!      ─► footers, still poisoned ─► journal emptied ─► footers
//! ```
//! Stopped anywhere, the image is refused by everything that would trust it until [`crate::revert`]
//! has been run, which gives the old image back up to the emptying of the journal, and the new one
//! from then on.
use crate::FooterAt;
use crate::bat::{self, UNUSED};
use crate::batmap::BatmapHeader;
use crate::bytes::sector_up;
use crate::edit::{open_to_change, put, refuse_poisoned};
use crate::error::{
    VhdError,
    errno::{EFBIG, EINVAL, ENOSPC, ENOSYS},
};
use crate::footer::{DISK_BYTES_MAX, Footer, POISON};
use crate::geometry::Geometry;
use crate::header::{HEADER_BYTES, Header};
use crate::journal::{Entry, Journal, Kind};
use crate::locator;
use crate::modify::Point;
use crate::open::{BatmapState, Opened};
use image::Storage;
use std::path::{Path, PathBuf};

/// Makes the disk larger where the metadata has room for it. Sizes are bytes.
///
/// ```
/// use vhd_rs::{files, lock, resize};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 16 << 20, Some(64 << 20), false)?;
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// resize::fast(&file, &name, 48 << 20)?;
/// assert!(resize::fast(&file, &name, 66 << 20).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL for a size below the present one or beyond the room; EIO if a part of the image is cut
/// off; those of opening.
pub fn fast(storage: &dyn Storage, name: &Path, bytes: u64) -> Result<(), VhdError> {
    let opened = for_resize(storage, name)?;
    let now = opened.footer.current_bytes;
    let refuse = |why: String| Err(VhdError::request(name, EINVAL, why));
    let room = match &opened.header {
        Some(header) => u64::from(header.max_entries) * u64::from(header.block_bytes),
        None => now,
    };
    if bytes < now {
        return refuse(format!("size ({bytes}) < curr size ({now})"));
    }
    if bytes > room {
        return refuse(format!(
            "the metadata has room for {room} bytes, not for {bytes}; resize with a journal (-j)"
        ));
    }
    size_fits(name, bytes)?;
    if bytes == now {
        return Ok(());
    }
    opened.refuse_cut(name)?;
    let opened = Opened { footer: resized(&opened.footer, bytes), ..opened };
    crate::edit::write_footers(storage, name, &opened, false)
}

/// An image that may be resized.
fn for_resize(storage: &dyn Storage, name: &Path) -> Result<Opened, VhdError> {
    let opened = open_to_change(storage, name)?;
    refuse_poisoned(name, &opened.footer)?;
    if !opened.footer.by_tap() {
        let why = "not created by xen; resize not supported";
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(opened)
}

fn size_fits(name: &Path, bytes: u64) -> Result<(), VhdError> {
    if bytes > DISK_BYTES_MAX {
        let why = format!("a disk of {bytes} bytes is larger than the 2040 GiB a VHD can hold");
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(())
}

/// A footer for another size of the disk, with the geometry of that.
fn resized(footer: &Footer, bytes: u64) -> Footer {
    Footer { current_bytes: bytes, geometry: Geometry::of(bytes / 512), ..footer.clone() }
}

/// A growth that was looked at from all sides; nothing is written yet.
#[derive(Debug)]
pub struct Growth {
    name: PathBuf,
    old: Opened,
    footer: Footer,
    header: Header,
    table: Vec<u32>,
    batmap: Option<(BatmapHeader, Vec<u8>)>,
    /// Old and new byte of a block.
    moves: Vec<(u64, u64)>,
    /// Locator texts with their new places.
    texts: Vec<(u64, Vec<u8>)>,
    end_of_headers: u64,
    end_of_data: u64,
    footer_at: u64,
}

impl Growth {
    /// Plans to make the disk `bytes` large. `None` if it is.
    ///
    /// # Errors
    /// ENOSYS for a smaller size; EINVAL for a fixed image, a foreign one, a damaged one or a size
    /// beyond 2040 GiB; ENOSPC if a device is too small; those of opening.
    pub fn plan(
        storage: &dyn Storage,
        name: &Path,
        bytes: u64,
    ) -> Result<Option<Growth>, VhdError> {
        let old = for_resize(storage, name)?;
        let refuse = |errno, why: &str| Err(VhdError::request(name, errno, why));
        let Some(header) = old.header.clone() else {
            return refuse(EINVAL, "a fixed image cannot be resized; copy it");
        };
        if bytes < old.footer.current_bytes {
            return refuse(ENOSYS, "dynamic shrink not fully implemented");
        }
        size_fits(name, bytes)?;
        if !old.bad_blocks.is_empty() {
            return refuse(EINVAL, "entries of the table are damaged; run vhd-util check");
        }
        old.refuse_cut(name)?;
        if bytes == old.footer.current_bytes {
            return Ok(None);
        }
        let mut growth = Growth {
            name: name.into(),
            footer: resized(&old.footer, bytes),
            table: old.bat.iter().chain(&old.bat_tail).copied().collect(),
            batmap: None,
            moves: Vec::new(),
            texts: Vec::new(),
            end_of_headers: 0,
            end_of_data: 0,
            footer_at: footer_at(&old),
            header,
            old,
        };
        growth.lay_out(storage)?;
        Ok(Some(growth))
    }

    fn lay_out(&mut self, storage: &dyn Storage) -> Result<(), VhdError> {
        let needed = self.header.blocks(self.footer.current_bytes);
        let needed = u32::try_from(needed).map_err(|_| self.refuse(EFBIG, "too many blocks"))?;
        self.header.max_entries = self.header.max_entries.max(needed);
        self.table.resize(self.header.max_entries as usize, UNUSED);
        let grown_end = self.lay_out_batmap();
        let head = self.old.footer.data_offset;
        if head.saturating_add(HEADER_BYTES as u64) > self.header.table_offset && head < grown_end {
            return Err(self.refuse(EINVAL, "the header lies where the table must grow"));
        }
        let end = self.lay_out_locators(storage, grown_end)?;
        self.lay_out_blocks(sector_up(end.max(head.saturating_add(HEADER_BYTES as u64))))?;
        let bytes = storage.len().map_err(|e| VhdError::io(&self.name, "learn the size", 0, &e))?;
        if self.old.device && self.end_of_data.saturating_add(512) > bytes {
            let why = "the device has no room for the blocks that must move; make it larger";
            return Err(self.refuse(ENOSPC, why));
        }
        Ok(())
    }

    /// Table and batmap; the byte after them.
    fn lay_out_batmap(&mut self) -> u64 {
        let table_end = self.header.table_offset.saturating_add(self.header.table_bytes());
        let at = self.header.batmap_at().unwrap_or(table_end);
        let mut new = match &self.old.batmap {
            BatmapState::Absent => return table_end,
            BatmapState::Valid { header, .. } => header.clone(),
            BatmapState::Damaged { .. } => {
                crate::closing::renewed(&self.old, at, self.header.max_entries)
            }
        };
        new.map_offset = at.saturating_add(512);
        new.map_sectors = crate::batmap::map_sectors(self.header.max_entries);
        let mut map = vec![0; 512 * new.map_sectors as usize];
        crate::bytes::put(&mut map, 0, &self.old.full);
        new.checksum = new.checksum_of(&map, self.footer.current_bytes, self.header.block_bytes);
        let end = new.map_end();
        self.batmap = Some((new, map));
        end
    }

    /// Locator areas that lie where table or batmap will be go behind them; the byte after
    /// everything.
    fn lay_out_locators(&mut self, storage: &dyn Storage, grown_end: u64) -> Result<u64, VhdError> {
        let from = self.header.table_offset;
        let used = |l: &locator::Locator| l.code != locator::NONE;
        let area = |l: &locator::Locator| (l.offset, l.end());
        let in_the_way = |(start, end): (u64, u64)| start < grown_end && end > from;
        let staying = self.header.locators.iter().filter(|l| used(l) && !in_the_way(area(l)));
        let mut end = staying.map(|l| l.end()).fold(grown_end, u64::max);
        end = sector_up(end);
        for l in self.header.locators.iter_mut().filter(|l| used(l) && in_the_way(area(l))) {
            let bytes = l.area_bytes().unwrap_or(0);
            let mut text = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(0)];
            let failed = |e| VhdError::io(&self.name, "read a parent locator", l.offset, &e);
            storage.read_exact_at(l.offset, &mut text).map_err(failed)?;
            l.offset = end;
            end += text.len() as u64;
            self.texts.push((l.offset, text));
        }
        Ok(end)
    }

    /// Blocks that lie where metadata will be go to the end, in the order of their places.
    fn lay_out_blocks(&mut self, end_of_headers: u64) -> Result<(), VhdError> {
        let header = &self.header;
        let old_end = bat::blocks_end(header, self.old.bat.iter().copied());
        let mut next = old_end.max(end_of_headers).div_ceil(512);
        let mut low: Vec<usize> = (0..self.old.bat.len())
            .filter(|block| {
                self.table
                    .get(*block)
                    .is_some_and(|e| *e != UNUSED && bat::extent(header, *e).0 < end_of_headers)
            })
            .collect();
        low.sort_unstable_by_key(|block| self.table.get(*block).copied());
        for block in low {
            let Some(entry) = self.table.get_mut(block) else { continue };
            // The data of a block begins on a page (§6).
            let lba = (next + 1).next_multiple_of(8) - 1;
            let new = u32::try_from(lba).ok().filter(|lba| *lba != UNUSED);
            let Some(new) = new else {
                let why = "a block that must move finds no place that the table can name";
                return Err(VhdError::request(&self.name, ENOSPC, why));
            };
            self.moves.push((bat::extent(header, *entry).0, lba * 512));
            *entry = new;
            next = bat::extent(header, new).1 / 512;
        }
        self.end_of_headers = end_of_headers;
        let used = self.table.iter().copied().take(self.old.bat.len());
        self.end_of_data = end_of_headers.max(bat::blocks_end(header, used));
        Ok(())
    }

    fn refuse(&self, errno: i32, why: &str) -> VhdError {
        VhdError::request(&self.name, errno, why)
    }

    /// Does it. After an error the image is as it was before, unless the way back failed as well;
    /// the error says so then, and `vhd-util revert` with the journal is needed.
    ///
    /// # Errors
    /// Those of the image's and the journal's files.
    pub fn run(
        &self,
        storage: &dyn Storage,
        journal: &dyn Storage,
        journal_name: &Path,
        at: &dyn Fn(Point),
    ) -> Result<(), VhdError> {
        let uuid = self.old.footer.uuid;
        let mut log = Journal::begin(journal, journal_name, uuid, self.footer_at)?;
        self.save(storage, &mut log)?;
        let done = self.change(storage, &mut log, at);
        let Err(e) = done else { return Ok(()) };
        match crate::revert::revert(storage, &self.name, journal, journal_name) {
            Ok(()) => Err(e),
            Err(back) => {
                let errno = e.errno();
                let why = format!("{e}; and the way back failed: {back}; run vhd-util revert");
                Err(VhdError::request(&self.name, errno, why))
            }
        }
    }

    /// All metadata goes into the journal.
    fn save(&self, storage: &dyn Storage, log: &mut Journal<'_>) -> Result<(), VhdError> {
        let footer = self.old.footer.encode().to_vec();
        log.add(&Entry { kind: Kind::TrailingFooter, at: self.footer_at, bytes: footer.clone() })?;
        log.add(&Entry { kind: Kind::LeadingFooter, at: 0, bytes: footer })?;
        let Some(old) = &self.old.header else { return Ok(()) };
        let mut keep = |kind, at, bytes| log.add(&self.entry(storage, kind, at, bytes)?);
        keep(Kind::Header, self.old.footer.data_offset, HEADER_BYTES as u64)?;
        for l in old.locators.iter().filter(|l| l.code != locator::NONE) {
            keep(Kind::Locator, l.offset, l.area_bytes().unwrap_or(0))?;
        }
        keep(Kind::Table, old.table_offset, old.table_bytes())?;
        if let BatmapState::Valid { header_at, header } = &self.old.batmap {
            keep(Kind::BatmapHeader, *header_at, 512)?;
            keep(Kind::Batmap, header.map_offset, u64::from(header.map_sectors) * 512)?;
        }
        for (at, end) in self.gaps(old) {
            keep(Kind::Data, at, end - at)?;
        }
        log.seal()
    }

    /// What the new metadata covers of a file and nobody uses: saved as well, so that a revert
    /// gives the image back byte for byte. On a device such space is not worth the room in the
    /// journal.
    fn gaps(&self, old: &Header) -> Vec<(u64, u64)> {
        let limit = if self.old.device { 0 } else { self.old.end_of_data.min(self.end_of_headers) };
        let locators = old.locators.iter().filter(|l| l.code != locator::NONE);
        let block = self.header.bitmap_bytes() + u64::from(self.header.block_bytes);
        let mut used = vec![
            (0, old.table_offset.saturating_add(old.table_bytes())),
            crate::open::batmap_place(old, &self.old.batmap),
        ];
        used.extend(locators.map(|l| (l.offset, l.end())));
        used.extend(self.moves.iter().map(|(from, _)| (*from, from + block)));
        used.push((limit, limit));
        used.sort_unstable();
        let mut gaps = Vec::new();
        let mut reached = 0;
        for (start, end) in used {
            if start.min(limit) > reached {
                gaps.push((reached, start.min(limit)));
            }
            reached = reached.max(end);
        }
        gaps
    }

    fn entry(
        &self,
        storage: &dyn Storage,
        kind: Kind,
        at: u64,
        bytes: u64,
    ) -> Result<Entry, VhdError> {
        let mut buf = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let failed = |e: &std::io::Error| VhdError::io(&self.name, "read", at, e);
        // What the file does not have reads as zeros, and a revert may write it.
        storage.read_at(at, &mut buf).map_err(|e| failed(&e))?;
        Ok(Entry { kind, at, bytes: buf })
    }

    fn change(
        &self,
        storage: &dyn Storage,
        log: &mut Journal<'_>,
        at: &dyn Fn(Point),
    ) -> Result<(), VhdError> {
        let name = &self.name;
        let sync = || storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e));
        let poisoned = |f: &Footer| Footer { cookie: POISON, ..f.clone() }.encode();
        put(storage, name, self.footer_at, &poisoned(&self.old.footer))?;
        put(storage, name, 0, &poisoned(&self.old.footer))?;
        sync()?;
        at(Point::ResizeBegin);
        // Blocks that move go over the old end, so the new one stands first.
        if !self.old.device && self.end_of_data > self.footer_at {
            put(storage, name, self.end_of_data, &poisoned(&self.old.footer))?;
            sync()?;
        }
        self.move_blocks(storage, log)?;
        sync()?;
        at(Point::ResizeDataMoved);
        self.write_metadata(storage)?;
        sync()?;
        at(Point::ResizeMetadataMoved);
        let end = self.new_footer_at();
        put(storage, name, end, &poisoned(&self.footer))?;
        let cut = |e| VhdError::io(name, "cut the file", end, &e);
        image::cut(storage, end.saturating_add(512)).map_err(cut)?;
        put(storage, name, 0, &poisoned(&self.footer))?;
        sync()?;
        at(Point::ResizeEnd);
        log.commit()?;
        put(storage, name, end, &self.footer.encode())?;
        put(storage, name, 0, &self.footer.encode())?;
        sync()
    }

    fn new_footer_at(&self) -> u64 {
        if self.old.device { self.footer_at } else { self.end_of_data }
    }

    fn move_blocks(&self, storage: &dyn Storage, log: &mut Journal<'_>) -> Result<(), VhdError> {
        let bitmap = self.header.bitmap_bytes();
        let data = u64::from(self.header.block_bytes);
        for (from, to) in &self.moves {
            let bits = self.entry(storage, Kind::Data, *from, bitmap)?;
            let rest = self.entry(storage, Kind::Data, from + bitmap, data)?;
            log.add(&bits)?;
            log.add(&rest)?;
            log.seal()?;
            put(storage, &self.name, to + bitmap, &rest.bytes)?;
            put(storage, &self.name, *to, &bits.bytes)?;
        }
        Ok(())
    }

    fn write_metadata(&self, storage: &dyn Storage) -> Result<(), VhdError> {
        let table = bat::encode(self.table.iter().copied());
        put(storage, &self.name, self.header.table_offset, &table)?;
        if let Some((header, map)) = &self.batmap {
            put(storage, &self.name, header.map_offset, map)?;
            put(storage, &self.name, header.map_offset - 512, &header.encode())?;
        }
        for (at, text) in &self.texts {
            put(storage, &self.name, *at, text)?;
        }
        put(storage, &self.name, self.old.footer.data_offset, &self.header.encode())
    }
}

/// Where the trailing footer is, or belongs.
fn footer_at(o: &Opened) -> u64 {
    match o.footer_found {
        _ if o.device => o.file_bytes.saturating_sub(512),
        FooterAt::Trailing => o.file_bytes.saturating_sub(512),
        FooterAt::Trailing511 | FooterAt::Copy => o.end_of_data,
    }
}
