//! Which seeds a world runs: those that failed once, always the same ones, and ones that nobody has
//! run, from the
//! commit's id. Also included by the simulator of coalesce, so it needs nothing but the standard
//! library.
//!
//! `SIM_SEEDS=n` and `SIM_FIRST=k` of the environment take their place: n seeds from k (0) on.
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kept seeds, a line each: world, seed and, behind a `#`, what it found.
const KEPT: &str = "tests/tests/data/sim-seeds.txt";

/// Every world that runs seeds: a line of the kept ones that names another is a mistake.
const WORLDS: [&str; 12] = [
    "sim", "wide", "align", "blktap", "rings", "hostile", "toy", "qcow2", "commit", "zeros",
    "coalesce", "compact",
];

/// How many seeds of a world a run takes.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// From 0 on, the same each time.
    pub same: u64,
    /// That nobody has run.
    pub fresh: u64,
}

/// Runs the seeds of a world and gives what each has seen. A fresh seed that fails is put on the
/// list of kept
/// ones.
///
/// # Panics
/// A seed fails, or the world is not on the list of worlds: its kept seeds would fail that test
/// on the day that there is one.
pub fn each<T>(world: &str, counts: Counts, run: impl Fn(u64) -> Result<T, String>) -> Vec<T> {
    assert!(WORLDS.contains(&world), "{world} is not among the worlds of {}", file!());
    let (seeds, fresh) = chosen(world, counts);
    let mut seen = Vec::new();
    let mut failed = Vec::new();
    for seed in seeds {
        let why = match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(Ok(ran)) => {
                seen.push(ran);
                continue;
            }
            Ok(Err(why)) => why,
            Err(_) => "it panicked, see above".to_owned(),
        };
        let kept = if fresh.contains(&seed) { keep(world, seed) } else { String::new() };
        println!("{world}: seed {seed} failed: {why}");
        failed.push(format!("{world}: seed {seed}: {why}{kept}"));
    }
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), failed.join("\n"));
    seen
}

/// The seeds to run, and which of them nobody has run.
fn chosen(world: &str, counts: Counts) -> (Vec<u64>, std::ops::Range<u64>) {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number of seeds"))
    };
    if let (first, Some(count)) = (number("SIM_FIRST").unwrap_or(0), number("SIM_SEEDS")) {
        println!("{world}: seeds {first} to {}, as asked", first + count);
        return ((first..first + count).collect(), 0..0);
    }
    let (first, from) = fresh_first();
    let fresh = first..first + counts.fresh;
    let kept = kept(world);
    println!(
        "{world}: {} kept seeds, 0 to {}, and fresh ones from {first} to {} ({from})",
        kept.len(),
        counts.same,
        fresh.end
    );
    (kept.into_iter().chain(0..counts.same).chain(fresh.clone()).collect(), fresh)
}

/// The first fresh seed, and what it was made from: the commit's id, or without git the time of
/// day, so that
/// no two runs are the same.
fn fresh_first() -> (u64, String) {
    let head = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root()).output();
    let id = head.ok().filter(|out| out.status.success()).map(|out| out.stdout);
    let id = id.and_then(|text| String::from_utf8(text).ok());
    match id.as_deref().and_then(|text| text.get(..12)) {
        Some(id) => match u64::from_str_radix(id, 16) {
            // Far from those that people try by hand.
            Ok(number) => ((number | 1 << 48) << 12, format!("commit {id}")),
            Err(_) => by_the_clock(),
        },
        None => by_the_clock(),
    }
}

fn by_the_clock() -> (u64, String) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |since| since.as_secs());
    (seconds << 20, format!("no git here: the clock, {seconds}"))
}

/// The folder of the workspace, from any crate of it.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let is_root = |dir: &&Path| dir.join("Cargo.lock").exists();
    here.ancestors().find(is_root).unwrap_or(here).to_path_buf()
}

/// The seeds of a world that failed once.
fn kept(world: &str) -> Vec<u64> {
    let list = std::fs::read_to_string(root().join(KEPT)).unwrap_or_default();
    let seed = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let seed = words.next().filter(|word| *word == world).and(words.next())?;
        Some(seed.parse().unwrap_or_else(|_| panic!("{KEPT}: {seed} is no seed")))
    };
    list.lines().filter_map(seed).collect()
}

/// Puts a seed on the list. A sentence about it.
fn keep(world: &str, seed: u64) -> String {
    let list = OpenOptions::new().append(true).open(root().join(KEPT));
    match list.and_then(|mut list| writeln!(list, "{world} {seed}")) {
        Ok(()) => format!("\n  (now kept in {KEPT}: commit that file with the mend)"),
        Err(why) => format!("\n  (put \"{world} {seed}\" into {KEPT}: {why})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kept_line_names_a_world_and_a_seed() {
        let list = std::fs::read_to_string(root().join(KEPT)).expect("the list");
        for line in list.lines().map(|line| line.split('#').next().unwrap_or("").trim()) {
            let world = line.split_whitespace().next();
            assert!(world.is_none_or(|world| WORLDS.contains(&world)), "{line}");
        }
        assert!(WORLDS.iter().any(|world| !kept(world).is_empty()), "some are kept");
    }

    #[test]
    fn fresh_seeds_say_what_they_were_made_from() {
        let (first, from) = fresh_first();
        assert!(first > 1 << 40, "{first}");
        assert!(from.starts_with("commit ") || from.starts_with("no git here"), "{from}");
    }
}
