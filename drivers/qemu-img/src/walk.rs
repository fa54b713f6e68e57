//! A disk from its first byte to its last: which image of a chain has what.
use std::fs::File;

use image::Storage;
use qcow2::map::{Kind, Map};
use rustix::fs::{SeekFrom, seek};

use crate::open::Layer;
use crate::tool::Outcome;

/// A range of a disk that is one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    /// Which image has it, or was asked last.
    pub(crate) depth: usize,
    pub(crate) kind: Kind,
}

/// A walk through a chain.
pub(crate) struct Walk<'a> {
    layers: &'a [Layer],
    maps: Vec<Option<Map<'a>>>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(layers: &'a [Layer]) -> Walk<'a> {
        let map = |layer: &'a Layer| {
            layer.opened.as_ref().map(|opened| Map::new(&layer.file.0, &layer.path, opened))
        };
        Walk { layers, maps: layers.iter().map(map).collect() }
    }

    /// Bytes of the disk, whole sectors.
    pub(crate) fn size(&self) -> u64 {
        self.layers[0].size.next_multiple_of(512)
    }

    /// What is at a byte of the disk, and how far. [`Kind::Below`]: no image has it.
    pub(crate) fn at(&mut self, start: u64) -> Outcome<Found> {
        let mut bytes = self.size() - start;
        let mut last = 0;
        for (depth, layer) in self.layers.iter().enumerate() {
            let end = layer.size.next_multiple_of(512);
            if start >= end {
                break;
            }
            bytes = bytes.min(end - start);
            last = depth;
            let (here, kind) = match &mut self.maps[depth] {
                Some(map) => map.at(start).map(|extent| (extent.bytes, extent.kind))?,
                None => raw(&layer.file.0, start, end)?,
            };
            bytes = bytes.min(here);
            if kind != Kind::Below {
                return Ok(Found { start, bytes, depth, kind });
            }
        }
        Ok(Found { start, bytes, depth: last, kind: Kind::Below })
    }

    /// The same, with what is the same behind it, before `end`.
    pub(crate) fn run(&mut self, start: u64, end: u64) -> Outcome<Found> {
        let mut all = self.at(start)?;
        all.bytes = all.bytes.min(end - start);
        while start + all.bytes < end {
            let next = self.at(start + all.bytes)?;
            if next.depth != all.depth || !follows(all.kind, all.bytes, next.kind) {
                break;
            }
            all.bytes = (all.bytes + next.bytes).min(end - start);
        }
        Ok(all)
    }
}

/// Whether one kind goes on as another so many bytes later.
fn follows(first: Kind, bytes: u64, next: Kind) -> bool {
    match (first, next) {
        (Kind::Data { at }, Kind::Data { at: next }) => at + bytes == next,
        (Kind::Zero { at }, Kind::Zero { at: next }) => at.map(|at| at + bytes) == next,
        (Kind::Packed, Kind::Packed) | (Kind::Below, Kind::Below) => true,
        _ => false,
    }
}

/// Data or a hole of a raw file.
fn raw(file: &File, start: u64, end: u64) -> Outcome<(u64, Kind)> {
    let data = (end - start, Kind::Data { at: start });
    if file.is_device() {
        return Ok(data);
    }
    match seek(file, SeekFrom::Data(start)) {
        Ok(at) if at > start => Ok((at.min(end) - start, Kind::Zero { at: Some(start) })),
        Ok(_) => {
            let hole = seek(file, SeekFrom::Hole(start)).unwrap_or(end);
            // Holes begin on sectors of the disk.
            let hole = hole.next_multiple_of(512).min(end);
            Ok((hole.max(start + 512).min(end) - start, Kind::Data { at: start }))
        }
        // Nothing but a hole up to the end.
        Err(rustix::io::Errno::NXIO) => Ok((end - start, Kind::Zero { at: Some(start) })),
        Err(_) => Ok(data),
    }
}
