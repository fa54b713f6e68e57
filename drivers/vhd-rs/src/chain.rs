//! An image with its parents on the file system, and reading through them (§9).
use crate::crypt::Cipher;
use crate::descent::Descent;
use crate::error::{
    VhdError,
    errno::{EIO, ERANGE},
};
use crate::open::{self, OpenOptions, Opened, Parent};
use crate::{bat, batmap, key, locate, parents, path};
use image::{Node, NodeError, Storage};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One image of a chain.
#[derive(Debug)]
pub struct Layer {
    /// Its path; the leaf's as given, the others canonical.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// Its metadata; `None` for a raw image.
    pub opened: Option<Opened>,
}

/// A chain, leaf first.
pub struct Chain {
    /// Leaf, its parent, and so on.
    pub layers: Vec<Layer>,
    /// Of all VHDs of an encrypted chain, after [`Chain::unlock`].
    cipher: Option<Cipher>,
}

/// How images are opened to be read through: what the I/O driver refuses is refused.
const READER: OpenOptions = OpenOptions { read_only: true, for_io: true, header_retries: 0 };

/// What makes two paths the same file or device.
pub type Identity = (bool, u64, u64);

/// The identity of an open file.
///
/// # Errors
/// Those of the file system.
pub fn identity(file: &File) -> io::Result<Identity> {
    let m = file.metadata()?;
    let device = m.file_type().is_block_device();
    Ok(if device { (true, m.rdev(), 0) } else { (false, m.dev(), m.ino()) })
}

/// Opens a file or block device; nothing else is touched.
///
/// # Errors
/// Those of the file system, and [`VhdError::Node`].
pub fn open_file(path: &Path, write: bool) -> Result<File, VhdError> {
    let failed = |e: &NodeError| VhdError::node(path, "open the file", e);
    let node = Node::find(path).map_err(|e| failed(&e))?;
    let file = node.open(write).map_err(|e| failed(&e.into()))?;
    ready(&file);
    Ok(file)
}

/// What the page cache holds of a device is not believed.
fn ready(file: &File) {
    if Storage::is_device(file) {
        forget_cached(file);
    }
}

/// Drops what the page cache holds of a device: it may be older than what was written through
/// another node, or on another machine.
pub fn forget_cached(file: &File) {
    // Only advice; a kernel that does not take it reads what it has.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Tells the kernel that only what is asked for will be read.
pub fn no_read_ahead(file: &File) {
    let _ = fadvise(file, 0, None, Advice::Random);
}

/// An image that a walk has come to.
#[derive(Debug)]
pub struct Stop {
    /// The leaf's path as given, the others' canonical.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
    /// It is raw.
    pub raw: bool,
}

/// Visits an image and all its parents, leaf first, until `visit` gives no parent to go on with. A
/// parent is opened only where parents may lie ([`parents::find`]).
///
/// # Errors
/// ELOOP if the chain comes back to itself, and whatever stands in the way.
pub fn walk(
    leaf: &Path,
    raw: bool,
    mut visit: impl FnMut(Stop, &mut Descent) -> Result<Option<Parent>, VhdError>,
) -> Result<(), VhdError> {
    let mut descent = Descent::default();
    let mut next = Some(Stop { path: leaf.to_path_buf(), file: open_file(leaf, false)?, raw });
    while let Some(stop) = next {
        let failed = |e| VhdError::io(&stop.path, "look at the file", 0, &e);
        descent.file(&stop.path, identity(&stop.file).map_err(failed)?)?;
        let (path, file) = (stop.path.clone(), stop.file.try_clone().map_err(failed)?);
        next = match visit(stop, &mut descent)? {
            Some(parent) => Some(below(&path, &file, &parent)?),
            None => None,
        };
    }
    Ok(())
}

/// A step from an open image to the one below.
fn below(path: &Path, file: &File, parent: &Parent) -> Result<Stop, VhdError> {
    let found = parents::find(path, file, parent)?;
    let file = found.open(false)?;
    ready(&file);
    Ok(Stop { path: found.path, file, raw: parent.uuid.is_none() })
}

/// Number of images in a chain; a raw parent counts (§5.4).
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
/// vhd_rs::files::create(&base, 16 << 20, None, false)?;
/// vhd_rs::files::snapshot(&leaf, &base, &Default::default())?;
/// assert_eq!(vhd_rs::chain::depth(&leaf, false)?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As for [`walk`].
pub fn depth(leaf: &Path, raw: bool) -> Result<u32, VhdError> {
    let mut count = 0;
    walk(leaf, raw, |stop, _| {
        count += 1;
        stop.parent()
    })?;
    Ok(count)
}

/// The parent of an image, from its headers alone.
///
/// # Errors
/// As for opening.
pub fn parent_of(storage: &dyn Storage, path: &Path) -> Result<Option<Parent>, VhdError> {
    let found = locate::headers(storage, path, 0)?;
    let header = found.header.filter(|_| found.footer.kind == crate::DiskType::Differencing);
    Ok(header.map(|h| open::parent_of(storage, &h)))
}

impl Stop {
    /// What the image says of its parent, from its headers alone.
    ///
    /// # Errors
    /// As for opening.
    pub fn parent(&self) -> Result<Option<Parent>, VhdError> {
        if self.raw { Ok(None) } else { parent_of(&self.file, &self.path) }
    }

    /// Opens the image by its bytes at hand, as the I/O driver would, and passes it.
    ///
    /// # Errors
    /// Those of opening, and of [`Descent`].
    pub fn open(
        &self,
        storage: &dyn Storage,
        descent: &mut Descent,
    ) -> Result<Option<Opened>, VhdError> {
        if self.raw {
            descent.raw(&self.path, Some(storage))?;
            return Ok(None);
        }
        let opened = open::open(storage, &self.path, &READER)?;
        descent.vhd(&self.path, &opened)?;
        Ok(Some(opened))
    }
}

/// Makes sure that an image and its parents belong together and can be read.
///
/// # Errors
/// As for [`Chain::open`].
pub fn verify(leaf: &Path) -> Result<(), VhdError> {
    walk(leaf, false, |stop, descent| {
        let opened = stop.open(&stop.file, descent)?;
        Ok(opened.and_then(|opened| opened.parent))
    })
}

impl Chain {
    /// Opens an image and its parents for reading, with all the checks of the I/O driver.
    ///
    /// # Errors
    /// As for [`walk`] and [`Stop::open`].
    pub fn open(leaf: &Path) -> Result<Chain, VhdError> {
        let mut layers = Vec::new();
        walk(leaf, false, |stop, descent| {
            let opened = stop.open(&stop.file, descent)?;
            let parent = opened.as_ref().and_then(|o| o.parent.clone());
            layers.push(Layer { path: stop.path, file: stop.file, opened });
            Ok(parent)
        })?;
        Ok(Chain { layers, cipher: None })
    }

    /// Takes the key of an encrypted chain, or makes sure that it is none. Without this, the data
    /// of an encrypted image is refused.
    ///
    /// ```
    /// use vhd_rs::{chain::Chain, copy, files};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let (plain, secret) = (dir.path().join("plain.vhd"), dir.path().join("secret.vhd"));
    /// files::create(&plain, 16 << 20, None, false)?;
    /// copy::copy(&plain, &secret, Some(&[7; 64]), Default::default())?;
    ///
    /// let open = || Chain::open(&secret);
    /// let mut sector = [1; 512];
    /// open()?.unlock(Some(&[7; 64]))?.read(0, &mut sector)?;
    /// assert_eq!(sector, [0; 512]);
    /// assert_eq!(open()?.unlock(Some(&[8; 64])).err().map(|e| e.errno()), Some(126)); // ENOKEY
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// EINVAL and ENOKEY as for [`key::cipher`], for the first VHD whose key hash does not fit.
    pub fn unlock(mut self, key: Option<&[u8]>) -> Result<Chain, VhdError> {
        for layer in &self.layers {
            let Some(opened) = &layer.opened else { continue };
            self.cipher = key::cipher(&layer.path, opened.key_hash.as_ref(), key)?;
        }
        Ok(self)
    }

    /// The cipher of an unlocked chain.
    pub fn cipher(&self) -> Option<&Cipher> {
        self.cipher.as_ref()
    }

    /// Size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.layers.first().and_then(|l| l.opened.as_ref()).map_or(0, |o| o.sectors)
    }

    /// Reads whole sectors of the disk.
    ///
    /// # Errors
    /// ERANGE beyond the end, EIO for a bad block or bytes that the file does not have, EINVAL for
    /// data that is encrypted while no key was given.
    pub fn read(&self, sector: u64, buf: &mut [u8]) -> Result<(), VhdError> {
        let count = (buf.len() / 512) as u64;
        if sector.checked_add(count).is_none_or(|end| end > self.sectors()) {
            let name = self.layers.first().map(|l| l.path.as_path()).unwrap_or(Path::new(""));
            let why = format!("sector {sector} and {count} more reach past the end of the disk");
            return Err(VhdError::request(name, ERANGE, why));
        }
        let mut at = sector;
        let mut rest = buf;
        while !rest.is_empty() {
            let run = self.run(at, (rest.len() / 512) as u64)?;
            let (now, later) = rest.split_at_mut(rest.len().min(512 * run.count as usize));
            match run.place {
                Some((layer, byte)) => {
                    layer.fill(byte, now)?;
                    self.decrypt(layer, at, now)?;
                }
                None => now.fill(0),
            }
            at += run.count;
            rest = later;
        }
        Ok(())
    }

    fn decrypt(&self, layer: &Layer, sector: u64, data: &mut [u8]) -> Result<(), VhdError> {
        match (&layer.opened, &self.cipher) {
            // A raw image is never encrypted.
            (None, _) => {}
            (Some(_), Some(cipher)) => cipher.decrypt(sector, data),
            (Some(opened), None) => drop(key::cipher(&layer.path, opened.key_hash.as_ref(), None)?),
        }
        Ok(())
    }

    /// The topmost place of the first of `count` sectors, and how many share it.
    fn run(&self, sector: u64, count: u64) -> Result<Run<'_>, VhdError> {
        let mut count = count;
        for layer in &self.layers {
            let (here, n) = layer.place(sector, count)?;
            count = n;
            match here {
                Here::At(byte) => return Ok(Run { place: Some((layer, byte)), count }),
                Here::Zero => return Ok(Run { place: None, count }),
                Here::Below => {}
            }
        }
        Ok(Run { place: None, count })
    }
}

struct Run<'a> {
    place: Option<(&'a Layer, u64)>,
    count: u64,
}

enum Here {
    At(u64),
    Zero,
    Below,
}

impl Layer {
    /// Where sectors are in this layer. §9: past the end of a layer everything is zero.
    fn place(&self, sector: u64, count: u64) -> Result<(Here, u64), VhdError> {
        let Some(o) = &self.opened else { return self.place_raw(sector, count) };
        let count = match o.sectors.checked_sub(sector) {
            None | Some(0) => return Ok((Here::Zero, count)),
            Some(left) => count.min(left),
        };
        let Some(header) = &o.header else { return Ok((Here::At(sector * 512), count)) };
        let per_block = u64::from(header.block_bytes) / 512;
        let (block, within) = (sector / per_block, sector % per_block);
        let count = count.min(per_block - within);
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        let number = u32::try_from(block).unwrap_or(u32::MAX);
        let entry = o.bat.get(index).copied().unwrap_or(bat::UNUSED);
        if o.bad_blocks.binary_search(&number).is_ok() {
            return Err(VhdError::Io {
                name: self.path.clone(),
                doing: "use a damaged table entry",
                offset: u64::from(entry) * 512,
                errno: EIO,
            });
        }
        if entry == bat::UNUSED {
            return Ok((Here::Below, count));
        }
        let start = u64::from(entry) * 512;
        let data = start + header.bitmap_bytes() + within * 512;
        let readable = |count: u64| self.readable(o, number, within, count);
        if batmap::is_full(&o.full, number) {
            return Ok((Here::At(data), readable(count)?));
        }
        let mut bitmap = vec![0; usize::try_from(header.bitmap_bytes()).unwrap_or(512)];
        self.fill(start, &mut bitmap)?;
        let bit = |s: u64| batmap::is_full(&bitmap, u32::try_from(s).unwrap_or(u32::MAX));
        let set = bit(within);
        let same = (0..count).take_while(|n| bit(within + n) == set).count() as u64;
        match set {
            true => Ok((Here::At(data), readable(same)?)),
            false => Ok((Here::Below, same)),
        }
    }

    /// How many of these sectors of a block can be read before the first that cannot.
    fn readable(&self, o: &Opened, block: u32, within: u64, count: u64) -> Result<u64, VhdError> {
        let (first, all) = (within as u32, count as u32);
        match o.lost_in(block, first, all) {
            None => Ok(count),
            Some((lost, _)) if lost > first => Ok(u64::from(lost - first)),
            Some(_) => Err(VhdError::Io {
                name: self.path.clone(),
                doing: "read a sector whose place is another's too, or gone",
                offset: u64::from(block) * o.block_bytes() + within * 512,
                errno: EIO,
            }),
        }
    }

    fn place_raw(&self, sector: u64, count: u64) -> Result<(Here, u64), VhdError> {
        let bytes = Storage::len(&self.file)
            .map_err(|e| VhdError::io(&self.path, "learn the size", 0, &e))?;
        // As for the daemon: what is behind the last whole sector is nobody's.
        Ok(match (bytes / 512).checked_sub(sector) {
            None | Some(0) => (Here::Zero, count),
            Some(left) => (Here::At(sector * 512), count.min(left)),
        })
    }

    /// Reads bytes of the file, which must have them all.
    fn fill(&self, at: u64, buf: &mut [u8]) -> Result<(), VhdError> {
        let read = Storage::read_exact_at(&self.file, at, buf);
        read.map_err(|e| VhdError::io(&self.path, "read", at, &e))
    }
}

/// The canonical path of an image that may not exist yet.
///
/// # Errors
/// Those of the directory.
pub fn canonical_new(name: &Path) -> Result<PathBuf, VhdError> {
    let failed = |e: io::Error| VhdError::io(name, "resolve the path", 0, &e);
    if name.exists() {
        return path::canonical(name).map_err(failed);
    }
    let dir = name.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = name.file_name().ok_or_else(|| failed(io::Error::from_raw_os_error(2)))?;
    Ok(path::canonical(dir).map_err(failed)?.join(base))
}
