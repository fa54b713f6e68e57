//! New inputs from old ones.
use crate::sim::rng::Rng;

/// Numbers at which sizes, signs and counts go wrong.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    511,
    512,
    4095,
    4096,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes an input in one way, or in a few. `other` is another input to take pieces from.
pub(super) fn mutate(
    bytes: &mut Vec<u8>,
    other: &[u8],
    words: &[&[u8]],
    bytes_max: usize,
    rng: &mut Rng,
) {
    loop {
        change(bytes, other, words, rng);
        if rng.one_in(2) {
            break;
        }
    }
    bytes.truncate(bytes_max);
}

fn change(bytes: &mut Vec<u8>, other: &[u8], words: &[&[u8]], rng: &mut Rng) {
    if bytes.is_empty() {
        bytes.push(rng.next() as u8);
    }
    let at = place(bytes.len(), rng);
    match rng.below(14) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next() as u8,
        2 => bytes[at] = bytes[at].wrapping_add(1),
        3 => bytes[at] = bytes[at].wrapping_sub(1),
        4..=6 => number(bytes, at, rng),
        7 => {
            let count = (1 + rng.below(16) as usize).min(bytes.len() - at);
            bytes.drain(at..at + count);
        }
        8 => {
            let count = 1 + rng.below(16) as usize;
            let fill = if rng.one_in(2) { 0 } else { rng.next() as u8 };
            bytes.splice(at..at, std::iter::repeat_n(fill, count));
        }
        9 => {
            let from = piece(bytes, rng).to_vec();
            overwrite(bytes, at, &from);
        }
        10 => {
            let from = piece(bytes, rng).to_vec();
            bytes.splice(at..at, from);
        }
        11 if !other.is_empty() => overwrite(bytes, at, piece(other, rng)),
        12 if !other.is_empty() => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[place(other.len(), rng)..]);
        }
        _ if !words.is_empty() => {
            overwrite(bytes, at, words[rng.below(words.len() as u64) as usize]);
        }
        _ => bytes.truncate(at),
    }
}

/// A place in `length` bytes; every second time one of the first hundred, where headers are.
fn place(length: usize, rng: &mut Rng) -> usize {
    let within = if rng.one_in(2) { length.min(100) } else { length };
    rng.below(within as u64) as usize
}

/// A number of 1 to 8 bytes in either order: a remarkable one, a sum, or the length of the input.
fn number(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    let width = [1, 2, 4, 8][rng.below(4) as usize];
    let field = bytes.len().min(at + width) - at;
    let big = rng.one_in(2);
    let mut old = [0; 8];
    old[..field].copy_from_slice(&bytes[at..at + field]);
    let old =
        if big { u64::from_be_bytes(old) >> (64 - 8 * field) } else { u64::from_le_bytes(old) };
    let new = match rng.below(4) {
        0 => old.wrapping_add(rng.below(33)).wrapping_sub(16),
        1 => (bytes.len() as u64).wrapping_add(rng.below(3)).wrapping_sub(1),
        _ => NUMBERS[rng.below(NUMBERS.len() as u64) as usize],
    };
    let raw = if big { (new << (64 - 8 * field)).to_be_bytes() } else { new.to_le_bytes() };
    bytes[at..at + field].copy_from_slice(&raw[..field]);
}

fn piece<'a>(from: &'a [u8], rng: &mut Rng) -> &'a [u8] {
    let start = place(from.len(), rng);
    let count = 1 + rng.below(64) as usize;
    &from[start..from.len().min(start + count)]
}

fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..].iter_mut().zip(new).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_inputs_and_limits_hold() {
        let all = |seed| {
            let mut rng = Rng::new(seed);
            let mut bytes = b"some input".to_vec();
            (0..2000)
                .map(|_| {
                    mutate(&mut bytes, b"another", &[b"word"], 40, &mut rng);
                    assert!(bytes.len() <= 40);
                    bytes.clone()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
        assert!(all(3).iter().any(|b| b.windows(4).any(|w| w == b"word")));
    }
}
