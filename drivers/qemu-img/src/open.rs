//! Images and their parents, open for a command.
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::{Node, NodeError, Storage};
use qcow2::head::open_any;
use qcow2::{Opened, Qcow2};
use vhd_rs::VhdError;
use vhd_rs::lock::{self, Others};
use vhd_rs::parents::find_named;

use crate::tool::{Fail, Outcome, plain};

/// Images of a chain at most.
const LAYERS_MAX: usize = 128;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Qcow2,
    Raw,
}

impl Format {
    /// By its name.
    pub(crate) fn named(name: &OsStr) -> Option<Format> {
        match name.as_bytes() {
            b"qcow2" => Some(Format::Qcow2),
            b"raw" => Some(Format::Raw),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Qcow2 => "qcow2",
            Format::Raw => "raw",
        }
    }
}

/// The format of an option, if it was given.
pub(crate) fn format_of(value: Option<&OsStr>) -> Outcome<Option<Format>> {
    let Some(value) = value else { return Ok(None) };
    let unknown = || {
        let why = "qcow2 and raw are known here; for others use QEMU's qemu-img";
        Fail::from(format!("Unknown driver '{}': {why}", show::path(value)))
    };
    Format::named(value).map(Some).ok_or_else(unknown)
}

/// A file whose last sector is whole.
pub(crate) struct Padded(pub(crate) File);

impl Storage for Padded {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let there = Storage::read_at(&self.0, offset, buf)?;
        let end = self.len()?.saturating_sub(offset);
        let whole = usize::try_from(end).unwrap_or(usize::MAX).min(buf.len()).max(there);
        buf[there..whole].fill(0);
        Ok(whole)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        Storage::write_at(&self.0, offset, buf)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(Storage::len(&self.0)?.next_multiple_of(512))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        Storage::set_len(&self.0, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        self.0.zero_at(offset, bytes, punch)
    }
    fn give_back(&self, from: u64, to: u64) {
        self.0.give_back(from, to);
    }
    fn is_device(&self) -> bool {
        self.0.is_device()
    }
}

/// An open image.
pub(crate) struct Layer {
    /// As it was named.
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) file: Padded,
    /// Of a qcow2.
    pub(crate) opened: Option<Opened>,
    /// Bytes of its disk.
    pub(crate) size: u64,
}

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Reading,
    /// Nobody else has it open.
    Changing,
}

/// Opens the file of an image.
pub(crate) fn file(path: &Path, how: For) -> Outcome<File> {
    let shown = show::path(path);
    let failed = |error: String| {
        Fail::from(format!("Could not open '{shown}': Could not open '{shown}': {error}"))
    };
    let node = Node::find(path).map_err(|error| match error {
        NodeError::Io(error) => failed(plain(&error)),
        NodeError::Odd(odd) => failed(format!("it is {odd}, no file and no block device")),
    })?;
    let file = node.open(how == For::Changing).map_err(|error| failed(plain(&error)))?;
    if how == For::Changing {
        alone(&file, path)?;
    }
    Ok(file)
}

/// Locks an image that nobody else may have open.
pub(crate) fn alone(file: &File, path: &Path) -> Outcome<()> {
    lock::lock_alone(file, path, Others::Refuse).map_err(|error| in_use(&error))
}

/// Who has an image; without the way around, which only vhd-util has.
pub(crate) fn in_use(error: &VhdError) -> Fail {
    let text = error.to_string();
    let around = [" (--ignore-lock", " (or --ignore-lock"].iter().find_map(|word| text.find(word));
    around.map_or(text.as_str(), |at| &text[..at]).into()
}

/// Opens one image.
pub(crate) fn layer(path: &Path, format: Option<Format>, how: For) -> Outcome<Layer> {
    looked_at(Padded(file(path, how)?), path, format)
}

/// Opens one image to be written beside those who read it, for what they do not notice. `None`:
/// somebody writes it, or it cannot be opened.
pub(crate) fn beside_readers(path: &Path, format: Option<Format>) -> Option<Layer> {
    let file = Node::find(path).ok()?.open(true).ok()?;
    let no_writer = image::try_lock(&file, false).is_ok_and(|taken| taken);
    looked_at(Padded(file), path, format).ok().filter(|_| no_writer)
}

/// What an open file is.
fn looked_at(file: Padded, path: &Path, format: Option<Format>) -> Outcome<Layer> {
    let shown = show::path(path);
    let failed =
        |error: &io::Error| Fail::from(format!("Could not open '{shown}': {}", plain(error)));
    let format = match format {
        Some(format) => format,
        None => probe(&file.0, path)?,
    };
    let size = file.len().map_err(|error| failed(&error))?;
    if format == Format::Raw {
        return Ok(Layer { path: path.into(), format, file, opened: None, size });
    }
    if !has_magic(&file.0) {
        return Err(format!("Could not open '{shown}': Image is not in qcow2 format").into());
    }
    let opened = open_any(&file.0, path)
        .map_err(|error| Fail::from(format!("Could not open '{shown}': {error}")))?;
    let size = opened.header.size;
    Ok(Layer { path: path.into(), format, file, opened: Some(opened), size })
}

fn has_magic(file: &File) -> bool {
    let mut magic = [0; 4];
    Storage::read_exact_at(file, 0, &mut magic).is_ok() && &magic == b"QFI\xfb"
}

/// What an image without a said format is; of other formats only that they are not ours.
fn probe(file: &File, path: &Path) -> Outcome<Format> {
    const OTHERS: [(&[u8], &str); 5] = [
        (b"conectix", "vpc"),
        (b"vhdxfile", "vhdx"),
        (b"KDMV", "vmdk"),
        (b"# Disk DescriptorFile", "vmdk"),
        (b"<<< ", "vdi"),
    ];
    let mut head = [0; 32];
    let there = Storage::read_at(file, 0, &mut head).unwrap_or(0);
    let found = OTHERS.iter().find(|(magic, _)| head[..there].starts_with(magic));
    if let Some((_, name)) = found {
        let why = "qcow2 and raw are known here; use QEMU's qemu-img (or say -f raw)";
        let shown = show::path(path);
        return Err(format!("Could not open '{shown}': it looks like {name}: {why}").into());
    }
    Ok(if has_magic(file) { Format::Qcow2 } else { Format::Raw })
}

impl Layer {
    /// Its driver, for reading.
    pub(crate) fn driver(&self) -> Box<dyn image::Image> {
        match &self.opened {
            Some(opened) => Box::new(Qcow2::new(opened.clone())),
            None => Box::new(raw::Raw::new(self.size / 512, self.file.is_device())),
        }
    }

    /// The name of its parent as it is written, and as a path from here.
    pub(crate) fn parent_name(&self) -> Option<(&[u8], PathBuf)> {
        let backing = self.opened.as_ref()?.header.backing.as_ref()?;
        Some((&backing.name, beside(&self.path, &backing.name)))
    }

    /// Its parent.
    pub(crate) fn parent(&self, how: For) -> Outcome<Option<Layer>> {
        let Some(backing) = self.opened.as_ref().and_then(|o| o.header.backing.as_ref()) else {
            return Ok(None);
        };
        let shown = show::path(&self.path);
        let name = path_of(&backing.name).ok_or_else(|| {
            let name = show::bytes(&backing.name);
            format!("{shown} has the parent '{name}', which is no file or device: use rebase -u")
        })?;
        let Some(format) = &backing.format else {
            let name = show::bytes(&backing.name);
            let why = format!("{shown} does not say which format its parent {name} has");
            return Err(format!("{why}: say it with rebase -u -F qcow2 (or raw) -b {name}").into());
        };
        let format = format_of(Some(OsStr::from_bytes(format)))?;
        let found = find_named(&self.path, &self.file.0, name)?;
        let (_, path) = self.parent_name().unwrap_or_default();
        let mut parent = layer(&found.path, format, how)?;
        parent.path = path;
        Ok(Some(parent))
    }
}

/// A name as seen from an image that has it: behind everything up to the last slash, as QEMU puts
/// the two together.
pub(crate) fn beside(path: &Path, name: &[u8]) -> PathBuf {
    let path = path.as_os_str().as_bytes();
    let slash = path.iter().rposition(|byte| *byte == b'/').filter(|_| !name.starts_with(b"/"));
    let directory = slash.map_or(&b""[..], |at| &path[..=at]);
    OsStr::from_bytes(&[directory, name].concat()).into()
}

/// The path in a backing name; one with a colon before its first slash names a protocol.
pub(crate) fn path_of(name: &[u8]) -> Option<&Path> {
    let slash = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
    let colon = name.iter().position(|byte| *byte == b':').filter(|colon| *colon < slash);
    let plain = match colon {
        None => name,
        Some(4) => name.strip_prefix(b"file:")?,
        Some(_) => return None,
    };
    Some(Path::new(OsStr::from_bytes(plain)))
}

/// An image and all its parents, for reading.
pub(crate) fn chain(path: &Path, format: Option<Format>) -> Outcome<Vec<Layer>> {
    let mut all = vec![layer(path, format, For::Reading)?];
    while let Some(parent) = all.last().map(|l| l.parent(For::Reading)).transpose()?.flatten() {
        if all.iter().any(|other| same(&other.file.0, &parent.file.0)) {
            let shown = show::path(&parent.path);
            return Err(format!("Backing file '{shown}' creates an infinite loop.").into());
        }
        if all.len() >= LAYERS_MAX {
            let shown = show::path(path);
            return Err(format!("{shown} has more than {LAYERS_MAX} images in its chain").into());
        }
        all.push(parent);
    }
    Ok(all)
}

/// Whether two open files are one file or device.
pub(crate) fn same(a: &File, b: &File) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let number = |file: &File| {
        let meta = file.metadata().ok()?;
        let device = meta.file_type().is_block_device();
        Some(if device { (meta.rdev(), 0) } else { (meta.dev(), meta.ino()) })
    };
    number(a).is_some() && number(a) == number(b)
}
