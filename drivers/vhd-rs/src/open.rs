//! Opening an image: footer, header, table and batmap become one checked value.
//!
//! Nothing here writes. Who writes the image afterwards begins with [`crate::heal()`].
use crate::bat::{self, Bat};
use crate::batmap::{self, BatmapFault, BatmapHeader, KeyHash};
use crate::batmap_read::{batmap_bytes, full_bits};
pub use crate::closing::closing;
use crate::error::{
    VhdError,
    errno::{EINVAL, EIO},
};
use crate::footer::{DISK_BYTES_MAX, DiskType, FOOTER_BYTES, Footer};
use crate::header::{HEADER_BYTES, Header};
use crate::locate::{FooterAt, Headers, headers, headers_of_copy};
use crate::rescue::{self, Lost, Parts, Why};
use image::Storage;
use std::path::{Path, PathBuf};

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Nothing will be written.
    pub read_only: bool,
    /// Refuse what the I/O driver must refuse.
    pub for_io: bool,
    /// How often a failing header is read again, 1 s apart: shared storage may show a half-written
    /// state. The original retries 10 times.
    pub header_retries: u32,
}

/// Whether there is a batmap, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatmapState {
    /// The image has no place for one.
    Absent,
    /// It can be trusted.
    Valid {
        /// Byte offset of its header.
        header_at: u64,
        /// The header.
        header: BatmapHeader,
    },
    /// It belongs there but cannot be trusted; it is rewritten at close.
    Damaged {
        /// Byte offset of its header.
        header_at: u64,
        /// The header, if that much is readable.
        header: Option<BatmapHeader>,
        /// What is wrong.
        why: BatmapFault,
    },
}

/// Where the parent may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its unique id; `None` for a raw parent.
    pub uuid: Option<[u8; 16]>,
    /// The decoded locator paths in slot order.
    pub candidates: Vec<PathBuf>,
}

/// An image whose metadata has been read and checked.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The footer that was found.
    pub footer: Footer,
    /// The header; `None` for fixed disks.
    pub header: Option<Header>,
    /// Size of the disk in sectors of 512 bytes.
    pub sectors: u64,
    /// Fixed, dynamic or differencing.
    pub kind: DiskType,
    /// Table entries the disk uses, one a block, in native order.
    pub bat: Vec<u32>,
    /// Table entries beyond; kept as they are.
    pub bat_tail: Vec<u32>,
    /// Batmap bits, most significant first, one a block; zeros without a valid batmap.
    pub full: Vec<u8>,
    /// State of the batmap.
    pub batmap: BatmapState,
    /// First byte that blocks may use.
    pub end_of_headers: u64,
    /// Byte after the last block (§2.4) that begins in the file; of a fixed disk where its footer
    /// is.
    pub end_of_data: u64,
    /// Size of the file or device.
    pub file_bytes: u64,
    /// A block device: its footer lies in its last sector.
    pub device: bool,
    /// Where the footer was found.
    pub footer_found: FooterAt,
    /// The parent of a differencing disk.
    pub parent: Option<Parent>,
    /// Set if the image is encrypted; the caller must have the key or refuse.
    pub key_hash: Option<KeyHash>,
    /// Blocks to answer with EIO, sorted. While there are any, no block may be allocated: a new one
    /// could lie where a dangling entry points.
    pub bad_blocks: Vec<u32>,
    /// Of an image that is only read: sectors to answer with EIO, sorted; those of bad blocks as
    /// well.
    pub lost: Vec<Lost>,
    /// Of an image file that may be written: sectors that were in it and lie beyond its end now.
    /// Whoever makes the file longer makes zeros of them, and says so or refuses.
    pub cut: Vec<Lost>,
}

impl Opened {
    /// Refuses to change an image of which a part is cut off.
    ///
    /// # Errors
    /// EIO, with what is gone.
    pub fn refuse_cut(&self, name: &Path) -> Result<(), VhdError> {
        let Some(first) = self.cut.first() else { return Ok(()) };
        let why = format!(
            "{first}; vhd-util convert writes what can be read to another image, and vhd-util \
             repair makes zeros of the rest"
        );
        Err(VhdError::request(name, EIO, why))
    }

    /// The first sectors of a range within a block that cannot be read: where they begin, and how
    /// many.
    pub fn lost_in(&self, block: u32, first: u32, count: u32) -> Option<(u32, u32)> {
        let end = first.saturating_add(count);
        let from = self
            .lost
            .partition_point(|lost| (lost.block, lost.first + lost.count) <= (block, first));
        let lost = self.lost.get(from).filter(|lost| lost.block == block && lost.first < end)?;
        let start = lost.first.max(first);
        Some((start, (lost.first + lost.count).min(end) - start))
    }

    /// Whether [`crate::heal()`] took marks off the disk that `full` still has: a close puts them
    /// back.
    pub(crate) fn marks_are_off(&self) -> bool {
        let off = batmap_header(&self.batmap).is_some_and(BatmapHeader::says_nothing);
        off && self.full.iter().any(|byte| *byte != 0)
    }

    /// Bytes of a block's data; 0 for fixed disks.
    pub fn block_bytes(&self) -> u64 {
        self.header.as_ref().map_or(0, |h| u64::from(h.block_bytes))
    }

    /// Bytes of a block's bitmap; 0 for fixed disks.
    pub fn bitmap_bytes(&self) -> u64 {
        self.header.as_ref().map_or(0, Header::bitmap_bytes)
    }
}

/// Opens an image: footer, header, table and batmap, read and checked.
///
/// ```
/// use vhd_rs::{DiskType, OpenOptions, files, open};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let file = std::fs::File::open(&name)?;
/// let opened = open(&file, &name, &OpenOptions { read_only: true, ..Default::default() })?;
/// assert_eq!((opened.kind, opened.sectors, opened.bat.len()), (DiskType::Dynamic, 20480, 5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// See [`VhdError`]: EPIPE for an empty file, EINVAL for one that is no VHD or is damaged.
pub fn open(storage: &dyn Storage, name: &Path, o: &OpenOptions) -> Result<Opened, VhdError> {
    let found = headers(storage, name, o.header_retries)?;
    open_found(storage, name, o, &found)
}

/// Opens an image by its footer at offset 0 only, for the tools' `-b`.
///
/// # Errors
/// As for [`open`].
pub fn open_copy(storage: &dyn Storage, name: &Path, o: &OpenOptions) -> Result<Opened, VhdError> {
    let found = headers_of_copy(storage, name, o.header_retries)?;
    open_found(storage, name, o, &found)
}

fn open_found(
    storage: &dyn Storage,
    name: &Path,
    o: &OpenOptions,
    found: &Headers,
) -> Result<Opened, VhdError> {
    if o.for_io {
        fit_for_io(name, found)?;
    }
    match (&found.header, found.footer.kind) {
        (Some(header), _) => dynamic(storage, name, o, found, header),
        (None, DiskType::Fixed) => fixed(name, o, found),
        (None, kind) => {
            let why = format!("is {}, none of fixed, dynamic and differencing", kind.code());
            Err(field(name, "disk type", found.footer_at + 60, why))
        }
    }
}

/// The path of the parent (§5.2, §5.3), for who tells of it: nothing is opened by it.
/// [`crate::parents::find`] is for who opens it.
///
/// # Errors
/// ENOENT or what the last candidate gave; EINVAL if no locator decodes.
pub fn resolve_parent(child: &Path, parent: &Parent) -> Result<PathBuf, VhdError> {
    crate::parents::name(child, parent)
}

fn field(name: &Path, field: &'static str, offset: u64, why: String) -> VhdError {
    let remedy = "restore the image from a backup or run vhd-util check";
    VhdError::Field { name: name.into(), field, offset, why, remedy }
}

/// What the I/O driver refuses beyond what makes a footer acceptable (§2.1, §2.2, §8.1).
fn fit_for_io(name: &Path, found: &Headers) -> Result<(), VhdError> {
    let footer = &found.footer;
    let at = found.footer_at;
    if footer.poisoned() {
        let why = "the image is in the middle of a resize; run vhd-util revert with its journal";
        return Err(VhdError::request(name, EINVAL, why));
    }
    if footer.by_tap() && footer.creator_version > crate::footer::TAP_VERSION {
        let why = format!("is {:#010x}, newer than this program knows", footer.creator_version);
        return Err(field(name, "tap creator version", at + 32, why));
    }
    if footer.current_bytes > DISK_BYTES_MAX {
        return Err(VhdError::TooLarge { name: name.into(), bytes: footer.current_bytes });
    }
    if footer.current_bytes < 512 {
        let why = format!("is {} bytes, a disk without sectors", footer.current_bytes);
        return Err(field(name, "current size", at + 48, why));
    }
    let Some(header) = &found.header else { return Ok(()) };
    table_place(name, header, footer.data_offset)
}

/// The table must not lie upon the footer copy or the header, and begin at a sector: it is updated
/// by whole sectors.
fn table_place(name: &Path, header: &Header, header_at: u64) -> Result<(), VhdError> {
    let (start, end) =
        (header.table_offset, header.table_offset.saturating_add(header.table_bytes()));
    let on_header = start < header_at.saturating_add(HEADER_BYTES as u64) && end > header_at;
    let why = if start < FOOTER_BYTES as u64 {
        "lies upon the footer copy"
    } else if on_header {
        "lies upon the header"
    } else if start % 512 != 0 {
        "is not a multiple of 512"
    } else {
        return Ok(());
    };
    let at = header_at.saturating_add(16);
    Err(field(name, "header table offset", at, format!("({start}) {why}")))
}

fn fixed(name: &Path, o: &OpenOptions, found: &Headers) -> Result<Opened, VhdError> {
    let bytes = found.footer.current_bytes;
    let end_of_data = match found.found {
        FooterAt::Trailing | FooterAt::Trailing511 => found.footer_at,
        // No fixed image has a copy at 0: this is the first sector of somebody's disk.
        FooterAt::Copy => 0,
    };
    if o.for_io && bytes > end_of_data {
        let why = format!("is {bytes}, but only {end_of_data} bytes lie before the footer");
        return Err(field(name, "current size", found.footer_at + 48, why));
    }
    Ok(Opened { end_of_headers: 0, end_of_data, ..bare(found) })
}

/// An `Opened` with what every kind of disk has.
fn bare(found: &Headers) -> Opened {
    Opened {
        footer: found.footer.clone(),
        header: found.header.clone(),
        sectors: found.footer.current_bytes / 512,
        kind: found.footer.kind,
        bat: Vec::new(),
        bat_tail: Vec::new(),
        full: Vec::new(),
        batmap: BatmapState::Absent,
        end_of_headers: 0,
        end_of_data: 0,
        file_bytes: found.file_bytes,
        device: found.device,
        footer_found: found.found,
        parent: None,
        key_hash: None,
        bad_blocks: Vec::new(),
        lost: Vec::new(),
        cut: Vec::new(),
    }
}

fn dynamic(
    storage: &dyn Storage,
    name: &Path,
    o: &OpenOptions,
    found: &Headers,
    header: &Header,
) -> Result<Opened, VhdError> {
    let footer = &found.footer;
    let Bat { used, tail } =
        bat::read(storage, name, header, footer.data_offset, footer.current_bytes)?;
    let map = batmap_bytes(storage, name, footer, header, found.file_bytes)?;
    let batmap = map.state(header, footer.current_bytes, &used);
    let mut full = full_bits(&batmap, map.map(), &used);
    let end_of_headers = end_of_headers(footer, header, &batmap, &used, found.file_bytes);
    let damage = bat::damage(header, &used, end_of_headers, found.file_bytes);
    if let (Some((block, sector, why)), true, false) = (damage.harm, o.for_io, o.read_only) {
        return Err(VhdError::Block { name: name.into(), block, sector, why });
    }
    let (mut bad_blocks, mut rescued) = (damage.bad, Vec::new());
    let (mut lost, mut gone) = (Vec::new(), Vec::new());
    let cut = bat::blocks_end(header, used.iter().copied()) > found.file_bytes;
    if (o.read_only && damage.harm.is_some()) || cut {
        let (used, full, file_bytes) = (&used[..], &full[..], found.file_bytes);
        let parts =
            Parts { storage, name, footer, header, batmap: &batmap, used, full, file_bytes };
        let rescue = rescue::look(&parts)?;
        if o.read_only {
            (bad_blocks, lost) = (rescue.bad, rescue.lost);
            rescued = rescue.full;
        } else if !found.device {
            gone = rescue.lost;
            gone.retain(|lost| lost.why == Why::Cut);
        }
    }
    rescued.iter().for_each(|block| batmap::set_full(&mut full, *block));
    let end_of_data = end_of_headers.max(bat::data_end(header, &used, found.file_bytes));
    let parent = match footer.kind {
        DiskType::Differencing => Some(parent_of(storage, header)),
        _ => None,
    };
    let key_hash = match &batmap {
        BatmapState::Absent => key_attribute(storage, name)?,
        _ => batmap_header(&batmap).and_then(BatmapHeader::key_hash),
    };
    Ok(Opened {
        bat: used,
        bat_tail: tail,
        full,
        batmap,
        end_of_headers,
        end_of_data,
        parent,
        key_hash,
        bad_blocks,
        lost,
        cut: gone,
        ..bare(found)
    })
}

/// The key hash of an image that has no batmap to hold it (§7.3).
///
/// # Errors
/// Those of the file system: an image that may be encrypted must not pass for one that is not.
/// EINVAL for an attribute that is no key hash.
pub(crate) fn key_attribute(
    storage: &dyn Storage,
    name: &Path,
) -> Result<Option<KeyHash>, VhdError> {
    let value = storage
        .attribute(crate::key::ATTRIBUTE)
        .map_err(|e| VhdError::io(name, "read the attribute that holds the key hash", 0, &e))?;
    match value {
        Some(value) if value.len() != 65 => {
            let why = format!("the extended attribute {} is no key hash", crate::key::ATTRIBUTE);
            Err(VhdError::request(name, EINVAL, why))
        }
        value => Ok(value.as_deref().and_then(KeyHash::parse)),
    }
}

/// The batmap header, as far as it can be read.
pub fn batmap_header(state: &BatmapState) -> Option<&BatmapHeader> {
    match state {
        BatmapState::Absent => None,
        BatmapState::Valid { header, .. } => Some(header),
        BatmapState::Damaged { header, .. } => header.as_ref(),
    }
}

/// End of headers (§2.4). Locators outside the file protect nothing and do not count. The place of
/// a damaged batmap counts unless a block already lies there: it is written again at close.
pub(crate) fn end_of_headers(
    footer: &Footer,
    header: &Header,
    batmap: &BatmapState,
    used: &[u32],
    file_bytes: u64,
) -> u64 {
    let table = header.table_offset.saturating_add(header.table_bytes());
    let fixed = footer.data_offset.saturating_add(HEADER_BYTES as u64).max(table);
    let locators = header.locators.iter().map(crate::locator::Locator::end);
    let without = locators.filter(|end| *end <= file_bytes).fold(fixed, u64::max);
    let place = batmap_place(header, batmap);
    let counts = match batmap {
        BatmapState::Absent => false,
        BatmapState::Valid { .. } => true,
        BatmapState::Damaged { .. } => !overlapped(header, used.iter().copied(), place),
    };
    crate::bytes::sector_up(if counts { without.max(place.1) } else { without })
}

/// First and last byte + 1 of batmap header and map.
pub(crate) fn batmap_place(header: &Header, batmap: &BatmapState) -> (u64, u64) {
    match batmap {
        BatmapState::Absent => (0, 0),
        BatmapState::Valid { header_at, header } => (*header_at, header.map_end()),
        BatmapState::Damaged { header_at, .. } => {
            (*header_at, BatmapHeader::new(*header_at, header.max_entries).map_end())
        }
    }
}

/// Whether any block lies upon the range.
pub(crate) fn overlapped(
    header: &Header,
    mut used: impl Iterator<Item = u32>,
    (from, to): (u64, u64),
) -> bool {
    used.any(|entry| {
        let (start, end) = bat::extent(header, entry);
        entry != bat::UNUSED && start < to && end > from
    })
}

/// Uuid and candidate paths; a locator that cannot be read or decoded is passed over.
pub fn parent_of(storage: &dyn Storage, header: &Header) -> Parent {
    let uuid = Some(header.parent_uuid).filter(|uuid| uuid != &[0; 16]);
    let candidates = header.locators.iter().filter_map(|l| locator_path(storage, l)).collect();
    Parent { uuid, candidates }
}

/// The path in one locator.
pub fn locator_path(storage: &dyn Storage, locator: &crate::locator::Locator) -> Option<PathBuf> {
    let mut text = vec![0; locator.text_bytes().ok()?];
    storage.read_exact_at(locator.offset, &mut text).ok()?;
    locator.path(&text).ok()
}
