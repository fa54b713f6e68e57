//! Changing an image beside a tapdisk that writes it: what no tapdisk ever writes, and nothing
//! else.
//!
//! ```text
//!   footer copy │ header │ table … │ batmap │ texts of the locators │ blocks … │ footer
//!        ours      ours      its       its           ours                its      its
//!
//!   page cache ✗   whole pages, with the disk's sectors as they were when the page was read
//!   O_DIRECT   ✓   these sectors alone
//! ```
//! A header shares its page with the first sectors of the table. Written through the page cache,
//! the whole page would go to the disk, and take back what the running disk has changed in it
//! meanwhile. So beside a running disk only whole sectors are written, past the cache; where
//! storage takes only larger units, nothing is.
use crate::error::{VhdError, errno::EBUSY};
use crate::footer::{FOOTER_BYTES, Footer};
use image::{Closing, Storage};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// `O_DIRECT`, which this crate has no other use for.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();
const SECTOR: usize = 512;
/// Memory that every device takes.
const PAGE: usize = 4096;

/// An image to change, alone or beside a running disk.
#[derive(Debug)]
pub struct Beside {
    file: File,
    /// The same image past the page cache.
    sectors: Option<File>,
    running: bool,
}

impl Beside {
    /// Nobody else writes it.
    pub fn alone(file: File) -> Beside {
        Beside { file, sectors: None, running: false }
    }

    /// Beside a disk that runs.
    pub(crate) fn running(file: File, path: &Path) -> Result<Beside, VhdError> {
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = File::options().read(true).write(true).custom_flags(O_DIRECT).open(again);
        let sectors = match opened {
            Ok(sectors) => Some(sectors),
            // Without O_DIRECT the running disk goes through the page cache too, which keeps the
            // two apart.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => None,
            Err(e) => return Err(VhdError::io(path, "open the file past the page cache", 0, &e)),
        };
        // What reading is refused for, writing is.
        let mut buf = aligned(SECTOR);
        let probe = |file: &File| FileExt::read_at(file, slice(&mut buf, SECTOR), SECTOR as u64);
        match sectors.as_ref().map(probe) {
            Some(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => {
                let why = "a running disk writes this image, on storage that takes only units of \
                           more than 512 bytes: what is to be changed shares one with its table; \
                           pause the disk first (tap-ctl pause)";
                Err(VhdError::request(path, EBUSY, why))
            }
            Some(Err(e)) => Err(VhdError::io(path, "read the file past the page cache", 512, &e)),
            None | Some(Ok(_)) => Ok(Beside { file, sectors, running: true }),
        }
    }

    /// The file, for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether somebody else writes the image.
    pub fn is_running(&self) -> bool {
        self.running
    }
}

impl Storage for Beside {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Storage::read_at(&self.file, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let Some(file) = &self.sectors else { return Storage::write_at(&self.file, offset, buf) };
        if !offset.is_multiple_of(SECTOR as u64) || !buf.len().is_multiple_of(SECTOR) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut memory = aligned(buf.len());
        let part = slice(&mut memory, buf.len());
        part.copy_from_slice(buf);
        file.write_all_at(part, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Storage::len(&self.file)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.running {
            // Where the file ends is the running disk's affair.
            true => Err(io::ErrorKind::Unsupported.into()),
            false => Storage::set_len(&self.file, len),
        }
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.file.attribute(name)
    }

    fn sync(&self) -> io::Result<()> {
        Storage::sync(&self.file)
    }

    fn is_device(&self) -> bool {
        self.file.is_device()
    }
}

fn aligned(bytes: usize) -> Vec<u8> {
    vec![0; bytes + PAGE]
}

fn slice(memory: &mut [u8], bytes: usize) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(PAGE);
    memory.get_mut(skip..skip.saturating_add(bytes)).unwrap_or_default()
}

/// Puts what was set beside the disk that is being closed ([`crate::edit::set_hidden_beside`]) into
/// its last writes. A copy at 0 that is as it should be is not written again, so that nothing is
/// lost that is set at this very moment.
pub fn keep(closing: &mut Closing, storage: &dyn Storage) {
    let mut bytes = [0; FOOTER_BYTES];
    let Ok(FOOTER_BYTES) = storage.read_at(0, &mut bytes) else { return };
    let Ok(copy) = Footer::parse(&bytes) else { return };
    let ours = |footer: &Footer| {
        footer.kind.is_dynamic() && footer.kind == copy.kind && footer.uuid == copy.uuid
    };
    // By its place as well: what a guest has written elsewhere may look like a footer.
    let end =
        closing.truncate.or_else(|| storage.is_device().then(|| storage.len().ok()).flatten());
    let place = |at: u64| at == 0 || end == at.checked_add(FOOTER_BYTES as u64);
    for (_, written) in closing.writes.iter_mut().filter(|(at, _)| place(*at)) {
        if let Some(footer) = Footer::parse(written).ok().filter(ours) {
            *written = Footer { hidden: copy.hidden, ..footer }.encode().to_vec();
        }
    }
    closing.writes.retain(|(at, written)| *at != 0 || *written != bytes);
    // Nothing was written: the trailing footer stands where it stood.
    if closing.writes.is_empty()
        && closing.repairs.is_empty()
        && let Some((at, footer)) = trailing(storage).filter(|(_, footer)| ours(footer))
        && footer.hidden != copy.hidden
    {
        closing.writes.push((at, Footer { hidden: copy.hidden, ..footer }.encode().to_vec()));
    }
}

/// The footer in the last sector, and its place.
fn trailing(storage: &dyn Storage) -> Option<(u64, Footer)> {
    let at = storage.len().ok()?.checked_sub(FOOTER_BYTES as u64)?;
    let mut bytes = [0; FOOTER_BYTES];
    storage.read_exact_at(at, &mut bytes).ok()?;
    Some((at, Footer::parse(&bytes).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, closing, create, open};
    use image::MemStorage;

    /// An image as its tapdisk opened it, whose copy at 0 has been hidden since.
    fn hidden_since() -> (MemStorage, crate::Opened) {
        let storage = MemStorage::new(Vec::new(), false);
        let new =
            create::NewImage { bytes: 16 << 20, room_bytes: 16 << 20, uuid: [7; 16], timestamp: 5 };
        create::dynamic(&storage, Path::new("x"), &new, None).unwrap();
        let opened = open(&storage, Path::new("x"), &OpenOptions::default()).unwrap();
        let footer = Footer { hidden: 1, ..opened.footer.clone() }.encode();
        storage.write_at(0, &footer).unwrap();
        (storage, opened)
    }

    fn flags(storage: &MemStorage) -> (u8, u8) {
        let mut copy = [0; FOOTER_BYTES];
        storage.read_exact_at(0, &mut copy).unwrap();
        (Footer::decode(&copy).hidden, trailing(storage).unwrap().1.hidden)
    }

    #[test]
    fn a_close_keeps_the_flag_whether_anything_was_written_or_not() {
        for written in [false, true] {
            let (storage, opened) = hidden_since();
            let mut last = match written {
                true => closing(&opened, &opened.bat, &opened.full),
                false => Closing::default(),
            };
            keep(&mut last, &storage);
            assert!(last.writes.iter().all(|(at, _)| *at != 0), "the copy is right already");
            last.apply(&storage).unwrap();
            assert_eq!(flags(&storage), (1, 1), "{written}");
        }
    }

    /// A sector that looks like a footer is left alone where none belongs, and so is that of
    /// another image.
    #[test]
    fn only_footers_of_the_image_are_changed() {
        let (storage, opened) = hidden_since();
        let other = Footer { uuid: [8; 16], ..opened.footer.clone() }.encode().to_vec();
        let own = opened.footer.encode().to_vec();
        let writes = vec![(4096, own), (0, other)];
        let mut last = Closing { writes: writes.clone(), ..Closing::default() };
        keep(&mut last, &storage);
        assert_eq!(last.writes, writes);
    }
}
