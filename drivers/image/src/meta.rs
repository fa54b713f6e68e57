//! Metadata of an image: its pieces, and the cache that holds them, as a driver sees it.
use crate::{SECTOR_BYTES, Stop};

/// A piece of an image's own file that holds metadata: the unit of caching and of metadata writes.
/// Its place and its length are whole sectors. What one write of it tears by a power cut is torn
/// between sectors, so no entry of a table lies in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MetaRef {
    /// Byte offset in the file.
    pub at: u64,
    /// Length in bytes, at most the cache's unit ([`crate::Needs::meta_bytes`]).
    pub bytes: u16,
}

/// At most [`MetaList::MAX`] pieces of metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetaList {
    /// A piece's place and, below the sector's bytes, its length in sectors; 0 behind the last. A
    /// third of the size of an `Option<MetaRef>`: lists are copied with every plan.
    items: [u64; MetaList::MAX],
}

impl MetaList {
    /// The pieces of the longest list: those of a new unit in a new table (data's count, the
    /// table's entry and so on), in two places where a plan crosses a border.
    pub const MAX: usize = 6;

    /// No metadata.
    pub const EMPTY: MetaList = MetaList { items: [0; MetaList::MAX] };

    /// A list of one.
    #[inline]
    pub fn one(r: MetaRef) -> MetaList {
        MetaList { items: [pack(r), 0, 0, 0, 0, 0] }
    }

    /// A list of two.
    #[inline]
    pub fn two(a: MetaRef, b: MetaRef) -> MetaList {
        MetaList { items: [pack(a), pack(b), 0, 0, 0, 0] }
    }

    /// Whether nothing is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.items[0] == 0
    }

    /// What is in it.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = MetaRef> + '_ {
        self.items.iter().take_while(|item| **item != 0).map(|item| unpack(*item))
    }
}

#[inline]
fn pack(r: MetaRef) -> u64 {
    let whole = r.at.is_multiple_of(SECTOR_BYTES) && u64::from(r.bytes) % SECTOR_BYTES == 0;
    assert!(whole && r.bytes > 0, "a piece of metadata is of whole sectors");
    r.at | (u64::from(r.bytes) / SECTOR_BYTES)
}

#[inline]
fn unpack(item: u64) -> MetaRef {
    let sectors = item % SECTOR_BYTES;
    MetaRef { at: item - sectors, bytes: (sectors * SECTOR_BYTES) as u16 }
}

impl<const N: usize> From<[Option<MetaRef>; N]> for MetaList {
    fn from(pieces: [Option<MetaRef>; N]) -> MetaList {
        const { assert!(N <= MetaList::MAX, "a list is not longer") };
        let mut items = [0; MetaList::MAX];
        for (item, piece) in items.iter_mut().zip(pieces.into_iter().flatten()) {
            *item = pack(piece);
        }
        MetaList { items }
    }
}

/// The metadata cache and the file, as one layer sees them.
pub trait Meta {
    /// A cached piece.
    ///
    /// # Errors
    /// [`Stop::Load`] if it is not there, [`Stop::Wait`] if it is on its way out.
    fn get(&self, r: MetaRef) -> Result<&[u8], Stop>;
    /// A cached and pinned piece, to change. Nothing is written until a driver returns it from
    /// [`Image::landed`](crate::Image::landed) or lists it in
    /// [`Plan::along`](crate::Plan::along).
    fn edit(&mut self, r: MetaRef) -> &mut [u8];
    /// A piece that is not on the disk yet, all zeros.
    ///
    /// # Errors
    /// [`Stop::Wait`] if the cache has no room just now.
    fn create(&mut self, r: MetaRef) -> Result<&mut [u8], Stop>;
    /// Whether the cached piece is what the disk holds: no write of it is queued or in flight. A
    /// bit found set in a piece that is not clean may not be on the disk yet.
    fn clean(&self, r: MetaRef) -> bool;
    /// Whether the request that is planned has a buffer to copy through; see [`Stop::Copy`].
    fn may_fill(&self) -> bool {
        false
    }
    /// Bytes of the file that exist, with space behind them.
    fn grown(&self) -> u64;
    /// A number that grows with every request started.
    fn now(&self) -> u64;
    /// The `now` of the oldest request still at work: what was freed before it, nobody reads.
    fn oldest(&self) -> u64;
    /// What was over at a smaller `now` is on the medium: the file was flushed since. 0 before the
    /// first flush of a session, when even what is read may be in a volatile cache alone.
    fn durable(&self) -> u64;
    /// What lies from this byte on, up to [`Meta::grown`], was never written: zeros, on the medium
    /// too. `u64::MAX` where nobody knows.
    fn blank_from(&self) -> u64 {
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_give_back_what_was_put_in() {
        let piece = |at: u64, bytes| MetaRef { at, bytes };
        let pieces = [piece(0, 512), piece(1536, 4096), piece(u64::MAX - 511, 65024)];
        let list = MetaList::from([Some(pieces[0]), None, Some(pieces[1]), Some(pieces[2])]);
        assert!(list.iter().eq(pieces) && !list.is_empty());
        assert!(MetaList::one(pieces[1]).iter().eq([pieces[1]]));
        assert!(MetaList::two(pieces[2], pieces[0]).iter().eq([pieces[2], pieces[0]]));
        assert!(MetaList::EMPTY.is_empty() && MetaList::EMPTY.iter().next().is_none());
    }
}
