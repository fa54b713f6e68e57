//! How often each cluster is used, in little memory: a bit while nothing is used twice.
//!
//! ```text
//!   pages of 4096 clusters:  none (all 0) ─► bits (0, 1) ─► bytes (to 255) ─► words
//! ```
//! A page grows with what is put into it, so an image without snapshots and packed clusters costs a
//! bit a cluster: 2 MiB for 1 TiB of clusters of 64 KiB. The whole has a limit, which an image
//! cannot move: [`MEMORY_MAX`].
use crate::num::{size, wide};

/// Bytes of one map of counts at most.
pub const MEMORY_MAX: u64 = 256 << 20;
/// Clusters of a page.
pub(crate) const PAGE: u64 = 4096;
const PAGE_SIZE: usize = 4096;

/// Counts of clusters side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Page {
    Bits(Box<[u64; PAGE_SIZE / 64]>),
    Bytes(Box<[u8; PAGE_SIZE]>),
    Words(Box<[u32; PAGE_SIZE]>),
}

/// There would be more of it in memory than [`MEMORY_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooMuch;

impl Page {
    fn new() -> Page {
        Page::Bits(Box::new([0; PAGE_SIZE / 64]))
    }

    /// Bytes in memory.
    fn memory(&self) -> u64 {
        match self {
            Page::Bits(_) => PAGE / 8,
            Page::Bytes(_) => PAGE,
            Page::Words(_) => PAGE * 4,
        }
    }

    fn get(&self, at: usize) -> u32 {
        match self {
            Page::Bits(bits) => u32::from(bits[at / 64] >> (at % 64) & 1 == 1),
            Page::Bytes(bytes) => u32::from(bytes[at]),
            Page::Words(words) => words[at],
        }
    }

    /// Whether a count fits in without becoming another kind.
    fn holds(&self, count: u32) -> bool {
        match self {
            Page::Bits(_) => count <= 1,
            Page::Bytes(_) => count <= u32::from(u8::MAX),
            Page::Words(_) => true,
        }
    }

    fn set(&mut self, at: usize, count: u32) {
        match self {
            Page::Bits(bits) if count == 1 => bits[at / 64] |= 1 << (at % 64),
            Page::Bits(bits) => bits[at / 64] &= !(1 << (at % 64)),
            Page::Bytes(bytes) => bytes[at] = u8::try_from(count).unwrap_or(u8::MAX),
            Page::Words(words) => words[at] = count,
        }
    }

    /// The first place from `at` on that is in use, or not.
    fn find(&self, at: usize, used: bool) -> Option<usize> {
        let mut at = at;
        while at < PAGE_SIZE {
            // 64 unused ones at a time, or as many used ones.
            if let Page::Bits(bits) = self {
                let skip = if used { 0 } else { u64::MAX };
                if at.is_multiple_of(64) && bits[at / 64] == skip {
                    at += 64;
                    continue;
                }
            }
            if (self.get(at) > 0) == used {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    /// The next larger kind.
    fn larger(&self) -> Page {
        let old = (0..PAGE_SIZE).map(|at| self.get(at));
        match self {
            Page::Bits(_) => {
                let mut bytes = Box::new([0; PAGE_SIZE]);
                let small = old.map(|count| u8::try_from(count).unwrap_or(u8::MAX));
                bytes.iter_mut().zip(small).for_each(|(to, from)| *to = from);
                Page::Bytes(bytes)
            }
            Page::Bytes(_) | Page::Words(_) => {
                let mut words = Box::new([0; PAGE_SIZE]);
                words.iter_mut().zip(old).for_each(|(to, from)| *to = from);
                Page::Words(words)
            }
        }
    }
}

/// A count for each cluster of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pages: Vec<Option<Page>>,
    /// Bytes of all pages.
    memory: u64,
}

/// A page and the place in it.
fn place(cluster: u64) -> (usize, usize) {
    // What has no page in memory has no number there either.
    (usize::try_from(cluster / PAGE).unwrap_or(usize::MAX), size(cluster % PAGE))
}

impl Counts {
    /// Of one cluster.
    pub(crate) fn get(&self, cluster: u64) -> u32 {
        let (page, at) = place(cluster);
        self.pages.get(page).and_then(Option::as_ref).map_or(0, |page| page.get(at))
    }

    /// Changes one.
    pub(crate) fn set(&mut self, cluster: u64, count: u32) -> Result<(), TooMuch> {
        let (number, at) = place(cluster);
        if count == 0 && self.pages.get(number).is_none_or(Option::is_none) {
            return Ok(());
        }
        self.reach(cluster)?;
        let page = self.pages[number].get_or_insert_with(|| {
            self.memory += PAGE / 8;
            Page::new()
        });
        while !page.holds(count) {
            let larger = page.larger();
            self.memory += larger.memory() - page.memory();
            *page = larger;
        }
        page.set(at, count);
        if self.memory > MEMORY_MAX { Err(TooMuch) } else { Ok(()) }
    }

    /// Makes the list of pages long enough.
    fn reach(&mut self, cluster: u64) -> Result<(), TooMuch> {
        let number = cluster / PAGE;
        let each = wide(size_of::<Option<Page>>());
        if number >= (MEMORY_MAX - MEMORY_MAX / 4) / each {
            return Err(TooMuch);
        }
        let len = size(number + 1);
        if self.pages.len() < len {
            self.memory += wide(len - self.pages.len()) * each;
            self.pages.resize(len, None);
        }
        Ok(())
    }

    /// One use more; the count now.
    pub(crate) fn add(&mut self, cluster: u64) -> Result<u32, TooMuch> {
        let count = self.get(cluster).saturating_add(1);
        self.set(cluster, count)?;
        Ok(count)
    }

    /// The first clusters of pages that may differ from another map's.
    pub(crate) fn pages_unlike(&self, other: &Counts) -> Vec<u64> {
        fn page(of: &Counts, at: usize) -> Option<&Page> {
            of.pages.get(at).and_then(Option::as_ref)
        }
        let most = self.pages.len().max(other.pages.len());
        let unlike = |at: &usize| page(self, *at) != page(other, *at);
        (0..most).filter(unlike).map(|at| wide(at) * PAGE).collect()
    }

    /// The last cluster in use.
    pub(crate) fn last(&self) -> Option<u64> {
        let pages = self.pages.iter().enumerate().rev();
        pages.filter_map(|(number, page)| Some((number, page.as_ref()?))).find_map(
            |(number, page)| {
                let at = (0..PAGE_SIZE).rev().find(|at| page.get(*at) > 0)?;
                Some(wide(number) * PAGE + wide(at))
            },
        )
    }

    /// The first cluster from `from` on that is in use.
    pub(crate) fn next_used(&self, from: u64) -> Option<u64> {
        let (first, mut at) = place(from);
        for number in first..self.pages.len() {
            if let Some(page) = &self.pages[number]
                && let Some(at) = page.find(at, true)
            {
                return Some(wide(number) * PAGE + wide(at));
            }
            at = 0;
        }
        None
    }

    /// The first cluster from `from` on that is not in use, before `end`.
    pub(crate) fn next_free(&self, from: u64, end: u64) -> Option<u64> {
        let mut cluster = from;
        while cluster < end {
            let (number, at) = place(cluster);
            let Some(Some(page)) = self.pages.get(number) else { return Some(cluster) };
            let found = page.find(at, false).map(|at| wide(number) * PAGE + wide(at));
            if let Some(found) = found {
                return (found < end).then_some(found);
            }
            cluster = (wide(number) + 1) * PAGE;
        }
        None
    }

    /// The first run of `count` clusters that nobody uses, from `from` on, before `end`.
    pub(crate) fn free_run(&self, from: u64, end: u64, count: u64) -> Option<u64> {
        let mut from = from;
        loop {
            let first = self.next_free(from, end)?;
            let upto = self.next_used(first).unwrap_or(end).min(end);
            if upto - first >= count {
                return Some(first);
            }
            from = upto;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_grows_with_its_counts_and_forgets_nothing() {
        let mut counts = Counts::default();
        assert_eq!(counts.add(5), Ok(1));
        assert_eq!(counts.memory, PAGE / 8 + 16);
        for _ in 0..299 {
            counts.add(7).unwrap();
        }
        assert_eq!((counts.get(5), counts.get(6), counts.get(7)), (1, 0, 299));
        assert_eq!(counts.memory, PAGE * 4 + 16);
        counts.set(7, u32::MAX).unwrap();
        assert_eq!(counts.add(7), Ok(u32::MAX));
        counts.set(5, 0).unwrap();
        assert_eq!((counts.get(5), counts.last()), (0, Some(7)));
        counts.set(9 * PAGE, 0).unwrap();
        assert_eq!(counts.pages.len(), 1, "nothing is not written down");
    }

    #[test]
    fn an_image_does_not_choose_how_much_memory() {
        let mut counts = Counts::default();
        assert_eq!(counts.add(u64::MAX / 512), Err(TooMuch));
        assert_eq!(counts.memory, 0);
        let scattered = (0..).map(|page| counts.add(page * PAGE)).position(|done| done.is_err());
        assert!(scattered.is_some_and(|pages| wide(pages) * PAGE / 8 < MEMORY_MAX));
        assert_eq!(counts.get(u64::MAX), 0);
    }

    #[test]
    fn free_runs_are_found_over_pages_that_are_not_there() {
        let mut counts = Counts::default();
        for used in [0, 1, 4, 10, 3 * PAGE + 2] {
            counts.add(used).unwrap();
        }
        assert_eq!(counts.free_run(0, 100, 2), Some(2));
        assert_eq!(counts.free_run(0, 100, 3), Some(5));
        assert_eq!(counts.free_run(0, 20, 9), Some(11));
        assert_eq!(counts.free_run(0, 20, 10), None);
        assert_eq!(counts.free_run(0, 9 * PAGE, 2 * PAGE), Some(11));
        assert_eq!(counts.free_run(0, 9 * PAGE, 3 * PAGE), Some(3 * PAGE + 3));
    }

    #[test]
    fn pages_that_differ_are_named() {
        let (mut a, mut b) = (Counts::default(), Counts::default());
        a.add(1).unwrap();
        b.add(1).unwrap();
        b.add(5 * PAGE).unwrap();
        assert_eq!(a.pages_unlike(&b), [5 * PAGE]);
        assert_eq!(b.pages_unlike(&a), [5 * PAGE]);
    }
}
