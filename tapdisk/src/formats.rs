//! From a name to an open chain of images, and back to closed files.
//!
//! ```text
//!   DiskOptions ─► open ─► Images { files, layers }  ─► engine … engine ─► Images ─► close
//!             └── leaf, then the parents it names, each checked against its child
//! ```
//! Everything here waits for the storage, so it runs on a thread of its own ([`crate::job`]). A
//! failure closes what was opened and leaves every byte as it was. Each refusal is one sentence
//! with the path, what is wrong, and what to do.
pub mod commit;
mod direct;
mod file;
pub mod key;
mod kind;
pub mod leaf;
mod locks;
mod log;
mod medium;
pub mod nbd;
mod options;
mod probed;
mod qcow2;
mod raw;
mod vhd;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Cipher, Image, Purpose, Storage};
use vhd_rs::VhdError;
use vhd_rs::chain::Identity;
use vhd_rs::parents::Found as Parent;

use crate::receiver::Stash;
pub use direct::DirectFile;
use file::{Caching, OpenFile};
use host::sys;
pub use key::Key;
pub use kind::{Kind, Source, chain_lines, parse};
use locks::Taken;
pub use locks::{Living, Patience};
pub use log::{ChangeLog, Marks};
pub use medium::Medium;
use nbd::RemoteImage;
pub use options::DiskOptions;
use probed::{Access, Probed};
use request::disk::FileInfo;
use vhd_rs::descent::Descent;

/// Images of one chain at most (spec/drivers.md §5.1).
pub use vhd_rs::descent::LAYERS_MAX;

/// Why a chain could not be opened or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    /// Positive errno.
    pub errno: i32,
    /// A sentence.
    pub text: String,
}

impl OpenError {
    /// An error.
    pub fn new(errno: i32, text: impl Into<String>) -> OpenError {
        OpenError { errno, text: text.into() }
    }

    fn io(path: &Path, doing: &str, error: &std::io::Error) -> OpenError {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        OpenError::new(errno, format!("cannot {doing} {}: {error}", show::path(path)))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<VhdError> for OpenError {
    fn from(error: VhdError) -> OpenError {
        OpenError::new(error.errno(), error.to_string())
    }
}

/// What closing came to: perhaps with a sentence for the log.
pub type Closed = Result<Option<String>, OpenError>;

/// An open image: its driver and its file.
pub struct Layer {
    /// Format.
    pub kind: Kind,
    /// Path of the file.
    pub path: PathBuf,
    /// The driver; lent to the engine while the disk is served.
    pub image: Option<Box<dyn Image>>,
    /// The file, or what stands for one.
    pub file: Medium,
    /// Opened for writing.
    pub writable: bool,
    /// Its data is encrypted; lent to the engine like the driver.
    pub cipher: Option<Box<dyn Cipher>>,
}

/// The secondary, which is the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondaryImage {
    /// What for.
    pub purpose: Purpose,
    /// It has taken over already.
    pub taken_over: bool,
}

/// An open chain, leaf first.
pub struct Images {
    /// The images; at least one. Leaf first; a second image that is written comes last.
    pub layers: Vec<Layer>,
    /// Whether there is such a one, and what for.
    pub secondary: Option<SecondaryImage>,
    /// The leaf is being committed to the second image, which is written as well.
    pub commits: bool,
    /// The changed-block log.
    pub log: Option<Arc<ChangeLog>>,
    /// What is read from below the leaf is kept in it.
    pub local_cache: bool,
    /// A remote mirror was asked for and could not be had.
    pub mirror_failed: bool,
    /// Size of the disk in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Bitmaps that reads of the whole disk keep coming back to: what the metadata cache should
    /// hold.
    pub bitmaps: u32,
    /// Somebody else writes an image that is to be written here, so none of it is ours: the images
    /// are good for their size only, and are to be opened again. The sentence says who.
    pub held: Option<Box<String>>,
    /// Sentences for the log: what works, but not as one may think.
    pub notes: Vec<String>,
}

/// Opens a chain. `stash` has the descriptors that were passed for NBD images. `patience` says what
/// is done about those who have the files.
///
/// # Errors
/// The first thing that is wrong. Nothing is left open or changed.
pub fn open(
    options: &DiskOptions,
    stash: &Arc<Stash>,
    patience: &Patience,
) -> Result<Images, OpenError> {
    open_with(options, stash, patience, None)
}

/// The same; with `commit` the second image is opened to be written as well.
fn open_with(
    options: &DiskOptions,
    stash: &Arc<Stash>,
    patience: &Patience,
    commit: Option<leaf::Parties>,
) -> Result<Images, OpenError> {
    let mut listed = listed(options)?.into_iter();
    let mut opening = Opening {
        options,
        stash,
        patience,
        layers: Vec::new(),
        notes: Vec::new(),
        descent: Descent::default(),
        mirror_failed: false,
        held: None,
        commit,
    };
    let mut next = listed.next();
    while let Some(mut item) = next {
        let leaf = opening.layers.is_empty();
        item.writable &= !options.taken_over;
        item.writable |= commit.is_some() && opening.layers.len() == 1;
        opening.open(item)?;
        let below = match options.parent.filter(|_| leaf) {
            Some(socket) => Some(Item::named(Kind::Nbd, socket.as_path().into(), false)),
            None => listed.next().map(|item| Item { writable: false, ..item }),
        };
        next = match below {
            None => opening.below()?,
            named => named,
        };
    }
    let secondary = opening.secondary()?;
    opening.finish(secondary)
}

/// An image that is to be opened.
struct Item {
    kind: Kind,
    path: PathBuf,
    writable: bool,
    /// The very file, where it was found as a parent.
    found: Option<Parent>,
}

impl Item {
    /// One that the caller named.
    fn named(kind: Kind, path: PathBuf, writable: bool) -> Item {
        Item { kind, path, writable, found: None }
    }
}

/// The images that are named by the caller, leaf first, with whether they are to be writable.
fn listed(options: &DiskOptions) -> Result<Vec<Item>, OpenError> {
    match parse(options.name.as_bytes())? {
        Source::Image(kind, path) => Ok(vec![Item::named(kind, path, !options.read_only)]),
        Source::ChainFile(path) if options.parent.is_some() => Err(OpenError::new(
            libc::EINVAL,
            format!("{}: a chain file lists its parents; open it without -e", show::path(&path)),
        )),
        Source::ChainFile(path) => {
            let text = file::text(&path)?;
            let lines = chain_lines(&text, &path)?;
            Ok(lines
                .into_iter()
                .map(|(kind, path, ro)| Item::named(kind, path, !ro && !options.read_only))
                .collect())
        }
    }
}

/// A chain that is being opened.
struct Opening<'a> {
    options: &'a DiskOptions,
    stash: &'a Arc<Stash>,
    patience: &'a Patience,
    layers: Vec<(Layer, Box<dyn Probed>)>,
    notes: Vec<String>,
    descent: Descent,
    mirror_failed: bool,
    held: Option<String>,
    commit: Option<leaf::Parties>,
}

/// An image, opened and looked at.
struct Loaded {
    layer: Layer,
    probed: Box<dyn Probed>,
    /// Of its file: the same for every name of it.
    identity: Option<Identity>,
}

impl Opening<'_> {
    /// Opens one image below those that are open.
    fn open(&mut self, item: Item) -> Result<(), OpenError> {
        let caching =
            if self.cached(item.kind, item.writable) { Caching::Cached } else { Caching::Direct };
        let Loaded { layer, probed, identity } = self.load(item, caching)?;
        if let Some(identity) = identity {
            self.descent.file(&layer.path, identity)?;
        }
        if let Some(parties) = self.commit {
            parties.admit(self.layers.len(), &layer, identity)?;
        }
        probed.join(&mut self.descent, &layer)?;
        leaf::settle(self.layers.len(), &layer)?;
        self.layers.push((layer, probed));
        Ok(())
    }

    /// The parent that the lowest image names.
    fn below(&self) -> Result<Option<Item>, OpenError> {
        let Some((layer, probed)) = self.layers.last() else { return Ok(None) };
        let parent = probed.parent(layer)?;
        Ok(parent.map(|(kind, found)| Item {
            kind,
            path: found.path.clone(),
            writable: false,
            found: Some(found),
        }))
    }

    /// Opens the file of an image, or negotiates with its server, and learns what it is.
    fn load(&mut self, item: Item, caching: Caching) -> Result<Loaded, OpenError> {
        let Item { kind, path, writable, found: parent } = item;
        let format = kind.format();
        let Some(probe) = format.probe else {
            let remote = RemoteImage::open(&path, writable, self.stash)?;
            let probed = Box::new(raw::Probed::remote(remote.sectors()));
            let file = Medium::Remote(remote);
            let layer = Layer { kind, path, image: None, file, writable, cipher: None };
            return Ok(Loaded { layer, probed, identity: None });
        };
        let node = match &parent {
            Some(parent) => parent.node(),
            None => &file::find(&path, "open")?,
        };
        let OpenFile { file, identity, sector_size } =
            file::open(&path, node, kind, writable, caching, &mut self.notes)?;
        // Before the first look: what somebody else still writes would be read half old.
        self.lock(&file, identity, (&path, writable))?;
        let probed = probe(&file, &path, Access { writable, sector_size })?;
        let cipher = probed.cipher(&path, self.options.key.as_deref())?;
        self.notes.extend(probed.notes(&path));
        if caching == Caching::Direct && writable && file::end_would_move(&file, &*probed) {
            self.notes.push(format!(
                "{}: its file system writes whole units of 4096 bytes only, and its end is not one: it goes \
                 through the page cache (O_DSYNC)",
                show::path(&path)
            ));
            // The lock goes with the file, so another file has to take it anew, and look anew.
            drop(file);
            let again = Item { kind, path, writable, found: parent };
            return self.load(again, Caching::Synchronous);
        }
        let file = Medium::Local(file);
        let layer = Layer { kind, path, image: None, file, writable, cipher };
        Ok(Loaded { layer, probed, identity: Some(identity) })
    }

    fn lock(
        &mut self,
        file: &DirectFile,
        identity: Identity,
        (path, writable): (&Path, bool),
    ) -> Result<(), OpenError> {
        // A secondary may be one of the chain's: nobody waits for himself.
        if self.descent.has_file(identity) {
            return Ok(());
        }
        match locks::take(file, (path, writable), self.patience, &mut self.notes)? {
            Taken::Ours => Ok(()),
            Taken::Held(by) => {
                self.held.get_or_insert(by);
                Ok(())
            }
        }
    }

    /// Opens the secondary, on its own: its parents are not opened, and it may be one of the
    /// chain's (spec/operations.md §4.4).
    fn secondary(&mut self) -> Result<Option<SecondaryImage>, OpenError> {
        let Some(name) = &self.options.secondary else { return Ok(None) };
        let Source::Image(kind, path) = parse(name.as_bytes())? else {
            let text = format!("-2 {name}: a secondary is one image, not a list of them");
            return Err(OpenError::new(libc::EINVAL, text));
        };
        let standby = self.options.standby;
        if standby && !kind.format().layered {
            // It would hide everything that was written before it takes over.
            let text = format!("-2 {name} -s: only a VHD can take over from the leaf");
            return Err(OpenError::new(libc::EINVAL, text));
        }
        let Loaded { layer, probed, .. } =
            match self.load(Item::named(kind, path, !self.options.read_only), Caching::Direct) {
                Ok(loaded) => loaded,
                Err(error) if kind.format().is_remote() => {
                    self.notes.push(format!("there is no mirror: {error}"));
                    self.mirror_failed = true;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
        let leaf = self.layers.first().map(|(_, leaf)| leaf.sectors());
        let has = probed.sectors();
        if leaf != Some(has) {
            let text = format!(
                "-2 {name} has {has} sectors and the disk {}: give it the same size",
                leaf.unwrap_or(0)
            );
            return Err(OpenError::new(libc::EINVAL, text));
        }
        self.layers.push((layer, probed));
        let purpose = if standby { Purpose::Standby } else { Purpose::Mirror };
        Ok(Some(SecondaryImage { purpose, taken_over: self.options.taken_over }))
    }

    /// Whether `-D` sends this image through the page cache (spec/drivers.md §5.3). What is written
    /// never goes there: a write could then wait for memory that only this process can free.
    fn cached(&self, kind: Kind, writable: bool) -> bool {
        let parent = !self.layers.is_empty();
        let asked = kind.format().page_cache && self.options.page_cache && !writable;
        asked && !(parent && self.options.local_cache)
    }

    /// All are open and fit: make the drivers, and what they will write ready for it.
    fn finish(self, secondary: Option<SecondaryImage>) -> Result<Images, OpenError> {
        let Opening { options, layers, notes, mirror_failed, held, commit, .. } = self;
        let commits = commit.is_some();
        if let Some(parties) = commit {
            parties.fit(&layers, held.as_deref())?;
        }
        let (sectors, sector_size) = match layers.first() {
            Some((_, leaf)) => (leaf.sectors(), leaf.sector_size()),
            None => return Err(OpenError::new(libc::EINVAL, "a chain of no images")),
        };
        let log = options
            .log
            .as_ref()
            .map(|name| ChangeLog::open(name.as_path(), sectors))
            .transpose()?;
        let mut ready = Vec::with_capacity(layers.len());
        let mut wanted = 0;
        for (mut layer, probed) in layers {
            wanted += probed.bitmaps();
            layer.image = Some(probed.driver(&layer, held.is_none())?);
            ready.push(layer);
        }
        let local_cache = options.local_cache && ready[0].writable;
        let log = log.map(Arc::new);
        let layers = ready;
        Ok(Images {
            layers,
            secondary,
            commits,
            log,
            local_cache,
            mirror_failed,
            sectors,
            sector_size,
            bitmaps: u32::try_from(wanted).unwrap_or(u32::MAX),
            held: held.map(Box::new),
            notes,
        })
    }
}

impl Images {
    /// What the engine wants to know of the files.
    ///
    /// # Errors
    /// When a size cannot be learned.
    pub fn infos(&self) -> Result<Vec<FileInfo>, OpenError> {
        let info = |layer: &Layer| {
            let bytes = layer.file.len();
            let bytes = bytes.map_err(|e| OpenError::io(&layer.path, "learn the size of", &e))?;
            Ok(FileInfo { bytes, device: layer.file.is_device(), thin: layer.file.is_thin() })
        };
        self.layers.iter().map(info).collect()
    }

    /// Writes what the leaf's format wants written at the end, waits until all is on the disk, and
    /// closes every file. A leaf without a driver was never served.
    ///
    /// # Errors
    /// The first write that failed; the files are closed nevertheless.
    pub fn close(mut self) -> Closed {
        let mut outcome = Ok(None);
        for layer in self.layers.iter_mut().filter(|layer| layer.writable) {
            let ended = layer.end();
            outcome = outcome.and_then(|note| Ok(note.or(ended?)));
        }
        match &self.log {
            Some(log) => outcome.and_then(|note| log.sync().map(|()| note)),
            None => outcome,
        }
    }

    /// Whether the disk takes writes.
    pub fn writable(&self) -> bool {
        self.layers[0].writable || self.secondary.is_some_and(|secondary| secondary.taken_over)
    }

    /// Whether the leaf's file system has room for what is read from its parents. A device has.
    pub fn has_room(&self) -> bool {
        const ROOM_BYTES: u64 = 2 << 20;
        match &self.layers[0].file {
            Medium::Local(leaf) if !leaf.is_device() => {
                sys::free_bytes(leaf.file()).is_ok_and(|free| free > ROOM_BYTES)
            }
            Medium::Local(_) | Medium::Remote(_) => true,
        }
    }
}

impl Layer {
    /// Writes what the format wants written at the end, and waits until all is on the disk.
    fn end(&mut self) -> Closed {
        let Some(image) = &mut self.image else { return Ok(None) };
        let mut closing = image.closing();
        (self.kind.format().before_closing)(&mut closing, &self.file);
        match closing.apply(&self.file) {
            Ok(()) => {}
            Err(e) if self.is_write_protected() => {
                let path = show::path(&self.path);
                return Ok(Some(format!("{path} has become write-protected; its end stays: {e}")));
            }
            Err(e) => return Err(OpenError::io(&self.path, "write the end of", &e)),
        }
        let synced = self.file.sync().map(|()| None);
        synced.map_err(|e| OpenError::io(&self.path, "flush", &e))
    }

    /// What somebody protected under us: nothing more can be written, and waiting would not help.
    /// What was acknowledged is there; who wrote after that was told.
    fn is_write_protected(&self) -> bool {
        let meta = match &self.file {
            Medium::Local(file) => file.file().metadata().ok(),
            Medium::Remote(_) => None,
        };
        meta.is_some_and(|meta| image::is_write_protected(&meta))
    }
}
