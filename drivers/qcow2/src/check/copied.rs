//! COPIED flags: set where the count of what an entry points at is exactly one.
//!
//! Who writes believes them: with a flag too many it writes into what others use.
use super::Check;
use super::walk::{COPIED, Kind, OFFSET, entries, kind};
use crate::error::Error;
use crate::head::read_zeroed;
use crate::num::{size, wide, word64};

/// Bytes that are written at once.
const SECTOR: u64 = 512;

/// What is done with flags that are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// They are told.
    Look,
    /// Those too many are cleared, the others wait.
    Clear,
    /// All are made right.
    Mend,
}

impl Flags {
    fn mends(self, word: u64) -> bool {
        match self {
            Flags::Look => false,
            Flags::Clear => word & COPIED != 0,
            Flags::Mend => true,
        }
    }
}

impl Check<'_> {
    /// Looks at the flags of the active tables, if some are wrong.
    pub(crate) fn flags(&mut self, how: Flags) -> Result<(), Error> {
        let header = &self.head.header;
        let (l1_at, count) = (header.l1_at, u64::from(header.l1_entries));
        if self.wrong == 0 {
            return Ok(());
        }
        let each = SECTOR / 8;
        let mut sector = vec![0; size(SECTOR)];
        for first in (0..count).step_by(size(each)) {
            let at = l1_at + first * 8;
            if at >= self.head.len {
                break;
            }
            let failed = |error| Error::io(self.name, "its L1 table", &error);
            read_zeroed(self.storage, at, &mut sector).map_err(failed)?;
            let changed = self.l1_sector(first, count.min(first + each), &mut sector, how)?;
            if changed {
                let bytes = size((count - first).min(each) * 8);
                let failed = |error| Error::not_written(self.name, "its L1 table", &error);
                self.storage.write_at(at, &sector[..bytes]).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn l1_sector(
        &mut self,
        first: u64,
        end: u64,
        sector: &mut [u8],
        how: Flags,
    ) -> Result<bool, Error> {
        let cluster = self.head.header.cluster();
        let mut table = vec![0; size(cluster)];
        let mut changed = false;
        for (number, place) in (first..end).zip((0..).step_by(8)) {
            let word = word64(sector, place);
            let at = word & OFFSET;
            if at == 0 || !at.is_multiple_of(cluster) || at >= self.head.len {
                continue;
            }
            let own = self.head.header.l1_at + number * 8;
            if self.is_wrong(word, at) {
                let count = self.disk.get(at / cluster);
                let what = format!("L2 cluster: l1_index={number} l1_entry={word:x}");
                if self.flag(&what, count, word, own, how) {
                    sector[place..place + 8].copy_from_slice(&(word ^ COPIED).to_be_bytes());
                    changed = true;
                }
            }
            let failed = |error| Error::io(self.name, "an L2 table", &error);
            read_zeroed(self.storage, at, &mut table).map_err(failed)?;
            self.l2_flags(at, &mut table, how)?;
        }
        Ok(changed)
    }

    /// Says that a flag is wrong; whether it is to be changed, in the cluster that has `own`.
    fn flag(&mut self, what: &str, count: u32, word: u64, own: u64, how: Flags) -> bool {
        // A table that something else is in too is not written.
        let alone = self.uses.get(own / self.head.header.cluster()) == 1;
        let mends = how.mends(word) && alone;
        if how == Flags::Clear && !mends {
            // It is told when all are.
            return false;
        }
        let verb = if mends { "Repairing" } else { "ERROR" };
        self.say(&format!("{verb} OFLAG_COPIED {what} refcount={count}"));
        match mends {
            true => self.report.corruptions_fixed += 1,
            false => self.report.corruptions += 1,
        }
        mends
    }

    fn l2_flags(&mut self, at: u64, table: &mut [u8], how: Flags) -> Result<(), Error> {
        let (cluster, each) = (self.head.header.cluster(), size(self.head.header.entry_bytes()));
        let wrong: Vec<(usize, u64)> = entries(table, each)
            .filter(|(_, word, _)| kind(*word) == Kind::Here && self.is_wrong(*word, word & OFFSET))
            .map(|(number, word, _)| (number * each, word))
            .collect();
        let mut sectors = std::collections::BTreeSet::new();
        for (place, word) in wrong {
            let count = self.disk.get((word & OFFSET) / cluster);
            let what = format!("data cluster: l2_entry={word:x}");
            if self.flag(&what, count, word, at, how) {
                table[place..place + 8].copy_from_slice(&(word ^ COPIED).to_be_bytes());
                sectors.insert(place / size(SECTOR));
            }
        }
        for number in sectors {
            let first = number * size(SECTOR);
            let failed = |error| Error::not_written(self.name, "an L2 table", &error);
            let bytes = &table[first..first + size(SECTOR)];
            self.storage.write_at(at + wide(first), bytes).map_err(failed)?;
        }
        Ok(())
    }
}
