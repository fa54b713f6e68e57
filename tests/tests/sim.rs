//! Seeds of the simulator with three power cuts each, kept and same and fresh ones; `SIM_SEEDS=n`
//! and
//! `SIM_FIRST=n` for long runs.
use tests::sim::{Counts, Setup, run_all};

#[test]
fn no_seed_loses_a_write_or_gets_stuck() {
    let (seeds, ran) = run_all("sim", Counts { same: 300, fresh: 1300 }, Setup::new);
    if seeds >= 100 {
        let seen = ran.kept > 0 && ran.taken_over > 0 && ran.mirrors[0] > 0 && ran.mirrors[1] > 0;
        assert!(seen, "the local cache and every fate of a secondary are seen");
    }
}
