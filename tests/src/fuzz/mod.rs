//! A fuzzer that needs nothing but stable Rust.
//!
//! ```text
//!   tests/corpus/<target>/*, seeds ─► pool ─► mutate ─► seal ─► run ─► new? ─► pool
//!                                              ▲   (checksums)   │
//!                                              └─────────────────┴─► panic, too slow, too much memory:
//!                                                                    shrink, report, keep the input
//! ```
//! What is *new* is what the target says happened (a number: which error, which answer) and, in a
//! build with the compiler's coverage counters (`make fuzz`), every branch that was not taken
//! before. `make test` runs the kept inputs and a fixed number of new ones; everything follows from
//! one seed, which is printed with a failure.
//!
//! | variable | effect |
//! |---|---|
//! | `FUZZ_RUNS` | new inputs for each target, instead of the test's number |
//! | `FUZZ_SECONDS` | time for each target, instead of a number of inputs |
//! | `FUZZ_SEED` | another seed |
//! | `FUZZ_KEEP=1` | the corpus becomes the smallest set of inputs that takes every branch taken (`make fuzz` only) |
//!
//! A new parser gets a [`Target`] in `tests/tests/fuzz` and a test that calls [`Target::check`].
pub mod alloc;
mod corpus;
pub mod cover;
mod fuzzer;
mod mutate;
mod panics;
mod shrink;
mod watch;

pub use fuzzer::{Budget, Failure, Report, fuzz};

/// Something that takes bytes from a stranger.
#[derive(Clone, Copy)]
pub struct Target {
    /// Name of the folder of kept inputs, and of the test.
    pub name: &'static str,
    /// Longest input in bytes.
    pub bytes_max: usize,
    /// Most memory that one input may take, in bytes.
    pub memory_max: usize,
    /// Valid inputs, to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format, which are put into inputs now and then.
    pub words: &'static [&'static [u8]],
    /// Makes checksums and the like right again; most inputs go through it.
    pub seal: fn(&mut [u8]),
    /// Gives the input to the code under test, and says in a number what happened. A panic is a
    /// finding.
    pub run: fn(&[u8]) -> u64,
}

impl Target {
    /// Fuzzes for as long as the environment says, or for `runs` new inputs.
    ///
    /// # Panics
    /// With the seed and the input when something was found.
    #[track_caller]
    pub fn check(&self, runs: u64) {
        let budget = Budget::from_environment(runs);
        match fuzz(self, &budget) {
            Ok(report) => eprintln!("fuzz {}: {report}", self.name),
            Err(failure) => panic!("{}", failure.keep()),
        }
    }
}

/// For targets without checksums.
pub fn as_it_is(_: &mut [u8]) {}

/// A number for what happened: equal for equal texts, but for the numbers in them, which are
/// different for every input.
pub fn outcome(text: &str) -> u64 {
    let letters = text.bytes().filter(|b| !b.is_ascii_digit());
    letters
        .fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}
