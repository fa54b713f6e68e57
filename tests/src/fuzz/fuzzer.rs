//! The loop: pool, mutation, run, and what is new.
use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::panics::caught;
use super::watch::{Watch, hex};
use super::{Target, alloc, corpus, cover, mutate::mutate, shrink::shrink};
use crate::sim::rng::Rng;

/// Inputs in the pool at most; beyond it, old ones make room.
const POOL_MAX: usize = 4096;

/// How long to fuzz, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// New inputs.
    pub runs: u64,
    /// Time, in place of a number of inputs.
    pub time: Option<Duration>,
    /// Everything follows from it.
    pub seed: u64,
    /// Make what was found the corpus.
    pub keep: bool,
}

impl Budget {
    /// What the environment says, else so many inputs; a tenth of them where tests are to be fast.
    ///
    /// # Panics
    /// If a variable is no number.
    pub fn from_environment(runs: u64) -> Budget {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        let fast = std::env::var_os("TAPDISK_TESTS").is_some_and(|tests| tests == "fast");
        Budget {
            runs: number("FUZZ_RUNS").unwrap_or(if fast { runs / 10 } else { runs }),
            time: number("FUZZ_SECONDS").map(Duration::from_secs),
            seed: number("FUZZ_SEED").unwrap_or(0x7461_7064),
            keep: number("FUZZ_KEEP").is_some_and(|keep| keep != 0),
        }
    }
}

/// What a search without findings did.
#[derive(Clone, Debug)]
pub struct Report {
    /// Inputs that were run.
    pub runs: u64,
    /// Different outcomes.
    pub outcomes: usize,
    /// Branches taken, of those that are counted.
    pub branches: (usize, usize),
    /// Inputs in the pool at the end.
    pub pool: usize,
    seed: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, all) = self.branches;
        let Report { runs, outcomes, pool, seed, .. } = self;
        write!(f, "{runs} inputs, {outcomes} outcomes, {taken}/{all} branches, pool of {pool}")?;
        write!(f, ", seed {seed}")
    }
}

/// An input that the target does not bear.
#[derive(Clone, Debug)]
pub struct Failure {
    target: &'static str,
    seed: u64,
    runs: u64,
    /// The panic's message, or which limit was passed.
    pub why: String,
    /// The input, made as small as possible.
    pub input: Vec<u8>,
    kept: Option<PathBuf>,
}

impl Failure {
    /// Keeps the input in a file, for people.
    pub(super) fn keep(mut self) -> Failure {
        self.kept = corpus::failed(self.target, &self.input);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { target, seed, runs, why, .. } = self;
        writeln!(f, "fuzz {target}: {why}")?;
        writeln!(f, "seed {seed}, after {runs} inputs, {} bytes:", self.input.len())?;
        writeln!(f, "{}", hex(&self.input[..self.input.len().min(2048)]))?;
        if let Some(path) = &self.kept {
            writeln!(f, "kept as {}; copy it to tests/corpus/{target}/ as a test", path.display())?;
        }
        Ok(())
    }
}

/// Fuzzes a target.
///
/// # Errors
/// The first finding.
pub fn fuzz(target: &Target, budget: &Budget) -> Result<Report, Failure> {
    let mut search = Search::new(target, *budget);
    let kept = corpus::load(target.name);
    for input in kept.into_iter().chain((target.seeds)()) {
        search.first(&input)?;
    }
    let begun = Instant::now();
    let mut done = 0;
    while budget.time.map_or(done < budget.runs, |time| begun.elapsed() < time) {
        let input = search.next();
        if search.run(&input)? {
            search.keep(input);
        }
        done += 1;
    }
    let report = search.report();
    if budget.keep && cover::branches() > 0 {
        corpus::replace(target.name, &search.smallest_set()?);
    }
    Ok(report)
}

struct Search<'a> {
    target: &'a Target,
    budget: Budget,
    rng: Rng,
    watch: Watch,
    pool: Vec<Vec<u8>>,
    outcomes: HashSet<u64>,
    /// For each branch, the powers of two of how often it was taken in one run.
    branches: Vec<u8>,
    runs: u64,
}

impl<'a> Search<'a> {
    fn new(target: &'a Target, budget: Budget) -> Search<'a> {
        Search {
            target,
            budget,
            rng: Rng::new(budget.seed),
            watch: Watch::new(target.name, budget.seed),
            pool: Vec::new(),
            outcomes: HashSet::new(),
            branches: vec![0; cover::branches()],
            runs: 0,
        }
    }

    /// A kept input, or a seed: always in the pool.
    fn first(&mut self, input: &[u8]) -> Result<(), Failure> {
        self.run(input)?;
        self.keep(input.to_vec());
        Ok(())
    }

    fn keep(&mut self, input: Vec<u8>) {
        if self.pool.len() < POOL_MAX {
            self.pool.push(input);
        } else {
            let at = self.rng.below(POOL_MAX as u64) as usize;
            self.pool[at] = input;
        }
    }

    /// Mostly from the newest inputs, which nobody has tried variants of yet.
    fn pick(&mut self) -> usize {
        let count = self.pool.len() as u64;
        let newest = count.min(16);
        let back = if self.rng.one_in(2) { self.rng.below(newest) } else { self.rng.below(count) };
        (count - 1 - back) as usize
    }

    fn next(&mut self) -> Vec<u8> {
        if self.pool.is_empty() {
            self.pool.push(Vec::new());
        }
        let (one, other) = (self.pick(), self.pick());
        let mut input = self.pool[one].clone();
        let Target { words, bytes_max, seal, .. } = *self.target;
        mutate(&mut input, &self.pool[other], words, bytes_max, &mut self.rng);
        if !self.rng.one_in(8) {
            seal(&mut input);
        }
        input
    }

    /// Whether something new happened.
    fn run(&mut self, input: &[u8]) -> Result<bool, Failure> {
        self.runs += 1;
        self.watch.begin(input);
        cover::reset();
        let outcome = match attempt(self.target, input) {
            Ok(outcome) => outcome,
            Err(why) => return Err(self.failure(input, why)),
        };
        let mut new = self.outcomes.insert(outcome);
        cover::taken(|branch, count| {
            let often = 1 << count.ilog2();
            if let Some(known) = self.branches.get_mut(branch) {
                new |= *known & often == 0;
                *known |= often;
            }
        });
        Ok(new)
    }

    fn failure(&self, input: &[u8], why: String) -> Failure {
        let Target { name, seal, .. } = *self.target;
        let mut sealed = input.to_vec();
        seal(&mut sealed);
        let fails = |candidate: &[u8]| {
            self.watch.begin(candidate);
            attempt(self.target, candidate).is_err_and(|other| kind(&other) == kind(&why))
        };
        let mut small = shrink(input, fails);
        if sealed == input {
            // With checksums made right after each cut, more can go.
            let resealed = |candidate: &[u8]| {
                let mut candidate = candidate.to_vec();
                seal(&mut candidate);
                fails(&candidate)
            };
            let mut other = shrink(input, resealed);
            seal(&mut other);
            small = if other.len() < small.len() { other } else { small };
        }
        let (seed, runs) = (self.budget.seed, self.runs);
        Failure { target: name, seed, runs, why, input: small, kept: None }
    }

    /// Few inputs that together take all branches that any takes, the short ones first.
    fn smallest_set(&mut self) -> Result<Vec<Vec<u8>>, Failure> {
        let mut pool = std::mem::take(&mut self.pool);
        pool.sort_by_key(|input| (input.len(), input.clone()));
        pool.dedup();
        let mut sets = Vec::new();
        for input in pool {
            self.run(&input)?;
            let mut taken = HashSet::new();
            cover::taken(|branch, _| {
                taken.insert(branch);
            });
            sets.push((input, taken));
        }
        let mut chosen = Vec::new();
        let mut covered: HashSet<usize> = HashSet::new();
        loop {
            let gain = |taken: &HashSet<usize>| taken.difference(&covered).count();
            // The first of those with the greatest gain is the shortest.
            let best = sets.iter().rev().max_by_key(|(_, taken)| gain(taken));
            match best {
                Some((input, taken)) if gain(taken) > 0 => {
                    chosen.push(input.clone());
                    covered.extend(taken);
                }
                _ => return Ok(chosen),
            }
        }
    }

    fn report(&self) -> Report {
        let taken = self.branches.iter().filter(|often| **often != 0).count();
        Report {
            runs: self.runs,
            outcomes: self.outcomes.len(),
            branches: (taken, self.branches.len()),
            pool: self.pool.len(),
            seed: self.budget.seed,
        }
    }
}

/// What makes two findings the same: the place of the panic, or which limit it was.
fn kind(why: &str) -> &str {
    let first = why.lines().next().unwrap_or(why);
    if first.starts_with("took") { "took" } else { first }
}

/// One run: the outcome, or what is wrong.
fn attempt(target: &Target, input: &[u8]) -> Result<u64, String> {
    let (done, peak) = alloc::peak_of(|| caught(|| (target.run)(input)));
    let outcome = done?;
    if peak > target.memory_max {
        return Err(format!("took {peak} bytes of memory; {} are allowed", target.memory_max));
    }
    Ok(outcome)
}
