//! Counts in the file (spec/qcow2.md §2.3): a table of blocks, blocks of counts of 1 to 64 bits.
use std::path::Path;

use image::Storage;

use crate::counts::{Counts, TooMuch};
use crate::error::Error;
use crate::head::{Head, lies_in, read_zeroed, words};
use crate::num::{size, wide};

/// What is written of a block at once.
const SECTOR: usize = 512;

/// A count of a block. Counts of less than a byte fill it from its lowest bit on.
pub(crate) fn get(block: &[u8], order: u32, at: usize) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block.get(at / per_byte).copied().unwrap_or(0);
        let shift = (at % per_byte) << order;
        return u64::from(byte >> shift) & ((1 << (1 << order)) - 1);
    }
    let bytes = 1 << (order - 3);
    let word = block.get(at * bytes..(at + 1) * bytes).unwrap_or_default();
    word.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Changes a count of a block.
pub(crate) fn put(block: &mut [u8], order: u32, at: usize, count: u64) {
    let low = |number: u64| u8::try_from(number & 0xff).expect("eight bits");
    if order < 3 {
        let per_byte = 8 >> order;
        let (shift, mask) = ((at % per_byte) << order, (1u8 << (1 << order)) - 1);
        let byte = &mut block[at / per_byte];
        *byte = *byte & !(mask << shift) | (low(count) & mask) << shift;
        return;
    }
    let bytes = 1 << (order - 3);
    let word = &mut block[at * bytes..(at + 1) * bytes];
    for (i, byte) in word.iter_mut().rev().enumerate() {
        *byte = low(count >> (8 * i));
    }
}

/// The largest count of a width.
pub(crate) fn largest(order: u32) -> u64 {
    if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 }
}

/// Counts in a block of a cluster.
pub(crate) fn per_block(cluster: u64, order: u32) -> u64 {
    (cluster * 8) >> order
}

/// The table of an image, and how it is read.
pub(crate) struct Table<'a> {
    pub(crate) storage: &'a dyn Storage,
    pub(crate) name: &'a Path,
    pub(crate) entries: Vec<u64>,
    pub(crate) cluster: u64,
    pub(crate) order: u32,
    len: u64,
}

impl<'a> Table<'a> {
    pub(crate) fn read(
        storage: &'a dyn Storage,
        name: &'a Path,
        head: &Head,
    ) -> Result<Table<'a>, Error> {
        let header = &head.header;
        let (cluster, order) = (header.cluster(), header.refcount_order);
        // 8 MiB at most, the header says.
        let count = u64::from(header.table_clusters) * cluster / 8;
        let entries = words(storage, name, header.table_at, count, "its refcount table")?;
        Ok(Table { storage, name, entries, cluster, order, len: head.len })
    }

    /// The offset of a block that can be read.
    pub(crate) fn block_at(&self, number: usize) -> Option<u64> {
        let word = self.entries.get(number).copied()?;
        let inside = lies_in(word, self.cluster, self.len, self.cluster);
        (word != 0 && word.is_multiple_of(self.cluster) && inside).then_some(word)
    }

    /// The number of a cluster's block, and its place there.
    pub(crate) fn place(&self, cluster: u64) -> (usize, usize) {
        let each = per_block(self.cluster, self.order);
        (usize::try_from(cluster / each).unwrap_or(usize::MAX), size(cluster % each))
    }

    /// Reads a block.
    pub(crate) fn block(&self, at: u64, block: &mut [u8]) -> Result<(), Error> {
        let failed = |error| Error::io(self.name, "its refcount blocks", &error);
        read_zeroed(self.storage, at, block).map_err(failed)
    }

    /// All counts of the first `clusters` clusters. Those that do not fit are the largest number.
    pub(crate) fn load(&self, clusters: u64) -> Result<Result<Counts, TooMuch>, Error> {
        let mut counts = Counts::default();
        let mut block = vec![0; size(self.cluster)];
        let each = per_block(self.cluster, self.order);
        for number in 0..self.entries.len() {
            let first = wide(number) * each;
            if first >= clusters {
                break;
            }
            let Some(at) = self.block_at(number) else { continue };
            self.block(at, &mut block)?;
            if let Err(too_much) = self.take(&block, first, clusters, &mut counts) {
                return Ok(Err(too_much));
            }
        }
        Ok(Ok(counts))
    }

    fn take(&self, block: &[u8], first: u64, end: u64, to: &mut Counts) -> Result<(), TooMuch> {
        let each = per_block(self.cluster, self.order);
        let upto = each.min(end - first);
        // Eight bytes of zeros are the common thing behind the end.
        let step = (64u64 >> self.order).max(1);
        let words = block.as_chunks::<8>().0;
        for (word, at) in words.iter().zip((0..upto).step_by(size(step))) {
            if *word == [0; 8] {
                continue;
            }
            for at in at..upto.min(at + step) {
                let count = get(block, self.order, size(at));
                if count > 0 {
                    to.set(first + at, u32::try_from(count).unwrap_or(u32::MAX))?;
                }
            }
        }
        Ok(())
    }

    /// One count, whole.
    pub(crate) fn count(&self, cluster: u64) -> Result<u64, Error> {
        let (number, at) = self.place(cluster);
        let Some(block_at) = self.block_at(number) else { return Ok(0) };
        let mut block = vec![0; size(self.cluster)];
        self.block(block_at, &mut block)?;
        Ok(get(&block, self.order, at))
    }

    /// Changes counts of one block, sector by sector. Their places all are in it.
    pub(crate) fn change(&self, block_at: u64, counts: &[(usize, u64)]) -> Result<(), Error> {
        let mut block = vec![0; size(self.cluster)];
        self.block(block_at, &mut block)?;
        let old = block.clone();
        for (at, count) in counts {
            put(&mut block, self.order, *at, *count);
        }
        let failed = |error| Error::not_written(self.name, "its refcount blocks", &error);
        let sectors = block.chunks(SECTOR).zip(old.chunks(SECTOR)).enumerate();
        for (number, (new, _)) in sectors.filter(|(_, (new, old))| new != old) {
            self.storage.write_at(block_at + wide(number * SECTOR), new).map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_are_where_they_belong() {
        for order in 0..=6 {
            let mut block = vec![0; 512];
            let most = largest(order);
            let counts: Vec<u64> = (0..64u64).map(|at| (at * 77) & most).collect();
            for (at, count) in counts.iter().enumerate() {
                put(&mut block, order, at, u64::MAX);
                put(&mut block, order, at, *count);
            }
            let back: Vec<u64> = (0..64).map(|at| get(&block, order, at)).collect();
            assert_eq!(back, counts, "{order}");
        }
        let mut block = [0; 8];
        put(&mut block, 0, 9, 1);
        put(&mut block, 4, 1, 0x0102);
        assert_eq!(block, [0, 2, 1, 2, 0, 0, 0, 0]);
        assert_eq!((get(&block, 2, 4), get(&[], 4, 9)), (1, 0));
    }
}
