//! Guests that send nonsense: the request or the ring fails, everything else goes on.

use std::sync::atomic::Ordering;

use crate::blkif_support::*;
use frontend::Frontend;
use frontend::blkif::Notice;
use test_support::rng::Rng;
use xen::fake::{Access, FrontRing, entry, indirect_entry};
use xen::{Layout, Segment, op, status};

const WIDE: Layout = Layout::WIDE;

#[test]
fn what_is_no_request_is_answered_and_the_ring_goes_on() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(11);
    for operation in [4, 7, 99, 255] {
        let strange = entry(WIDE, (operation, 1), 1, 0, &pages);
        assert_eq!(bench.ask(&mut ring, &strange), status::EOPNOTSUPP);
    }
    for count in [0, 12, 32, 33, 255] {
        for operation in [op::READ, op::WRITE] {
            let wrong = entry(WIDE, (operation, count), 1, 0, &pages);
            assert_eq!(bench.ask(&mut ring, &wrong), status::ERROR, "{count} segments");
        }
    }
    for (first, last) in [(0, 8), (3, 2), (255, 255), (0, 255)] {
        let outside = [pages[0], Segment { first, last, ..pages[1] }];
        assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 0, &outside)), status::ERROR);
    }
    for sector in [SECTORS, SECTORS - 7, u64::MAX, u64::MAX - 7, 1 << 55] {
        assert_eq!(bench.ask(&mut ring, &read(&bench, 1, sector, &pages[..1])), status::ERROR);
    }
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, SECTORS - 8, &pages[..1])), status::OKAY);
    assert_eq!(bench.memory.seen.len(), 1, "only that one reached the engine");
    bench.assert_clean();
}

#[test]
fn indirect_requests_with_wrong_lists_fail() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 2, 0);
    let layout = Layout::NARROW;
    let pages = bench.pages(20);
    let list = bench.list(&pages);
    let mut ask = |bench: &mut Bench, count, gref, sector, operation| {
        let request = indirect_entry(layout, operation, 5, sector, (count, gref));
        bench.ask(&mut ring, &request)
    };
    assert_eq!(ask(&mut bench, 20, list, 0, op::READ), status::OKAY);
    for count in [0, 257, 512, 4096, u16::MAX] {
        assert_eq!(ask(&mut bench, count, list, 0, op::READ), status::ERROR, "{count}");
    }
    assert_eq!(ask(&mut bench, 20, 9999, 0, op::WRITE), status::ERROR, "no such page");
    assert_eq!(ask(&mut bench, 20, list, SECTORS - 100, op::WRITE), status::ERROR);
    assert_eq!(ask(&mut bench, 20, list, 0, op::INDIRECT), status::EOPNOTSUPP);
    bench.guest.page(list, |page| page[8 * 19 + 5] = 8);
    assert_eq!(ask(&mut bench, 20, list, 0, op::READ), status::ERROR, "a segment past its page");
    assert_eq!(ask(&mut bench, 19, list, 0, op::READ), status::OKAY);
    bench.assert_clean();
}

#[test]
fn a_grant_that_fails_costs_only_its_request() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(4);
    bench.guest.allow(pages[1].gref, Access::None);
    bench.guest.allow(pages[2].gref, Access::ReadOnly);
    for (id, i) in [(10, 0), (11, 1), (12, 2), (13, 3)] {
        ring.put(&write(&bench, id, i as u64 * 8, &pages[i..=i]));
        ring.put(&read(&bench, id + 10, i as u64 * 8, &pages[i..=i]));
    }
    let mut got = bench.serve(&mut ring);
    got.sort_by_key(|answer| answer.id);
    let of: Vec<(u64, i16)> = got.iter().map(|a| (a.id, a.status)).collect();
    let want = [(10, 0), (11, -1), (12, 0), (13, 0), (20, 0), (21, -1), (22, -1), (23, 0)];
    assert_eq!(of, want);
    // One bad segment of a long write, in the middle of its pieces.
    let mut many = bench.pages(100);
    many[50].gref = 1 << 19;
    assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 0, &many)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &many)), status::ERROR);
    bench.assert_clean();
}

#[test]
fn a_copy_call_that_fails_fails_its_requests() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(64);
    bench.guest.break_copy(libc::EFAULT);
    assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 0, &pages[..2])), status::ERROR);
    assert_eq!(bench.rings.take_notice(), Some(Notice::CopyFailed(libc::EFAULT)));
    bench.guest.break_copy(libc::ENOMEM);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &pages[..2])), status::ERROR);
    bench.guest.break_copy(libc::ENOMEM);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &pages)), status::ERROR, "its list");
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &pages)), status::OKAY);
    bench.assert_clean();
}

#[test]
fn a_read_only_disk_refuses_what_changes_it() {
    let mut bench = Bench::with(export(512, true));
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(1);
    let many = bench.pages(30);
    assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 0, &pages)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 0, &many)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &discard(0, 1, 0, 8)), status::ERROR);
    let barrier = |n| entry(WIDE, (op::WRITE_BARRIER, n), 1, 0, &pages);
    assert_eq!(bench.ask(&mut ring, &barrier(1)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &barrier(0)), status::OKAY);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &many)), status::OKAY);
    bench.assert_clean();
}

#[test]
fn errors_of_the_image_are_errors_of_the_request() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let many = bench.pages(100);
    bench.memory.bad.insert(500);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &many)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &write(&bench, 1, 400, &many)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 501, &many)), status::OKAY);
    bench.assert_clean();
}

#[test]
fn a_producer_that_runs_away_ends_its_ring_and_no_other() {
    for lie in [33, 1000, 1 << 31, u32::MAX] {
        let mut bench = Bench::new();
        let (mut bad, mut good) = (bench.connect(0, 3, 0), bench.connect(0, 3, 1));
        let pages = bench.pages(32);
        bench.memory.hold = true;
        bad.put(&write(&bench, 1, 0, &pages[..1]));
        // With a list that is being fetched when the index is looked at again.
        bad.put(&write(&bench, 2, 0, &pages));
        bench.serve(&mut bad);
        bad.lie(lie);
        bench.guest.notify(bad.port());
        bench.turn();
        let Some(Notice::Broken { name: broken, runaway }) = bench.rings.take_notice() else {
            panic!("{lie}: it was not noticed")
        };
        assert_eq!((broken, runaway.req_prod, runaway.req_cons), (name(0), lie, 2));
        bench.memory.hold = false;
        bench.turn();
        assert_eq!(answers(&mut bad), [], "nothing is written to it any more");
        bench.guest.notify(bad.port());
        bench.turn();
        assert!(!bench.rings.pending(&bench.memory), "and it cannot keep anybody awake");
        let request = read(&bench, 1, 0, &pages[..1]);
        assert_eq!(bench.ask(&mut good, &request), status::OKAY);
        bench.assert_clean();
    }
}

#[test]
fn an_index_that_moves_while_requests_are_taken_is_no_harm() {
    // Exactly a full ring, then one more: the entries seen first are served or given up, not both.
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(40);
    for i in 0..32 {
        ring.put(&write(&bench, i, 0, &pages));
    }
    ring.show();
    ring.lie(32);
    bench.turn();
    assert_eq!(answers(&mut ring).len(), 32);
    ring.lie(31);
    bench.turn();
    assert!(matches!(bench.rings.take_notice(), Some(Notice::Broken { .. })));
    bench.assert_clean();
}

/// Every byte of the ring, its indices, the lists and the grants change at random while two honest
/// rings are served.
#[test]
fn random_nonsense_harms_nobody_else() {
    for seed in 0..60u64 {
        let mut random = Rng::new(seed);
        let mut bench = Bench::new();
        bench.memory.order = crate::blkif_support::engine::Order::Random;
        if seed % 3 == 0 {
            bench.memory.set_slots(2, 2);
        }
        let mut honest = bench.connect(0, 3, 7);
        let data = bench.pages(9);
        let grefs: Vec<u32> = bench.pages(64).iter().map(|segment| segment.gref).collect();
        let mut bad: Option<FrontRing> = None;
        for round in 0..120u64 {
            let ring = bad
                .get_or_insert_with(|| bench.connect((seed % 4) as u32, 2 + (seed % 2) as u32, 0));
            nonsense(&bench, ring, &grefs, &mut random);
            bench.memory.hold = random.below(4) == 0;
            bench.guest.notify(ring.port());
            bench.turn();
            if random.below(20) == 0 {
                bench.rings.disconnect(7, DEVID);
                bad = None;
                // The honest ring has the same device.
                honest = bench.connect(0, 3, 7);
            }
            bench.memory.hold = false;
            bench.turn();
            // It writes and reads beyond what the others are let at.
            bench.put_data(&data, &vec![round as u8; 9 * PAGE]);
            answers(&mut honest);
            let put = write(&bench, round, SECTORS - 128, &data);
            assert_eq!(ask_until(&mut bench, &mut honest, &put), status::OKAY, "seed {seed}");
        }
        assert!(bench.rings.idle(), "seed {seed}");
        bench.assert_clean();
    }
}

/// With other rings at work an answer may need several turns.
fn ask_until(bench: &mut Bench, ring: &mut FrontRing, request: &[u8; 112]) -> i16 {
    ring.put(request);
    let mut got = bench.serve(ring);
    for _ in 0..50 {
        if let Some(answer) = got.first() {
            return answer.status;
        }
        bench.turn();
        got = answers(ring);
    }
    panic!("no answer");
}

fn nonsense(bench: &Bench, ring: &mut FrontRing, grefs: &[u32], random: &mut Rng) {
    let any = |random: &mut Rng| grefs[random.below(grefs.len() as u64) as usize];
    for _ in 0..random.below(12) {
        let mut bytes = [0; 112];
        match random.below(3) {
            // Nearly right.
            0 | 1 => {
                let segment = |random: &mut Rng| Segment {
                    gref: any(random),
                    first: random.below(4) as u8,
                    last: 3 + random.below(5) as u8,
                    pad: 0,
                };
                let segments: Vec<Segment> = (0..11).map(|_| segment(random)).collect();
                let operation = random.below(7) as u8;
                let count = random.below(13) as u8;
                let sector = random.below(SECTORS - 2048);
                bytes = entry(ring.layout(), (operation, count), random.next(), sector, &segments);
                if operation == op::INDIRECT {
                    let list = any(random);
                    let count = random.below(300) as u16;
                    bytes = indirect_entry(
                        ring.layout(),
                        random.below(3) as u8,
                        1,
                        sector,
                        (count, list),
                    );
                }
            }
            _ => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
        }
        ring.put(&bytes);
    }
    ring.show();
    match random.below(12) {
        0 => ring.lie(random.next() as u32),
        1 => ring.word(random.below(1024) as usize).store(random.next() as u32, Ordering::Relaxed),
        2 => bench.guest.allow(
            any(random),
            [Access::None, Access::ReadOnly, Access::Full][random.below(3) as usize],
        ),
        3 => bench.guest.page(any(random), |page| {
            page.iter_mut().for_each(|byte| *byte = random.next() as u8 & 7);
        }),
        _ => {}
    }
    answers(ring);
}
