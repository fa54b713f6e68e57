//! Who may change which units of a file now: earlier changes first, in the order they came.
//!
//! A change that rewrites bytes of its neighbours stands alone on its units. It waits for every
//! earlier change of them, and every later one waits for it. Each waits only for what came before
//! it, so there is no circle and nobody is overtaken for ever. Changes that rewrite nobody's bytes
//! do not wait for each other.
use std::collections::VecDeque;
use std::ops::Range;

use request::disk::{FileId, Tag};

#[derive(Clone, Debug)]
struct Lock {
    tag: Tag,
    file: FileId,
    bytes: Range<u64>,
    /// It rewrites bytes that are not its own.
    alone: bool,
    /// Earlier ones that it still waits for.
    ahead: u32,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        (self.alone || other.alone)
            && self.file == other.file
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

/// Changes at work and waiting, in the order they came.
#[derive(Debug)]
pub struct Locks {
    held: Vec<Lock>,
    /// Those that a release let go on.
    woken: VecDeque<Tag>,
    /// False only where the simulator has to find that they are missing.
    pub on: bool,
}

impl Locks {
    /// None, with room for `depth`.
    pub fn new(depth: usize) -> Locks {
        Locks { held: Vec::with_capacity(depth), woken: VecDeque::with_capacity(depth), on: true }
    }

    /// Takes whole units of a file. True if the change may begin; otherwise `woken` gives its tag
    /// later.
    pub fn take(&mut self, tag: Tag, file: FileId, bytes: Range<u64>, alone: bool) -> bool {
        if !self.on {
            return true;
        }
        assert!(self.held.len() < self.held.capacity(), "a lock for each operation of the depth");
        let mut lock = Lock { tag, file, bytes, alone, ahead: 0 };
        lock.ahead = self.held.iter().map(|earlier| u32::from(earlier.conflicts(&lock))).sum();
        let free = lock.ahead == 0;
        self.held.push(lock);
        free
    }

    /// A change that was at work is over.
    pub fn release(&mut self, tag: Tag) {
        let Some(at) = self.held.iter().position(|lock| lock.tag == tag) else {
            return assert!(!self.on, "what ends was begun");
        };
        let over = self.held.remove(at);
        assert!(over.ahead == 0, "what waits is not at work");
        for later in self.held[at..].iter_mut().filter(|later| later.conflicts(&over)) {
            later.ahead -= 1;
            if later.ahead == 0 {
                self.woken.push_back(later.tag);
            }
        }
    }

    /// The next change that may begin now.
    pub fn woken(&mut self) -> Option<Tag> {
        self.woken.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId(0);

    fn freed(locks: &mut Locks, tag: Tag) -> Vec<Tag> {
        locks.release(tag);
        std::iter::from_fn(|| locks.woken()).collect()
    }

    #[test]
    fn a_change_that_stands_alone_keeps_its_place_in_the_queue() {
        let mut locks = Locks::new(8);
        assert!(locks.take(0, FILE, 0..8192, false));
        assert!(locks.take(1, FILE, 4096..8192, false), "whole units do not wait for each other");
        assert!(!locks.take(2, FILE, 4096..8192, true), "a rewrite waits for earlier ones");
        assert!(!locks.take(3, FILE, 4096..12288, false), "a later one does not overtake it");
        assert!(locks.take(4, FILE, 8192..12288, false), "others go on");
        assert!(locks.take(5, FileId(1), 4096..8192, true), "also in another file");
        assert!(freed(&mut locks, 0).is_empty());
        assert_eq!(freed(&mut locks, 1), [2]);
        assert!(freed(&mut locks, 4).is_empty());
        assert_eq!(freed(&mut locks, 2), [3]);
        assert!(freed(&mut locks, 3).is_empty());
        assert!(freed(&mut locks, 5).is_empty());
        assert!(locks.held.is_empty());
    }

    #[test]
    fn rewrites_of_one_unit_go_one_after_the_other_in_order() {
        let mut locks = Locks::new(16);
        assert!(locks.take(9, FILE, 0..4096, true));
        assert!((0..8).all(|tag| !locks.take(tag, FILE, 0..4096, true)));
        let mut next = 9;
        for want in 0..8 {
            assert_eq!(freed(&mut locks, next), [want]);
            next = want;
        }
    }
}
