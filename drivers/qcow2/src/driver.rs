//! Where the sectors of an open image are (spec/qcow2.md §2.2).
use std::cell::RefCell;

use image::{Image, Meta, MetaRef, Needs, Packed, Place, Plan, Run, Span, Step, Stop, Want};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::error::errno::{EIO, EROFS};
use crate::header::Header;
use crate::opened::Opened;

/// Bytes of a piece of a table at most.
const PIECE_BYTES: u16 = 4096;
/// Bits of an offset in an entry of a table.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an entry that have to be zero.
const RESERVED: u64 = 0x3f00_0000_0000_01fe;
const PACKED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Subclusters of a cluster.
const PARTS: u64 = 32;
/// Sectors of the largest cluster whose packed form is read within the reserves.
const PACKED_SECTORS_MAX: u64 = 128;

/// Bytes of a piece of a table of this image.
fn piece_bytes(header: &Header) -> u16 {
    u16::try_from(header.cluster()).map_or(PIECE_BYTES, |cluster| cluster.min(PIECE_BYTES))
}

/// An index of something in memory.
fn index(number: u64) -> usize {
    usize::try_from(number).expect("it is an index of what is in memory")
}

/// Sectors or bytes of a cluster or two.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).expect("a cluster has 2 MiB at most")
}

/// An entry of an L2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    word: u64,
    /// Of an image with subclusters: which are there (low half), which read as zeros (high half).
    parts: u64,
}

/// What a part of a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Here,
    Zero,
    Below,
}

/// An open image.
pub struct Qcow2 {
    header: Header,
    l1: Vec<u64>,
    bytes: u64,
    sectors: u64,
    cluster_sectors: u64,
    inflate: RefCell<Box<DecompressorOxide>>,
}

impl Qcow2 {
    /// The driver of an image that was opened.
    pub fn new(opened: Opened) -> Qcow2 {
        let sectors = opened.sectors();
        let Opened { header, l1, bytes } = opened;
        let cluster_sectors = header.cluster() / 512;
        Qcow2 { header, l1, bytes, sectors, cluster_sectors, inflate: RefCell::default() }
    }

    fn damaged(why: &'static str) -> Stop {
        Stop::Fail { errno: EIO, why }
    }

    /// The piece of the L2 table with the entry of a cluster, and the entry's byte in it; `None`:
    /// there is no table.
    fn piece(&self, cluster: u64) -> Result<Option<(MetaRef, usize)>, Stop> {
        let entries = self.header.entries();
        let word = self.l1[index(cluster / entries)];
        let table = word & OFFSET;
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(self.header.cluster()) {
            return Err(Qcow2::damaged("an L1 entry is not on a cluster"));
        }
        let byte = cluster % entries * self.header.entry_bytes();
        let bytes = u64::from(piece_bytes(&self.header));
        let r = MetaRef { at: table + byte / bytes * bytes, bytes: piece_bytes(&self.header) };
        if r.at + bytes > self.bytes {
            return Err(Qcow2::damaged("an L1 entry points outside the file"));
        }
        Ok(Some((r, index(byte % bytes))))
    }

    fn entry(&self, piece: &[u8], at: usize) -> Entry {
        let word = |at: usize| {
            u64::from_be_bytes(piece[at..at + 8].try_into().expect("an entry lies in its piece"))
        };
        Entry { word: word(at), parts: if self.header.extended { word(at + 8) } else { 0 } }
    }

    /// Sectors of a part of a cluster: of a subcluster where there are some.
    fn part_sectors(&self) -> u64 {
        self.cluster_sectors / if self.header.extended { PARTS } else { 1 }
    }

    /// What a part of a cluster is.
    fn part(&self, entry: Entry, number: u64) -> Result<Part, Stop> {
        let here = entry.word & OFFSET != 0;
        if !self.header.extended {
            // Version 2 knows no zeros; qemu reads the bit there, too.
            return Ok(match entry.word & ZERO != 0 {
                true => Part::Zero,
                false if here => Part::Here,
                false => Part::Below,
            });
        }
        let (there, zero) = (entry.parts >> number & 1 == 1, entry.parts >> (number + 32) & 1 == 1);
        match (there, zero) {
            (true, true) => Err(Qcow2::damaged("a subcluster is there and zero at once")),
            (true, false) if !here => {
                Err(Qcow2::damaged("a subcluster is there without a cluster"))
            }
            (true, false) => Ok(Part::Here),
            (false, true) => Ok(Part::Zero),
            (false, false) => Ok(Part::Below),
        }
    }

    /// Checks an entry that is not packed.
    fn check(&self, entry: Entry) -> Result<(), Stop> {
        let at = entry.word & OFFSET;
        let bad = match () {
            () if entry.word & RESERVED != 0 => "an L2 entry has unknown bits",
            () if !at.is_multiple_of(self.header.cluster()) => "an L2 entry is not on a cluster",
            () if self.header.extended && entry.word & ZERO != 0 => "an L2 entry has unknown bits",
            () => return Ok(()),
        };
        Err(Qcow2::damaged(bad))
    }

    /// Where packed data of a cluster is.
    fn packed(&self, word: u64, skip: u64) -> Result<Packed, Stop> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let byte = word & ((1 << bits) - 1);
        let more = (word & !PACKED & !(1 << 63)) >> bits;
        if self.cluster_sectors > PACKED_SECTORS_MAX {
            return Err(Qcow2::damaged("clusters of more than 64 KiB are not unpacked"));
        }
        if word & 1 << 63 != 0 || byte >= self.bytes {
            return Err(Qcow2::damaged("a packed cluster lies outside the file"));
        }
        let bytes = ((more + 1) * 512 - byte % 512).min(self.bytes - byte);
        let (sectors, skip) = (narrow(self.cluster_sectors), narrow(skip));
        Ok(Packed { byte, bytes: narrow(bytes), sectors, skip })
    }

    /// A run in the file, up to where the file ends: what lies behind reads as zeros.
    fn at(&self, byte: u64, count: u32) -> Run {
        let there = self.bytes.saturating_sub(byte) / 512;
        match u32::try_from(there).unwrap_or(u32::MAX) {
            0 => Run { place: Place::Zero, count },
            there => Run { place: Place::At { byte }, count: count.min(there) },
        }
    }

    /// The first sectors of a span, whose first cluster has its entry at `at` of a piece. Goes on
    /// over what is side by side, in this piece.
    fn run(&self, span: Span, piece: &[u8], at: usize) -> Result<Run, Stop> {
        let entry = self.entry(piece, at);
        let (sectors, inside) = (self.cluster_sectors, span.start % self.cluster_sectors);
        let rest = span.first(narrow(sectors - inside));
        if entry.word & PACKED != 0 {
            let place = Place::Packed(self.packed(entry.word, inside)?);
            return Ok(Run { place, count: rest.count });
        }
        self.check(entry)?;
        let size = self.part_sectors();
        let first = self.part(entry, inside / size)?;
        let byte = (entry.word & OFFSET) + inside * 512;
        let mut count = 0;
        let (mut at, mut start) = (at, span.start);
        let entry_bytes = index(self.header.entry_bytes());
        while count < span.count && at + entry_bytes <= piece.len() {
            let next = self.entry(piece, at);
            let host = next.word & OFFSET;
            let follows = first != Part::Here
                || host + start % sectors * 512 == byte + u64::from(count) * 512;
            if next.word & PACKED != 0 || !follows || self.check(next).is_err() {
                break;
            }
            let mut number = start % sectors / size;
            let end = sectors / size;
            while number < end && count < span.count && self.part(next, number) == Ok(first) {
                let upto = (number + 1) * size - start % sectors;
                let more = narrow(upto).min(span.count - count);
                (count, start, number) = (count + more, start + u64::from(more), number + 1);
            }
            if number < end {
                break;
            }
            at += entry_bytes;
        }
        Ok(match first {
            Part::Here => self.at(byte, count),
            Part::Zero => Run { place: Place::Zero, count },
            Part::Below => Run { place: Place::Below, count },
        })
    }
}

impl Image for Qcow2 {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn needs(&self) -> Needs {
        // The same for all cluster sizes: a disk may go on with another image after a pause.
        let packed = narrow(PACKED_SECTORS_MAX);
        Needs { meta_bytes: PIECE_BYTES, packed, ..Needs::NONE }
    }

    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        let cluster = span.start / self.cluster_sectors;
        let Some((r, at)) = self.piece(cluster)? else {
            // To the end of what the absent table covers.
            let table = self.header.entries() * self.cluster_sectors;
            let rest = table - span.start % table;
            let count = span.count.min(u32::try_from(rest).unwrap_or(u32::MAX));
            return Ok(Run { place: Place::Below, count });
        };
        self.run(span, meta.get(r)?, at)
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

    fn plan(&mut self, _: &mut dyn Meta, _: Span, _: Want) -> Result<Plan, Stop> {
        Err(Stop::Fail { errno: EROFS, why: "qcow2 images are only read" })
    }

    fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> Step {
        Step::NONE
    }

    fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) -> bool {
        false
    }
}
