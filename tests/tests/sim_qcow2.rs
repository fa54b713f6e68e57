//! The world of qcow2: images of every geometry, with faults, kills and power cuts; and the bugs
//! planted in its driver, which must be found.
use qcow2::Bug;
use tests::sim::{Counts, Setup, find_planted, run_all};

/// Seeds within which a planted bug must be found.
const SEEDS: u64 = 600;

#[test]
fn no_seed_of_qcow2_loses_a_write_or_gets_stuck() {
    run_all("qcow2", Counts { same: 200, fresh: 500 }, Setup::qcow2);
}

fn must_find(name: &str, setup: impl Fn(u64) -> Setup) {
    find_planted(name, SEEDS, setup);
}

fn planted(bug: Bug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { qcow2: Some(bug), ..Setup::qcow2(seed) }
}

fn unordered(bug: Bug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { unordered: Some(seed % 2 == 0), churn: true, ..planted(bug)(seed) }
}

#[test]
fn every_bug_planted_in_the_driver_is_found() {
    must_find("an entry is written with its count", planted(Bug::EntryWithItsCount));
    must_find("a table is there at once", planted(Bug::TableAtOnce));
    must_find("a count goes down first", unordered(Bug::CountBeforeTheEntry));
    must_find("a cluster is used again at once", planted(Bug::UsedAgainAtOnce));
    must_find("a cluster is used before its hole is made", planted(Bug::UsedBeforeTheHole));
    must_find("all that is new counts as blank", planted(Bug::AllBlank));
    must_find("a table is not cleared", planted(Bug::TableNotCleared));
    must_find("zeros show what is below", planted(Bug::ZerosShowBelow));
    must_find("an entry does not say that it counts one", planted(Bug::CopiedForgotten));
    must_find("an image is clean too early", planted(Bug::CleanTooEarly));
    must_find("what moved is not counted down", planted(Bug::MovedForgotten));
}

#[test]
fn what_is_copied_is_on_the_medium_before_metadata_hides_its_old_place() {
    let bug = engine::Bug::CopiesLoose;
    must_find("copies are loose", |seed| Setup { bug, ..unordered(Bug::None)(seed) });
}
