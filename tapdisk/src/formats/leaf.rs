//! A commit of the leaf, as the workers that open the chain see it: base is opened to be written as
//! well, and the engine does the rest (docs/commit.md).
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::Storage;
use vhd_rs::chain::{Identity, identity};

use super::commit::{Outcome, alone, fits};
use super::probed::Probed;
use super::{DiskOptions, Images, Layer, Medium, OpenError, Patience, open_with};
use crate::receiver::Stash;

/// The files that take part: nothing is done with others of their names.
#[derive(Clone, Copy, Debug)]
pub struct Parties {
    leaf: Identity,
    base: Identity,
}

/// Where it is.
#[derive(Clone, Debug)]
pub enum Stage {
    /// The chain is to be opened anew.
    Wanted,
    /// It is, and data is copied.
    Copying,
    /// Over. After a good end changes go to both images until the chain is closed.
    Over(Outcome),
}

/// One that was asked for.
pub struct LeafCommit {
    parties: Parties,
    /// What base is called.
    base: PathBuf,
    stage: Mutex<Stage>,
}

impl Parties {
    /// Sees whether an image that was opened at a place of the chain is the one that was there.
    ///
    /// # Errors
    /// It is another one, or is used by somebody else.
    pub(super) fn admit(
        self,
        place: usize,
        layer: &Layer,
        found: Option<Identity>,
    ) -> Result<(), OpenError> {
        let shown = show::path(&layer.path);
        let wanted = [self.leaf, self.base].get(place).copied();
        if wanted.is_some_and(|wanted| found != Some(wanted)) {
            let why = format!("{shown} has come into the chain since the commit was begun");
            return Err(OpenError::new(libc::ECANCELED, why));
        }
        match &layer.file {
            Medium::Local(file) if place == 1 => alone(file.file(), &layer.path),
            _ => Ok(()),
        }
    }

    /// The same for the chain as a whole, before anything of it is changed.
    pub(super) fn fit(
        self,
        layers: &[(Layer, Box<dyn Probed>)],
        held: Option<&str>,
    ) -> Result<(), OpenError> {
        let [(leaf, top), (base, below), ..] = layers else {
            return Err(OpenError::new(libc::ECANCELED, "the leaf has no parent now"));
        };
        let (shown, parent) = (show::path(&leaf.path), show::path(&base.path));
        if let Some(by) = held {
            return Err(OpenError::new(libc::EBUSY, by));
        }
        if leaf.cipher.is_some() || base.cipher.is_some() {
            let why = format!("{shown} or {parent} is encrypted: not committed");
            return Err(OpenError::new(libc::EOPNOTSUPP, why));
        }
        fits((&leaf.path, top.sectors()), (&base.path, below.sectors()))
    }
}

/// A parent is flushed: a tapdisk that was killed may have left data there that no flush of this
/// disk would reach, and images may have come between it and the leaf since.
///
/// # Errors
/// Those of the storage.
pub(super) fn settle(place: usize, parent: &Layer) -> Result<(), OpenError> {
    match &parent.file {
        Medium::Local(file) if place > 0 && !parent.writable => {
            file.sync().map_err(|error| OpenError::io(&parent.path, "flush", &error))
        }
        _ => Ok(()),
    }
}

impl LeafCommit {
    /// One of the leaf of an open chain.
    ///
    /// # Errors
    /// Why this chain has none.
    pub fn of(images: &Images) -> Result<LeafCommit, OpenError> {
        let (leaf, base) = match &images.layers[..] {
            [leaf, base, ..] if images.layers.len() > 2 || images.secondary.is_none() => {
                (leaf, base)
            }
            [leaf, ..] => {
                let shown = show::path(&leaf.path);
                let why = format!("{shown} has no parent to be committed to");
                return Err(OpenError::new(libc::EINVAL, why));
            }
            [] => unreachable!("an open chain has a leaf"),
        };
        let refused = |errno, why: &str| {
            let shown = show::path(&leaf.path);
            Err(OpenError::new(errno, format!("{shown} is the leaf, and {why}")))
        };
        match (&leaf.file, &base.file) {
            _ if !leaf.writable => refused(libc::EROFS, "the disk is read-only"),
            _ if images.secondary.is_some() => {
                refused(libc::EOPNOTSUPP, "has a secondary: pause, and unpause with -2 null")
            }
            _ if images.local_cache => {
                refused(libc::EOPNOTSUPP, "keeps what is read from its parents (-r)")
            }
            // Lent to the engine; a chain with a key has it for each VHD.
            (Medium::Local(leaf), Medium::Local(base)) => {
                let ids = (identity(leaf.file()), identity(base.file()));
                let (Ok(leaf), Ok(below)) = ids else {
                    return refused(libc::EIO, "its file cannot be looked at");
                };
                let parties = Parties { leaf, base: below };
                let base = images.layers[1].path.clone();
                Ok(LeafCommit { parties, base, stage: Mutex::new(Stage::Wanted) })
            }
            _ => refused(libc::EOPNOTSUPP, "is with a server, or its parent is"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.lock().clone()
    }

    /// It has come to its end, unless it had before.
    pub fn over(&self, outcome: Outcome) {
        let mut stage = self.lock();
        if !matches!(*stage, Stage::Over(_)) {
            *stage = Stage::Over(outcome);
        }
    }

    /// Why the engine has given it up.
    pub fn failure(&self, errno: i32) -> OpenError {
        let error = std::io::Error::from_raw_os_error(errno);
        let text = match errno {
            libc::ECANCELED => "the commit was cancelled".into(),
            _ => format!("cannot commit to {}: {error}", show::path(&self.base)),
        };
        OpenError::new(errno, text)
    }

    /// Opens the chain with base to be written, if that is still what there is to do. `None`: it is
    /// to be opened as ever.
    pub fn open(
        &self,
        options: &DiskOptions,
        stash: &Arc<Stash>,
        patience: &Patience,
    ) -> Option<Images> {
        if matches!(self.stage(), Stage::Over(_)) {
            return None;
        }
        match open_with(options, stash, patience, Some(self.parties)) {
            Ok(images) => {
                let mut stage = self.lock();
                if matches!(*stage, Stage::Wanted) {
                    *stage = Stage::Copying;
                }
                Some(images)
            }
            // The disk does not depend on it.
            Err(error) => {
                self.over(Err(error));
                None
            }
        }
    }
}
