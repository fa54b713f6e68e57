//! Seeds of the simulator through guest rings; `SIM_SEEDS=n` and `SIM_FIRST=n` for long runs. Each
//! planted bug must be found, or the simulator proves nothing.
use tests::sim::ring::{Bug, Ran, run};
use tests::sim::{Counts, each};

const SEEDS: u64 = 200;

#[test]
fn no_seed_loses_a_write_of_a_guest_or_gets_stuck() {
    let seen = each("rings", Counts { same: 100, fresh: 250 }, |seed| run(seed, Bug::None));
    let seeds = seen.len() as u64;
    let mut all = Ran::default();
    for ran in seen {
        (0..2).for_each(|i| all.ended[i] += ran.ended[i]);
        all.pauses += ran.pauses;
        all.reconnects += ran.reconnects;
        all.barriers += ran.barriers;
    }
    println!("{seeds} seeds: {all:?}");
    assert!(all.ended[0] > seeds * 100, "requests succeed");
    if seeds >= 100 {
        assert!(all.pauses > 0 && all.reconnects > 0 && all.barriers > 0, "everything is seen");
    }
}

fn found(bug: Bug) -> String {
    let found = (0..SEEDS).find_map(|seed| run(seed, bug).err().map(|why| (seed, why)));
    let (seed, why) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
    println!("{bug:?}: seed {seed}: {}", why.chars().take(100).collect::<String>());
    why
}

#[test]
fn a_flush_that_does_nothing_is_found() {
    let why = found(Bug::FlushDoesNothing);
    assert!(why.starts_with("after a power cut"), "{why}");
}

#[test]
fn a_barrier_that_drains_its_own_queue_only_is_found() {
    let why = found(Bug::BarrierOfOneQueue);
    assert!(why.starts_with("a barrier is not alone"), "{why}");
}

#[test]
fn a_read_of_something_else_is_found() {
    let why = found(Bug::StaleRead);
    assert!(why.starts_with("read "), "{why}");
}
