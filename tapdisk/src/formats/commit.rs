//! An inner image of a chain goes into its parent while the disk is in use (docs/commit.md).
//!
//! ```text
//!   leaf ─► overlay ─► top ─► base ─► …        a worker writes what top holds into base
//!              │               ▲
//!              └───────────────┘               when all is there: overlay names base
//! ```
//! What is written in base is hidden by top from everybody who reads through the chain, so the data
//! path goes on with what it knows of base. It only must not find places used for something else:
//! base gives none back until the chain has been closed once. Runs on workers: waiting holds up
//! nobody.
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use image::Node;
use image::blocking::{Layer as View, Writer, merge};
use vhd_rs::chain::{Identity, identity};
use vhd_rs::modify;

use super::probed::{Access, Probed};
use super::{Images, Kind, Layer, Medium, OpenError, file};

/// Where a commit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its images are being opened.
    Starting,
    /// They are; whoever serves the chain has not heard of it yet.
    Opened,
    /// Data is copied.
    Copying,
    /// It has stopped; base is not closed yet, and the overlay names its old parent.
    Stopped(Outcome),
    /// That is being done.
    Finishing,
    /// Over.
    Over(Outcome),
}

/// What came of one.
pub type Outcome = Result<(), OpenError>;

/// A commit, seen from both sides.
pub struct Commit {
    stage: Mutex<(Stage, Option<Box<Ready>>)>,
    changed: Condvar,
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
    /// Once they are known.
    parties: Mutex<Option<Parties>>,
}

/// The images that take part, by their files; and where the overlay is, which may be renamed.
#[derive(Clone, Debug)]
struct Parties {
    overlay: Identity,
    top: Identity,
    base: Identity,
    path: PathBuf,
}

/// An image of the chain, as whoever serves it knows it.
pub struct Member {
    kind: Kind,
    path: PathBuf,
    file: File,
}

/// All images of the chain below its leaf, and the leaf.
///
/// # Errors
/// Without descriptors; images that are with a server have none.
pub fn members(images: &Images) -> Result<Vec<Member>, OpenError> {
    let chain = images.layers.len() - usize::from(images.secondary.is_some());
    let member = |layer: &Layer| {
        let Medium::Local(file) = &layer.file else { return None };
        let file = file.file().try_clone();
        Some(file.map(|file| Member { kind: layer.kind, path: layer.path.clone(), file }))
    };
    // What lies below a remote image is no chain of ours.
    let all = images.layers[..chain].iter().map_while(member).collect::<io::Result<_>>();
    all.map_err(|error| OpenError::io(Path::new("the chain"), "look at", &error))
}

/// What is being worked with.
struct Ready {
    /// Top, base, and what lies below.
    layers: Vec<Layer>,
    /// Format of the overlay.
    kind: Kind,
    /// The lock on base.
    _lock: File,
    copied: bool,
}

impl Default for Commit {
    fn default() -> Commit {
        Commit {
            stage: Mutex::new((Stage::Starting, None)),
            changed: Condvar::new(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            parties: Mutex::new(None),
        }
    }
}

impl Commit {
    fn lock(&self) -> MutexGuard<'_, (Stage, Option<Box<Ready>>)> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stage: Stage, ready: Option<Box<Ready>>) {
        *self.lock() = (stage, ready);
        self.changed.notify_all();
    }

    /// Where it is.
    pub fn stage(&self) -> Stage {
        self.lock().0.clone()
    }

    /// Bytes of the top that are done, and all.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    /// Whoever serves the chain knows that base changes from now on.
    pub fn go(&self) {
        let mut stage = self.lock();
        if stage.0 == Stage::Opened {
            stage.0 = Stage::Copying;
        }
        drop(stage);
        self.changed.notify_all();
    }

    /// It stops at the next piece.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.lock());
        self.changed.notify_all();
    }

    fn parties(&self) -> MutexGuard<'_, Option<Parties>> {
        self.parties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where base is in a chain that was opened anew, if the three follow each other in it as
    /// before. Wherever the overlay is called by now is remembered.
    pub fn base_in(&self, images: &Images) -> Option<usize> {
        let id = |layer: &Layer| match &layer.file {
            Medium::Local(file) => identity(file.file()).ok(),
            Medium::Remote(_) => None,
        };
        let chain = images.layers.len() - usize::from(images.secondary.is_some());
        let mut parties = self.parties();
        let known = parties.as_mut()?;
        let wanted = [Some(known.overlay), Some(known.top), Some(known.base)];
        let place = images.layers[..chain]
            .windows(3)
            .position(|three| three.iter().map(id).eq(wanted.iter().copied()))?;
        known.path.clone_from(&images.layers[place].path);
        Some(place + 2)
    }

    /// Copies. To be called once, on a worker.
    pub fn run(&self, members: Vec<Member>, path: &Path) {
        let ready = match self.open(members, path) {
            Ok(ready) => ready,
            Err(error) => return self.enter(Stage::Over(Err(error)), None),
        };
        let mut ready = Box::new(ready);
        self.enter(Stage::Opened, None);
        let mut stage = self.lock();
        while stage.0 == Stage::Opened && !self.stop.load(Ordering::Relaxed) {
            stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        drop(stage);
        let outcome = self.copy(&mut ready);
        self.enter(Stage::Stopped(outcome), Some(ready));
    }

    fn open(&self, members: Vec<Member>, named: &Path) -> Result<Ready, OpenError> {
        let place = find(&members, named)?;
        let mut members = members.into_iter();
        let shown = show::path(named).to_string();
        let Some(overlay) = place.checked_sub(1).and_then(|above| members.nth(above)) else {
            let why = format!("{shown} has become the leaf");
            return Err(OpenError::new(libc::EBUSY, why));
        };
        let both = members.next().zip(members.next());
        let Some((top, base)) = both else {
            let why = format!("{shown} has no parent to be committed to");
            return Err(OpenError::new(libc::EINVAL, why));
        };
        let ids = [&overlay, &top, &base].map(|member| identity(&member.file));
        let [Ok(above), Ok(it), Ok(below)] = ids else {
            return Err(OpenError::new(libc::EIO, format!("{shown} cannot be looked at")));
        };
        let (kind, path) = (overlay.kind, overlay.path.clone());
        *self.parties() = Some(Parties { overlay: above, top: it, base: below, path });
        // With it goes a lock that others wait for.
        drop(overlay);
        let lock = locked(&base)?;
        let mut layers = vec![opened(top, false)?, opened(base, true)?];
        for member in members {
            layers.push(opened(member, false)?);
        }
        let sectors = layers[0].driver().sectors();
        fits((named, sectors), (&layers[1].path, layers[1].driver().sectors()))?;
        self.total.store(sectors * 512, Ordering::Relaxed);
        layers[1].driver_mut().keep_places(true);
        Ok(Ready { layers, kind, _lock: lock, copied: false })
    }

    fn copy(&self, ready: &mut Ready) -> Outcome {
        let (top, rest) = ready.layers.split_first_mut().expect("top and base");
        let (base, below) = rest.split_first_mut().expect("top and base");
        let (path, storage) = (base.path.clone(), &base.file);
        let failed = |error: &io::Error| OpenError::io(&path, "commit to", error);
        let image = base.image.as_deref_mut().expect("it was just opened");
        let mut writer = Writer::new(image, storage).map_err(|e| failed(&e))?;
        writer = writer.over(below.iter().map(|layer| layer.view()).collect());
        let mut goes_on = |sector: u64| {
            self.done.store(sector * 512, Ordering::Relaxed);
            !self.stop.load(Ordering::Relaxed)
        };
        let whole = merge(&top.view(), &mut writer, &mut goes_on).map_err(|e| failed(&e))?;
        writer.flush().map_err(|e| failed(&e))?;
        if !whole {
            return Err(OpenError::new(libc::ECANCELED, "the commit was cancelled"));
        }
        ready.copied = true;
        Ok(())
    }

    /// Closes base and lets the overlay name it, if that is what there is to do; waits for whoever
    /// does it. The chain is closed.
    pub fn finish(&self) {
        let mut stage = self.lock();
        while stage.0 == Stage::Finishing {
            stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        let (Stage::Stopped(outcome), Some(ready)) = (stage.0.clone(), stage.1.take()) else {
            return;
        };
        stage.0 = Stage::Finishing;
        drop(stage);
        let closed = ready.close(self.parties().clone());
        self.enter(Stage::Over(outcome.and(closed)), None);
    }

    /// The same, and waits for a copy to stop: the disk is given up.
    pub fn end(&self) {
        self.stop();
        let mut stage = self.lock();
        while matches!(stage.0, Stage::Starting | Stage::Opened | Stage::Copying) {
            stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        drop(stage);
        self.finish();
    }
}

impl Ready {
    /// Base becomes a clean image again; a whole copy counts from here on.
    fn close(mut self, parties: Option<Parties>) -> Outcome {
        let (base, below) = self.layers[1..].split_first_mut().expect("top and base");
        let path = base.path.clone();
        let failed = |error: &io::Error| OpenError::io(&path, "close", error);
        let image = base.image.as_deref_mut().expect("it was opened");
        let mut writer = Writer::new(image, &base.file).map_err(|e| failed(&e))?;
        writer = writer.over(below.iter().map(|layer| layer.view()).collect());
        writer.catch_up().and_then(|()| writer.close()).map_err(|e| failed(&e))?;
        match parties.filter(|_| self.copied) {
            None => Ok(()),
            Some(parties) => rebind((self.kind, &parties), &self.layers[0], &self.layers[1]),
        }
    }
}

/// Whether a path leads to the leaf.
///
/// # Errors
/// It leads to no image of the disk.
pub fn is_leaf(members: &[Member], path: &Path) -> Result<bool, OpenError> {
    Ok(find(members, path)? == 0)
}

/// Which of the images a path leads to.
fn find(members: &[Member], path: &Path) -> Result<usize, OpenError> {
    let named = file::find(path, "open")?.open(false);
    let named = named.and_then(|file| identity(&file));
    let named = named.map_err(|error| OpenError::io(path, "look at", &error))?;
    let same = |member: &Member| identity(&member.file).is_ok_and(|found| found == named);
    members.iter().position(same).ok_or_else(|| {
        let why = format!("{} is no image of this disk", show::path(path));
        OpenError::new(libc::ENOENT, why)
    })
}

/// Nobody else reads base, and nobody writes it.
fn locked(base: &Member) -> Result<File, OpenError> {
    let failed = |error: &io::Error| OpenError::io(&base.path, "lock", error);
    // The descriptor is the data path's own, whose lock becomes this one.
    let lock = base.file.try_clone().map_err(|e| failed(&e))?;
    alone(&lock, &base.path)?;
    Ok(lock)
}

/// Takes the lock of base for us alone. A file system without locks has nobody else who holds one.
///
/// # Errors
/// Another disk reads it.
pub(super) fn alone(base: &File, path: &Path) -> Result<(), OpenError> {
    if image::try_lock(base, true).unwrap_or(true) {
        return Ok(());
    }
    let shown = show::path(path);
    let why = format!("{shown} is in use by another disk, which would see what is committed to it");
    Err(OpenError::new(libc::EBUSY, why))
}

/// Sees whether what is committed has room in its parent; both by path and size in sectors.
///
/// # Errors
/// It has not.
pub(super) fn fits(
    (top, sectors): (&Path, u64),
    (base, has): (&Path, u64),
) -> Result<(), OpenError> {
    if sectors <= has {
        return Ok(());
    }
    let (shown, parent) = (show::path(top), show::path(base));
    let why = format!(
        "{shown} has {sectors} sectors and its parent {parent} only {has}: make it as large first"
    );
    Err(OpenError::new(libc::EINVAL, why))
}

/// The same file once more, to be read or written.
fn opened(member: Member, writable: bool) -> Result<Layer, OpenError> {
    let Member { kind, path, file: held } = member;
    let itself = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    let node =
        Node::find(&itself).map_err(|error| OpenError::new(error.errno(), error.to_string()))?;
    let mut notes = Vec::new();
    let caching = file::Caching::Direct;
    let opened = file::open(&path, &node, kind, writable, caching, &mut notes)?;
    let probe = kind.format().probe.expect("it has a file");
    let access = Access { writable, sector_size: opened.sector_size };
    let probed: Box<dyn Probed> = probe(&opened.file, &path, access)?;
    let encrypted = |error| OpenError::new(libc::EOPNOTSUPP, format!("{error}: not committed"));
    probed.cipher(&path, None).map_err(encrypted)?;
    let file = Medium::Local(opened.file);
    let mut layer = Layer { kind, path, image: None, file, writable, cipher: None };
    layer.image = Some(probed.driver(&layer, true)?);
    Ok(layer)
}

/// Lets the overlay name base as its parent.
fn rebind((kind, parties): (Kind, &Parties), top: &Layer, base: &Layer) -> Outcome {
    let path = parties.path.as_path();
    let node = file::find(path, "open")?;
    let found = node.open(false).and_then(|file| identity(&file));
    if found.ok() != Some(parties.overlay) {
        let why = format!("{} is another file than before", show::path(path));
        return Err(OpenError::new(libc::ECANCELED, why));
    }
    let failed = |error: &io::Error| OpenError::io(path, "change the parent of", error);
    let raw = base.kind == Kind::Raw;
    match kind {
        Kind::Vhd => {
            let file = node.open(true).map_err(|e| failed(&e))?;
            Ok(modify::set_parent(&file, path, &base.path, raw, &|_| ())?)
        }
        Kind::Qcow2 => {
            let mut notes = Vec::new();
            let caching = file::Caching::Direct;
            let file = file::open(path, &node, kind, true, caching, &mut notes)?.file;
            Ok(super::qcow2::set_parent(&file, path, top, base)?)
        }
        Kind::Raw | Kind::Nbd => unreachable!("it has a parent"),
    }
}

impl Layer {
    fn view(&self) -> View<'_> {
        View { image: self.driver(), storage: &self.file }
    }

    fn driver(&self) -> &dyn image::Image {
        self.image.as_deref().expect("it is not lent to an engine")
    }

    fn driver_mut(&mut self) -> &mut dyn image::Image {
        self.image.as_deref_mut().expect("it is not lent to an engine")
    }
}

/// A commit that several know of.
pub type Shared = Arc<Commit>;
