//! What a clean close writes: footers first, then the batmap (§10.3).
use crate::bat;
use crate::batmap::BatmapHeader;
use crate::footer::{DiskType, Footer};
use crate::header::Header;
use crate::locate::FooterAt;
use crate::open::{BatmapState, Opened, batmap_header, batmap_place, overlapped};
use image::Closing;

/// The last writes of an image that was open for writing, from its present table and batmap bits.
///
/// A file's trailing footer goes right behind the last good block, a device's into its last sector
/// unless a block lies there; the copy at 0 follows, then the map, then the header of the map.
/// Fixed images need nothing unless their footer was found damaged or 511 bytes long.
pub fn closing(o: &Opened, bat: &[u32], full: &[u8]) -> Closing {
    match (&o.header, o.kind) {
        (Some(header), _) => dynamic(o, header, bat, full),
        (None, DiskType::Fixed) => fixed(o),
        (None, _) => Closing::default(),
    }
}

fn fixed(o: &Opened) -> Closing {
    match o.footer_found {
        FooterAt::Trailing511 => Closing {
            writes: vec![(o.end_of_data, o.footer.encode().to_vec())],
            ..Closing::default()
        },
        FooterAt::Trailing | FooterAt::Copy => Closing::default(),
    }
}

fn dynamic(o: &Opened, header: &Header, bat: &[u32], full: &[u8]) -> Closing {
    let footer = Footer { cookie: crate::footer::COOKIE, ..o.footer.clone() }.encode().to_vec();
    let end = o.end_of_headers.max(bat::blocks_end(header, good_entries(o, bat)));
    let (at, truncate) = if o.device {
        (o.file_bytes.saturating_sub(512), None)
    } else {
        (end, Some(end.saturating_add(512)))
    };
    let mut closing = Closing { truncate, ..Closing::default() };
    if at >= end {
        closing.writes.push((at, footer.clone()));
    }
    closing.writes.push((0, footer));
    if !overlapped(header, good_entries(o, bat), batmap_place(header, &o.batmap)) {
        mark(o, header, full, &mut closing);
    }
    closing
}

/// Entries of the blocks that exist: a dangling entry must not make the file reach to it, or it
/// would read as zeros from then on.
fn good_entries<'a>(o: &'a Opened, bat: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    let good = |block: &u32| o.bad_blocks.binary_search(block).is_err();
    (0..).zip(bat).filter(move |(block, _)| good(block)).map(|(_, entry)| *entry)
}

/// Puts the batmap on the disk. Its checksum comes when the map is there, and until then the header
/// says that there are no marks ([`crate::batmap`]).
fn mark(o: &Opened, header: &Header, full: &[u8], closing: &mut Closing) {
    let (header_at, old) = match &o.batmap {
        BatmapState::Absent => return,
        BatmapState::Valid { header_at, header } => (*header_at, header.clone()),
        BatmapState::Damaged { header_at, .. } => {
            (*header_at, renewed(o, *header_at, header.max_entries))
        }
    };
    let mut map = vec![0; 512 * old.map_sectors as usize];
    crate::bytes::put(&mut map, 0, full);
    let checksum = old.checksum_of(&map, o.footer.current_bytes, header.block_bytes);
    let new = BatmapHeader { checksum, ..old.clone() };
    let valid = matches!(o.batmap, BatmapState::Valid { .. });
    if valid && old.says_nothing() && new.says_nothing() {
        return;
    }
    let map = (old.map_offset, map);
    if valid && !old.says_nothing() {
        closing.writes.push((header_at, old.without_marks().encode().to_vec()));
        closing.last.push(map);
    } else {
        closing.writes.push(map);
    }
    closing.last.push((header_at, new.encode().to_vec()));
}

/// A new batmap header that keeps the marker and the key hash of the damaged one.
pub(crate) fn renewed(o: &Opened, header_at: u64, max_entries: u32) -> BatmapHeader {
    let mut out = BatmapHeader::new(header_at, max_entries);
    if let Some(old) = batmap_header(&o.batmap) {
        out.marker = old.marker;
        out.key_flag = old.key_flag;
        out.nonce = old.nonce;
        out.hash = old.hash;
    }
    out
}
