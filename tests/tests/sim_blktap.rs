//! Seeds of the simulator through the ring of the blktap module; `SIM_SEEDS=n` and `SIM_FIRST=n`
//! for long runs. Each planted bug must be found.
use tests::sim::blktap::{Bug, Ran, run};
use tests::sim::{Counts, each};

const SEEDS: u64 = 200;

#[test]
fn no_seed_loses_a_write_of_the_kernel_or_gets_stuck() {
    let seen = each("blktap", Counts { same: 100, fresh: 100 }, |seed| run(seed, Bug::None));
    let seeds = seen.len() as u64;
    let mut all = Ran::default();
    for ran in seen {
        (0..2).for_each(|i| all.ended[i] += ran.ended[i]);
        all.pauses += ran.pauses;
        all.deaths += ran.deaths;
        all.upgrades += ran.upgrades;
    }
    println!("{seeds} seeds: {all:?}");
    assert!(all.ended[0] > seeds * 100, "requests succeed");
    assert!(
        seeds < 100 || (all.pauses > 0 && all.deaths > 0 && all.upgrades > 0),
        "everything is seen"
    );
}

#[test]
fn planted_bugs_are_found_after_a_power_cut() {
    for bug in [Bug::FlushDoesNothing, Bug::FuaIsForgotten] {
        let found = (0..SEEDS).find_map(|seed| run(seed, bug).err().map(|why| (seed, why)));
        let (seed, why) = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: seed {seed}");
        assert!(why.starts_with("after a power cut"), "{bug:?}, seed {seed}: {why}");
    }
}
