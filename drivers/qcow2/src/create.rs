//! A new image.
//!
//! On a device old bytes lie where its tables come, and perhaps an old image: the first sector goes
//! first, the new header comes last. A crash in between leaves no image, or a whole one.
use std::path::Path;

use image::Storage;

use crate::count::Width;
use crate::encode::{self, Fields};
use crate::error::{
    Error,
    errno::{EFBIG, EINVAL, ENOSPC},
};
use crate::header::Backing;
use crate::layout::{Layout, Shape};
use crate::num::size;
use crate::refcounts::per_block;

/// Longest name of what is below.
const NAME_MAX: usize = 1023;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
/// Bytes that are written at once.
const CHUNK: u64 = 1 << 20;

/// What a new image has from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// All tables, and places in the file.
    Metadata,
    /// The space of the file, too.
    Falloc,
    /// Zeros that are written.
    Full,
}

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Size of the disk in bytes; a multiple of 512.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// Clusters and counts.
    pub shape: Shape,
    /// Counts may be written late by who knows how; we count exactly.
    pub lazy: bool,
    /// The file below, with its format.
    pub backing: Option<Backing>,
    /// What is there from the start.
    pub preallocation: Preallocation,
}

impl Options {
    /// What the storage manager asks for.
    pub fn new(size: u64) -> Options {
        Options {
            size,
            version: 3,
            shape: Shape::default(),
            lazy: false,
            backing: None,
            preallocation: Preallocation::Off,
        }
    }

    /// What does not go together, as qemu-img says it.
    fn fault(&self) -> Option<&'static str> {
        let Shape { cluster_bits, refcount_order, extended } = self.shape;
        let filled = self.preallocation != Preallocation::Off;
        Some(match () {
            () if !(9..=21).contains(&cluster_bits) => {
                "Cluster size must be a power of two between 512 and 2048k"
            }
            () if refcount_order > 6 => {
                "Refcount width must be a power of two and may not exceed 64 bits"
            }
            () if self.version < 3 && refcount_order != 4 => {
                "Different refcount widths than 16 bits require compatibility level 1.1 or above \
                 (use version=v3 or greater)"
            }
            () if self.version < 3 && self.lazy => {
                "Lazy refcounts only supported with compatibility level 1.1 and above (use \
                 version=v3 or greater)"
            }
            () if self.version < 3 && extended => {
                "Extended L2 entries are only supported with compatibility level 1.1 and above \
                 (use version=v3 or greater)"
            }
            () if extended && cluster_bits < 14 => {
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes"
            }
            () if self.backing.is_some() && filled && !extended => {
                "Backing file and preallocation can only be used at the same time if extended_l2 \
                 is enabled"
            }
            () => return None,
        })
    }
}

/// Makes an image in a file or on a device, over whatever was there.
///
/// # Errors
/// Options that do not go together; a disk that is too large; those of writing. What was there is
/// gone then, too, unless it was the options.
pub fn create(storage: &dyn Storage, name: &Path, options: &Options) -> Result<(), Error> {
    let refuse = |errno, why: &str| Err(Error::new(name, errno, format!("is not made: {why}")));
    if let Some(fault) = options.fault() {
        return refuse(EINVAL, fault);
    }
    let named = options.backing.as_ref().map_or(0, |backing| backing.name.len());
    if named > NAME_MAX {
        return refuse(EINVAL, "Backing file name too long");
    }
    let shape = options.shape;
    let too_large = "The image size is too large for file format 'qcow2' (try using a larger \
                     cluster size)";
    let filled = options.preallocation != Preallocation::Off;
    let Some(layout) = Layout::new(&shape, options.size, filled) else {
        return refuse(EFBIG, too_large);
    };
    let (version, lazy, size) = (options.version, options.lazy, options.size);
    let backing = options.backing.as_ref();
    let fields = Fields { version, size, shape, layout, lazy, backing };
    let Some(header) = encode::header(&fields) else {
        return refuse(EINVAL, "Backing file name too long for its cluster size");
    };
    let bytes = layout.clusters() * shape.cluster();
    let failed = |error| Error::not_written(name, "its tables", &error);
    if storage.is_device() && storage.len().map_err(failed)? < bytes {
        return refuse(ENOSPC, &format!("the device is smaller than the {bytes} bytes it takes"));
    }
    write(storage, options, &layout, &header).map_err(failed)
}

fn write(
    storage: &dyn Storage,
    options: &Options,
    layout: &Layout,
    header: &[u8],
) -> std::io::Result<()> {
    let cluster = options.shape.cluster();
    if storage.is_device() {
        storage.write_at(0, &[0; 512])?;
        storage.sync()?;
        // The header's first sector comes last.
        storage.zero_at(512, cluster.saturating_sub(512), false)?;
    } else {
        storage.set_len(0)?;
        storage.set_len(layout.clusters() * cluster)?;
    }
    table(storage, layout, cluster)?;
    blocks(storage, &options.shape, layout)?;
    let mut l1 = vec![0; size(layout.l1 * cluster)];
    for number in 0..layout.l2 {
        let word = COPIED | ((layout.l2_at() + number) * cluster);
        l1[size(number * 8)..][..8].copy_from_slice(&word.to_be_bytes());
    }
    storage.write_at(layout.l1_at() * cluster, &l1)?;
    tables(storage, options, layout)?;
    let data = (layout.data_at() * cluster, layout.data * cluster);
    match options.preallocation {
        Preallocation::Off => {}
        // Old bytes of a device are not the disk's. Version 2 knows no other zeros.
        Preallocation::Metadata if !storage.is_device() || options.version >= 3 => {}
        Preallocation::Metadata | Preallocation::Falloc => {
            storage.zero_at(data.0, data.1, false)?
        }
        Preallocation::Full => zeros(storage, data.0, data.1)?,
    }
    let rest = header.get(512..).unwrap_or_default();
    storage.write_at(512, rest)?;
    storage.sync()?;
    storage.write_at(0, &header[..header.len().min(512)])?;
    storage.sync()
}

fn table(storage: &dyn Storage, layout: &Layout, cluster: u64) -> std::io::Result<()> {
    let mut table = vec![0; size(layout.table * cluster)];
    for number in 0..layout.blocks {
        let word = (layout.blocks_at() + number) * cluster;
        table[size(number * 8)..][..8].copy_from_slice(&word.to_be_bytes());
    }
    storage.write_at(cluster, &table)
}

fn blocks(storage: &dyn Storage, shape: &Shape, layout: &Layout) -> std::io::Result<()> {
    let (cluster, order) = (shape.cluster(), shape.refcount_order);
    let each = per_block(cluster, order);
    for number in 0..layout.blocks {
        let mut block = vec![0; size(cluster)];
        let used = layout.clusters().saturating_sub(number * each).min(each);
        (0..size(used)).for_each(|at| Width::new(order).set(&mut block, at, 1));
        storage.write_at((layout.blocks_at() + number) * cluster, &block)?;
    }
    Ok(())
}

/// L2 tables of a preallocated image.
fn tables(storage: &dyn Storage, options: &Options, layout: &Layout) -> std::io::Result<()> {
    let shape = options.shape;
    let (cluster, each) = (shape.cluster(), shape.entries());
    // Zeros until they are written: not for subclusters, which are not there at all so far.
    let device = storage.is_device() && options.version >= 3 && !shape.extended;
    let zero = options.preallocation == Preallocation::Metadata && device;
    let flags = COPIED | if zero { ZERO } else { 0 };
    // With subclusters what is not there is the parent's, or zeros.
    let whole = options.preallocation != Preallocation::Metadata && options.backing.is_none();
    let parts = if whole { u64::from(u32::MAX) } else { 0 };
    let entry = cluster / each;
    for number in 0..layout.l2 {
        let mut table = vec![0; size(cluster)];
        let first = number * each;
        for at in 0..each.min(layout.data - first) {
            let word = flags | ((layout.data_at() + first + at) * cluster);
            let place = size(at * entry);
            table[place..place + 8].copy_from_slice(&word.to_be_bytes());
            if shape.extended {
                table[place + 8..place + 16].copy_from_slice(&parts.to_be_bytes());
            }
        }
        storage.write_at((layout.l2_at() + number) * cluster, &table)?;
    }
    Ok(())
}

fn zeros(storage: &dyn Storage, at: u64, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; size(CHUNK.min(bytes))];
    for done in (0..bytes).step_by(size(CHUNK)) {
        storage.write_at(at + done, &zeros[..size(CHUNK.min(bytes - done))])?;
    }
    Ok(())
}
