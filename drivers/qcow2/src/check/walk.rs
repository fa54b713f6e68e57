//! What an image uses: each table and each cluster that one points at.
use super::{Check, ENTRIES_MAX, Said, too_much};
use crate::count::Width;
use crate::counts::TooMuch;
use crate::error::{Error, errno::EFBIG};
use crate::head::{Bitmaps, lies_in, read_zeroed, words};
use crate::num::{size, wide, word32, word64};
use crate::snapshots::{Snapshot, snapshots};

/// Bits of an offset in an entry of L1, L2 and of a bitmap's table.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const COPIED: u64 = 1 << 63;
pub(super) const PACKED: u64 = 1 << 62;
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const TABLE_RESERVED: u64 = 0x1ff;
const THERE: u64 = 0xffff_ffff;
/// Entries of a table that are read at once.
const PIECE: u64 = 8192;
/// Largest L1 of a snapshot, and table of a bitmap.
const L1_ENTRIES_MAX: u32 = 4 << 20;

/// What an entry of an L2 table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Packed,
    /// It has a cluster.
    Here,
    /// It has none.
    None,
}

pub(super) fn kind(word: u64) -> Kind {
    match word {
        packed if packed & PACKED != 0 => Kind::Packed,
        here if here & OFFSET != 0 => Kind::Here,
        _ => Kind::None,
    }
}

/// Entries of an L2 table that are not all zeros: number, first word, second word.
pub(super) fn entries(table: &[u8], each: usize) -> impl Iterator<Item = (usize, u64, u64)> {
    let parts = move |entry: &[u8]| if each == 16 { word64(entry, 8) } else { 0 };
    let all = table.chunks_exact(each).enumerate();
    let all = all.map(move |(number, entry)| (number, word64(entry, 0), parts(entry)));
    all.filter(|(_, word, parts)| word | parts != 0)
}

impl Check<'_> {
    /// Uses by everything but the counts.
    pub(crate) fn data_references(&mut self) -> Result<(), Error> {
        let header = &self.head.header;
        let (l1_at, l1_entries) = (header.l1_at, header.l1_entries);
        self.use_range(0, header.cluster())?;
        self.l1(l1_at, l1_entries, true)?;
        let (all, bytes) = snapshots(self.storage, self.name, self.head)?;
        for snapshot in &all {
            self.snapshot(snapshot)?;
        }
        self.use_range(self.head.snapshots_at(), bytes)?;
        match self.head.bitmaps() {
            Some(bitmaps) => self.bitmaps(bitmaps),
            None => Ok(()),
        }
    }

    /// Uses by the counts.
    pub(crate) fn count_references(&mut self) -> Result<(), Error> {
        let header = &self.head.header;
        let (at, cluster) = (header.table_at, header.cluster());
        self.use_range(at, u64::from(header.table_clusters) * cluster)?;
        for number in 0..self.table.entries.len() {
            let word = self.table.entries[number];
            if word != 0 {
                self.block(number, word, cluster)?;
            }
        }
        Ok(())
    }

    fn block(&mut self, number: usize, word: u64, cluster: u64) -> Result<(), Error> {
        let bad = match () {
            () if word & TABLE_RESERVED != 0 => {
                format!("ERROR refcount table entry {number} has reserved bits set")
            }
            () if !word.is_multiple_of(cluster) => format!(
                "ERROR refcount block {number} is not cluster aligned; \
                 refcount table entry corrupted"
            ),
            () if word / cluster >= self.head.clusters() => {
                format!("ERROR refcount block {number} is outside image")
            }
            () => {
                self.use_range(word, cluster)?;
                match self.uses.get(word / cluster) {
                    1 => return Ok(()),
                    count => format!("ERROR refcount block {number} refcount={count}"),
                }
            }
        };
        self.rebuild = true;
        self.corrupt(&bad);
        Ok(())
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let (id, name) = (show::bytes(&snapshot.id), show::bytes(&snapshot.name));
        let (at, entries) = (snapshot.l1_at, snapshot.l1_entries);
        // Of a table of nothing: what it was about may be in use.
        self.unsure |= at == 0 || entries == 0;
        let bad = match () {
            () if !at.is_multiple_of(self.head.header.cluster()) => {
                format!("l1_offset={at:#x}: L1 table is not cluster aligned")
            }
            () if entries > L1_ENTRIES_MAX => {
                format!("l1_size={entries:#x}: L1 table is too large")
            }
            () => return self.l1(at, entries, false),
        };
        self.unsure = true;
        self.corrupt(&format!(
            "ERROR snapshot {id} ({name}) {bad}; snapshot table entry corrupted"
        ));
        Ok(())
    }

    /// An L1, and the tables that it points at.
    fn l1(&mut self, at: u64, count: u32, active: bool) -> Result<(), Error> {
        let (count, cluster) = (u64::from(count), self.head.header.cluster());
        self.use_range(at, count * 8)?;
        let mut table = vec![0; size(cluster)];
        let mut first = 0;
        while first < count {
            let now = PIECE.min(count - first);
            let Some(place) = at.checked_add(first * 8).filter(|at| *at < self.head.len) else {
                break;
            };
            let piece = words(self.storage, self.name, place, now, "its L1 table")?;
            for (number, word) in (first..).zip(piece).filter(|(_, word)| *word != 0) {
                self.l1_entry(word, active, &mut table)?;
                if active {
                    (self.said)(Said::Progress { done: number + 1, total: count });
                }
            }
            first += now;
        }
        Ok(())
    }

    fn l1_entry(&mut self, word: u64, active: bool, table: &mut [u8]) -> Result<(), Error> {
        let cluster = self.head.header.cluster();
        if word & L1_RESERVED != 0 {
            self.corrupt(&format!("ERROR found L1 entry with reserved bits set: {word:x}"));
        }
        let at = word & OFFSET;
        if at == 0 {
            return Ok(());
        }
        if !at.is_multiple_of(cluster) {
            self.unsure = true;
            self.use_range(at, cluster)?;
            self.corrupt(&format!(
                "ERROR l2_offset={at:x}: Table is not cluster aligned; L1 entry corrupted"
            ));
            return Ok(());
        }
        if !self.use_range(at, cluster)? {
            return Ok(());
        }
        self.wrong += u64::from(active && self.is_wrong(word, at));
        let failed = |error| Error::io(self.name, "an L2 table", &error);
        read_zeroed(self.storage, at, table).map_err(failed)?;
        self.l2(table, active)
    }

    /// Whether COPIED does not say what the file's count says.
    pub(super) fn is_wrong(&self, word: u64, at: u64) -> bool {
        let once = self.disk.get(at / self.head.header.cluster()) == 1;
        once != (word & COPIED != 0)
    }

    fn l2(&mut self, table: &[u8], active: bool) -> Result<(), Error> {
        let each = size(self.head.header.entry_bytes());
        self.entries += wide(table.len() / each);
        if self.entries > ENTRIES_MAX {
            let why =
                "names its tables so often that looking at them takes for ever: qemu-img check";
            return Err(Error::new(self.name, EFBIG, why));
        }
        let mut next = 0;
        for (number, word, parts) in entries(table, each) {
            match kind(word) {
                Kind::Packed => self.packed(number, word, parts, active)?,
                Kind::Here => self.here(word, parts, active, &mut next)?,
                Kind::None => self.none(word, parts),
            }
        }
        Ok(())
    }

    fn reserved(&mut self, word: u64) {
        if word & L2_RESERVED != 0 {
            self.corrupt(&format!("ERROR found l2 entry with reserved bits set: {word:x}"));
        }
    }

    fn none(&mut self, word: u64, parts: u64) {
        self.reserved(word);
        if parts & THERE != 0 {
            self.corrupt("ERROR: Unallocated cluster has non-zero subcluster allocation map");
        }
    }

    fn here(&mut self, word: u64, parts: u64, active: bool, next: &mut u64) -> Result<(), Error> {
        self.reserved(word);
        let (at, cluster) = (word & OFFSET, self.head.header.cluster());
        if parts >> 32 & parts != 0 {
            self.corrupt(&format!(
                "ERROR offset={at:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ));
        }
        if !at.is_multiple_of(cluster) {
            let data =
                if self.head.header.extended { parts & THERE != 0 } else { word & ZERO == 0 };
            let what = if data { "Data" } else { "Preallocated" };
            self.unsure = true;
            self.corrupt(&format!(
                "ERROR offset={at:x}: {what} cluster is not properly aligned; L2 entry corrupted."
            ));
        }
        if active {
            self.report.allocated += 1;
            self.report.fragmented += u64::from(*next != 0 && at != *next);
            *next = at + cluster;
            self.wrong += u64::from(self.is_wrong(word, at));
        }
        self.use_range(at, cluster).map(drop)
    }

    fn packed(&mut self, number: usize, word: u64, parts: u64, active: bool) -> Result<(), Error> {
        let bits = 62 - (self.head.header.cluster_bits - 8);
        let byte = word & ((1 << bits) - 1);
        if word & COPIED != 0 {
            self.corrupt(&format!(
                "ERROR: coffset=0x{byte:x}: copied flag must never be set for compressed clusters"
            ));
        }
        if parts != 0 {
            self.corrupt(&format!(
                "ERROR compressed cluster {number} with non-zero subcluster allocation bitmap, \
                 entry=0x{word:x}"
            ));
        }
        if active {
            self.report.allocated += 1;
            self.report.compressed += 1;
            self.report.fragmented += 1;
        }
        let more = (word & !PACKED & !COPIED) >> bits;
        self.use_range(byte, (more + 1) * 512 - byte % 512).map(drop)
    }

    fn bitmaps(&mut self, bitmaps: Bitmaps) -> Result<(), Error> {
        const FIXED: usize = 24;
        const COUNT_MAX: u32 = 65_535;
        const BYTES_MAX: u64 = 64 << 20;
        if bitmaps.count > COUNT_MAX || bitmaps.bytes > BYTES_MAX {
            self.unsure = true;
            self.corrupt("ERROR bitmap directory is too large");
            return Ok(());
        }
        if !self.use_range(bitmaps.at, bitmaps.bytes)? {
            return Ok(());
        }
        let failed = |error| Error::io(self.name, "its bitmaps", &error);
        let mut all = vec![0; size(bitmaps.bytes)];
        read_zeroed(self.storage, bitmaps.at, &mut all).map_err(failed)?;
        let mut rest = &all[..];
        for _ in 0..bitmaps.count {
            let Some(fixed) = rest.get(..FIXED) else { break };
            let (at, entries) = (word64(fixed, 0), word32(fixed, 8));
            let more = size(u64::from(word32(fixed, 16) & 0xffff) + u64::from(word32(fixed, 20)));
            rest = rest.get((FIXED + more).next_multiple_of(8)..).unwrap_or_default();
            self.bitmap(at, entries)?;
        }
        Ok(())
    }

    /// A bitmap's table, and what it points at.
    fn bitmap(&mut self, at: u64, count: u32) -> Result<(), Error> {
        let (count, cluster) = (u64::from(count), self.head.header.cluster());
        if !self.use_range(at, count * 8)? || count > u64::from(L1_ENTRIES_MAX) {
            self.unsure = true;
            return Ok(());
        }
        for first in (0..count).step_by(size(PIECE)) {
            let now = PIECE.min(count - first);
            let piece = words(self.storage, self.name, at + first * 8, now, "a bitmap's table")?;
            for word in piece.into_iter().filter(|word| word & OFFSET != 0) {
                self.use_range(word & OFFSET, cluster)?;
            }
        }
        Ok(())
    }

    /// Counts a use of the clusters of a range; false for one that lies behind the file's end.
    fn use_range(&mut self, at: u64, bytes: u64) -> Result<bool, Error> {
        let cluster = self.head.header.cluster();
        if bytes == 0 {
            return Ok(true);
        }
        if !lies_in(at, bytes, self.head.len, cluster) {
            self.unsure = true;
            self.corrupt(&format!(
                "ERROR: counting reference for region exceeding the end of the file by one \
                 cluster or more: offset {at:#x} size {bytes:#x}"
            ));
            return Ok(false);
        }
        let most = Width::new(self.head.header.refcount_order).max().min(u32::MAX.into());
        for number in at / cluster..=(at + bytes - 1) / cluster {
            if u64::from(self.uses.get(number)) >= most {
                let at = number * cluster;
                self.corrupt(&format!("ERROR: overflow cluster offset=0x{at:x}"));
                self.say(
                    "Use qemu-img amend to increase the refcount entry width or qemu-img convert \
                     to create a clean copy if the image cannot be opened for writing",
                );
                self.unsure = true;
                continue;
            }
            self.uses.add(number).map_err(|TooMuch| too_much(self.name))?;
        }
        Ok(true)
    }
}
