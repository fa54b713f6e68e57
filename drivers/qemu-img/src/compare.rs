//! `compare`: whether two disks show the same.
use std::ffi::OsString;
use std::path::Path;

use image::Image;
use image::Span;
use image::blocking::{Layer as Reading, read};
use qcow2::map::Kind;

use crate::open::{self, Layer};
use crate::tool::{FORMAT, Fail, Outcome, PROGRESS, QUIET, SHARE, Tool, plain};
use crate::walk::Walk;

const CHUNK: u64 = 1 << 20;
/// An image does not open, or a read fails.
const NOT_OPENED: i32 = 2;
const NOT_READ: i32 = 4;

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("compare", "f:F:T:pqsU", &[FORMAT, QUIET, PROGRESS, SHARE], words);
    let o = o.map_err(|fail| Fail { code: NOT_OPENED, ..fail })?;
    let [a, b] = o.operands() else {
        let usage: Outcome = tool.usage("compare", "Expecting two image file names");
        return usage.map_err(|fail| Fail { code: NOT_OPENED, ..fail });
    };
    let opened = |name: &OsString, letter: char| {
        open::format_of(o.value(letter)).and_then(|format| open::chain(Path::new(name), format))
    };
    let both = opened(a, 'f').and_then(|a| Ok((a, opened(b, 'F')?)));
    let (a, b) = both.map_err(|fail| Fail { code: NOT_OPENED, ..fail })?;
    let differ = |at: u64| format!("Content mismatch at offset {at}!\n");
    let sizes = [&a, &b].map(|layers| layers[0].size.next_multiple_of(512));
    let mut said = String::new();
    let mut code = 0;
    if sizes[0] != sizes[1] && o.has('s') {
        (said, code) = ("Strict mode: Image size mismatch!\n".into(), 1);
    } else if let Some(at) = mismatch(&a, &b)? {
        (said, code) = (differ(at), 1);
    } else {
        if sizes[0] != sizes[1] {
            said.push_str("Warning: Image size mismatch!\n");
        }
        said.push_str("Images are identical.\n");
    }
    if !o.has('q') {
        tool.say(&said);
    }
    Ok(code)
}

/// One of the two, read in order; zeros behind its end.
struct Disk<'a> {
    layers: &'a [Layer],
    drivers: Vec<Box<dyn Image>>,
    walk: Walk<'a>,
}

impl<'a> Disk<'a> {
    fn new(layers: &'a [Layer]) -> Disk<'a> {
        let drivers = layers.iter().map(Layer::driver).collect();
        Disk { layers, drivers, walk: Walk::new(layers) }
    }

    /// Whether a range reads as zeros, as far as tables tell.
    fn is_zero(&mut self, at: u64, end: u64) -> Outcome<bool> {
        let mut at = at;
        while at < end.min(self.walk.size()) {
            let found = self.walk.at(at)?;
            if matches!(found.kind, Kind::Data { .. } | Kind::Packed) {
                return Ok(false);
            }
            at += found.bytes;
        }
        Ok(true)
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Outcome<()> {
        let there = self.walk.size().saturating_sub(at);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
        let (now, behind) = buf.split_at_mut(there);
        behind.fill(0);
        let chain = self.drivers.iter().zip(self.layers);
        let chain = chain.map(|(image, layer)| Reading { image: &**image, storage: &layer.file });
        let chain: Vec<Reading<'_>> = chain.collect();
        let count =
            u32::try_from(now.len() / 512).map_err(|_| Fail::from("a chunk is too long"))?;
        read(&chain, Span { start: at / 512, count }, now).map_err(|error| Fail {
            code: NOT_READ,
            text: format!(
                "Error while reading offset {at} of {}: {}",
                show::path(&self.layers[0].path),
                plain(&error)
            ),
        })
    }
}

/// The first sector that differs.
fn mismatch(a: &[Layer], b: &[Layer]) -> Outcome<Option<u64>> {
    let (mut a, mut b) = (Disk::new(a), Disk::new(b));
    let end = a.walk.size().max(b.walk.size());
    let mut bufs = [vec![0; 1 << 20], vec![0; 1 << 20]];
    let mut at = 0;
    while at < end {
        let upto = end.min(at + CHUNK);
        if !(a.is_zero(at, upto)? && b.is_zero(at, upto)?) {
            let bytes =
                usize::try_from(upto - at).map_err(|_| Fail::from("a chunk is too long"))?;
            let [left, right] = &mut bufs;
            let (left, right) = (&mut left[..bytes], &mut right[..bytes]);
            a.read(at, left)?;
            b.read(at, right)?;
            let sectors = left.chunks(512).zip(right.chunks(512));
            let first = (at..).step_by(512).zip(sectors).find(|(_, (left, right))| left != right);
            if let Some((at, _)) = first {
                return Ok(Some(at));
            }
        }
        at = upto;
    }
    Ok(None)
}
