//! 500 seeds of the simulator with three power cuts each; `SIM_SEEDS=n` and `SIM_FIRST=n` for long runs.
use tests::sim::{Ran, Setup, run};

#[test]
fn no_seed_loses_a_write_or_gets_stuck() {
    let (first, seeds) = tests::sim::first_and_count(500);
    let mut ran = Ran::default();
    for seed in first..first + seeds {
        match run(Setup::new(seed)) {
            Ok(n) => ran.add(n),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    println!("{seeds} seeds: {ran:?}");
    assert!(ran.ended[0] > seeds * 100, "requests succeed");
    if seeds >= 100 {
        let seen = ran.kept > 0 && ran.taken_over > 0 && ran.mirrors[0] > 0 && ran.mirrors[1] > 0;
        assert!(seen, "the local cache and every fate of a secondary are seen");
    }
}
