//! Slabs: tables whose entries clients take. They grow up to a limit and keep their length, so a
//! look at all of them, which every turn takes several times, is as long as they were ever full.

/// The index of the first free entry, or of a new one if there is none and fewer than `max`. May
/// allocate.
pub fn free_index<T>(
    table: &mut Vec<Option<T>>,
    max: usize,
    is_free: impl Fn(&T) -> bool,
) -> Option<usize> {
    let free = table.iter().position(|entry| entry.as_ref().is_none_or(&is_free));
    if free.is_none() && table.len() < max {
        table.push(None);
        return Some(table.len() - 1);
    }
    free
}

/// The index after `first`, which is whose turn it is to be first next.
pub fn next_first<T>(table: &[T], first: usize) -> usize {
    if first + 1 < table.len() { first + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slab_grows_to_its_limit_and_entries_are_used_again() {
        let mut table: Vec<Option<u8>> = Vec::new();
        for index in 0..3 {
            assert_eq!(free_index(&mut table, 3, |_| false), Some(index));
            table[index] = Some(index as u8);
        }
        assert_eq!(free_index(&mut table, 3, |_| false), None);
        assert_eq!(free_index(&mut table, 3, |value| *value == 1), Some(1));
        table[2] = None;
        assert_eq!(free_index(&mut table, 3, |_| false), Some(2));
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn everybody_is_first_in_turn_and_nobody_in_an_empty_table() {
        let turns: Vec<usize> =
            std::iter::successors(Some(0), |f| Some(next_first(&[7; 3], *f))).take(5).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1]);
        assert_eq!(next_first::<u8>(&[], 0), 0);
    }
}
