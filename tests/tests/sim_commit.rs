//! The world whose leaves are committed to their parents while they are used: after a commit base
//! alone is the disk, whenever the owner takes it for that; and until then the leaf is.
use engine::Bug;
use tests::sim::{Counts, Setup, each, find_planted, run, run_all};

/// Seeds within which a planted bug must be found.
const SEEDS: u64 = 600;

#[test]
fn no_seed_of_commits_loses_a_write_or_gets_stuck() {
    let (seeds, ran) = run_all("commit", Counts { same: 200, fresh: 500 }, Setup::commit);
    let [concluded, given_up, under_way, pivots] = ran.commits;
    assert!(concluded > seeds / 2 && pivots > seeds / 4, "commits come to an end");
    assert!(given_up > 0 && under_way > 0, "and some do not");
}

#[test]
fn no_zero_in_base_is_relied_on_before_it_is_on_the_medium() {
    let tale = |seed| run(Setup { zeros: true, ..Setup::commit(seed) });
    let seen = each("zeros", Counts { same: 40, fresh: 100 }, tale);
    let overs: u64 = seen.iter().map(|ran| ran.commits.iter().take(3).sum::<u64>()).sum();
    assert!(overs > seen.len() as u64 * 12, "leaves are committed when power goes");
}

fn planted(bug: Bug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { bug, ..Setup::commit(seed) }
}

#[test]
fn every_bug_planted_in_commits_is_found() {
    find_planted("a piece is written over a change", SEEDS, planted(Bug::PieceOverAChange));
    find_planted("a change does not wait for a piece", SEEDS, planted(Bug::ChangeBesideAPiece));
    find_planted("changes go to the top alone", SEEDS, planted(Bug::ChangesPassBase));
    find_planted("zeros are not committed", SEEDS, planted(Bug::ZerosNotCommitted));
    find_planted("a commit is over before its flush", SEEDS, planted(Bug::ConcludedTooEarly));
    let relies = |seed| Setup { zeros: true, ..planted(Bug::ReliesOnBase)(seed) };
    find_planted("a top relies on zeros in base", SEEDS, relies);
    let beside = planted(Bug::ConcludedBesideChanges);
    find_planted("a commit is over beside changes", SEEDS, beside);
}
