//! Cached metadata of every layer: loading, pins, group commit.
//!
//! A block has one live copy that drivers read and edit. Writing it copies the live bytes to a
//! stable copy first, which the kernel reads; whoever edits meanwhile is gathered for the next
//! write of that block (group commit). A request is told that its metadata is on the disk only by
//! the write that was started after its edit.
//!
//! When a write fails, what is on the disk is not known: the block is `stale`. Nobody new may look
//! at it; it is forgotten as soon as nobody holds it (and then read again), or good again when a
//! later write of it, by those who hold it, succeeds.
use std::cell::Cell;

use image::{Meta, MetaRef, Stop};

use crate::limits::Limits;
use crate::sets::SlotSet;
use host::arena::Arena;
use request::SlotId;
use request::disk::FileId;

/// A cached block, by position.
pub type BlockId = u16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    Empty,
    Loading,
    Ready,
    Stale,
}

/// One block of the cache.
#[derive(Debug)]
pub struct Block {
    file: FileId,
    at: u64,
    bytes: u16,
    fill: Fill,
    pins: u16,
    writing: bool,
    wants_stable: bool,
    recent: Cell<bool>,
    /// The call of a driver that last used it.
    call: Cell<u64>,
    /// Slots that wait for the operation in flight: the load, or the write that their edit is in. A
    /// block is never loaded and written at once.
    waiting: SlotSet,
    /// Slots whose edit goes out with the next write.
    pub queued: SlotSet,
}

impl Block {
    fn empty() -> Block {
        Block {
            file: FileId(0),
            at: 0,
            bytes: 0,
            fill: Fill::Empty,
            pins: 0,
            writing: false,
            wants_stable: false,
            recent: Cell::new(false),
            call: Cell::new(0),
            waiting: SlotSet::EMPTY,
            queued: SlotSet::EMPTY,
        }
    }

    fn idle(&self) -> bool {
        self.pins == 0
            && !self.writing
            && self.fill != Fill::Loading
            && self.waiting.is_empty()
            && self.queued.is_empty()
    }

    /// The piece of metadata in it.
    pub fn what(&self) -> (FileId, MetaRef) {
        (self.file, MetaRef { at: self.at, bytes: self.bytes })
    }
}

/// What a lookup for loading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading {
    /// A block that somebody has to read from the disk now.
    Start(BlockId),
    /// A block that is being read already.
    Joined(BlockId),
    /// It is there, or in use in a way that one has to ask again later.
    AskAgain,
}

/// Every stable copy is in use; the block is remembered and served when one is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStable;

/// The cache.
pub struct MetaCache {
    limits: Limits,
    blocks: Box<[Block]>,
    /// Open-addressed table of block numbers + 1, keyed by file and offset.
    table: Box<[u16]>,
    hand: u16,
    /// Counts calls of drivers: what one call looked at is not evicted by the same call.
    call: u64,
    stables_free: Vec<u16>,
    stable_of: Box<[u16]>,
    stable_waiters: u16,
}

const NONE: u16 = u16::MAX;

impl MetaCache {
    /// An empty cache.
    pub fn new(limits: &Limits) -> MetaCache {
        let n = usize::from(limits.meta_blocks);
        MetaCache {
            limits: *limits,
            blocks: (0..n).map(|_| Block::empty()).collect(),
            table: vec![0; (n * 2).next_power_of_two()].into(),
            hand: 0,
            call: 0,
            stables_free: (0..limits.stables).collect(),
            stable_of: vec![NONE; n].into(),
            stable_waiters: 0,
        }
    }

    /// One block.
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[usize::from(id)]
    }

    /// One block, to change its sets of waiters.
    pub fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[usize::from(id)]
    }

    /// Forgets everything; nothing may be in use. For a new chain under the same engine.
    pub fn clear(&mut self) {
        assert!(self.blocks.iter().all(Block::idle), "clearing a cache that is in use");
        self.blocks.iter_mut().for_each(|b| *b = Block::empty());
        self.table.fill(0);
    }

    fn home(&self, file: FileId, at: u64) -> usize {
        let key = (at / 512) ^ (u64::from(file.0) << 56);
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.table.len() - 1)
    }

    /// A driver is called.
    pub fn begin_call(&mut self) {
        self.call += 1;
    }

    /// The block that holds this piece.
    pub fn find(&self, file: FileId, at: u64) -> Option<BlockId> {
        let mut i = self.home(file, at);
        while self.table[i] != 0 {
            let id = self.table[i] - 1;
            let b = self.block(id);
            if b.at == at && b.file == file {
                return Some(id);
            }
            i = (i + 1) & (self.table.len() - 1);
        }
        None
    }

    fn enter(&mut self, id: BlockId) {
        let b = self.block(id);
        let mut i = self.home(b.file, b.at);
        while self.table[i] != 0 {
            i = (i + 1) & (self.table.len() - 1);
        }
        self.table[i] = id + 1;
    }

    /// Takes a block out of the table, closing the gap so that every probe still ends where it did.
    fn leave(&mut self, id: BlockId) {
        let mask = self.table.len() - 1;
        let b = self.block(id);
        let mut gap = self.home(b.file, b.at);
        while self.table[gap] != id + 1 {
            gap = (gap + 1) & mask;
        }
        let mut i = (gap + 1) & mask;
        while self.table[i] != 0 {
            let other = self.block(self.table[i] - 1);
            let home = self.home(other.file, other.at);
            // The entry may move to the gap unless its home lies after the gap, up to where it is.
            if (i.wrapping_sub(home) & mask) >= (i.wrapping_sub(gap) & mask) {
                self.table[gap] = self.table[i];
                gap = i;
            }
            i = (i + 1) & mask;
        }
        self.table[gap] = 0;
    }

    fn forget(&mut self, id: BlockId) {
        self.leave(id);
        *self.block_mut(id) = Block::empty();
    }

    /// A block nobody uses, by second chance; at most two rounds.
    fn victim(&mut self) -> Option<BlockId> {
        let n = self.limits.meta_blocks;
        for _ in 0..2 * u32::from(n) {
            let id = self.hand;
            self.hand = (self.hand + 1) % n;
            let b = self.block(id);
            if b.fill == Fill::Empty {
                return Some(id);
            }
            if b.idle() && b.call.get() != self.call && !b.recent.replace(false) {
                self.forget(id);
                return Some(id);
            }
        }
        None
    }

    fn take(&mut self, file: FileId, r: MetaRef, fill: Fill) -> Option<BlockId> {
        assert!(
            r.bytes > 0 && r.bytes <= self.limits.meta_bytes,
            "a piece fits a block of the cache"
        );
        let id = self.victim()?;
        *self.block_mut(id) = Block {
            file,
            at: r.at,
            bytes: r.bytes,
            fill,
            recent: Cell::new(true),
            ..Block::empty()
        };
        self.block(id).call.set(self.call);
        self.enter(id);
        Some(id)
    }

    /// Prepares a load for a waiting slot.
    pub fn load(&mut self, file: FileId, r: MetaRef) -> Loading {
        match self.find(file, r.at) {
            Some(id) if self.block(id).fill == Fill::Loading => Loading::Joined(id),
            Some(_) => Loading::AskAgain,
            None => match self.take(file, r, Fill::Loading) {
                Some(id) => Loading::Start(id),
                None => Loading::AskAgain,
            },
        }
    }

    /// A slot waits for the load of a block; false if it did so before.
    pub fn wait_for_load(&mut self, id: BlockId, slot: SlotId) -> bool {
        let b = self.block_mut(id);
        assert!(b.fill == Fill::Loading && !b.writing, "a block is loaded or written, never both");
        b.waiting.insert(slot)
    }

    /// A load is over; gives the slots that waited.
    pub fn loaded(&mut self, id: BlockId, ok: bool) -> SlotSet {
        let b = self.block_mut(id);
        let waiters = b.waiting.take();
        b.fill = Fill::Ready;
        if !ok {
            self.forget(id);
        }
        waiters
    }

    /// Pins a piece that is cached.
    pub fn pin(&mut self, file: FileId, at: u64) {
        let id = self.find(file, at).expect("a plan pins what is cached");
        self.block_mut(id).pins += 1;
    }

    /// Takes a pin back.
    pub fn unpin(&mut self, file: FileId, at: u64) {
        let id = self.find(file, at).expect("what is pinned stays cached");
        let b = self.block_mut(id);
        b.pins = b.pins.checked_sub(1).expect("a pin is taken back once");
        self.forget_stale(id);
    }

    fn forget_stale(&mut self, id: BlockId) {
        let b = self.block(id);
        if b.fill == Fill::Stale && b.idle() {
            self.forget(id);
        }
    }

    /// Starts a write of the block if one is wanted, none is in flight and a stable copy is free.
    /// Gives the stable copy to write from; `Err` if it has to wait for a stable copy.
    pub fn begin_write(&mut self, id: BlockId, arena: &mut Arena) -> Result<Option<u16>, NoStable> {
        let b = self.block(id);
        if b.writing || b.queued.is_empty() {
            return Ok(None);
        }
        let Some(stable) = self.stables_free.pop() else {
            let b = self.block_mut(id);
            let fresh = !std::mem::replace(&mut b.wants_stable, true);
            self.stable_waiters += u16::from(fresh);
            return Err(NoStable);
        };
        let b = &mut self.blocks[usize::from(id)];
        assert!(b.fill != Fill::Loading, "a block is loaded or written, never both");
        b.writing = true;
        self.stable_waiters -= u16::from(std::mem::take(&mut b.wants_stable));
        b.waiting = b.queued.take();
        self.stable_of[usize::from(id)] = stable;
        arena.copy(self.limits.meta_buf(id), self.limits.stable_buf(stable));
        Ok(Some(stable))
    }

    /// A write is over; gives the slots whose edits were in it.
    pub fn written(&mut self, id: BlockId, ok: bool) -> SlotSet {
        let stable = std::mem::replace(&mut self.stable_of[usize::from(id)], NONE);
        assert!(stable != NONE, "a write that ends was begun");
        self.stables_free.push(stable);
        let b = self.block_mut(id);
        b.writing = false;
        b.fill = if ok { Fill::Ready } else { Fill::Stale };
        let joined = b.waiting.take();
        self.forget_stale(id);
        joined
    }

    /// A block that waits for a stable copy, if there is one.
    pub fn waiting_for_stable(&self) -> Option<BlockId> {
        if self.stable_waiters == 0 {
            return None;
        }
        self.blocks.iter().position(|b| b.wants_stable).map(|i| i as BlockId)
    }
}

/// The cache and the file, as one layer sees them.
pub struct View<'a> {
    /// The cache.
    pub cache: &'a mut MetaCache,
    /// Its memory.
    pub arena: &'a mut Arena,
    /// The layer.
    pub file: FileId,
    /// See [`Meta::grown`].
    pub grown: u64,
    /// See [`Meta::now`].
    pub now: u64,
    /// See [`Meta::oldest`].
    pub oldest: u64,
    /// See [`Meta::durable`].
    pub durable: u64,
    /// See [`Meta::blank_from`].
    pub blank_from: u64,
    /// See [`Meta::may_fill`].
    pub fills: bool,
}

impl Meta for View<'_> {
    fn get(&self, r: MetaRef) -> Result<&[u8], Stop> {
        let Some(id) = self.cache.find(self.file, r.at) else { return Err(Stop::Load(r)) };
        let b = self.cache.block(id);
        match b.fill {
            Fill::Loading => Err(Stop::Load(r)),
            Fill::Stale => Err(Stop::Wait),
            Fill::Empty => unreachable!("an empty block is in no table"),
            Fill::Ready => {
                b.recent.set(true);
                b.call.set(self.cache.call);
                Ok(&self.arena.slice(self.cache.limits.meta_buf(id))[..usize::from(r.bytes)])
            }
        }
    }

    fn edit(&mut self, r: MetaRef) -> &mut [u8] {
        let id = self.cache.find(self.file, r.at).expect("a driver edits what it has pinned");
        assert!(self.cache.block(id).fill != Fill::Loading, "a driver edits what is loaded");
        &mut self.arena.slice_mut(self.cache.limits.meta_buf(id))[..usize::from(r.bytes)]
    }

    fn create(&mut self, r: MetaRef) -> Result<&mut [u8], Stop> {
        let id = match self.cache.find(self.file, r.at) {
            Some(id) if !self.cache.block(id).idle() => return Err(Stop::Wait),
            Some(id) => {
                self.cache.block_mut(id).fill = Fill::Ready;
                self.cache.block(id).call.set(self.cache.call);
                id
            }
            None => self.cache.take(self.file, r, Fill::Ready).ok_or(Stop::Wait)?,
        };
        let live = self.arena.slice_mut(self.cache.limits.meta_buf(id));
        live.fill(0);
        Ok(&mut live[..usize::from(r.bytes)])
    }

    fn clean(&self, r: MetaRef) -> bool {
        self.cache.find(self.file, r.at).is_some_and(|id| {
            let b = self.cache.block(id);
            b.fill == Fill::Ready && !b.writing && b.queued.is_empty()
        })
    }

    fn may_fill(&self) -> bool {
        self.fills
    }

    fn grown(&self) -> u64 {
        self.grown
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn oldest(&self) -> u64 {
        self.oldest
    }

    fn durable(&self) -> u64 {
        self.durable
    }

    fn blank_from(&self) -> u64 {
        self.blank_from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use request::SlotId;

    fn piece(at: u64) -> MetaRef {
        MetaRef { at, bytes: 512 }
    }

    #[test]
    fn blocks_are_found_again_after_many_come_and_go() {
        let limits = Limits { meta_blocks: 16, ..Limits::MINIMUM };
        let mut cache = MetaCache::new(&limits);
        let mut seed = 7u64;
        for _ in 0..5000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let at = (seed >> 40) % 64 * 512;
            if let Loading::Start(id) = cache.load(FileId(0), piece(at)) {
                cache.loaded(id, seed & 1 == 0);
            }
            let live = cache.blocks.iter().filter(|b| b.fill != Fill::Empty).count();
            let found = (0..64).filter(|s| cache.find(FileId(0), s * 512).is_some()).count();
            assert_eq!(live, found);
        }
    }

    #[test]
    fn edits_made_during_a_write_go_out_with_the_next_one() {
        let limits = Limits::MINIMUM;
        let mut cache = MetaCache::new(&limits);
        let mut arena = Arena::new(limits.arena_bytes()).unwrap();
        let id = match cache.load(FileId(0), piece(512)) {
            Loading::Start(id) => id,
            other => panic!("{other:?}"),
        };
        cache.loaded(id, true);
        cache.block_mut(id).queued.insert(SlotId(0));
        let stable = cache.begin_write(id, &mut arena).unwrap().unwrap();
        cache.block_mut(id).queued.insert(SlotId(1));
        assert_eq!(cache.begin_write(id, &mut arena), Ok(None), "one write at a time");
        assert_eq!(cache.written(id, true).pop(), Some(SlotId(0)));
        assert_eq!(cache.begin_write(id, &mut arena), Ok(Some(stable)));
        assert_eq!(cache.written(id, false).pop(), Some(SlotId(1)));
        assert_eq!(cache.find(FileId(0), 512), None, "a block of unknown contents is forgotten");
    }
}
