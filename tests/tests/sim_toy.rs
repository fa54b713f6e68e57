//! The world of the toy format: what a plan can say beyond what VHD needs, with power cuts and
//! kills; and the bugs planted in it, which must be found.
use std::sync::Arc;

use image::blocking::{Layer, Writer, read};
use image::{Image, MemStorage, Span};
use tests::sim::model::{ZERO, fill, parse};
use tests::sim::rng::Rng;
use tests::sim::toy::{self, Layout, Seen, Toy, ToyBug};
use tests::sim::{Counts, Setup, find_planted, run_all};

/// Seeds within which a planted bug must be found.
const SEEDS: u64 = 600;

#[test]
fn no_seed_of_the_toy_format_loses_a_write_or_gets_stuck() {
    let (seeds, ran) = run_all("toy", Counts { same: 200, fresh: 500 }, Setup::toy);
    if seeds >= 100 {
        let [copied, unpacked, tables, counted_down] = ran.toys;
        let seen = copied > seeds && unpacked > seeds && tables > seeds && counted_down > seeds;
        assert!(seen, "units are copied and unpacked, and the driver has plans of its own");
    }
}

fn must_find(name: &str, setup: impl Fn(u64) -> Setup) {
    find_planted(name, SEEDS, setup);
}

fn planted(bug: ToyBug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { toy: Some(bug), ..Setup::toy(seed) }
}

fn unordered(bug: ToyBug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { unordered: Some(seed % 2 == 0), churn: true, ..planted(bug)(seed) }
}

#[test]
fn every_bug_planted_in_the_toy_format_is_found() {
    must_find("an entry is written with its count", unordered(ToyBug::EntryWithItsCount));
    must_find("a table is there before its count", unordered(ToyBug::TableBeforeItsCount));
    must_find("a count goes down first", unordered(ToyBug::CountBeforeTheEntry));
    must_find("a cluster is used again at once", planted(ToyBug::UsedAgainAtOnce));
    must_find("a table is not cleared", planted(ToyBug::TableNotCleared));
    must_find("a cluster is used again uncounted", planted(ToyBug::UncountedAgain));
    must_find("all that is new counts as blank", planted(ToyBug::AllBlank));
    must_find("zeros show what is below", planted(ToyBug::ZerosShowBelow));
}

#[test]
fn every_bug_planted_in_the_engine_for_such_formats_is_found() {
    let bug = |bug| move |seed| Setup { bug, ..Setup::toy(seed) };
    must_find("nothing is copied", bug(engine::Bug::FillForgotten));
    must_find("it is copied from below", bug(engine::Bug::CopiedFromBelow));
    must_find("no flush between steps", |seed| Setup {
        bug: engine::Bug::OrderForgotten,
        ..unordered(ToyBug::None)(seed)
    });
}

/// A layer of the toy format and what its sectors hold.
fn layer(sectors: u64, packed: Option<&mut Rng>) -> (Box<dyn Image>, MemStorage, Vec<u64>) {
    let mut values = vec![ZERO; sectors as usize];
    let bytes = toy::make(Layout::new(sectors, false, 0), false, packed, &mut values);
    let toy = Toy::open(&bytes, ToyBug::None, Arc::<Seen>::default()).expect("it opens");
    (Box::new(toy), MemStorage::new(bytes, false), values)
}

#[test]
fn the_offline_executor_copies_unpacks_and_does_chores_too() {
    const SECTORS: u64 = 1000;
    let mut rng = Rng::new(7);
    let (below, below_file, mut values) = layer(SECTORS, Some(&mut rng));
    let (mut leaf, leaf_file, _) = layer(SECTORS, None);
    let parent = Layer { image: &*below, storage: &below_file };
    let mut writer = Writer::new(&mut *leaf, &leaf_file).expect("it opens").over(vec![parent]);
    for value in 1 << 32..(1 << 32) + 300 {
        let start = rng.below(SECTORS - 40);
        let span = Span { start, count: 1 + rng.below(40) as u32 };
        let zero = rng.one_in(4);
        let mut data = vec![0; span.bytes()];
        for (s, sector) in (start..).zip(data.chunks_exact_mut(512)) {
            values[s as usize] = if zero { ZERO } else { value };
            fill(sector, s, values[s as usize]);
        }
        match zero {
            true => writer.zero(span, false, false).expect("zeroed"),
            false => writer.write(start, &data).expect("written"),
        }
    }
    writer.close().expect("closed");
    let chain = [
        Layer { image: &*leaf, storage: &leaf_file },
        Layer { image: &*below, storage: &below_file },
    ];
    let mut all = vec![0; SECTORS as usize * 512];
    read(&chain, Span { start: 0, count: SECTORS as u32 }, &mut all).expect("it reads");
    let found = (0..).zip(all.chunks_exact(512)).map(|(s, sector)| parse(sector, s));
    assert!(found.eq(values), "every sector holds what was written last, or what was packed below");
    toy::check(&leaf_file.into_inner()).expect("an image that keeps its promises");
}
