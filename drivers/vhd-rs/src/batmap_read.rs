//! Reading a batmap and deciding whether to believe it.
use crate::bat;
use crate::batmap::{self, BatmapFault, BatmapHeader};
use crate::error::VhdError;
use crate::footer::Footer;
use crate::header::Header;
use crate::open::{self, BatmapState};
use image::Storage;
use std::path::Path;

/// What lies where a batmap belongs.
pub(crate) enum BatmapBytes {
    /// Nothing belongs there.
    Absent,
    /// No header.
    NoHeader { header_at: u64, why: BatmapFault },
    /// A header, and as much of the map as the file has.
    Map { header_at: u64, header: BatmapHeader, map: Vec<u8> },
}

impl BatmapBytes {
    /// Whether it can be trusted. A map that counts as nothing has to have its place, or a block
    /// would take zeros for a sector of its own.
    pub(crate) fn state(&self, header: &Header, disk_bytes: u64, used: &[u32]) -> BatmapState {
        match self {
            BatmapBytes::Absent => BatmapState::Absent,
            BatmapBytes::NoHeader { header_at, why } => {
                BatmapState::Damaged { header_at: *header_at, header: None, why: *why }
            }
            BatmapBytes::Map { header_at, header: h, map } => {
                let header_at = *header_at;
                let place = (header_at, h.map_end());
                let upon = || open::overlapped(header, used.iter().copied(), place);
                match map_fault(h, map, header_at, header, disk_bytes) {
                    None if h.says_nothing() && map.iter().any(|byte| *byte != 0) && upon() => {
                        let (header, why) = (Some(h.clone()), BatmapFault::Checksum);
                        BatmapState::Damaged { header_at, header, why }
                    }
                    Some(why) => BatmapState::Damaged { header_at, header: Some(h.clone()), why },
                    None => BatmapState::Valid { header_at, header: h.clone() },
                }
            }
        }
    }

    /// The bits as stored; empty if there are none.
    pub(crate) fn map(&self) -> &[u8] {
        match self {
            BatmapBytes::Map { map, .. } => map,
            BatmapBytes::Absent | BatmapBytes::NoHeader { .. } => &[],
        }
    }
}

/// Reads the batmap of an image whose creator wrote one (§7.1).
pub(crate) fn batmap_bytes(
    storage: &dyn Storage,
    name: &Path,
    footer: &Footer,
    header: &Header,
    file_bytes: u64,
) -> Result<BatmapBytes, VhdError> {
    let expected = footer.kind.is_dynamic() && footer.by_tap() && footer.creator_version > 1;
    let Some(header_at) = header.batmap_at().filter(|_| expected) else {
        return Ok(BatmapBytes::Absent);
    };
    let failed = |e: &std::io::Error| VhdError::io(name, "read the batmap", header_at, e);
    let mut bytes = [0; batmap::BATMAP_HEADER_BYTES];
    storage.read_at(header_at, &mut bytes).map_err(|e| failed(&e))?;
    let map_header = match BatmapHeader::parse(&bytes) {
        Ok(header) => header,
        Err(BatmapFault::Cookie) if footer.creator_version < 0x0001_0002 => {
            return Ok(BatmapBytes::Absent);
        }
        Err(why) => return Ok(BatmapBytes::NoHeader { header_at, why }),
    };
    let wanted = map_header.map_end().min(file_bytes).saturating_sub(map_header.map_offset);
    let mut map = vec![0; usize::try_from(wanted).unwrap_or(0)];
    if !map.is_empty() {
        let got = storage.read_at(map_header.map_offset, &mut map).map_err(|e| failed(&e))?;
        map.truncate(got);
    }
    Ok(BatmapBytes::Map { header_at, header: map_header, map })
}

/// The bits of blocks that are there; zeros without a valid batmap.
pub(crate) fn full_bits(state: &BatmapState, map: &[u8], used: &[u32]) -> Vec<u8> {
    let mut full = vec![0; used.len().div_ceil(8)];
    let BatmapState::Valid { header, .. } = state else { return full };
    if header.says_nothing() {
        return full;
    }
    for (block, entry) in (0..).zip(used) {
        if *entry != bat::UNUSED && batmap::is_full(map, block) {
            batmap::set_full(&mut full, block);
        }
    }
    full
}

/// Why a map cannot be trusted. The original sometimes leaves the last sector unwritten, so a map
/// that is short only at its end is accepted and zero there.
fn map_fault(
    map_header: &BatmapHeader,
    map: &[u8],
    header_at: u64,
    header: &Header,
    disk_bytes: u64,
) -> Option<BatmapFault> {
    let summed = batmap::summed_bytes(disk_bytes, header.block_bytes);
    let enough = summed.min(512 * map_header.map_sectors as usize);
    let behind = header_at + batmap::BATMAP_HEADER_BYTES as u64;
    if map_header.map_offset < behind || map.len() < enough {
        Some(BatmapFault::Place)
    } else if !map_header.matches(map, disk_bytes, header.block_bytes) {
        Some(BatmapFault::Checksum)
    } else {
        None
    }
}
