//! Orders of events that chance finds rarely, each made on purpose: what went wrong once stays
//! right.
use engine::Bug;
use image::Purpose;
use request::Verb;
use request::disk::{FileId, Kind, Op};
use tests::sim::bench::{BLOCK, Bench, child, empty};
use tests::sim::model::ZERO;

const SECTORS: u64 = 8 * BLOCK;
const UNUSED: u32 = u32::MAX;
const WRITE: Verb = Verb::Write { fua: false };
const ZEROS: Verb = Verb::Zero { keep: false, fast: false, fua: false };

/// A write into a file's table, which begins at byte 1536.
fn table(file: u8) -> impl Fn(&Op) -> bool {
    move |op| op.file == FileId(file) && op.kind == Kind::Write && (1536..2048).contains(&op.at)
}

/// A write of data: longer than a piece of metadata.
fn data(file: u8) -> impl Fn(&Op) -> bool {
    move |op| op.file == FileId(file) && op.kind == Kind::Write && op.buf.bytes > 512
}

#[test]
fn a_long_discard_and_a_write_in_one_turn_are_both_answered() {
    let mut parent = Bench::new(vec![empty(SECTORS, false)], None);
    (0..BLOCK).step_by(2).for_each(|sector| parent.run(WRITE, sector, 1, 7));
    let parent = parent.engine.into_disk().files.remove(0);
    for steps in [1, 2, 3, 7, 64] {
        let files = vec![child(&parent, SECTORS), parent.clone()];
        let mut bench = Bench::new(files, None);
        bench.engine.set_steps_max(steps);
        let discard = bench.start(Verb::Discard { fua: false }, 0, BLOCK, 0);
        let write = bench.start(WRITE, 100, 1, 9);
        bench.drain();
        assert_eq!(bench.answer(discard), Some(Ok(0)), "{steps} steps");
        assert_eq!(bench.answer(write), Some(Ok(0)), "{steps} steps");
        assert_eq!(bench.value(100), 9, "{steps} steps");
        assert_eq!(bench.value(98), 7, "{steps} steps");
    }
}

#[test]
fn the_place_of_a_block_that_went_is_not_used_before_its_going_is_on_the_medium() {
    let mut bench = Bench::new(vec![empty(SECTORS, false)], None);
    bench.run(WRITE, 0, BLOCK, 7);
    bench.run(Verb::Flush, 0, 0, 0);
    bench.run(ZEROS, 0, BLOCK, 0);
    assert_eq!(bench.entry(0, 0), UNUSED, "the block went");
    bench.run(WRITE, BLOCK, 1, 8);
    // The table of before comes back: old data or zeros, nothing of another block.
    let mut bench = Bench::new(bench.cut(|at| !(1536..2048).contains(&at)), None);
    assert!([7, ZERO].contains(&bench.value(0)));
    assert!([8, ZERO].contains(&bench.value(BLOCK)));
}

#[test]
fn the_place_of_a_block_that_went_in_a_killed_process_is_not_used_before_a_flush() {
    let mut bench = Bench::new(vec![empty(SECTORS, true)], None);
    bench.run(WRITE, 0, BLOCK, 7);
    bench.run(WRITE, BLOCK, BLOCK, 7);
    bench.run(Verb::Flush, 0, 0, 0);
    bench.run(ZEROS, 0, BLOCK, 0);
    // Killed: the cache of the device lives on.
    let mut bench = Bench::new(std::mem::take(&mut bench.engine.disk().files), None);
    let write = bench.start(WRITE, 3 * BLOCK, 1, 8);
    for _ in 0..100 {
        bench.turn();
        if !bench.engine.disk().complete_first(|op| op.kind != Kind::Sync) {
            break;
        }
    }
    assert_eq!(bench.answer(write), None, "the first new block of a session waits for a flush");
    let mut bench = Bench::new(bench.cut(|_| false), None);
    assert!([7, ZERO].contains(&bench.value(0)), "the old table and its block");
    assert_eq!(bench.value(BLOCK), 7);
}

#[test]
fn places_come_back_after_a_flush() {
    let mut bench = Bench::new(vec![empty(SECTORS, true)], None);
    for round in 1..20 {
        // More than the device has room for, if nothing came back.
        (0..8).for_each(|block| bench.run(WRITE, block * BLOCK, BLOCK, round));
        assert_eq!(bench.value(SECTORS - 1), round);
        bench.run(ZEROS, 0, SECTORS, 0);
        assert!((0..8).all(|block| bench.entry(0, block) == UNUSED), "all blocks went");
    }
}

/// Without barriers: the table is on the medium, the new block's bitmap and data are not.
#[test]
fn flushed_neighbours_survive_a_table_that_is_ahead_of_its_block() {
    for device in [false, true] {
        let mut parent = Bench::new(vec![empty(SECTORS, false)], None);
        parent.run(WRITE, 0, BLOCK, 7);
        parent.run(Verb::Flush, 0, 0, 0);
        let parent = parent.engine.into_disk().files.remove(0);
        let mut leaf = child(&parent, SECTORS);
        if device {
            let bytes = leaf.bytes.len();
            let footer = leaf.bytes[bytes - 512..].to_vec();
            leaf.bytes.truncate(bytes - 512);
            leaf.bytes.resize(bytes + 4 * 70_000, 0xee);
            let end = leaf.bytes.len() / 512 * 512;
            leaf.bytes.truncate(end);
            leaf.bytes.extend(footer);
            leaf = tests::sim::disk::SimFile::new(leaf.bytes, true);
        }
        let mut bench = Bench::new(vec![leaf, parent.clone()], None);
        bench.run(WRITE, 5, 1, 8);
        let files = bench.cut(|at| (1536..2048).contains(&at));
        let mut bench = Bench::new(files, None);
        assert_ne!(bench.entry(0, 0), UNUSED, "the table got there");
        for sector in (0..BLOCK).filter(|sector| *sector != 5) {
            assert_eq!(bench.value(sector), 7, "sector {sector}, device: {device}");
        }
    }
}

#[test]
fn a_zero_settles_a_table_that_is_in_doubt() {
    let mut bench = Bench::new(vec![empty(SECTORS, false)], None);
    bench.run(WRITE, BLOCK, 1, 6);
    let write = bench.start(WRITE, 0, 8, 7);
    while !bench.engine.disk().fail_first(table(0), libc::EIO) {
        bench.turn();
        let other = |op: &Op| !table(0)(op);
        if !bench.engine.disk().complete_first(other) {
            assert!(bench.engine.disk().busy(), "the table is written in the end");
        }
        bench.turn();
    }
    bench.drain();
    assert_eq!(bench.answer(write), Some(Err(libc::EIO)));
    assert_ne!(bench.entry(0, 0), UNUSED, "it landed all the same");
    // Over several blocks, some of which are in doubt.
    bench.run(Verb::Zero { keep: false, fast: false, fua: true }, 0, BLOCK, 0);
    assert_eq!(bench.entry(0, 0), UNUSED, "the zero is where its answer says");
    let mut bench = Bench::new(bench.cut(|_| false), None);
    assert_eq!(bench.value(0), ZERO);
}

/// A zero vanishes a block of the mirror while the mirror takes over; what is read then.
fn zero_over_a_takeover(bug: Bug) -> u64 {
    let mut leaf = Bench::new(vec![empty(SECTORS, false)], None);
    leaf.run(WRITE, 0, BLOCK, 7);
    leaf.run(Verb::Flush, 0, 0, 0);
    let leaf = leaf.engine.into_disk().files.remove(0);
    let mut bench = Bench::new(vec![leaf.clone(), leaf], Some(Purpose::Mirror));
    bench.engine.plant(bug);
    // A write gets as far as the leaf, which has no space left for it.
    let write = bench.start(WRITE, 4 * BLOCK, 8, 8);
    let leaf_wants_space = |op: &Op| {
        op.file == FileId(0) && (matches!(op.kind, Kind::Grow { .. }) || op.buf.bytes > 512)
    };
    for _ in 0..100 {
        bench.turn();
        if !bench.engine.disk().complete_first(|op| !leaf_wants_space(op)) {
            break;
        }
    }
    let zero = bench.start(ZEROS, 0, BLOCK, 0);
    bench.turn();
    bench.fail("what the leaf has no space for", libc::ENOSPC, leaf_wants_space);
    bench.land("the mirror's table", table(1));
    bench.drain();
    assert_eq!(bench.answer(write), Some(Ok(0)));
    assert_eq!(bench.answer(zero), Some(Ok(0)));
    assert!(bench.engine.events().taken_over);
    assert_eq!(bench.value(4 * BLOCK), 8);
    bench.value(0)
}

#[test]
fn a_zero_on_a_mirror_that_takes_over_covers_the_old_leaf() {
    assert_eq!(zero_over_a_takeover(Bug::None), ZERO);
    assert_eq!(zero_over_a_takeover(Bug::AlwaysTheTop), 7, "the planted bug is seen");
}

/// Whether the second of two overlapping writes gets to the mirror before the first is over.
fn overtakes(bug: Bug) -> bool {
    let files = vec![empty(SECTORS, false), empty(SECTORS, false)];
    let mut bench = Bench::new(files, Some(Purpose::Mirror));
    bench.engine.plant(bug);
    bench.run(WRITE, 0, 16, 6);
    let (first, second) = (bench.start(WRITE, 0, 8, 7), bench.start(WRITE, 4, 8, 8));
    bench.turn();
    bench.land("the first write on the mirror", data(1));
    let early = bench.engine.disk().complete_first(data(1));
    bench.drain();
    assert_eq!((bench.answer(first), bench.answer(second)), (Some(Ok(0)), Some(Ok(0))));
    assert_eq!(bench.value(5), 8);
    early
}

#[test]
fn overlapping_writes_land_in_mirror_and_leaf_in_one_order() {
    assert!(!overtakes(Bug::None), "the second one waits for all of the first");
    assert!(overtakes(Bug::MirrorInAnyOrder), "the planted bug is seen");
}

/// A write whose table entry landed in the old leaf though it failed, and then a zero on the new
/// top.
fn zero_over_a_doubt(bug: Bug) -> u64 {
    let files = vec![empty(SECTORS, false), empty(SECTORS, false)];
    let mut bench = Bench::new(files, Some(Purpose::Mirror));
    bench.engine.plant(bug);
    bench.run(WRITE, 4 * BLOCK, 8, 6);
    let write = bench.start(WRITE, 0, 8, 8);
    for _ in 0..100 {
        bench.turn();
        if bench.engine.disk().fail_first(table(0), libc::ENOSPC) {
            break;
        }
        bench.engine.disk().complete_first(|op| !table(0)(op));
    }
    bench.drain();
    assert_eq!(bench.answer(write), Some(Ok(0)));
    assert!(bench.engine.events().taken_over && bench.entry(0, 0) != UNUSED);
    bench.run(Verb::Zero { keep: false, fast: false, fua: true }, 0, BLOCK, 0);
    assert_eq!(bench.value(0), ZERO);
    let mut files = bench.cut(|_| true);
    files.swap(0, 1);
    Bench::new(files, None).value(0)
}

#[test]
fn a_zero_does_not_rely_on_what_a_lower_image_is_not_sure_of() {
    assert_eq!(zero_over_a_doubt(Bug::None), ZERO);
    assert_eq!(zero_over_a_doubt(Bug::DoubtIsZero), 8, "the planted bug is seen");
}
