//! Anonymous memory that is written and compared over and over: with several of them, more than
//! there is.
use super::{compare, fill};
use std::time::{Duration, Instant};

/// Pages that are visited one after the other before the next jump.
const CHUNK: usize = 32;

/// Owns `mib` MiB for `seconds`, or until all of it was compared once. Each round changes a third
/// of the pages and compares all, in an order that jumps about.
///
/// # Errors
/// A page that does not hold what was written.
pub fn run(mib: u64, seconds: u64, seed: u64) -> Result<String, String> {
    let pages = usize::try_from(mib * 256).expect("fits");
    let chunks = pages / CHUNK;
    let mut memory = vec![0u8; pages * 4096];
    let mut rounds = vec![0u8; pages];
    let until = Instant::now() + Duration::from_secs(seconds);
    let place = |round: u8, page: usize| (u64::from(round) << 32) | page as u64;
    let mut compared = 0u64;
    for round in 0u8..u8::MAX {
        for step in 0..chunks {
            if round > 1 && Instant::now() > until {
                return Ok(format!("hog {seed}: {compared} pages compared in {round} rounds"));
            }
            // From both ends towards the middle.
            let chunk = if step % 2 == 0 { step / 2 } else { chunks - 1 - step / 2 };
            for page in chunk * CHUNK..(chunk + 1) * CHUNK {
                let bytes = &mut memory[page * 4096..][..4096];
                if round > 0 {
                    compare(bytes, seed, place(rounds[page], page))?;
                    compared += 1;
                }
                if round == 0 || (page + usize::from(round)).is_multiple_of(3) {
                    fill(bytes, seed, place(round, page));
                    rounds[page] = round;
                }
            }
        }
    }
    Ok(format!("hog {seed}: {compared} pages compared"))
}
