//! Which footer is believed, when both places hold one or only one does (docs/footers.md has the
//! table).
//!
//! A guest writes sectors of its disk, and what it writes may look like a footer. So a footer
//! counts by where it stands:
//! ```text
//!   fixed     [ guest's bytes, byte 0 as well          ][footer]   the last sector decides
//!   dynamic   [copy│header│table …│ block │ block │ … ][footer]   byte 0 decides; the last
//!                                            sector is heard where no guest can write
//! ```
//! No guest writes below the first block of a dynamic image, nor into the sector where the data end
//! by the table that stands there. Nothing here is taken from a header that only the last sector
//! points at.
use crate::error::{VhdError, errno::EINVAL};
use crate::footer::{DiskType, FOOTER_BYTES, Footer};
use crate::header::Header;
use crate::locate::{FooterAt, header_quick};
use crate::{bat, batmap_read, open};
use image::Storage;
use std::path::Path;

/// A footer, where, and at which byte.
pub(crate) type Found = (Footer, FooterAt, u64);

/// Byte of the header in every image that tools make; without a copy only this place is believed.
const HEADER_AT: u64 = FOOTER_BYTES as u64;

/// What the last sector of a dynamic image may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Right behind the data by the table, or in the last sector of a device: no guest wrote it.
    Right,
    /// Behind the data, and more lies between: a tapdisk at work, a tool, or what a crash left.
    Loose,
    /// Upon a block: the guest's.
    Block,
}

/// The footer to believe; `None` if there is none.
///
/// # Errors
/// Those of the file; EINVAL where both could be a guest's work.
pub(crate) fn choose(
    storage: &dyn Storage,
    name: &Path,
    trailing: Option<Found>,
    copy: Option<&Footer>,
    file_bytes: u64,
) -> Result<Option<Found>, VhdError> {
    let at_0 = copy.map(|copy| (copy.clone(), FooterAt::Copy, 0));
    let Some(last) = trailing else { return Ok(at_0) };
    let image = Image { storage, name, file_bytes };
    let dynamic = copy.filter(|copy| copy.kind.is_dynamic());
    Ok(match (last.0.kind, dynamic) {
        (DiskType::Fixed, dynamic) => image.fixed(last, dynamic)?,
        (DiskType::None | DiskType::Other(_), Some(_)) => at_0,
        (DiskType::None | DiskType::Other(_), None) => Some(last),
        (_, None) => image.alone(last)?,
        (_, Some(copy)) if *copy == last.0 => Some(last),
        (_, Some(copy)) if image.outvotes(&last, copy)? => Some(with_hidden(last, copy)),
        (_, Some(_)) => at_0,
    })
}

/// Beside a running disk the hidden flag is set at byte 0 only, and so it is where a device is
/// full: where the two differ in nothing else, an image is hidden if either says so.
fn with_hidden(mut last: Found, copy: &Footer) -> Found {
    let (hidden, checksum) = (copy.hidden, copy.checksum);
    if (Footer { hidden, checksum, ..last.0.clone() }) == *copy {
        last.0.hidden = hidden.max(last.0.hidden);
    }
    last
}

/// Whether a footer of a fixed disk at this byte ends what it stands in. A device may be larger
/// than the disk.
pub(crate) fn fits(footer: &Footer, at: u64, device: bool) -> bool {
    let bytes = footer.current_bytes;
    bytes > 0 && (bytes == at || (device && bytes < at))
}

struct Image<'a> {
    storage: &'a dyn Storage,
    name: &'a Path,
    file_bytes: u64,
}

impl Image<'_> {
    /// A fixed image has no copy: byte 0 is the guest's.
    fn fixed(&self, last: Found, dynamic: Option<&Footer>) -> Result<Option<Found>, VhdError> {
        let (footer, _, at) = &last;
        let Some(copy) = dynamic else { return Ok(Some(last)) };
        if fits(footer, *at, self.storage.is_device()) {
            return Ok(Some(last));
        }
        if footer.current_bytes < *at && self.header(copy.data_offset)?.is_some() {
            let why = format!(
                "may be a fixed image of {} bytes with a guest's bytes before its footer, or a \
                 dynamic one that a crash left ending in a guest's sector; if it was dynamic, \
                 vhd-util repair -b takes the footer at byte 0",
                footer.current_bytes
            );
            return Err(VhdError::request(self.name, EINVAL, why));
        }
        Ok(Some((copy.clone(), FooterAt::Copy, 0)))
    }

    /// Only the last sector has the footer of a dynamic image. Its header must be the one at the
    /// beginning, which no guest can write.
    fn alone(&self, last: Found) -> Result<Option<Found>, VhdError> {
        if last.0.data_offset != HEADER_AT {
            return Ok(None);
        }
        let Some(header) = self.header(HEADER_AT)? else { return Ok(Some(last)) };
        let stands = self.standing(&last, &header)?;
        Ok(Some(last).filter(|_| stands != Some(Standing::Block)))
    }

    /// Whether the last sector is believed against a copy that says something else: the image was
    /// changed there first, or the copy is damaged.
    fn outvotes(&self, last: &Found, copy: &Footer) -> Result<bool, VhdError> {
        let at = last.0.data_offset;
        let same_header = at == copy.data_offset;
        if !same_header && (at != HEADER_AT || self.header(copy.data_offset)?.is_some()) {
            return Ok(false);
        }
        let Some(header) = self.header(at)? else { return Ok(false) };
        let half_resized = last.0.poisoned() && last.0.uuid == copy.uuid && same_header;
        Ok(match self.standing(last, &header)? {
            Some(Standing::Right) => true,
            // Half a resize must not be opened and changed: its journal would be put back over it.
            Some(Standing::Loose) => half_resized,
            Some(Standing::Block) | None => false,
        })
    }

    fn header(&self, at: u64) -> Result<Option<Header>, VhdError> {
        header_quick(self.storage, self.name, at)
    }

    /// Where a trailing footer stands by a table; `None` if there is no such table.
    fn standing(
        &self,
        (footer, _, at): &Found,
        header: &Header,
    ) -> Result<Option<Standing>, VhdError> {
        let (storage, name, bytes) = (self.storage, self.name, self.file_bytes);
        let table = bat::read(storage, name, header, footer.data_offset, footer.current_bytes);
        let Ok(table) = table else { return Ok(None) };
        let entries = || table.used.iter().chain(&table.tail).copied();
        if open::overlapped(header, entries(), (*at, at.saturating_add(512))) {
            return Ok(Some(Standing::Block));
        }
        if storage.is_device() {
            return Ok(Some(Standing::Right));
        }
        let map = batmap_read::batmap_bytes(storage, name, footer, header, bytes)?;
        let map = map.state(header, footer.current_bytes, &table.used);
        let headers = open::end_of_headers(footer, header, &map, &table.used, bytes);
        let end = headers.max(bat::data_end(header, &table.used, bytes));
        Ok(Some(if *at == end { Standing::Right } else { Standing::Loose }))
    }
}
