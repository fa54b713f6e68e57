//! A smaller input that fails all the same.

/// Inputs that are tried at most.
const TRIES_MAX: usize = 3000;

/// Leaves out pieces, then makes bytes zero, as long as `fails` stays true.
pub(super) fn shrink(input: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut tries = 0;
    let mut attempt = |candidate: &[u8]| {
        tries += 1;
        tries <= TRIES_MAX && fails(candidate)
    };
    let mut size = best.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < best.len() {
            let mut candidate = best.clone();
            candidate.drain(at..best.len().min(at + size));
            if attempt(&candidate) {
                best = candidate;
            } else {
                at += size;
            }
        }
        size = if size == 1 { 0 } else { size.div_ceil(2) };
    }
    for at in 0..best.len() {
        let mut candidate = best.clone();
        candidate[at] = 0;
        if candidate != best && attempt(&candidate) {
            best = candidate;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_left() {
        let input: Vec<u8> = (0..200).collect();
        let small = shrink(&input, |b| b.contains(&77) && b.contains(&150) && b.len() > 3);
        assert_eq!(small.len(), 4);
        assert_eq!(small.iter().filter(|b| **b == 0).count(), 2);
    }
}
