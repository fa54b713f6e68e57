//! One image of a scan: looked at, and written as a line.
use super::lvm::{Group, Volume};
use crate::options;
use image::Storage;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use vhd_rs::error::errno::ENOENT;
use vhd_rs::scan::{self, Facts, Look, ScanFault};

use vhd_rs::{Parent, VhdError, chain, key, parents, path};

/// What of an image is looked at and written.
#[derive(Clone, Copy)]
pub(crate) struct ScanOptions {
    pub(crate) look: Look,
    /// Marker and key hash (`-M`).
    pub(crate) marks: bool,
    /// Whole paths (`-v`).
    pub(crate) paths: bool,
    /// The parent is looked for on the file system (`-a`, `-p`, `-v`).
    pub(crate) resolve: bool,
    /// An object a line.
    pub(crate) json: bool,
}

/// Something to look at.
#[derive(Clone)]
pub(crate) struct Target {
    /// As given, or canonical where it was found as a parent.
    pub(crate) path: PathBuf,
    /// As it is written with `-v`.
    pub(crate) shown: PathBuf,
    /// A raw image.
    pub(crate) raw: bool,
    pub(crate) volume: Option<Volume>,
}

/// What was found.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    shown: PathBuf,
    pub(crate) facts: Facts,
    pub(crate) parent: Option<Link>,
}

/// The way to the parent.
pub(crate) struct Link {
    /// Canonical if it was found, else as the locator says.
    pub(crate) path: PathBuf,
    pub(crate) raw: bool,
    /// The errno of a parent that is not there, or lies where no parents are.
    pub(crate) missing: Option<i32>,
}

impl Target {
    pub(crate) fn file(path: PathBuf) -> Target {
        Target { shown: path.clone(), path, raw: false, volume: None }
    }

    /// A volume; SM calls raw ones `LV-…`.
    pub(crate) fn volume(volume: &Volume, group: &Group) -> Target {
        let raw = volume.name.starts_with("LV-");
        let path = volume.path(&group.name);
        Target { shown: path.clone(), path, raw, volume: Some(volume.clone()) }
    }

    /// Looks at it.
    pub(crate) fn look(
        &self,
        wanted: ScanOptions,
        group: Option<&Group>,
    ) -> Result<Image, ScanFault> {
        match (&self.volume, group) {
            (Some(volume), Some(group)) => {
                let wanted = ScanOptions { look: Look::Fast, ..wanted };
                let mut image = match volume.is_linear() {
                    true => self.facts(volume, wanted)?,
                    false => self.facts(&self.node()?, wanted)?,
                };
                let parent = image.facts.parent.take();
                image.parent = parent.map(|parent| volume_link(&parent, group));
                Ok(image)
            }
            _ => self.look_at_file(wanted),
        }
    }

    /// A volume that only device mapper can read, such as a thin one; it is active.
    fn node(&self) -> Result<File, ScanFault> {
        let failed = |error| ScanFault { doing: "failure scanning target", error };
        chain::open_file(&self.path, false).map_err(failed)
    }

    fn look_at_file(&self, wanted: ScanOptions) -> Result<Image, ScanFault> {
        let failed = |doing, e: &std::io::Error| ScanFault {
            doing,
            error: VhdError::io(&self.path, "look at the file", 0, e),
        };
        std::fs::metadata(&self.path).map_err(|e| failed("failure scanning target", &e))?;
        let file = chain::open_file(&self.path, false)
            .map_err(|error| ScanFault { doing: "opening file", error })?;
        chain::no_read_ahead(&file);
        let mut image = self.facts(&file, wanted)?;
        if wanted.marks {
            scan::add_attribute(&mut image.facts, &file);
        }
        let Some(first) = image.facts.parent.take() else { return Ok(image) };
        let whole = if wanted.resolve {
            scan::parent_of(&file, &self.path, wanted.look).unwrap_or(first)
        } else {
            first
        };
        image.parent = Some(file_link(&self.path, &file, &whole, wanted.resolve));
        Ok(image)
    }

    fn facts(&self, storage: &dyn Storage, wanted: ScanOptions) -> Result<Image, ScanFault> {
        let mut facts = if self.raw {
            let failed = |e| ScanFault {
                doing: "getting physical size",
                error: VhdError::io(&self.path, "learn the size", 0, &e),
            };
            let size = storage.len().map_err(failed)?;
            Facts { capacity: size, size, hidden: 1, ..Facts::default() }
        } else {
            scan::facts(storage, &self.path, wanted.look)?
        };
        if wanted.marks && !self.raw {
            scan::add_marks(&mut facts, storage, &self.path, wanted.look);
        }
        let (path, shown) = (self.path.clone(), self.shown.clone());
        Ok(Image { path, shown, facts, parent: None })
    }
}

fn file_link(child: &Path, file: &File, parent: &Parent, resolve: bool) -> Link {
    let raw = parent.uuid.is_none();
    match resolve.then(|| parents::find(child, file, parent)) {
        Some(Ok(found)) => Link { path: found.path, raw, missing: None },
        other => Link {
            path: parent.candidates.first().cloned().unwrap_or_default(),
            raw,
            missing: Some(other.and_then(Result::err).map_or(ENOENT, |e| e.errno())),
        },
    }
}

fn volume_link(parent: &Parent, group: &Group) -> Link {
    let stored = parent.candidates.first().cloned().unwrap_or_default();
    let mapped = base(&stored).to_string_lossy().into_owned();
    let name = group.volume_of(&mapped).unwrap_or(mapped);
    let found = group.volumes.iter().any(|v| v.name == name);
    let path = Path::new("/dev").join(&group.name).join(name);
    Link { path, raw: parent.uuid.is_none(), missing: (!found).then_some(ENOENT) }
}

/// The last part of a path; all of it if it has none.
pub(crate) fn base(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(path.as_os_str())
}

fn shown(path: &Path, whole: bool) -> OsString {
    if whole { path.as_os_str().to_owned() } else { base(path).to_owned() }
}

impl Image {
    /// An image as an object: whole paths, so that nothing has to be guessed.
    fn object(&self, wanted: ScanOptions) -> Value {
        let f = &self.facts;
        let mut out = json!({
            "name": self.shown.to_string_lossy(),
            "capacity_bytes": f.capacity,
            "size_bytes": f.size,
            "hidden": f.hidden,
            "parent": self.parent.as_ref().map(|link| link.path.to_string_lossy()),
        });
        if let (Some(link), true) = (&self.parent, wanted.resolve) {
            out["parent_found"] = json!(link.missing.is_none());
        }
        if wanted.marks {
            out["marker"] = json!(f.marker);
            out["key_hash"] = json!(f.key_hash.map(|k| key::hex(&k.hash)));
        }
        out
    }

    /// The line of an image, without its end, for a tree with its depth there.
    pub(crate) fn line(&self, wanted: ScanOptions, depth: Option<usize>) -> Vec<u8> {
        if wanted.json {
            let mut object = self.object(wanted);
            if let Some(depth) = depth {
                object["depth"] = json!(depth);
            }
            return show::json(&object.to_string()).into_owned().into_bytes();
        }
        let indent = std::iter::repeat_n(b' ', 3 * depth.unwrap_or(0));
        indent.chain(self.words(wanted)).collect()
    }

    /// As callers of the original split it.
    fn words(&self, wanted: ScanOptions) -> Vec<u8> {
        let f = &self.facts;
        let mut out = b"vhd=".to_vec();
        out.extend_from_slice(&show::name(&shown(&self.shown, wanted.paths)));
        let (capacity, size, hidden) = (f.capacity, f.size, f.hidden);
        out.extend(format!(" capacity={capacity} size={size} hidden={hidden}").bytes());
        if wanted.marks {
            let hash = f.key_hash.map_or(String::new(), |k| key::hex(&k.hash));
            out.extend(format!(" marker={} keyhash={hash}", f.marker).bytes());
        }
        out.extend_from_slice(b" parent=");
        match &self.parent {
            Some(link) => {
                // A fast look does not look where the parent is.
                let whole = wanted.paths && wanted.look == Look::Full;
                out.extend_from_slice(&show::word(&shown(&link.path, whole)));
            }
            None => out.extend_from_slice(b"none"),
        }
        out
    }
}

/// The line of an image that could not be looked at.
pub(crate) fn error_line(name: &Path, fault: &ScanFault, wanted: ScanOptions) -> Vec<u8> {
    if wanted.json {
        let mut error = options::error(&fault.error);
        error["step"] = json!(fault.doing);
        let object = json!({ "name": name.to_string_lossy(), "error": error });
        return show::json(&format!("{object}\n")).into_owned().into_bytes();
    }
    let mut out = b"vhd=".to_vec();
    out.extend_from_slice(&show::name(name.as_os_str()));
    let (errno, doing) = (fault.error.errno(), fault.doing);
    out.extend(format!(" scan-error=-{errno} error-message='{doing}'\n").bytes());
    out
}

/// The one name of a file that has many.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    path::canonical(path).unwrap_or_else(|_| path.into())
}
