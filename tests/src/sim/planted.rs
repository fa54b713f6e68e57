//! Looking for a planted bug.
use std::panic::catch_unwind;

use super::{Setup, run};

/// Runs seeds from 0 on until one finds the bug that is planted in their setup. Panics of the
/// engine's own assertions count as found.
///
/// # Panics
/// None of so many finds it.
pub fn find_planted(name: &str, seeds: u64, setup: impl Fn(u64) -> Setup) {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let try_one = |setup: Setup| catch_unwind(move || run(setup));
    let found = (0..seeds).find_map(|seed| match try_one(setup(seed)) {
        Ok(Ok(_)) => None,
        Ok(Err(why)) => Some((seed, why)),
        Err(_) => Some((seed, "an assertion".into())),
    });
    std::panic::set_hook(quiet);
    let Some((seed, why)) = found else { panic!("{name}: not found in {seeds} seeds") };
    let why: String = why.chars().take(100).collect();
    println!("{name}: seed {seed}: {why}");
}
