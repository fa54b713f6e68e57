//! The images of one disk, leaf first, read as one.
use image::{Image, Meta, Place, Run, Span, Stop};

use crate::disk::FileId;

/// One image of a chain.
pub struct Layer {
    /// The format driver.
    pub image: Box<dyn Image>,
    /// Sectors this layer answered: read, written.
    pub hits: [u64; 2],
    /// Sectors of these that failed: read, written.
    pub fails: [u64; 2],
}

impl Layer {
    /// A layer without history.
    pub fn new(image: Box<dyn Image>) -> Layer {
        Layer { image, hits: [0; 2], fails: [0; 2] }
    }
}

/// The images of one disk; `layers[i]` lies in file `FileId(i)`.
pub struct Chain {
    /// Leaf first.
    pub layers: Vec<Layer>,
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
    /// Size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.layers[0].image.sectors()
    }

    /// Where the first sectors of `span` are, from layer `from` down.
    ///
    /// # Errors
    /// What the named layer has to have first.
    pub fn map(
        &self,
        views: &mut impl Views,
        from: usize,
        mut span: Span,
    ) -> Result<(Found, u32), (FileId, Stop)> {
        for (depth, layer) in self.layers.iter().enumerate().skip(from) {
            let id = FileId(depth as u8);
            let sectors = layer.image.sectors();
            // A parent may be shorter than its child: zeros beyond its end (spec/vhd.md §9).
            if span.start >= sectors {
                return Ok((Found::Zero, span.count));
            }
            let inside = sectors - span.start;
            span = span.first(u32::try_from(inside).unwrap_or(u32::MAX));
            let run =
                views.with(id, |meta| layer.image.map(meta, span)).map_err(|stop| (id, stop))?;
            assert!(run.count > 0 && run.count <= span.count, "a run is part of its span");
            match run {
                Run { place: Place::Below, count } => span.count = count,
                Run { place: Place::Zero, count } => return Ok((Found::Zero, count)),
                Run { place: Place::At { byte }, count } => {
                    return Ok((Found::At { layer: id, byte }, count));
                }
            }
        }
        Ok((Found::Zero, span.count))
    }
}
