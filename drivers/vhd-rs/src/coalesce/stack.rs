//! The images of a coalesce, opened and checked: nothing is written before all of this is right.
use std::path::{Path, PathBuf};

use super::machine::Table;
use super::medium::FileMedium;
use super::source::{Source, topmost};
use super::target::Target;
use super::{Failure, Options, Step};
use crate::chain::{self, Identity};
use crate::error::{
    VhdError,
    errno::{EINVAL, ERANGE},
};
use crate::footer::DiskType;
use crate::lock::lock;
use crate::open::{self, OpenOptions, Opened};

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
            Some(path) => Some(identity_of(path).map_err(Failure::at(Step::Open, path))?),
        };
        let mut seen = Vec::new();
        let mut uppers: Vec<Upper> = Vec::new();
        let mut next = name.to_path_buf();
        loop {
            let upper = upper(&next, o, &mut seen)?;
            let Some(parent) = upper.opened.parent.clone() else {
                let why = "has no parent to coalesce into";
                let error = VhdError::request(&next, EINVAL, why);
                return Err(Failure { step: Step::NoParent, name: next, error });
            };
            let path = open::resolve_parent(&next, &parent)
                .map_err(Failure::at(Step::FindParent, &next))?;
            let failed = |error| Failure { step: Step::Open, name: path.clone(), error };
            let id = identity_of(&path).map_err(failed)?;
            if seen.contains(&id) {
                return Err(failed(VhdError::Cycle { name: path.clone() }));
            }
            uppers.push(upper);
            if into.is_none_or(|into| into == id) {
                return Stack::onto(uppers, &path, parent.uuid, o);
            }
            if parent.uuid.is_none() {
                let why = "is not among the ancestors of the image";
                let target = o.into.as_deref().unwrap_or(&path);
                return Err(failed(VhdError::request(target, EINVAL, why)));
            }
            let want = parent.uuid;
            same_uuid(&path, want).map_err(failed)?;
            next = path;
        }
    }

    /// The target opened, and everything compared with it.
    fn onto(
        uppers: Vec<Upper>,
        path: &Path,
        uuid: Option<[u8; 16]>,
        o: &Options,
    ) -> Result<Stack, Failure> {
        let failed = Failure::at(Step::Open, path);
        let medium = FileMedium::open(path, true).map_err(failed)?;
        let locked = lock(medium.handle(), path, o.others);
        locked.map_err(Failure::at(Step::Move, path))?;
        let encrypted = uppers.iter().any(|u| u.opened.key_hash.is_some());
        let opened = match uuid {
            None => None,
            Some(uuid) => {
                Some(writable(&medium, path, uuid).map_err(Failure::at(Step::Open, path))?)
            }
        };
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

fn identity_of(path: &Path) -> Result<Identity, VhdError> {
    let file = chain::open_file(path, false)?;
    chain::identity(&file).map_err(|e| VhdError::io(path, "look at the file", 0, &e))
}

/// An image whose sectors go down.
fn upper(path: &Path, o: &Options, seen: &mut Vec<Identity>) -> Result<Upper, Failure> {
    let failed = || Failure::at(Step::Open, path);
    let medium = FileMedium::open(path, false).map_err(failed())?;
    let id = chain::identity(medium.handle())
        .map_err(|e| failed()(VhdError::io(path, "look at the file", 0, &e)))?;
    seen.push(id);
    let opened = open::open(&medium, path, &OpenOptions { read_only: true, ..<_>::default() })
        .and_then(|opened| not_poisoned(path, opened))
        .map_err(failed())?;
    if opened.kind == DiskType::Differencing {
        lock(medium.handle(), path, o.others).map_err(Failure::at(Step::Move, path))?;
    }
    Ok(Upper { path: path.into(), medium, opened })
}

pub(super) fn not_poisoned(path: &Path, opened: Opened) -> Result<Opened, VhdError> {
    if opened.footer.poisoned() {
        let why = "the image is in the middle of a resize; run vhd-util revert with its journal";
        return Err(VhdError::request(path, EINVAL, why));
    }
    Ok(opened)
}

/// A VHD to be written, which must be the one that its child means.
fn writable(medium: &FileMedium, path: &Path, uuid: [u8; 16]) -> Result<Opened, VhdError> {
    let o = OpenOptions { for_io: true, ..OpenOptions::default() };
    let opened = open::open(medium, path, &o)?;
    if opened.footer.uuid != uuid {
        return Err(VhdError::request(path, EINVAL, OTHER_UUID));
    }
    if let Some(block) = opened.bad_blocks.first().copied() {
        let sector = opened.bat.get(block as usize).copied().unwrap_or_default();
        let why = "points outside the file; nothing is added to such an image";
        return Err(VhdError::Block { name: path.into(), block, sector, why });
    }
    Ok(opened)
}

pub(super) const OTHER_UUID: &str =
    "is not the parent its child was made for: the unique ids differ; run vhd-util modify -p";

fn same_uuid(path: &Path, uuid: Option<[u8; 16]>) -> Result<(), VhdError> {
    let file = chain::open_file(path, false)?;
    let found = crate::locate::headers(&file, path, 0)?;
    if Some(found.footer.uuid) != uuid {
        return Err(VhdError::request(path, EINVAL, OTHER_UUID));
    }
    Ok(())
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
