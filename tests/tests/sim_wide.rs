//! Seeds of the simulator in the wide world: killed daemons, a volatile cache without barriers,
//! tables of several
//! sectors, full files, several requests in a turn; `SIM_SEEDS=n` and `SIM_FIRST=n` for long runs.
use tests::sim::{Counts, Setup, run_all};

#[test]
fn no_seed_loses_a_write_in_the_wide_world() {
    let (seeds, ran) = run_all("wide", Counts { same: 200, fresh: 1400 }, Setup::wide);
    if seeds >= 100 {
        let secondaries = ran.taken_over > 0 && ran.promoted > 0 && ran.forgotten > 0;
        assert!(ran.kills > 0 && ran.kept > 0 && secondaries, "everything is seen");
    }
}
