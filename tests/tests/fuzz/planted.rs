//! The fuzzer itself: planted faults have to be found, and sound code has to pass.
use std::hint::black_box;
use tests::fuzz::{Budget, Target, as_it_is, cover, fuzz};

const BUDGET: Budget = Budget { runs: 200_000, time: None, seed: 1, keep: false };

/// A target of the self-check, with one short seed.
fn planted(run: fn(&[u8]) -> u64) -> Target {
    Target {
        name: "planted",
        bytes_max: 64,
        memory_max: 1 << 20,
        seeds: || vec![vec![1, 2, 3, 4, 5, 6]],
        words: &[],
        seal: as_it_is,
        run,
    }
}

/// A list of strings with their lengths in front; `checked` is what a careful parser does.
fn strings(bytes: &[u8], checked: bool) -> u64 {
    let (mut rest, mut count) = (bytes, 0);
    while let [length, tail @ ..] = rest {
        let length = usize::from(*length);
        if checked && length > tail.len() {
            return u64::MAX;
        }
        rest = &tail[length..];
        count += 1;
    }
    count
}

#[test]
fn a_planted_missing_check_is_found_and_made_small() {
    let failure = fuzz(&planted(|b| strings(b, false)), &BUDGET).unwrap_err();
    assert!(failure.why.contains("out of range"), "{failure}");
    assert_eq!(failure.input.len(), 1, "{failure}");
    assert!(failure.to_string().contains("seed 1, after"), "{failure}");
    assert!(fuzz(&planted(|b| strings(b, true)), &BUDGET).is_ok());
}

#[test]
fn the_same_seed_finds_the_same() {
    let find = |seed| fuzz(&planted(|b| strings(b, false)), &Budget { seed, ..BUDGET });
    let after = |seed| find(seed).unwrap_err().to_string();
    assert_eq!(after(7), after(7));
}

#[test]
fn a_planted_panic_behind_a_magic_word_is_found_by_its_outcomes() {
    // A parser says how far it came, as errors do; blind search would need 2^32 inputs.
    let run = |bytes: &[u8]| {
        let right = bytes.iter().zip(b"tdba").take_while(|(a, b)| a == b).count();
        assert!(right < 4, "planted");
        right as u64
    };
    let failure = fuzz(&planted(run), &Budget { runs: 2_000_000, ..BUDGET }).unwrap_err();
    assert!(failure.why.contains("planted.rs:") && failure.input == b"tdba", "{failure}");
}

#[test]
fn a_planted_panic_behind_branches_is_found_where_branches_are_counted() {
    let run = |bytes: &[u8]| {
        let is = |at: usize, byte| black_box(bytes.get(at).copied()) == Some(byte);
        if !is(0, b't') {
            return black_box(0);
        }
        if !is(1, b'd') {
            return black_box(0);
        }
        if !is(2, b'b') {
            return black_box(0);
        }
        assert!(!is(3, b'a'), "planted");
        0
    };
    // Only `make fuzz` counts branches; without, this must not be found, or it would prove nothing.
    let budget = Budget { runs: 2_000_000, ..BUDGET };
    assert_eq!(fuzz(&planted(run), &budget).is_err(), cover::branches() > 0);
}

#[test]
fn memory_out_of_proportion_is_found() {
    let run = |bytes: &[u8]| {
        let length = bytes.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b));
        black_box(vec![0_u8; length.min(1 << 24) as usize]).len() as u64 / (1 << 16)
    };
    let failure = fuzz(&planted(run), &BUDGET).unwrap_err();
    assert!(failure.why.contains("bytes of memory"), "{failure}");
}
