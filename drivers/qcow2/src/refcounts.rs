//! Counts in the file (spec/qcow2.md §2.3): a table of blocks, blocks of counts of 1 to 64 bits.
use std::path::Path;

use image::Storage;

use crate::count::Width;
use crate::counts::{Counts, TooMuch};
use crate::error::Error;
use crate::head::{Head, lies_in, read_zeroed, words};
use crate::num::{size, wide};

/// What is written of a block at once.
const SECTOR: usize = 512;

/// Counts in a block of a cluster.
pub(crate) fn per_block(cluster: u64, order: u32) -> u64 {
    Width::new(order).counts_in(cluster)
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

    /// Counts in a block.
    pub(crate) fn per_block(&self) -> u64 {
        per_block(self.cluster, self.order)
    }

    /// The offset of a block that can be read.
    pub(crate) fn block_at(&self, number: usize) -> Option<u64> {
        let word = self.entries.get(number).copied()?;
        let inside = lies_in(word, self.cluster, self.len, self.cluster);
        (word != 0 && word.is_multiple_of(self.cluster) && inside).then_some(word)
    }

    /// The number of a cluster's block, and its place there.
    pub(crate) fn place(&self, cluster: u64) -> (usize, usize) {
        let each = self.per_block();
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
        let each = self.per_block();
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
        let each = self.per_block();
        let (upto, width) = (each.min(end - first), Width::new(self.order));
        // Eight bytes of zeros are the common thing behind the end.
        let step = (64u64 >> self.order).max(1);
        let words = block.as_chunks::<8>().0;
        for (word, at) in words.iter().zip((0..upto).step_by(size(step))) {
            if *word == [0; 8] {
                continue;
            }
            for at in at..upto.min(at + step) {
                let count = width.get(block, size(at));
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
        Ok(Width::new(self.order).get(&block, at))
    }

    /// Changes counts of one block, sector by sector. Their places all are in it.
    pub(crate) fn change(&self, block_at: u64, counts: &[(usize, u64)]) -> Result<(), Error> {
        let mut block = vec![0; size(self.cluster)];
        self.block(block_at, &mut block)?;
        let old = block.clone();
        for (at, count) in counts {
            Width::new(self.order).set(&mut block, *at, *count);
        }
        let failed = |error| Error::not_written(self.name, "its refcount blocks", &error);
        let sectors = block.chunks(SECTOR).zip(old.chunks(SECTOR)).enumerate();
        for (number, (new, _)) in sectors.filter(|(_, (new, old))| new != old) {
            self.storage.write_at(block_at + wide(number * SECTOR), new).map_err(failed)?;
        }
        Ok(())
    }
}
