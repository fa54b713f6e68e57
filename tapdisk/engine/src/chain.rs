//! The images of one disk read as one, and what stands beside them: a secondary, a changed-block
//! log, the rule that what is read from below is kept in the leaf.
//!
//! ```text
//!   writes ─► log ─► secondary (mirror), then top                reads: order[0] ─► order[1] ─► … ─► zeros
//! ```
use std::ops::Range;

use image::{Changes, Cipher, Image, Meta, Packed, Place, Purpose, Run, Span, Stop};

use crate::parent_cache::ParentCache;
use request::disk::FileId;

/// What an image is to its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes changes, and is read first. `keeps`: what is read from below is written into it (`-r`).
    Top {
        /// See above.
        keeps: bool,
    },
    /// Is read.
    Parent,
    /// Gets every change before the top.
    Mirror {
        /// It is read right below the top, since it may hold data that the top has not, and can
        /// take over. One that holds every sector (raw, remote) would hide what lies below.
        read: bool,
        /// When it fails, the disk goes on without it.
        remote: bool,
    },
    /// Takes over when the top has no space left; not read until then.
    Standby,
    /// Is read as the top's parent, and gets every change before the top: the top is being
    /// committed to it. Until all is there the disk goes on without it when it fails.
    Base,
}

/// Why images make no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The first one has to be the top, and no other.
    Top,
    /// A mirror or standby has to be the last one, a base the second, and each the only one.
    Secondary,
    /// The mirror that is read cannot be one that the disk goes on without.
    RemoteRead,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Misfit::Top => "the first image of a chain is its top, and no other is",
            Misfit::Secondary => {
                "a chain has one secondary at most: a base right below the top, any other last"
            }
            Misfit::RemoteRead => "a remote mirror is not read",
        })
    }
}

/// One image of a chain.
pub struct Layer {
    /// What it is.
    pub role: Role,
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
    pub fn new(role: Role, image: Box<dyn Image>) -> Layer {
        Layer { role, image, cipher: None, hits: [0; 2], fails: [0; 2] }
    }
}

/// A secondary: a second writable image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secondary {
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

impl Secondary {
    /// Whether it gets every change before the top.
    pub fn mirrors(self) -> bool {
        matches!(self.purpose, Purpose::Mirror | Purpose::Base)
    }

    /// Whether it can become the top. A base does not hold all that the top has.
    fn takes_over(self) -> bool {
        self.read && self.purpose != Purpose::Base
    }
}

/// The images of one disk; `layers[i]` lies in file `FileId(i)`.
pub struct Chain {
    /// By file.
    pub layers: Vec<Layer>,
    /// In the order of reading, top first. A secondary that is only written is not in it.
    order: Vec<FileId>,
    /// The secondary, while it serves its purpose.
    secondary: Option<Secondary>,
    /// The leaf that a secondary has taken over from: what was written to it may still be on its
    /// way to the medium.
    pub former: Option<FileId>,
    /// Told of every change first.
    pub changes: Option<Box<dyn Changes>>,
    /// What is read from below the top is written into it.
    local_cache: bool,
    /// The first place of the order from which on nothing changes while the chain is open.
    fixed: usize,
    parents: ParentCache,
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
    /// In a layer's file, packed.
    Packed {
        /// Which layer.
        layer: FileId,
        /// Where there.
        packed: Packed,
    },
    /// In none: zeros.
    Zero,
}

/// The cache as each layer sees it; implemented by the engine.
pub trait Views {
    /// Calls `f` with the view of `layer`.
    fn with<R>(&mut self, layer: FileId, f: impl FnOnce(&mut dyn Meta) -> R) -> R;
}

/// Whether images of these roles make a chain, top first; the secondary among them.
///
/// # Errors
/// What does not fit.
pub fn fit(roles: &[Role]) -> Result<Option<Secondary>, Misfit> {
    let is_top = |role: &Role| matches!(role, Role::Top { .. });
    if !roles.first().is_some_and(is_top) || roles.iter().skip(1).any(is_top) {
        return Err(Misfit::Top);
    }
    let mut secondary = None;
    for (file, role) in (0..).map(FileId).zip(roles) {
        let (purpose, remote, read) = match *role {
            Role::Top { .. } | Role::Parent => continue,
            Role::Mirror { read: true, remote: true } => return Err(Misfit::RemoteRead),
            Role::Mirror { read, remote } => (Purpose::Mirror, remote, read),
            Role::Standby => (Purpose::Standby, false, true),
            Role::Base => (Purpose::Base, false, true),
        };
        let place = if purpose == Purpose::Base { 1 } else { roles.len() - 1 };
        if usize::from(file.0) != place || secondary.is_some() {
            return Err(Misfit::Secondary);
        }
        secondary = Some(Secondary { file, purpose, remote, read });
    }
    Ok(secondary)
}

impl Chain {
    /// A chain of images by their roles: the top, its parents, a secondary.
    ///
    /// # Errors
    /// What does not fit.
    pub fn new(layers: Vec<Layer>) -> Result<Chain, Misfit> {
        let roles: Vec<Role> = layers.iter().map(|layer| layer.role).collect();
        let secondary = fit(&roles)?;
        // Room for a secondary, so that taking over allocates nothing.
        let mut order = Vec::with_capacity(layers.len() + 1);
        let read = (0..).map(FileId).zip(&layers);
        order.extend(
            read.filter(|(file, _)| secondary.is_none_or(|s| s.file != *file)).map(|f| f.0),
        );
        if let Some(secondary) = secondary.filter(|s| s.mirrors() && s.read) {
            order.insert(1, secondary.file);
        }
        let local_cache = matches!(layers[0].role, Role::Top { keeps: true });
        // Now or later the secondary and the leaf are the first two.
        let fixed = if secondary.is_some() { 2 } else { 1 };
        let (former, changes, parents) = (None, None, ParentCache::default());
        Ok(Chain { layers, order, secondary, former, changes, local_cache, fixed, parents })
    }

    /// A top and its parents.
    pub fn of(images: Vec<Box<dyn Image>>) -> Chain {
        let role = |i| if i == 0 { Role::Top { keeps: false } } else { Role::Parent };
        let layers = images.into_iter().enumerate().map(|(i, image)| Layer::new(role(i), image));
        Chain::new(layers.collect()).expect("a top and parents fit")
    }

    /// Remembers from now on which of the images that do not change holds a page. Takes up to 2
    /// MiB.
    pub fn remember(&mut self) {
        self.parents = ParentCache::new(self.sectors());
    }

    /// Plants a bug: what the top holds is remembered too, though it changes. The simulator has to
    /// find it.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn remember_too_much(&mut self) {
        self.remember();
        self.fixed = 0;
    }

    /// The secondary, while it serves its purpose.
    #[inline]
    pub fn secondary(&self) -> Option<Secondary> {
        self.secondary
    }

    /// The disk goes on without its secondary.
    pub fn lose_second(&mut self) {
        self.secondary = None;
    }

    /// Whether what is read from below the top is written into it.
    #[inline]
    pub fn keeps_reads(&self) -> bool {
        self.local_cache
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
        let Some(secondary) = self.secondary.take_if(|s| s.takes_over()) else { return false };
        match self.order.iter().position(|file| *file == secondary.file) {
            Some(at) => self.order[..=at].rotate_right(1),
            None => self.order.insert(0, secondary.file),
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
    // Left to itself the compiler makes calls of it: 30 instructions a request (`make bench-cost`).
    #[inline(always)]
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
            && let Some(found) = self.parents.find(span)
        {
            return Ok((found, span.count));
        }
        let (found, span) = self.ask(views, from.max(fixed)..self.order.len(), span)?;
        let found = found.unwrap_or(Found::Zero);
        if from <= fixed {
            self.parents.note(span, found);
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
                Run { place: Place::Packed(packed), count } => {
                    return Ok((Some(Found::Packed { layer: id, packed }), span.first(count)));
                }
            }
        }
        Ok((None, span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_has_one_top_and_one_secondary_in_their_places() {
        let top = Role::Top { keeps: false };
        let mirror = |read, remote| Role::Mirror { read, remote };
        let fits = |roles: &[Role]| fit(roles).map(|found| found.map(|s| (s.file.0, s.read)));
        assert_eq!(fits(&[top]), Ok(None));
        assert_eq!(fits(&[top, Role::Parent, mirror(true, false)]), Ok(Some((2, true))));
        assert_eq!(fits(&[top, mirror(false, true)]), Ok(Some((1, false))));
        assert_eq!(fits(&[top, Role::Parent, Role::Standby]), Ok(Some((2, true))));
        assert_eq!(fits(&[top, Role::Base, Role::Parent]), Ok(Some((1, true))));
        for roles in [vec![], vec![Role::Parent], vec![top, top], vec![Role::Standby, top]] {
            assert_eq!(fits(&roles), Err(Misfit::Top), "{roles:?}");
        }
        for roles in [
            vec![top, Role::Standby, Role::Parent],
            vec![top, Role::Standby, Role::Standby],
            vec![top, mirror(true, false), Role::Standby],
            vec![top, Role::Parent, Role::Base],
            vec![top, Role::Base, Role::Standby],
        ] {
            assert_eq!(fits(&roles), Err(Misfit::Secondary), "{roles:?}");
        }
        assert_eq!(fits(&[top, mirror(true, true)]), Err(Misfit::RemoteRead));
    }
}
