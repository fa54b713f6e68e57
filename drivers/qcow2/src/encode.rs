//! The first bytes of an image, as they are written: fields, extensions, the name of what is below.
//!
//! The backing format is the first extension, in the first sector with the fields that it belongs
//! to. Behind the end mark there are zeros, and one extension is the storage manager's own: it adds
//! that to images without it, over the mark (spec/qcow2.md §5.3).
use crate::extension;
use crate::header::{Backing, MAGIC};
use crate::layout::{Layout, Shape};
use crate::num::{size, wide};

/// Bytes of the header of version 3 that is written.
const V3_BYTES: u32 = 112;
const V2_BYTES: usize = 72;
/// Zeros behind the end mark, which is itself eight.
const ROOM: usize = 16;

/// Names of the feature bits: class (0 incompatible, 1 compatible, 2 autoclear), bit, name.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

/// What a new header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields<'a> {
    pub(crate) version: u32,
    pub(crate) size: u64,
    pub(crate) shape: Shape,
    pub(crate) layout: Layout,
    pub(crate) lazy: bool,
    pub(crate) backing: Option<&'a Backing>,
}

/// The bytes; `None`: they are more than a cluster.
pub(crate) fn header(fields: &Fields<'_>) -> Option<Vec<u8>> {
    let cluster = size(fields.shape.cluster());
    let named = with_extensions(fields, true);
    if named.len() <= cluster {
        return Some(named);
    }
    let plain = with_extensions(fields, false);
    (plain.len() <= cluster).then_some(plain)
}

fn with_extensions(fields: &Fields<'_>, names: bool) -> Vec<u8> {
    let mut bytes = numbers(fields);
    let format = fields.backing.and_then(|backing| backing.format.as_deref());
    let mut all: Vec<(u32, Vec<u8>)> = Vec::new();
    all.extend(format.map(|format| (extension::BACKING_FORMAT, format.to_vec())));
    all.push((extension::HIDDEN, vec![0; 8]));
    if names && fields.version >= 3 {
        all.push((extension::FEATURE_NAMES, table_of_names()));
    }
    let borrowed = all.iter().map(|(kind, data)| (*kind, &data[..]));
    bytes.extend(extensions(borrowed));
    if let Some(backing) = fields.backing {
        name(&mut bytes, &backing.name);
    }
    bytes
}

/// Extensions with their end mark and the room behind it.
pub(crate) fn extensions<'a>(all: impl Iterator<Item = (u32, &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, data) in all {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.resize(bytes.len() + 8 + ROOM, 0);
    bytes
}

/// The name goes behind everything.
fn name(bytes: &mut Vec<u8>, name: &[u8]) {
    let at = wide(bytes.len());
    bytes.extend(name);
    name_fields(bytes, at, name.len());
}

/// The fields that say where a name is.
pub(crate) fn name_fields(bytes: &mut [u8], at: u64, len: usize) {
    bytes[8..16].copy_from_slice(&at.to_be_bytes());
    let len = u32::try_from(len).expect("a name is short");
    bytes[16..20].copy_from_slice(&len.to_be_bytes());
}

fn numbers(fields: &Fields<'_>) -> Vec<u8> {
    let Fields { version, size: disk, shape, layout, lazy, .. } = fields;
    let at = |cluster: u64| (cluster * shape.cluster()).to_be_bytes();
    let count = |number: u64| u32::try_from(number).expect("checked with the layout").to_be_bytes();
    let features = |bit: bool, number: u32| (u64::from(bit) << number).to_be_bytes();
    let parts: [&[u8]; 16] = [
        &MAGIC.to_be_bytes(),
        &version.to_be_bytes(),
        &[0; 12],
        &shape.cluster_bits.to_be_bytes(),
        &disk.to_be_bytes(),
        &[0; 4],
        &count(layout.l1_entries),
        &at(layout.l1_at()),
        &at(1),
        &count(layout.table),
        &[0; 12],
        &features(shape.extended, 4),
        &features(*lazy, 0),
        &[0; 8],
        &shape.refcount_order.to_be_bytes(),
        &V3_BYTES.to_be_bytes(),
    ];
    let mut bytes = parts.concat();
    bytes.resize(size(V3_BYTES.into()), 0);
    if *version == 2 {
        bytes.truncate(V2_BYTES);
    }
    bytes
}

fn table_of_names() -> Vec<u8> {
    const ROW: usize = 48;
    let mut table = Vec::new();
    for (class, bit, name) in NAMES {
        let end = table.len() + ROW;
        table.extend([class, bit]);
        table.extend(name.as_bytes());
        table.resize(end, 0);
    }
    table
}
