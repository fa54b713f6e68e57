//! qcow2 images, and what is below them.
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use image::Image;
use qcow2::header::Backing;
use qcow2::{Opened, Qcow2, open, ready};
use vhd_rs::descent::Descent;
use vhd_rs::parents::{Found as Parent, find_named};

use super::probed::{self, Access};
use super::{DirectFile, Key, Kind, Layer, Medium, OpenError};
use image::Cipher;

/// A qcow2 image.
struct Probed(Opened);

/// Of a file or device.
pub fn probe(
    file: &DirectFile,
    path: &Path,
    access: Access,
) -> Result<Box<dyn probed::Probed>, OpenError> {
    let opened = open(file, path)?;
    if access.writable {
        opened.may_be_written(path)?;
        keep_qemu_out(file, path)?;
    }
    Ok(Box::new(Probed(opened)))
}

/// Two writers destroy an image. A lock on a network file system may be a dead machine's.
fn keep_qemu_out(file: &DirectFile, path: &Path) -> Result<(), OpenError> {
    let writes = image::qemu::keep_out(file.file()).unwrap_or(false);
    if writes && !image::is_shared(file.file()) {
        let text = format!("{} is being written by QEMU; close it there first", show::path(path));
        return Err(OpenError::new(libc::EBUSY, text));
    }
    Ok(())
}

impl From<qcow2::Error> for OpenError {
    fn from(error: qcow2::Error) -> OpenError {
        OpenError::new(error.errno(), error.to_string())
    }
}

impl probed::Probed for Probed {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }

    fn join(&self, descent: &mut Descent, layer: &Layer) -> Result<(), OpenError> {
        Ok(descent.named(&layer.path, self.0.header.backing.is_some())?)
    }

    fn parent(&self, layer: &Layer) -> Result<Option<(Kind, Parent)>, OpenError> {
        let (Some(backing), Medium::Local(file)) = (&self.0.header.backing, &layer.file) else {
            return Ok(None);
        };
        let name = plain(&layer.path, &backing.name)?;
        let kind = match backing.format.as_deref() {
            Some(b"raw") => Kind::Raw,
            Some(b"qcow2") => Kind::Qcow2,
            Some(other) => {
                let text = format!(
                    "{} has a parent of the format \"{}\"; qcow2 and raw are opened",
                    show::path(&layer.path),
                    show::line(other)
                );
                return Err(OpenError::new(libc::ENOTSUP, text));
            }
            // Whoever guessed would let the guest of a raw parent choose what is opened below it.
            None => {
                let text = format!(
                    "{} does not say which format its parent {} has; say it with qemu-img rebase \
                     -u -F qcow2 (or raw) -b {} {}",
                    show::path(&layer.path),
                    show::path(&name),
                    show::path(&name),
                    show::path(&layer.path)
                );
                return Err(OpenError::new(libc::EINVAL, text));
            }
        };
        Ok(Some((kind, find_named(&layer.path, file.file(), &name)?)))
    }

    fn cipher(&self, path: &Path, key: Option<&Key>) -> Result<Option<Box<dyn Cipher>>, OpenError> {
        if key.is_none() {
            return Ok(None);
        }
        let text = format!("{} is not encrypted: open it without -E", show::path(path));
        Err(OpenError::new(libc::ENOTSUP, text))
    }

    fn notes(&self, path: &Path) -> Vec<String> {
        let header = &self.0.header;
        let mut notes = Vec::new();
        if header.corrupt {
            notes.push(format!(
                "{} is marked corrupt: what can be read is read; see qemu-img check",
                show::path(path)
            ));
        }
        if header.dirty {
            notes.push(format!(
                "{} was not closed: its counts are repaired when it is opened to be written",
                show::path(path)
            ));
        }
        if header.snapshots > 0 {
            notes.push(format!(
                "{} has {} internal snapshots; its present state is read",
                show::path(path),
                header.snapshots
            ));
        }
        notes
    }

    fn end_is_fixed(&self) -> bool {
        false
    }

    /// Pieces of tables that reads come back to: 512 clusters each.
    fn bitmaps(&self) -> usize {
        let tables = self.0.l1.iter().filter(|entry| **entry != 0).count();
        let pieces = (self.0.header.cluster() / 4096).max(1);
        tables.saturating_mul(usize::try_from(pieces).unwrap_or(usize::MAX))
    }

    /// One that will be written is marked dirty until it is closed.
    fn driver(self: Box<Self>, layer: &Layer, ours: bool) -> Result<Box<dyn Image>, OpenError> {
        let opened = self.0;
        match &layer.file {
            Medium::Local(file) if layer.writable && ours => {
                Ok(Box::new(Qcow2::to_write(ready(file, &layer.path, opened)?)))
            }
            Medium::Local(_) | Medium::Remote(_) => Ok(Box::new(Qcow2::new(opened))),
        }
    }
}

/// Lets an image name the parent of its present parent, by the name that one has for it where both
/// are in one directory.
///
/// # Errors
/// Those of the file; no room in its header.
pub fn set_parent(
    file: &DirectFile,
    path: &Path,
    top: &Layer,
    base: &Layer,
) -> Result<(), qcow2::Error> {
    let format = if base.kind == Kind::Raw { b"raw".to_vec() } else { b"qcow2".to_vec() };
    let old = match &top.file {
        Medium::Local(file) => open(file, &top.path)?.header.backing,
        Medium::Remote(_) => None,
    };
    let beside = top.path.parent() == path.parent();
    let name = old.filter(|_| beside).map(|backing| backing.name);
    let name = name.unwrap_or_else(|| base.path.as_os_str().as_bytes().to_vec());
    qcow2::edit::set_backing(file, path, Some(&Backing { name, format: Some(format) }))
}

/// The path in a backing name: one with a colon before its first slash names a protocol.
fn plain(image: &Path, name: &[u8]) -> Result<PathBuf, OpenError> {
    let slash = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
    let name = match name.iter().position(|byte| *byte == b':').filter(|colon| *colon < slash) {
        None => name,
        Some(4) if name.starts_with(b"file") => &name[5..],
        Some(_) => {
            let text = format!(
                "{} has the parent \"{}\", which is no file or device; give it one with qemu-img \
                 rebase -u",
                show::path(image),
                show::line(name)
            );
            return Err(OpenError::new(libc::ENOTSUP, text));
        }
    };
    Ok(OsStr::from_bytes(name).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_names_are_paths_or_refused() {
        let plain = |name: &str| plain(Path::new("/sr/x"), name.as_bytes());
        assert_eq!(plain("a.qcow2").unwrap(), PathBuf::from("a.qcow2"));
        assert_eq!(plain("/dev/vg/a:b").unwrap(), PathBuf::from("/dev/vg/a:b"));
        assert_eq!(plain("./a:b").unwrap(), PathBuf::from("./a:b"));
        assert_eq!(plain("file:/sr/a").unwrap(), PathBuf::from("/sr/a"));
        for name in ["nbd:unix:/x", "json:{}", "http://x/y", ":"] {
            assert_eq!(plain(name).unwrap_err().errno, libc::ENOTSUP, "{name}");
        }
    }
}
