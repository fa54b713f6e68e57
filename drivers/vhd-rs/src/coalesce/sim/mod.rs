//! The simulator of coalesce: the machine's jobs in random order over disks in memory that fail,
//! run full and lose power by seed; and planted bugs, which it must find.
//!
//! Checked after every end, good or bad: the image opens; through the child every sector is what it
//! was; in the parent every sector is its old or its new one. After a good end the parent shows all
//! of the child, and the strict list of `check` finds nothing.
mod disk;
#[path = "../../../../../tests/src/sim/seeds.rs"]
mod seeds;
mod world;

use disk::Rng;
use seeds::{Counts, each};
use world::{Bug, World};

/// Seeds within which a planted bug must be found.
const CANARY: u64 = 300;

const COUNTS: Counts = Counts { same: 200, fresh: 200 };

/// Runs a seed: coalesce is cut off up to three times and then comes to its end.
fn run(seed: u64, bug: Bug) -> Result<u32, String> {
    let mut rng = Rng(seed);
    let mut world = World::new(&mut rng, bug);
    let mut cuts = 0;
    for _ in 0..rng.below(4) {
        let cut = Some(rng.below(90));
        let (eio, room) = match rng.below(4) {
            0 => (40, None),
            1 => (0, Some(rng.below(200))),
            _ => (0, None),
        };
        let ended = world.coalesce(cut, eio, room)?;
        cuts += u32::from(ended.is_none());
        world.check("after a cut", ended.is_some_and(|r| r.is_ok()))?;
    }
    match world.coalesce(None, 0, None)? {
        Some(Ok(())) => world.check("at the end", true)?,
        Some(Err(28)) if world.device => world.check("on a full device", false)?,
        other => return Err(format!("without faults it ended as {other:?}")),
    }
    Ok(cuts)
}

#[test]
fn no_seed_shows_another_sector_after_a_cut() {
    let cuts = each("coalesce", COUNTS, |seed| run(seed, Bug::None));
    let (count, cuts) = (cuts.len(), cuts.iter().sum::<u32>());
    println!("{count} seeds, {cuts} power cuts");
    assert!(cuts as usize > count / 2, "the power is cut often enough");
}

/// Runs a seed of compact: cut off up to three times, and then to its end.
fn run_compact(seed: u64, bug: Bug) -> Result<u32, String> {
    let mut rng = Rng(seed);
    let mut world = World::new(&mut rng, bug);
    if !world.has_blocks() {
        return Ok(0);
    }
    let mut cuts = 0;
    for _ in 0..rng.below(4) {
        cuts += u32::from(world.compact(Some(rng.below(60))).is_none());
        world.check_old("after a cut", false)?;
    }
    match world.compact(None) {
        Some(Ok(())) => world.check_old("at the end", true)?,
        other => return Err(format!("without faults it ended as {other:?}")),
    }
    Ok(cuts)
}

#[test]
fn no_seed_of_compact_shows_another_sector_after_a_cut() {
    let cuts = each("compact", COUNTS, |seed| run_compact(seed, Bug::None));
    let (count, cuts) = (cuts.len(), cuts.iter().sum::<u32>());
    println!("{count} seeds of compact, {cuts} power cuts");
    assert!(cuts as usize > count / 8, "the power is cut often enough");
}

#[test]
fn compact_without_flushes_is_found_out() {
    let found = (0..CANARY).find_map(|seed| run_compact(seed, Bug::FlushLies).err());
    println!("FlushLies: {}", found.expect("the simulator finds it"));
}

fn first_find(bug: Bug) -> Option<(u64, String)> {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..CANARY).find_map(|seed| match std::panic::catch_unwind(|| run(seed, bug)) {
        Ok(Ok(_)) => None,
        Ok(Err(why)) => Some((seed, why)),
        Err(_) => Some((seed, "an assertion".into())),
    });
    std::panic::set_hook(quiet);
    found
}

#[test]
fn every_planted_bug_is_found() {
    for bug in [
        Bug::FlushLies,
        Bug::MetadataUnflushed,
        Bug::BitmapWithData,
        Bug::NewBitmapLost,
        Bug::StaleSpace,
        Bug::DataLate,
    ] {
        let Some((seed, why)) = first_find(bug) else { panic!("{bug:?}: not found") };
        println!("{bug:?}: seed {seed}: {}", why.chars().take(100).collect::<String>());
    }
}
