//! A writer of VHD images of its own: it shares no line with `vhd-rs`, so it is a second opinion
//! about the format (spec/vhd.md), and it writes what no proper writer would.
//!
//! ```text
//!   footer | header | BAT | batmap header, batmap | locators | bitmap, data | bitmap, data … | footer
//!   0        512      1536   (tap only)             (differencing)                          (trailing)
//! ```
mod poke;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use poke::{poke_footer, poke_footers, poke_header};

const SECTOR: u64 = 512;
const TABLE: u64 = 1536;
const UNUSED: u32 = u32::MAX;
const NOWHERE: u64 = u64::MAX;

/// Disk types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only data and a footer.
    Fixed = 2,
    /// Blocks on demand.
    Dynamic = 3,
    /// Blocks on demand over a parent.
    Differencing = 4,
}

/// What a block holds.
#[derive(Clone, Debug)]
enum Block {
    /// All sectors present, full of a byte.
    Full(u8),
    /// Some sectors present, full of a byte; the others are holes with zeros.
    Some(Vec<(u32, u8)>),
}

/// A parent as its child names it.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The path as written into the locators.
    pub path: String,
    /// Its id; all zeros for a raw one.
    pub uuid: [u8; 16],
}

/// One parent locator: code, space (bytes or sectors), and the bytes at its place.
#[derive(Clone, Debug)]
pub struct Locator {
    /// Platform code.
    pub code: [u8; 4],
    /// `data_space` as written; `None` for the bytes rounded up to a sector.
    pub space: Option<u32>,
    /// The path.
    pub bytes: Vec<u8>,
}

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Gen {
    size: u64,
    kind: Kind,
    /// Its own id.
    pub uuid: [u8; 16],
    /// Bytes of a block.
    pub block_bytes: u64,
    /// Entries of the BAT, if not as many as blocks.
    pub entries: Option<u32>,
    /// Creator and its version.
    pub creator: ([u8; 4], u32),
    /// A batmap, for images of `tap`.
    pub batmap: bool,
    /// Data of blocks begins on a page.
    pub aligned: bool,
    /// A footer at the end.
    pub trailing: bool,
    /// Time stamp.
    pub time: u32,
    parent: Option<Parent>,
    /// Locators instead of the usual three.
    pub locators: Option<Vec<Locator>>,
    blocks: Vec<(u32, Block)>,
}

/// Where things are in a written image.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Block and its place in sectors, as in the BAT.
    pub blocks: Vec<(u32, u32)>,
    /// Byte of the batmap's header; 0 if there is none.
    pub batmap: u64,
    /// Bytes of the locators' texts, in order.
    pub locators: Vec<u64>,
}

impl Layout {
    /// Byte where a block begins, with its bitmap.
    pub fn block(&self, block: u32) -> u64 {
        let found = self.blocks.iter().find(|(number, _)| *number == block);
        u64::from(found.expect("an allocated block").1) * SECTOR
    }
}

/// The id `n`.
pub fn id(n: u8) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[15] = n;
    uuid
}

impl Gen {
    /// An empty dynamic image as the original makes it, but for the id.
    pub fn new(size: u64) -> Gen {
        Gen {
            size,
            kind: Kind::Dynamic,
            uuid: id(0xee),
            block_bytes: 2 << 20,
            entries: None,
            creator: (*b"tap\0", 0x0001_0003),
            batmap: true,
            aligned: true,
            trailing: true,
            time: 0,
            parent: None,
            locators: None,
            blocks: Vec::new(),
        }
    }

    /// An empty child.
    pub fn child(size: u64, parent: &str, of: [u8; 16]) -> Gen {
        let parent = Some(Parent { path: parent.into(), uuid: of });
        Gen { kind: Kind::Differencing, parent, ..Gen::new(size) }
    }

    /// With this id.
    pub fn id(mut self, n: u8) -> Gen {
        self.uuid = id(n);
        self
    }

    /// Not of `tap`: without a batmap.
    pub fn foreign(mut self, creator: &[u8; 4]) -> Gen {
        self.creator = (*creator, 0x0001_0000);
        self
    }

    /// With a block whose sectors are all there and full of a byte.
    pub fn full(mut self, block: u32, byte: u8) -> Gen {
        self.blocks.push((block, Block::Full(byte)));
        self
    }

    /// With a block some of whose sectors are there, each full of a byte.
    pub fn sectors(mut self, block: u32, sectors: &[(u32, u8)]) -> Gen {
        self.blocks.push((block, Block::Some(sectors.to_vec())));
        self
    }

    /// Writes it.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Layout {
        let file = File::create(path).expect("an image can be made");
        let put =
            |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect("an image is written");
        if self.kind == Kind::Fixed {
            put(self.size, &self.footer());
            return Layout { blocks: Vec::new(), batmap: 0, locators: Vec::new() };
        }
        let blocks = u32::try_from(self.size.div_ceil(self.block_bytes)).expect("a BAT");
        let entries = self.entries.unwrap_or(blocks);
        let mut at = TABLE + round(u64::from(entries) * 4);
        let tap = self.creator.0 == *b"tap\0" && self.batmap;
        let map_bytes = round(u64::from(entries).div_ceil(8)).max(SECTOR);
        let batmap = if tap { at } else { 0 };
        at += if tap { SECTOR + map_bytes } else { 0 };
        let locators = self.locators();
        let mut places = Vec::new();
        for locator in &locators {
            places.push(at);
            put(at, &locator.bytes);
            at += round(locator.bytes.len() as u64);
        }
        let mut full = vec![0u8; usize::try_from(map_bytes).expect("a small batmap")];
        let mut bat = vec![UNUSED; entries as usize];
        let mut layout = Layout { blocks: Vec::new(), batmap, locators: places };
        for (block, content) in &self.blocks {
            let bitmap = round(self.block_bytes / SECTOR / 8);
            if self.aligned {
                at = (at + bitmap).next_multiple_of(4096) - bitmap;
            }
            let lba = u32::try_from(at / SECTOR).expect("a small image");
            bat[*block as usize] = lba;
            layout.blocks.push((*block, lba));
            self.put_block(&put, at, bitmap, content);
            if matches!(content, Block::Full(_)) {
                full[*block as usize / 8] |= 0x80 >> (block % 8);
            }
            at += bitmap + self.block_bytes;
        }
        put(0, &self.footer());
        put(512, &self.header(entries, &locators, &layout.locators));
        let mut table: Vec<u8> = bat.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        table.resize(usize::try_from(round(table.len() as u64)).expect("a BAT"), 0);
        put(TABLE, &table);
        if tap {
            put(batmap, &self.batmap_header(batmap, &full));
            put(batmap + SECTOR, &full);
        }
        file.set_len(at).expect("an image is cut");
        if self.trailing {
            put(at, &self.footer());
        }
        layout
    }

    fn put_block(&self, put: &impl Fn(u64, &[u8]), at: u64, bitmap: u64, content: &Block) {
        let mut bits = vec![0u8; usize::try_from(bitmap).expect("a bitmap")];
        match content {
            Block::Full(byte) => {
                let sectors = usize::try_from(self.block_bytes / SECTOR / 8).expect("a bitmap");
                bits[..sectors].fill(0xff);
                let data = usize::try_from(self.block_bytes).expect("a block");
                put(at + bitmap, &vec![*byte; data]);
            }
            Block::Some(sectors) => {
                for (sector, byte) in sectors {
                    bits[*sector as usize / 8] |= 0x80 >> (sector % 8);
                    put(at + bitmap + u64::from(*sector) * SECTOR, &[*byte; 512]);
                }
            }
        }
        put(at, &bits);
    }

    /// The usual three locators of a child, if no others are wanted.
    fn locators(&self) -> Vec<Locator> {
        let Some(parent) = &self.parent else { return Vec::new() };
        if let Some(locators) = &self.locators {
            return locators.clone();
        }
        let rooted = parent.path.starts_with('/') || parent.path.starts_with('.');
        let path = if rooted { parent.path.clone() } else { format!("./{}", parent.path) };
        let windows = path.replace('/', "\\");
        let wide: Vec<u8> = windows.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let locator = |code, bytes| Locator { code, space: None, bytes };
        let mac = format!("file://{path}").into_bytes();
        vec![locator(*b"MacX", mac), locator(*b"W2ku", wide.clone()), locator(*b"W2ru", wide)]
    }

    /// The footer.
    pub fn footer(&self) -> [u8; 512] {
        let offset = if self.kind == Kind::Fixed { NOWHERE } else { 512 };
        let mut b = [0; 512];
        b[..8].copy_from_slice(b"conectix");
        b[8..12].copy_from_slice(&2u32.to_be_bytes());
        b[12..16].copy_from_slice(&0x0001_0000u32.to_be_bytes());
        b[16..24].copy_from_slice(&offset.to_be_bytes());
        b[24..28].copy_from_slice(&self.time.to_be_bytes());
        b[28..32].copy_from_slice(&self.creator.0);
        b[32..36].copy_from_slice(&self.creator.1.to_be_bytes());
        b[40..48].copy_from_slice(&self.size.to_be_bytes());
        b[48..56].copy_from_slice(&self.size.to_be_bytes());
        b[56..60].copy_from_slice(&geometry(self.size).to_be_bytes());
        b[60..64].copy_from_slice(&(self.kind as u32).to_be_bytes());
        b[68..84].copy_from_slice(&self.uuid);
        let sum = checksum(&b);
        b[64..68].copy_from_slice(&sum.to_be_bytes());
        b
    }

    fn header(&self, entries: u32, locators: &[Locator], places: &[u64]) -> [u8; 1024] {
        let mut b = [0; 1024];
        b[..8].copy_from_slice(b"cxsparse");
        b[8..16].copy_from_slice(&NOWHERE.to_be_bytes());
        b[16..24].copy_from_slice(&TABLE.to_be_bytes());
        b[24..28].copy_from_slice(&0x0001_0000u32.to_be_bytes());
        b[28..32].copy_from_slice(&entries.to_be_bytes());
        b[32..36].copy_from_slice(&u32::try_from(self.block_bytes).expect("4 bytes").to_be_bytes());
        if let Some(parent) = &self.parent {
            b[40..56].copy_from_slice(&parent.uuid);
            let name = parent.path.rsplit('/').next().unwrap_or_default();
            let wide: Vec<u8> = name.encode_utf16().flat_map(u16::to_be_bytes).collect();
            b[64..64 + wide.len()].copy_from_slice(&wide);
        }
        for (i, (locator, place)) in locators.iter().zip(places).enumerate() {
            let slot = &mut b[576 + 24 * i..][..24];
            let bytes = u32::try_from(locator.bytes.len()).expect("a path");
            let space = locator.space.unwrap_or(bytes.next_multiple_of(512));
            slot[..4].copy_from_slice(&locator.code);
            slot[4..8].copy_from_slice(&space.to_be_bytes());
            slot[8..12].copy_from_slice(&bytes.to_be_bytes());
            slot[16..].copy_from_slice(&place.to_be_bytes());
        }
        let sum = checksum(&b);
        b[36..40].copy_from_slice(&sum.to_be_bytes());
        b
    }

    fn batmap_header(&self, at: u64, full: &[u8]) -> [u8; 512] {
        // The original's sum leaves out what it thinks is not there (spec/vhd.md, batmap).
        let summed = usize::try_from(round(self.size >> 24).max(SECTOR)).expect("a small batmap");
        let mut b = [0; 512];
        b[..8].copy_from_slice(b"tdbatmap");
        b[8..16].copy_from_slice(&(at + SECTOR).to_be_bytes());
        let sectors = u32::try_from(full.len() / 512).expect("a small batmap");
        b[16..20].copy_from_slice(&sectors.to_be_bytes());
        b[20..24].copy_from_slice(&0x0001_0002u32.to_be_bytes());
        b[24..28].copy_from_slice(&checksum(&full[..summed.min(full.len())]).to_be_bytes());
        b
    }
}

/// A fixed image of `size` bytes of zeros.
pub fn fixed(size: u64) -> Gen {
    Gen { kind: Kind::Fixed, ..Gen::new(size) }
}

fn round(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR)
}

/// The ones' complement of the sum of all bytes.
pub fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>()
}

/// Cylinders, heads and sectors as the specification computes them.
fn geometry(size: u64) -> u32 {
    let total = size.div_ceil(SECTOR).clamp(1, 65535 * 16 * 255);
    let (mut sectors, mut heads);
    let mut tracks;
    if total >= 65535 * 16 * 63 {
        (sectors, heads) = (255, 16);
        tracks = total / sectors;
    } else {
        sectors = 17;
        tracks = total / sectors;
        heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (sectors, heads) = (31, 16);
            tracks = total / sectors;
        }
        if tracks >= heads * 1024 {
            (sectors, heads) = (63, 16);
            tracks = total / sectors;
        }
    }
    let cylinders = u32::try_from(tracks / heads).expect("16 bits");
    cylinders << 16 | u32::try_from(heads << 8 | sectors).expect("16 bits")
}
