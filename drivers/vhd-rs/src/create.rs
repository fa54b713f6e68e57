//! Writing new images, byte for byte where the original puts things (§8.2).
//!
//! ```text
//!   footer copy │ header │ table │ batmap header │ batmap │ locator texts │ footer
//!   0             512      1536    next sector …
//! ```
//! The copy at 0 is written last: until then the file is no image.
use crate::bat::{self, ENTRIES_MAX, UNUSED};
use crate::batmap::{BatmapHeader, KeyHash};
use crate::error::{
    VhdError,
    errno::{EILSEQ, EINVAL, ENAMETOOLONG},
};
use crate::footer::{DISK_BYTES_MAX, DiskType, FOOTER_BYTES, Footer};
use crate::header::{BLOCK_BYTES, HEADER_BYTES, Header};
use crate::locator::{self, Locator};
use image::Storage;
use std::path::{Path, PathBuf};

/// Where the table of a new image begins.
const TABLE_AT: u64 = (FOOTER_BYTES + HEADER_BYTES) as u64;
/// Zeros of a fixed image are written in pieces of this size.
const ZEROS: usize = 1 << 20;

/// What every new image needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Size of the disk in bytes.
    pub bytes: u64,
    /// Disk size up to which the metadata shall have room; at least `bytes`.
    pub room_bytes: u64,
    /// Unique id.
    pub uuid: [u8; 16],
    /// Time of creation, seconds since 2000.
    pub timestamp: u32,
}

/// What a differencing image says about its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// Its unique id; `None` for a raw parent.
    pub uuid: Option<[u8; 16]>,
    /// Its modification time, seconds since 2000.
    pub timestamp: u32,
    /// Its path as seen from the directory of the child, both canonical.
    pub relative: PathBuf,
    /// Its key hash, which the child inherits.
    pub key_hash: Option<KeyHash>,
}

/// Writes a dynamic image, or a differencing one over `parent`.
///
/// # Errors
/// EINVAL for impossible sizes, EILSEQ for a parent path that is not UTF-8, ENAMETOOLONG for a
/// name beyond 255 UTF-16 units, and those of the device.
pub fn dynamic(
    storage: &dyn Storage,
    name: &Path,
    new: &NewImage,
    parent: Option<&ParentRef>,
) -> Result<(), VhdError> {
    let plan = Layout::of(name, new, parent)?;
    let put = |at: u64, bytes: &[u8]| {
        let failed = |e| VhdError::io(name, "write the new image", at, &e);
        storage.write_at(at, bytes).map_err(failed)
    };
    let footer = plan.footer.encode();
    let entries = std::iter::repeat_n(UNUSED, plan.header.max_entries as usize);
    put(plan.header.table_offset, &bat::encode(entries))?;
    let map = vec![0; 512 * plan.batmap.map_sectors as usize];
    put(plan.batmap.map_offset, &map)?;
    put(plan.batmap.map_offset - 512, &plan.batmap.encode())?;
    for (at, text) in &plan.texts {
        let mut area = text.clone();
        area.resize(text.len().next_multiple_of(512), 0);
        put(*at, &area)?;
    }
    put(FOOTER_BYTES as u64, &plan.header.encode())?;
    put(footer_place(storage, name, plan.end)?, &footer)?;
    put(0, &footer)?;
    storage.sync().map_err(|e| VhdError::io(name, "flush the new image", 0, &e))
}

/// Writes a fixed image: all zeros, then the footer.
///
/// # Errors
/// EINVAL for impossible sizes, and those of the device.
pub fn fixed(storage: &dyn Storage, name: &Path, new: &NewImage) -> Result<(), VhdError> {
    size_fits(name, new.bytes)?;
    let zeros = vec![0; ZEROS];
    let mut at = 0;
    let failed = |at, e: &std::io::Error| VhdError::io(name, "write the new image", at, e);
    while at < new.bytes {
        let left = usize::try_from(new.bytes - at).unwrap_or(ZEROS).min(ZEROS);
        let piece = zeros.get(..left).unwrap_or(&zeros);
        storage.write_at(at, piece).map_err(|e| failed(at, &e))?;
        at += piece.len() as u64;
    }
    let footer = Footer::new(DiskType::Fixed, new.bytes, new.uuid, new.timestamp).encode();
    let at = footer_place(storage, name, new.bytes)?;
    storage.write_at(at, &footer).map_err(|e| failed(at, &e))?;
    storage.sync().map_err(|e| VhdError::io(name, "flush the new image", 0, &e))
}

/// Behind the data of a file, in the last sector of a device.
fn footer_place(storage: &dyn Storage, name: &Path, end: u64) -> Result<u64, VhdError> {
    if !storage.is_device() {
        return Ok(end);
    }
    let bytes = storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e))?;
    bytes.checked_sub(512).filter(|at| *at >= end).ok_or_else(|| {
        let why = format!("the device has {bytes} bytes, too few for {end} bytes and a footer");
        VhdError::request(name, crate::error::errno::ENOSPC, why)
    })
}

fn size_fits(name: &Path, bytes: u64) -> Result<(), VhdError> {
    if bytes > DISK_BYTES_MAX {
        let why = format!("a disk of {bytes} bytes is larger than the 2040 GiB a VHD can hold");
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(())
}

/// Every structure of a new image, with its place.
struct Layout {
    footer: Footer,
    header: Header,
    batmap: BatmapHeader,
    texts: Vec<(u64, Vec<u8>)>,
    end: u64,
}

impl Layout {
    fn of(name: &Path, new: &NewImage, parent: Option<&ParentRef>) -> Result<Layout, VhdError> {
        size_fits(name, new.bytes)?;
        let refuse = |why: &str| VhdError::request(name, EINVAL, why);
        let entries = new.room_bytes.div_ceil(u64::from(BLOCK_BYTES));
        let entries = u32::try_from(entries).ok().filter(|n| *n <= ENTRIES_MAX);
        let entries = entries.ok_or_else(|| refuse("room for more than 64 TiB of disk"))?;
        if new.room_bytes < new.bytes {
            return Err(refuse("the metadata must have room for the whole disk"));
        }
        let kind = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let mut header = Header::new(TABLE_AT, entries, BLOCK_BYTES);
        let batmap_at = TABLE_AT + header.table_bytes();
        let mut batmap = BatmapHeader::new(batmap_at, entries);
        batmap.checksum =
            batmap.checksum_of(&vec![0; 512 * batmap.map_sectors as usize], new.bytes, BLOCK_BYTES);
        let mut end = batmap.map_end();
        let mut texts = Vec::new();
        if let Some(parent) = parent {
            describe_parent(name, &mut header, parent)?;
            texts = place_texts(name, &mut header, parent, &mut end)?;
            if let Some(key) = &parent.key_hash {
                batmap.set_key_hash(key);
            }
        }
        let footer = Footer::new(kind, new.bytes, new.uuid, new.timestamp);
        Ok(Layout { footer, header, batmap, texts, end })
    }
}

fn describe_parent(name: &Path, header: &mut Header, parent: &ParentRef) -> Result<(), VhdError> {
    header.parent_uuid = parent.uuid.unwrap_or_default();
    header.parent_timestamp = parent.timestamp;
    let base = parent.relative.file_name().and_then(std::ffi::OsStr::to_str);
    let base = base.ok_or_else(|| not_utf8(name))?;
    if !header.set_parent_name(base) {
        let why = "the parent's name has more than 255 UTF-16 units; rename it";
        return Err(VhdError::request(name, ENAMETOOLONG, why));
    }
    Ok(())
}

/// Locator areas behind the batmap in slot order (§5.1); moves `end` past them.
fn place_texts(
    name: &Path,
    header: &mut Header,
    parent: &ParentRef,
    end: &mut u64,
) -> Result<Vec<(u64, Vec<u8>)>, VhdError> {
    let mut texts = Vec::new();
    let codes = [locator::MACX, locator::W2KU, locator::W2RU];
    for (slot, code) in header.locators.iter_mut().zip(codes) {
        let text = locator::text_of(code, &parent.relative).ok_or_else(|| not_utf8(name))?;
        if text.len() > 2 * locator::PATH_BYTES_MAX {
            let why = "the parent's path is too long for a locator; move the images together";
            return Err(VhdError::request(name, ENAMETOOLONG, why));
        }
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let space = length.next_multiple_of(512);
        *slot = Locator { code, space, length, reserved: 0, offset: *end };
        texts.push((*end, text));
        *end += u64::from(space);
    }
    Ok(texts)
}

pub(crate) fn not_utf8(name: &Path) -> VhdError {
    let why = "the parent's path is not UTF-8 and cannot be stored; rename it";
    VhdError::request(name, EILSEQ, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u32_at;
    use image::MemStorage;

    const MIB: u64 = 1 << 20;

    fn new(mib: u64, room: u64) -> NewImage {
        NewImage { bytes: mib * MIB, room_bytes: room * MIB, uuid: [7; 16], timestamp: 5 }
    }

    fn made(new: &NewImage, parent: Option<&ParentRef>) -> Vec<u8> {
        let storage = MemStorage::new(Vec::new(), false);
        dynamic(&storage, Path::new("x.vhd"), new, parent).unwrap();
        storage.into_inner()
    }

    #[test]
    fn an_empty_10_mib_image_has_the_byte_map_of_c01() {
        let bytes = made(&new(10, 10), None);
        assert_eq!(bytes.len(), 3584);
        assert_eq!(bytes[..512], bytes[3072..]);
        assert_eq!(&bytes[..8], b"conectix");
        assert_eq!(&bytes[512..520], b"cxsparse");
        assert!(bytes[1536..1556].iter().all(|b| *b == 0xff));
        assert!(bytes[1556..2048].iter().all(|b| *b == 0));
        assert_eq!(&bytes[2048..2056], b"tdbatmap");
        assert_eq!(bytes[2560..3072], [0; 512]);
    }

    #[test]
    fn preallocated_metadata_lies_as_in_c04() {
        let bytes = made(&new(10, 2_097_152), None);
        assert_eq!(bytes.len(), 4_327_936);
        assert_eq!(u32_at(&bytes, 540), 1_048_576);
        assert_eq!(&bytes[4_195_840..4_195_848], b"tdbatmap");
        assert_eq!(u32_at(&bytes, 4_195_840 + 16), 256);
    }

    #[test]
    fn a_snapshot_has_the_locators_of_c05() {
        let parent = ParentRef {
            uuid: Some([9; 16]),
            timestamp: 3,
            relative: "./p.vhd".into(),
            key_hash: None,
        };
        let bytes = made(&new(10, 10), Some(&parent));
        assert_eq!(bytes.len(), 5120);
        let header = Header::parse(&bytes[512..1536]).unwrap();
        assert_eq!(header.parent_name_text(), "p.vhd");
        let places: Vec<_> =
            header.locators.iter().take(3).map(|l| (l.space, l.length, l.offset)).collect();
        assert_eq!(places, [(512, 14, 3072), (512, 14, 3584), (512, 14, 4096)]);
        assert_eq!(&bytes[3072..3086], b"file://./p.vhd");
        assert_eq!(header.locators[3], Locator::default());
    }

    #[test]
    fn sizes_beyond_2040_gib_are_refused() {
        let storage = MemStorage::new(Vec::new(), false);
        let e = dynamic(&storage, Path::new("x"), &new(2_088_962, 2_088_962), None).unwrap_err();
        assert_eq!(e.errno(), 22);
        assert!(storage.into_inner().is_empty());
    }

    #[test]
    fn a_device_keeps_its_footer_in_the_last_sector() {
        let storage = MemStorage::new(vec![0xee; 16384], true);
        dynamic(&storage, Path::new("x"), &new(10, 10), None).unwrap();
        let bytes = storage.into_inner();
        assert_eq!(bytes[..512], bytes[16384 - 512..]);
        assert!(bytes[3072..16384 - 512].iter().all(|b| *b == 0xee), "the rest is untouched");
    }
}
