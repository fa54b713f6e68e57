//! The images of a coalesce, opened and checked: nothing is written before all of this is right.
use std::fs::File;
use std::path::{Path, PathBuf};

use super::machine::Table;
use super::medium::FileMedium;
use super::source::{Source, topmost};
use super::target::Target;
use super::{Failure, Options, Step};
use crate::chain::{self, Identity};
use crate::descent::Descent;
use crate::error::{
    VhdError,
    errno::{EINVAL, ERANGE},
};
use crate::footer::DiskType;
use crate::lock::lock;
use crate::open::{self, OpenOptions, Opened};
use crate::parents::{self, Found};

/// Sectors of a chunk of a flat image.
const FLAT: u32 = 4096;

/// The layers to be merged, leaf first, and what they are merged into.
pub(super) struct Stack {
    pub(super) sources: Vec<Source>,
    pub(super) target: Target,
    pub(super) table: Option<Table>,
}

/// An image above the target.
struct Upper {
    path: PathBuf,
    medium: FileMedium,
    opened: Opened,
}

impl Stack {
    /// Opens an image, what is between it and the target, and the target.
    pub(super) fn open(name: &Path, o: &Options) -> Result<Stack, Failure> {
        let into = match &o.into {
            None => None,
            Some(path) => {
                let id = chain::open_file(path, false).and_then(|file| identity_of(&file, path));
                Some(id.map_err(Failure::at(Step::Open, path))?)
            }
        };
        let mut descent = Descent::default();
        let mut uppers: Vec<Upper> = Vec::new();
        let file = chain::open_file(name, false).map_err(Failure::at(Step::Open, name))?;
        let mut next = (name.to_path_buf(), file);
        loop {
            let (name, file) = next;
            let upper = upper(&name, file, o, &mut descent)?;
            let Some(parent) = upper.opened.parent.clone() else {
                let why = "has no parent to coalesce into";
                let error = VhdError::request(&name, EINVAL, why);
                return Err(Failure { step: Step::NoParent, name, error });
            };
            let found = parents::find(&name, upper.medium.handle(), &parent)
                .map_err(Failure::at(Step::FindParent, &name))?;
            let failed = |error| Failure { step: Step::Open, name: found.path.clone(), error };
            let file = found.open(false).map_err(failed)?;
            let id = identity_of(&file, &found.path).map_err(failed)?;
            uppers.push(upper);
            if into.is_none_or(|into| into == id) {
                descent.file(&found.path, id).map_err(failed)?;
                return Stack::onto(uppers, &found, parent.uuid.is_none(), &mut descent, o);
            }
            if parent.uuid.is_none() {
                let why = "is not among the ancestors of the image";
                let target = o.into.as_deref().unwrap_or(&found.path);
                return Err(failed(VhdError::request(target, EINVAL, why)));
            }
            next = (found.path, file);
        }
    }

    /// The target opened, and everything compared with it.
    fn onto(
        uppers: Vec<Upper>,
        found: &Found,
        raw: bool,
        descent: &mut Descent,
        o: &Options,
    ) -> Result<Stack, Failure> {
        let path = &found.path;
        let failed = || Failure::at(Step::Open, path);
        let file = found.open(true).map_err(failed())?;
        let medium = medium(path, file, true).map_err(failed())?;
        let locked = lock(medium.handle(), path, o.others);
        locked.map_err(Failure::at(Step::Move, path))?;
        let encrypted = uppers.iter().any(|u| u.opened.key_hash.is_some());
        let opened = match raw {
            true => descent.raw(path, Some(&medium)).map(|()| None),
            false => writable(&medium, path, descent).map(Some),
        };
        let opened = opened.map_err(failed())?;
        let key = opened.as_ref().and_then(|o| o.key_hash);
        if let Some(upper) = uppers.iter().find(|u| u.opened.key_hash != key) {
            let why = "is not encrypted with the key of the image it would be merged with";
            let error = VhdError::request(path, EINVAL, why);
            return Err(Failure { step: Step::Move, name: upper.path.clone(), error });
        }
        let sources: Vec<Source> = uppers
            .into_iter()
            .map(|u| Source::vhd(&u.path, Box::new(u.medium), u.opened))
            .collect();
        let (target, table) = target(path, medium, opened, o.sparse, !encrypted)
            .map_err(Failure::at(Step::Open, path))?;
        fits(&sources, &target).map_err(Failure::at(Step::Move, path))?;
        Ok(Stack { sources, target, table })
    }
}

fn identity_of(file: &File, path: &Path) -> Result<Identity, VhdError> {
    chain::identity(file).map_err(|e| VhdError::io(path, "look at the file", 0, &e))
}

fn medium(path: &Path, file: File, write: bool) -> Result<FileMedium, VhdError> {
    FileMedium::of(file, write).map_err(|e| VhdError::io(path, "learn about the file", 0, &e))
}

/// An image whose sectors go down.
fn upper(path: &Path, file: File, o: &Options, descent: &mut Descent) -> Result<Upper, Failure> {
    let failed = || Failure::at(Step::Open, path);
    let id = identity_of(&file, path).map_err(failed())?;
    descent.file(path, id).map_err(failed())?;
    let medium = medium(path, file, false).map_err(failed())?;
    let options = OpenOptions { read_only: true, for_io: true, ..OpenOptions::default() };
    let opened = open::open(&medium, path, &options).map_err(failed())?;
    descent.vhd(path, &opened).map_err(failed())?;
    if opened.kind == DiskType::Differencing {
        lock(medium.handle(), path, o.others).map_err(Failure::at(Step::Move, path))?;
    }
    Ok(Upper { path: path.into(), medium, opened })
}

/// A VHD to be written, which must be the one that its child means.
fn writable(medium: &FileMedium, path: &Path, descent: &mut Descent) -> Result<Opened, VhdError> {
    let o = OpenOptions { for_io: true, ..OpenOptions::default() };
    let opened = open::open(medium, path, &o)?;
    descent.vhd(path, &opened)?;
    if let Some(block) = opened.bad_blocks.first().copied() {
        let sector = opened.bat.get(block as usize).copied().unwrap_or_default();
        let why = "points outside the file; nothing is added to such an image";
        return Err(VhdError::Block { name: path.into(), block, sector, why });
    }
    opened.refuse_cut(path)?;
    Ok(opened)
}

/// What takes the data: an open VHD, or a raw image.
pub(super) fn target(
    path: &Path,
    medium: FileMedium,
    opened: Option<Opened>,
    sparse: bool,
    find_zeros: bool,
) -> Result<(Target, Option<Table>), VhdError> {
    let bytes =
        image::Storage::len(&medium).map_err(|e| VhdError::io(path, "learn the size", 0, &e))?;
    let target = Target {
        name: path.into(),
        medium: Box::new(medium),
        sectors: opened.as_ref().map_or(bytes / 512, |o| o.sectors),
        chunk: opened
            .as_ref()
            .and_then(|o| o.header.as_ref())
            .map_or(FLAT, |h| h.block_bytes / 512),
        below_zero: opened.as_ref().is_none_or(|o| o.parent.is_none()),
        fresh: false,
        sparse,
        find_zeros,
    };
    let table = opened.filter(|o| o.header.is_some()).map(Table::new);
    Ok((target, table))
}

/// Nothing that the sources have may lie beyond the target's end.
fn fits(sources: &[Source], target: &Target) -> Result<(), VhdError> {
    let end = sources.iter().map(Source::sectors).max().unwrap_or(0);
    let mut at = target.sectors;
    while at < end {
        let count = (end - at).min(FLAT.into()) as u32;
        if !topmost(sources, at, count)?.is_empty() {
            let why = format!(
                "has {} sectors, but there is data to merge at sector {at} or behind; resize it first",
                target.sectors
            );
            return Err(VhdError::request(&target.name, ERANGE, why));
        }
        at += u64::from(count);
    }
    Ok(())
}
