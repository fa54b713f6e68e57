//! The header (spec/qcow2.md §2.1): read, and refused by name where it asks for what is not there.
use std::path::Path;

use crate::error::{
    Error,
    errno::{EINVAL, ENOTSUP},
};
use crate::extension::{self, extensions};

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a header that is read, at most: the smallest cluster lets it end there, and nothing in
/// a larger one lies behind.
pub const READ_BYTES: usize = 4096;
/// Bytes of the headers of versions 2 and 3.
const V2_BYTES: u32 = 72;
const V3_BYTES: u32 = 104;
/// Longest name of a backing file.
const NAME_MAX: u32 = 1023;
/// Largest L1 in bytes.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub const TABLE_BYTES_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65_536;
/// Largest offset in a file.
const OFFSET_MAX: u64 = i64::MAX.unsigned_abs();

/// What lies behind the fields.
fn behind(bytes: &[u8], length: u32) -> &[u8] {
    usize::try_from(length).ok().and_then(|length| bytes.get(length..)).unwrap_or_default()
}

/// Where the byte of the refcount table is, with its clusters behind.
pub const TABLE_AT: u64 = 48;
/// Where the features are that must be understood, of version 3.
pub const FEATURES_AT: u64 = 72;
/// Where those are that whoever writes without knowing them clears.
pub const AUTOCLEAR_AT: u64 = 88;

/// Bits of features that must be understood.
pub mod incompatible {
    /// Counts may be wrong.
    pub const DIRTY: u64 = 1;
    /// It was found corrupt.
    pub const CORRUPT: u64 = 2;
    /// Data is in another file.
    pub const DATA_FILE: u64 = 4;
    /// What is packed is not deflated.
    pub const COMPRESSION: u64 = 8;
    /// Clusters have subclusters.
    pub const EXTENDED_L2: u64 = 16;
}

/// The file below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// As it is written.
    pub name: Vec<u8>,
    /// `qcow2`, `raw`; `None`: it is not said.
    pub format: Option<Vec<u8>>,
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has so many bits: 9 to 21.
    pub cluster_bits: u32,
    /// Size of the disk in bytes.
    pub size: u64,
    /// The file below.
    pub backing: Option<Backing>,
    /// Where the L1 is.
    pub l1_at: u64,
    /// Its entries.
    pub l1_entries: u32,
    /// Where the refcount table is.
    pub table_at: u64,
    /// Its clusters.
    pub table_clusters: u32,
    /// A count has 1 << this many bits.
    pub refcount_order: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Its counts may be wrong.
    pub dirty: bool,
    /// It was found corrupt.
    pub corrupt: bool,
    /// Clusters have subclusters.
    pub extended: bool,
    /// XCP-ng's hidden byte.
    pub hidden: Option<u8>,
}

/// The bytes of a header, as numbers.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..at + 4).map_or([0; 4], |b| b.try_into().expect("four bytes"));
        u32::from_be_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }
}

impl Header {
    /// Its features once it is clean.
    pub fn features_without_dirty(&self) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(self.corrupt, incompatible::CORRUPT) | bit(self.extended, incompatible::EXTENDED_L2)
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub fn entries(&self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    /// Bytes of an entry of an L2 table.
    pub fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Reads the first bytes of an image, at least a sector.
    ///
    /// # Errors
    /// It is none, or one that is not supported: a sentence with the field and what to do.
    pub fn read(name: &Path, bytes: &[u8]) -> Result<Header, Error> {
        let bad = |why: String| Err(Error::new(name, EINVAL, why));
        let fields = Fields(bytes);
        if bytes.len() < 72 || fields.u32(0) != MAGIC {
            return bad("is no qcow2 image: it does not begin with QFI\\xfb".into());
        }
        let version = fields.u32(4);
        if version != 2 && version != 3 {
            let why = format!("is qcow version {version}; only 2 and 3 are read: qemu-img convert");
            return Err(Error::new(name, ENOTSUP, why));
        }
        let length = if version == 2 { V2_BYTES } else { fields.u32(100) };
        if version == 3 && (length < V3_BYTES || length % 8 != 0) {
            return bad(format!("has a header_length of {length}; it is 104 or more, in eights"));
        }
        let features = if version == 2 { 0 } else { fields.u64(72) };
        let mut header = Header {
            version,
            cluster_bits: fields.u32(20),
            size: fields.u64(24),
            backing: None,
            l1_at: fields.u64(40),
            l1_entries: fields.u32(36),
            table_at: fields.u64(48),
            table_clusters: fields.u32(56),
            refcount_order: if version == 2 { 4 } else { fields.u32(96) },
            snapshots: fields.u32(60),
            dirty: features & incompatible::DIRTY != 0,
            corrupt: features & incompatible::CORRUPT != 0,
            extended: features & incompatible::EXTENDED_L2 != 0,
            hidden: None,
        };
        header.check(name)?;
        header.read_extensions(name, bytes, length)?;
        check_features(name, bytes, length, features, &fields)?;
        Ok(header)
    }

    /// The numbers, one by one.
    fn check(&self, name: &Path) -> Result<(), Error> {
        let bad = |why: String| Err(Error::new(name, EINVAL, format!("{why}: qemu-img check")));
        let least = if self.extended { 14 } else { 9 };
        if !(least..=21).contains(&self.cluster_bits) {
            return bad(format!("has cluster_bits {}, not {least} to 21", self.cluster_bits));
        }
        let (cluster, l1_bytes) = (self.cluster(), u64::from(self.l1_entries) * 8);
        let needed = self.size.div_ceil(cluster).div_ceil(self.entries());
        if self.size > OFFSET_MAX || needed > u64::from(self.l1_entries) {
            let (size, l1) = (self.size, self.l1_entries);
            return bad(format!("has an l1_size of {l1}, too few for its size of {size} bytes"));
        }
        if l1_bytes > L1_BYTES_MAX {
            return bad(format!("has an l1_size of {}, more than 32 MiB", self.l1_entries));
        }
        let place = |at: u64| at.is_multiple_of(cluster) && at <= OFFSET_MAX - L1_BYTES_MAX;
        if l1_bytes > 0 && (self.l1_at == 0 || !place(self.l1_at)) {
            return bad(format!("has an l1_table_offset of {:#x}", self.l1_at));
        }
        if self.table_at == 0 || !place(self.table_at) {
            return bad(format!("has a refcount_table_offset of {:#x}", self.table_at));
        }
        let table = u64::from(self.table_clusters) * cluster;
        if table == 0 || table > TABLE_BYTES_MAX {
            return bad(format!("has refcount_table_clusters {}", self.table_clusters));
        }
        if self.refcount_order > 6 {
            return bad(format!("has a refcount_order of {}, more than 6", self.refcount_order));
        }
        if self.snapshots > SNAPSHOTS_MAX {
            return bad(format!("has nb_snapshots {}", self.snapshots));
        }
        Ok(())
    }

    /// The extensions, and the backing name behind them.
    fn read_extensions(&mut self, name: &Path, bytes: &[u8], length: u32) -> Result<(), Error> {
        let fields = Fields(bytes);
        let bad = |why: String| Err(Error::new(name, EINVAL, why));
        let (at, len) = (fields.u64(8), fields.u32(16));
        let cluster = self.cluster();
        let end = if at == 0 { cluster } else { at };
        let area = behind(bytes, length);
        let inside = usize::try_from(end.saturating_sub(u64::from(length))).unwrap_or(usize::MAX);
        let area = area.get(..inside).unwrap_or(area);
        let mut format = None;
        for (kind, data) in extensions(area) {
            match kind {
                extension::BACKING_FORMAT => format = Some(data.to_vec()),
                extension::HIDDEN => self.hidden = data.first().copied(),
                _ => {}
            }
        }
        if at == 0 {
            return Ok(());
        }
        let fits = at.checked_add(u64::from(len)).is_some_and(|end| end <= cluster);
        if len > NAME_MAX || !fits {
            return bad(format!("has a backing name of {len} bytes at {at}, not in its header"));
        }
        let text = usize::try_from(at).ok().and_then(|first| bytes.get(first..));
        let Some(text) = text.and_then(|text| text.get(..usize::try_from(len).ok()?)) else {
            return bad(format!("has its backing name at {at}, further than it is looked for"));
        };
        if text.contains(&0) {
            return bad("has a backing name with a zero byte in it".into());
        }
        self.backing = Some(Backing { name: text.to_vec(), format });
        Ok(())
    }
}

/// What has to be understood, and is not.
fn check_features(
    name: &Path,
    bytes: &[u8],
    length: u32,
    features: u64,
    fields: &Fields<'_>,
) -> Result<(), Error> {
    let refuse = |why: String| Err(Error::new(name, ENOTSUP, why));
    let convert = "write it anew with qemu-img convert -O qcow2";
    match fields.u32(32) {
        0 => {}
        1 => return refuse(format!("is encrypted (AES), which is not read here: {convert}")),
        2 => return refuse(format!("is encrypted (LUKS), which is not read here: {convert}")),
        other => return refuse(format!("has a crypt_method of {other}, which nobody knows")),
    }
    if features & incompatible::DATA_FILE != 0 {
        return refuse(format!("keeps its data in another file, which is not read: {convert}"));
    }
    let kind = bytes.get(104).copied().filter(|_| length > V3_BYTES).unwrap_or(0);
    if features & incompatible::COMPRESSION != 0 || kind != 0 {
        return match (features & incompatible::COMPRESSION != 0, kind) {
            (true, 1) => refuse(format!("has clusters packed with zstd: {convert}")),
            (true, 0) | (false, _) => Err(Error::new(
                name,
                EINVAL,
                format!("has compression_type {kind}, which its feature bits do not say"),
            )),
            (true, other) => refuse(format!("has the compression type {other}: {convert}")),
        };
    }
    let known = incompatible::DIRTY | incompatible::CORRUPT | incompatible::EXTENDED_L2;
    let unknown = features & !known;
    if unknown != 0 {
        let bit = u8::try_from(unknown.trailing_zeros()).expect("bits of a word are few");
        let names =
            extensions(behind(bytes, length)).find(|(kind, _)| *kind == extension::FEATURE_NAMES);
        let called = names.and_then(|(_, table)| extension::name_of(table, 0, bit));
        let called = called.map_or(String::new(), |name| format!(" (\"{name}\")"));
        return refuse(format!("needs feature bit {bit}{called}, which is not known: {convert}"));
    }
    Ok(())
}
