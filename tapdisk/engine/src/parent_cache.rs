//! Which parent holds a page: remembered, so that a read through a long chain asks each layer once
//! and then none but the right one.
//!
//! Parents do not change while they are open, so what was found once stays true. One word a page,
//! found by the page's number; pages that fall on the same word replace each other. A page is
//! remembered only when all of it lies in one piece in one layer, and asked for only by requests
//! inside it, so that nothing is ever cut into pages on account of this.
//!
//! ```text
//!   63       54 53   47 46 45            0
//!   │ tag     │ layer  │Z │ sector in the file │       all ones: nothing
//! ```
use image::Span;

use super::chain::Found;
use request::disk::FileId;

/// Sectors of a page.
const PAGE: u64 = 8;
/// Pages remembered at most (2 MiB).
const WORDS_MAX: usize = 1 << 18;
const NOTHING: u64 = u64::MAX;
const TAG_SHIFT: u32 = 54;
const LAYER_SHIFT: u32 = 47;
const ZERO: u64 = 1 << 46;
const SECTOR_MASK: u64 = ZERO - 1;

/// The memory.
#[derive(Debug, Default)]
pub struct ParentCache {
    words: Box<[u64]>,
}

impl ParentCache {
    /// Room for the pages of a disk, or for as many of them as are allowed. Every page of the
    /// memory is touched.
    pub fn new(sectors: u64) -> ParentCache {
        let pages = usize::try_from(sectors.div_ceil(PAGE)).unwrap_or(WORDS_MAX);
        let words = pages.next_power_of_two().min(WORDS_MAX);
        ParentCache { words: vec![NOTHING; words].into() }
    }

    /// Where a span inside a page is, if that is remembered.
    pub fn find(&self, span: Span) -> Option<Found> {
        let (index, tag) = self.place(span)?;
        let word = self.words[index];
        if word == NOTHING || word >> TAG_SHIFT != tag {
            return None;
        }
        if word & ZERO != 0 {
            return Some(Found::Zero);
        }
        let layer = FileId((word >> LAYER_SHIFT & 0x7f) as u8);
        let sector = (word & SECTOR_MASK) + span.start % PAGE;
        Some(Found::At { layer, byte: sector * 512 })
    }

    /// Remembers where the first page of a span is, if the span begins with a whole one.
    pub fn note(&mut self, span: Span, found: Found) {
        let whole = span.start.is_multiple_of(PAGE) && u64::from(span.count) >= PAGE;
        let Some((index, tag)) = self.place(span.first(PAGE as u32)).filter(|_| whole) else {
            return;
        };
        let place = match found {
            Found::Zero => ZERO,
            // There is no room for all that is to be known of it.
            Found::Packed { .. } => return,
            Found::At { layer, byte } => {
                let sector = byte / 512;
                if layer.0 > 0x7f || sector > SECTOR_MASK || !byte.is_multiple_of(512) {
                    return;
                }
                u64::from(layer.0) << LAYER_SHIFT | sector
            }
        };
        self.words[index] = tag << TAG_SHIFT | place;
    }

    /// The word of a span that lies in one page, and the tag it has to have. The largest tag is
    /// nobody's, so that no word that is in use reads as nothing.
    fn place(&self, span: Span) -> Option<(usize, u64)> {
        let page = span.start / PAGE;
        let words = self.words.len() as u64;
        if words == 0 || (span.end() - 1) / PAGE != page {
            return None;
        }
        let tag = page / words;
        (tag < NOTHING >> TAG_SHIFT).then_some(((page % words) as usize, tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, count: u32) -> Span {
        Span { start, count }
    }

    fn at(layer: u8, byte: u64) -> Found {
        Found::At { layer: FileId(layer), byte }
    }

    #[test]
    fn a_page_is_found_by_every_part_of_it() {
        let mut cache = ParentCache::new(1 << 20);
        cache.note(span(16, 64), at(127, 4096));
        cache.note(span(24, 8), Found::Zero);
        assert_eq!(cache.find(span(16, 8)), Some(at(127, 4096)));
        assert_eq!(cache.find(span(19, 2)), Some(at(127, 4096 + 3 * 512)));
        assert_eq!(cache.find(span(31, 1)), Some(Found::Zero));
        assert_eq!(cache.find(span(32, 8)), None, "only the first page is noted");
        assert_eq!(cache.find(span(16, 9)), None, "a request of two pages asks the layers");
    }

    #[test]
    fn parts_of_pages_are_not_noted_and_others_on_the_same_word_are_not_taken_for_it() {
        let mut cache = ParentCache::new(WORDS_MAX as u64 * PAGE * 4);
        cache.note(span(8, 7), at(1, 0));
        cache.note(span(9, 8), at(1, 0));
        assert_eq!(cache.find(span(9, 1)), None);
        cache.note(span(8, 8), at(1, 512));
        let other = WORDS_MAX as u64 * PAGE + 8;
        assert_eq!(cache.find(span(other, 8)), None);
        cache.note(span(other, 8), at(2, 0));
        assert_eq!(cache.find(span(8, 8)), None, "replaced");
        assert_eq!(cache.find(span(other, 8)), Some(at(2, 0)));
    }

    #[test]
    fn what_does_not_fit_a_word_is_not_noted() {
        let mut cache = ParentCache::new(u64::MAX / 512);
        let last_tag = (NOTHING >> TAG_SHIFT) * WORDS_MAX as u64 * PAGE;
        for (start, found) in
            [(0, at(128, 0)), (0, at(1, 513)), (0, at(1, 1 << 60)), (last_tag, at(1, 0))]
        {
            cache.note(span(start, 8), found);
            assert_eq!(cache.find(span(start, 8)), None, "{found:?} at {start}");
        }
        assert_eq!(ParentCache::default().find(span(0, 8)), None, "no memory, nothing found");
    }
}
