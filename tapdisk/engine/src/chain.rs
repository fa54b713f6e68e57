//! The images of one disk read as one, and what stands beside them: a secondary, a changed-block
//! log, the rule that what is read from below is kept in the leaf.
//!
//! ```text
//!   writes ─► log ─► secondary (mirror), then top                reads: order[0] ─► order[1] ─► … ─► zeros
//! ```
use std::ops::Range;

use image::{Changes, Cipher, Image, Meta, Place, Purpose, Run, Span, Stop};

use crate::owners::Owners;
use request::disk::FileId;

/// One image of a chain.
pub struct Layer {
    /// The format driver.
    pub image: Box<dyn Image>,
    /// Data of this image is encrypted.
    pub cipher: Option<Box<dyn Cipher>>,
    /// Sectors this layer answered: read, written.
    pub hits: [u64; 2],
    /// Sectors of these that failed: read, written.
    pub fails: [u64; 2],
}

impl Layer {
    /// A layer without history.
    pub fn new(image: Box<dyn Image>) -> Layer {
        Layer { image, cipher: None, hits: [0; 2], fails: [0; 2] }
    }
}

/// A second writable image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// Its file.
    pub file: FileId,
    /// What for.
    pub purpose: Purpose,
    /// It is remote: when it fails the disk goes on without it.
    pub remote: bool,
    /// It is read as a layer of the chain, and can take over. A raw or remote mirror is only
    /// written: it holds every sector, so it would hide what lies below.
    pub read: bool,
}

/// The images of one disk; `layers[i]` lies in file `FileId(i)`.
pub struct Chain {
    /// By file.
    pub layers: Vec<Layer>,
    /// In the order of reading, top first. A secondary that is only written is not in it.
    order: Vec<FileId>,
    /// The second writable image, while it serves its purpose.
    pub second: Option<Second>,
    /// The leaf that a secondary has taken over from: what was written to it may still be on its
    /// way to the medium.
    pub former: Option<FileId>,
    /// Told of every change first.
    pub changes: Option<Box<dyn Changes>>,
    /// What is read from below the top is written into it (`-r`).
    pub local_cache: bool,
    /// The first place of the order from which on nothing changes while the chain is open.
    fixed: usize,
    owners: Owners,
}

/// Where a run was found: the layer and the byte in its file, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In a layer's file.
    At {
        /// Which layer.
        layer: FileId,
        /// Byte offset in its file.
        byte: u64,
    },
    /// In none: zeros.
    Zero,
}

/// The cache as each layer sees it; implemented by the engine.
pub trait Views {
    /// Calls `f` with the view of `layer`.
    fn with<R>(&mut self, layer: FileId, f: impl FnOnce(&mut dyn Meta) -> R) -> R;
}

impl Chain {
    /// A chain of images, leaf first, and nothing else.
    pub fn new(layers: Vec<Layer>) -> Chain {
        // Room for a secondary, so that taking over allocates nothing.
        let mut order = Vec::with_capacity(layers.len() + 1);
        order.extend((0..layers.len()).map(|i| FileId(i as u8)));
        let (second, changes, owners) = (None, None, Owners::default());
        let (former, local_cache) = (None, false);
        Chain { layers, order, second, former, changes, local_cache, fixed: 1, owners }
    }

    /// Remembers from now on which of the images that do not change holds a page. Takes up to 2
    /// MiB.
    pub fn remember(&mut self) {
        self.owners = Owners::new(self.sectors());
    }

    /// Plants a bug: what the top holds is remembered too, though it changes. The simulator has to
    /// find it.
    #[cfg(feature = "canary")]
    pub fn remember_too_much(&mut self) {
        self.remember();
        self.fixed = 0;
    }

    /// Gives the chain a second writable image, which is one of `layers`. A mirror may hold data
    /// that the leaf has not, so it is read right below the leaf; a standby is not read until it
    /// takes over.
    pub fn set_second(&mut self, second: Second) {
        self.order.retain(|file| *file != second.file);
        // Now or later the secondary and the leaf are the first two.
        self.fixed = 2;
        if second.purpose == Purpose::Mirror && second.read {
            self.order.insert(1, second.file);
        }
        self.second = Some(second);
    }

    /// The image that takes writes.
    pub fn top(&self) -> FileId {
        self.order[0]
    }

    /// The images that are read, top first.
    pub fn order(&self) -> &[FileId] {
        &self.order
    }

    /// The secondary takes the place above the old top, whose data stays readable below it; false
    /// if there is none that can. Allocates nothing: the order has room.
    pub fn take_over(&mut self) -> bool {
        let Some(second) = self.second.take_if(|second| second.read) else { return false };
        match self.order.iter().position(|file| *file == second.file) {
            Some(at) => self.order[..=at].rotate_right(1),
            None => self.order.insert(0, second.file),
        }
        self.former = self.order.get(1).copied();
        true
    }

    /// Size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.layers[usize::from(self.order[0].0)].image.sectors()
    }

    /// How far down the order the layers below `file` begin; all of them if it is not read.
    pub fn below(&self, file: FileId) -> usize {
        self.order.iter().position(|f| *f == file).map_or(0, |at| at + 1)
    }

    /// What one image says of the first sectors of a span; `None` if the span is not all inside it.
    pub fn map_one(
        &self,
        views: &mut impl Views,
        file: FileId,
        span: Span,
    ) -> Option<Result<Run, Stop>> {
        let image = &self.layers[usize::from(file.0)].image;
        (span.end() <= image.sectors()).then(|| views.with(file, |meta| image.map(meta, span)))
    }

    /// Where the first sectors of `span` are, from place `from` of the order down.
    ///
    /// # Errors
    /// What the named layer has to have first.
    pub fn map(
        &mut self,
        views: &mut impl Views,
        from: usize,
        span: Span,
    ) -> Result<(Found, u32), (FileId, Stop)> {
        let fixed = self.fixed.min(self.order.len());
        let (found, span) = self.ask(views, from..fixed, span)?;
        if let Some(found) = found {
            return Ok((found, span.count));
        }
        if from <= fixed
            && let Some(found) = self.owners.find(span)
        {
            return Ok((found, span.count));
        }
        let (found, span) = self.ask(views, from.max(fixed)..self.order.len(), span)?;
        let found = found.unwrap_or(Found::Zero);
        if from <= fixed {
            self.owners.note(span, found);
        }
        Ok((found, span.count))
    }

    /// Asks the images at some places of the order, top first. What none of them has is `None`.
    fn ask(
        &self,
        views: &mut impl Views,
        places: Range<usize>,
        mut span: Span,
    ) -> Result<(Option<Found>, Span), (FileId, Stop)> {
        for &id in self.order.get(places).unwrap_or_default() {
            let layer = &self.layers[usize::from(id.0)];
            let sectors = layer.image.sectors();
            // A parent may be shorter than its child: zeros beyond its end (spec/vhd.md §9).
            if span.start >= sectors {
                return Ok((Some(Found::Zero), span));
            }
            let inside = sectors - span.start;
            span = span.first(u32::try_from(inside).unwrap_or(u32::MAX));
            let run =
                views.with(id, |meta| layer.image.map(meta, span)).map_err(|stop| (id, stop))?;
            assert!(run.count > 0 && run.count <= span.count, "a run is part of its span");
            match run {
                Run { place: Place::Below, count } => span.count = count,
                Run { place: Place::Zero, count } => {
                    return Ok((Some(Found::Zero), span.first(count)));
                }
                Run { place: Place::At { byte }, count } => {
                    return Ok((Some(Found::At { layer: id, byte }), span.first(count)));
                }
            }
        }
        Ok((None, span))
    }
}
