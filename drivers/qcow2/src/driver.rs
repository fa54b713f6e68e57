//! Where the sectors of an open image are (docs/spec/qcow2.md §2.2).
use std::cell::RefCell;

use image::{
    Closing, Image, Meta, MetaRef, Needs, Packed, Place, Plan, Run, Span, Step, Stop, Want,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::bug::Bug;
use crate::entry::{COPIED, PACKED, Part, Shape, damaged};
use crate::error::errno::EROFS;
use crate::header::Header;
use crate::opened::Opened;
use crate::ready::Ready;
use crate::tables::{PIECE_BYTES, Tables};
use crate::write::Work;

/// Sectors of the largest cluster that packed clusters have room for in any case.
const PACKED_SECTORS: u64 = 128;

/// Sectors or bytes of a cluster or two.
pub(crate) fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("a cluster has 2 MiB at most")
}

/// An open image.
pub struct Qcow2 {
    pub(crate) header: Header,
    pub(crate) tables: Tables,
    pub(crate) shape: Shape,
    /// Bytes of the file of an image that is only read.
    bytes: u64,
    pub(crate) sectors: u64,
    inflate: RefCell<Box<DecompressorOxide>>,
    /// A planted one.
    pub(crate) bug: Bug,
    /// What it takes to write it.
    pub(crate) work: Option<Box<Work>>,
}

impl Qcow2 {
    /// The driver of an image that was opened, to be read.
    pub fn new(opened: Opened) -> Qcow2 {
        let sectors = opened.sectors();
        let Opened { header, l1, bytes } = opened;
        let (tables, shape) = (Tables::new(&header, l1), Shape::of(&header));
        Qcow2 {
            header,
            tables,
            shape,
            bytes,
            sectors,
            inflate: RefCell::default(),
            bug: Bug::None,
            work: None,
        }
    }

    /// The driver of one that was made ready to be written.
    pub fn to_write(ready: Ready) -> Qcow2 {
        let Ready { opened, blocks, own, space } = ready;
        let read = Qcow2::new(opened);
        let tables = read.tables.with_counts(blocks, own);
        Qcow2 { tables, work: Some(Box::new(Work::new(space))), ..read }
    }

    /// The features of its header once it is clean.
    pub fn clean_features(&self) -> u64 {
        self.header.features_without_dirty()
    }

    /// Whether this bug is planted; none is in what is installed.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        cfg!(any(debug_assertions, feature = "canary")) && self.bug == bug
    }

    /// The byte of the file before which everything is that a table may point at.
    fn end(&self) -> u64 {
        self.work.as_ref().map_or(self.bytes, |work| work.space.end())
    }

    /// The piece of the L2 table with the entry of a cluster, and the entry's byte in it; `None`:
    /// there is no table.
    pub(crate) fn piece(&self, cluster: u64) -> Result<Option<(MetaRef, usize)>, Stop> {
        self.tables.entry_piece(cluster, self.end())
    }

    /// Where packed data is in the file: from a byte to before another.
    pub(crate) fn packed_range(&self, word: u64) -> Result<(u64, u64), Stop> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let byte = word & ((1 << bits) - 1);
        let more = (word & !PACKED & !COPIED) >> bits;
        let end = self.end();
        if word & COPIED != 0 || byte >= end {
            return Err(damaged("a packed cluster lies outside the file"));
        }
        Ok((byte, (byte / 512 * 512 + (more + 1) * 512).min(end)))
    }

    /// The same with what is packed there.
    pub(crate) fn packed(&self, word: u64, skip: u64) -> Result<Packed, Stop> {
        let (byte, end) = self.packed_range(word)?;
        let (sectors, skip) = (narrow(self.shape.sectors), narrow(skip));
        Ok(Packed { byte, bytes: narrow(end - byte), sectors, skip })
    }

    /// A run in the file. What lies behind the end of one that is only read reads as zeros; in one
    /// that is written it would be somebody else's soon.
    fn at(&self, byte: u64, count: u32) -> Result<Run, Stop> {
        let there = self.end().saturating_sub(byte) / 512;
        let there = u32::try_from(there).unwrap_or(u32::MAX);
        if self.work.is_some() && there < count {
            return Err(damaged("an L2 entry points behind all that is counted"));
        }
        Ok(match there {
            0 => Run { place: Place::Zero, count },
            there => Run { place: Place::At { byte }, count: count.min(there) },
        })
    }

    /// The first sectors of a span, whose first cluster has its entry at `at` of a piece. Goes on
    /// over what is side by side, in this piece.
    pub(crate) fn run(&self, span: Span, piece: &[u8], at: usize) -> Result<Run, Stop> {
        let shape = self.shape;
        let entry = shape.get(piece, at);
        let (sectors, inside) = (shape.sectors, span.start % shape.sectors);
        let rest = span.first(narrow(sectors - inside));
        if entry.is_packed() {
            let place = Place::Packed(self.packed(entry.word, inside)?);
            return Ok(Run { place, count: rest.count });
        }
        shape.check(entry)?;
        let size = shape.part_sectors();
        let first = shape.part(entry, inside / size)?;
        let byte = entry.host() + inside * 512;
        let mut count = 0;
        let (mut at, mut start) = (at, span.start);
        while count < span.count && at + shape.entry_bytes() <= piece.len() {
            let next = shape.get(piece, at);
            let follows = first != Part::Here
                || next.host() + start % sectors * 512 == byte + u64::from(count) * 512;
            if next.is_packed() || !follows || shape.check(next).is_err() {
                break;
            }
            let mut number = start % sectors / size;
            let end = sectors / size;
            while number < end && count < span.count && shape.part(next, number) == Ok(first) {
                let upto = (number + 1) * size - start % sectors;
                let more = narrow(upto).min(span.count - count);
                (count, start, number) = (count + more, start + u64::from(more), number + 1);
            }
            if number < end {
                break;
            }
            at += shape.entry_bytes();
        }
        match first {
            Part::Here => self.at(byte, count),
            Part::Zero => Ok(Run { place: Place::Zero, count }),
            Part::Below => Ok(Run { place: Place::Below, count }),
        }
    }

    /// The sectors from a span's first on that lie in the clusters of an L2 table that is not
    /// there.
    pub(crate) fn tableless(&self, span: Span) -> u32 {
        let table = self.shape.entries * self.shape.sectors;
        let rest = table - span.start % table;
        span.count.min(u32::try_from(rest).unwrap_or(u32::MAX))
    }
}

impl Image for Qcow2 {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn needs(&self) -> Needs {
        // The same for all usual sizes: a disk may go on with another image after a pause.
        let packed = narrow(self.shape.sectors.max(PACKED_SECTORS));
        let writes = self.work.is_some();
        Needs { meta_bytes: PIECE_BYTES, packed, fills: writes, chores: writes }
    }

    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        match self.piece(span.start / self.shape.sectors)? {
            Some((r, at)) => self.run(span, meta.get(r)?, at),
            None => Ok(Run { place: Place::Below, count: self.tableless(span) }),
        }
    }

    fn unpack(&self, packed: &[u8], unit: &mut [u8]) -> Result<(), &'static str> {
        let mut state = self.inflate.borrow_mut();
        state.init();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, written) = decompress(&mut state, packed, unit, 0, flags);
        // A stream may go on: a cluster of output is all that counts.
        let whole = written == unit.len();
        match status {
            TINFLStatus::Done | TINFLStatus::HasMoreOutput if whole => Ok(()),
            _ => Err("a packed cluster cannot be unpacked"),
        }
    }

    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        if self.work.is_none() {
            return Err(Stop::Fail { errno: EROFS, why: "the image was opened to be read" });
        }
        self.plan_change(meta, span, want)
    }

    fn chore(&mut self, meta: &mut dyn Meta) -> Result<Option<Plan>, Stop> {
        self.next_chore(meta)
    }

    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step {
        self.step_landed(meta, plan, step)
    }

    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        self.plan_over(meta, plan, ok)
    }

    fn changed_by_others(&mut self) {
        self.bytes = u64::MAX;
    }

    fn keep_places(&mut self, keep: bool) {
        if let Some(work) = &mut self.work {
            work.space.keep_dead(keep);
        }
    }

    fn closing(&mut self) -> Closing {
        self.last_writes()
    }
}
