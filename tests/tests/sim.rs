//! 500 seeds of the simulator with three power cuts each; `SIM_SEEDS=n` and `SIM_FIRST=n` for long runs.
use tests::sim::{Setup, run};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number of seeds"))
}

#[test]
fn no_seed_loses_a_write_or_gets_stuck() {
    let (first, seeds) = (number("SIM_FIRST", 0), number("SIM_SEEDS", 500));
    let mut ended = [0; 2];
    for seed in first..first + seeds {
        match run(Setup::new(seed)) {
            Ok(n) => ended = [ended[0] + n[0], ended[1] + n[1]],
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
    println!(
        "{seeds} seeds: {} requests answered, {} of them with an error",
        ended[0] + ended[1],
        ended[1]
    );
    assert!(ended[0] > seeds * 100, "requests succeed");
}
