//! Rings of a guest in memory: data, batches, several rings, pauses, connecting and letting go.

use crate::blkif_support::*;
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingParams, RingState, Rings};
use request::{Slots, Verb};
use test_support::rng::Rng;
use xen::fake::entry;
use xen::{Layout, Segment, op, status};

/// Random segments, also of parts of pages.
fn segments(bench: &Bench, random: &mut Rng, count: usize) -> Vec<Segment> {
    let mut segments = bench.pages(count);
    for segment in &mut segments {
        if random.below(3) == 0 {
            segment.first = random.below(8) as u8;
            segment.last = segment.first + random.below(8 - u64::from(segment.first)) as u8;
        }
    }
    segments
}

#[test]
fn random_requests_of_every_protocol_and_order_do_what_they_say() {
    for (protocol, order) in [(1, 0), (2, 1), (3, 2), (2, 3), (3, 3)] {
        let mut bench = Bench::new();
        let mut ring = bench.connect(order, protocol, 0);
        let layout = ring.layout();
        let mut random = Rng::new(u64::from(protocol * 10 + order));
        let mut model = bench.memory.disk.clone();
        bench.memory.order = engine::Order::Random;
        for id in 0..300u64 {
            let count = match random.below(10) {
                0 => 256,
                1 => 12 + random.below(100) as usize,
                _ => 1 + random.below(11) as usize,
            };
            let segments = segments(&bench, &mut random, count);
            let bytes = bench.data(&segments).len();
            let sector = random.below(SECTORS - bytes as u64 / 512);
            let range = sector as usize * 512..sector as usize * 512 + bytes;
            if random.below(2) == 0 {
                let data: Vec<u8> = (0..bytes).map(|_| random.next() as u8).collect();
                bench.put_data(&segments, &data);
                model[range].copy_from_slice(&data);
                let request = bench.request(layout, op::WRITE, id, sector, &segments);
                assert_eq!(bench.ask(&mut ring, &request), status::OKAY);
            } else {
                let request = bench.request(layout, op::READ, id, sector, &segments);
                assert_eq!(bench.ask(&mut ring, &request), status::OKAY);
                assert!(bench.data(&segments) == model[range], "request {id}");
            }
        }
        assert!(bench.memory.disk == model);
        bench.assert_clean();
    }
}

#[test]
fn answers_name_the_request_and_the_operation_behind_an_indirect_one() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let many = bench.pages(12);
    ring.put(&read(&bench, u64::MAX, 0, &many));
    ring.put(&write(&bench, 1 << 40, 0, &many[..3]));
    let got = bench.serve(&mut ring);
    let mut of: Vec<_> = got.iter().map(|a| (a.id, a.operation, a.status)).collect();
    of.sort_unstable();
    assert_eq!(of, [(1 << 40, op::WRITE, 0), (u64::MAX, op::READ, 0)]);
    bench.assert_clean();
}

#[test]
fn a_batch_costs_one_copy_call_each_way_and_one_notification() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(3, 3, 0);
    bench.turn();
    let before = bench.guest.counts();
    for i in 0..32 {
        let segments = bench.pages(11);
        ring.put(&write(&bench, i, i * 128, &segments[..1]));
        ring.put(&read(&bench, i, i * 128, &segments[..1]));
    }
    assert_eq!(bench.serve(&mut ring).len(), 64);
    let after = bench.guest.counts();
    assert_eq!(after.copy_calls - before.copy_calls, 2);
    assert_eq!(after.copies - before.copies, 64);
    assert_eq!(after.notifications - before.notifications, 1);
    // A look at the descriptor, and the port unmasked.
    assert_eq!(after.event_calls - before.event_calls, 2);
    bench.assert_clean();
}

#[test]
fn lists_of_a_batch_are_fetched_with_one_call() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    bench.turn();
    let before = bench.guest.counts().copy_calls;
    for i in 0..8 {
        let segments = bench.pages(16);
        ring.put(&write(&bench, i, i * 128, &segments));
    }
    assert_eq!(bench.serve(&mut ring).len(), 8);
    assert_eq!(bench.guest.counts().copy_calls - before, 2, "lists, then data");
    bench.assert_clean();
}

#[test]
fn a_guest_that_did_not_ask_is_not_notified() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let segments = bench.pages(1);
    // It wants to hear of the fourth answer only.
    ring.word(3).store(4, std::sync::atomic::Ordering::Relaxed);
    for i in 0..3 {
        ring.put(&read(&bench, i, 0, &segments));
    }
    ring.show();
    bench.turn();
    assert_eq!(bench.guest.heard(ring.port()), 0);
    ring.put(&read(&bench, 3, 0, &segments));
    ring.show();
    bench.guest.notify(ring.port());
    bench.turn();
    assert_eq!(bench.guest.heard(ring.port()), 1);
    assert_eq!(answers(&mut ring).len(), 4);
    bench.assert_clean();
}

#[test]
fn requests_wait_in_the_ring_when_slots_run_out() {
    for (small, large) in [(0, 1), (1, 1), (4, 2)] {
        let mut bench = Bench::new();
        bench.memory.set_slots(small, large);
        bench.memory.pattern();
        bench.memory.per_turn = 1;
        let mut ring = bench.connect(3, 3, 0);
        let model = bench.memory.disk.clone();
        let mut wanted = Vec::new();
        for i in 0..200 {
            let segments = bench.pages(if i % 50 == 7 { 256 } else { 1 });
            ring.put(&read(&bench, i, i, &segments));
            wanted.push(segments);
        }
        let mut got = bench.serve(&mut ring);
        for _ in 0..50 {
            bench.turn();
            got.extend(answers(&mut ring));
        }
        assert_eq!(got.len(), 200, "{small} small and {large} large slots");
        assert!(bench.memory.most <= usize::from(small + large));
        for (i, segments) in wanted.iter().enumerate() {
            let data = bench.data(segments);
            assert!(data == model[i * 512..i * 512 + data.len()], "request {i}");
        }
        bench.assert_clean();
    }
}

#[test]
fn a_barrier_is_alone_and_between_two_flushes() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(5);
    let barrier = |n: u8, id| entry(Layout::WIDE, (op::WRITE_BARRIER, n), id, 80, &pages[2..3]);
    ring.put(&write(&bench, 0, 0, &pages[..1]));
    ring.put(&write(&bench, 1, 8, &pages[1..2]));
    ring.put(&barrier(1, 2));
    ring.put(&write(&bench, 3, 16, &pages[3..4]));
    ring.put(&barrier(0, 4));
    ring.put(&read(&bench, 5, 16, &pages[4..5]));
    let got = bench.serve(&mut ring);
    assert!(got.iter().all(|answer| answer.status == status::OKAY));
    let ids: Vec<u64> = got.iter().map(|answer| answer.id).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    let kinds: Vec<(u64, bool)> =
        bench.memory.seen.iter().map(|r| (r.span.start, r.verb == Verb::Flush)).collect();
    let want = [
        (0, false),
        (8, false),
        (0, true),
        (80, false),
        (0, true),
        (16, false),
        (0, true),
        (16, false),
    ];
    assert_eq!(kinds, want);
    bench.assert_clean();
}

#[test]
fn a_barrier_whose_write_fails_says_so() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(1);
    bench.memory.bad.insert(82);
    let barrier = entry(Layout::WIDE, (op::WRITE_BARRIER, 1), 2, 80, &pages);
    assert_eq!(bench.ask(&mut ring, &barrier), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 1, 0, &pages)), status::OKAY);
    bench.assert_clean();
}

#[test]
fn flushes_and_discards_reach_the_disk() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut ring = bench.connect(0, 3, 0);
    let flush = entry(Layout::WIDE, (op::FLUSH_DISKCACHE, 0), 1, 0, &[]);
    assert_eq!(bench.ask(&mut ring, &flush), status::OKAY);
    assert_eq!(bench.memory.flushes, 1);
    assert_eq!(bench.ask(&mut ring, &discard(0, 2, 100, SECTORS - 100)), status::OKAY);
    assert!(bench.memory.disk[51200..].iter().all(|&b| b == 0) && bench.memory.disk[51199] == 0);
    assert_eq!(bench.ask(&mut ring, &discard(1, 2, 0, 8)), status::EOPNOTSUPP, "secure");
    assert_eq!(bench.ask(&mut ring, &discard(0, 2, SECTORS, 1)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &discard(0, 2, 8, u64::MAX)), status::ERROR);
    assert_eq!(bench.ask(&mut ring, &discard(0, 2, 8, 0)), status::ERROR);
    bench.assert_clean();
}

#[test]
fn a_paused_disk_takes_nothing_and_its_ports_do_not_wake_it_twice() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(1);
    bench.turn();
    bench.memory.hold = true;
    ring.put(&read(&bench, 0, 0, &pages));
    assert_eq!(bench.serve(&mut ring).len(), 0);
    bench.rings.suspend();
    ring.put(&read(&bench, 1, 0, &pages));
    ring.put(&read(&bench, 2, 0, &pages));
    bench.memory.hold = false;
    assert_eq!(bench.serve(&mut ring).len(), 1, "what was in flight is answered");
    assert!(bench.rings.idle() && !bench.rings.pending(&bench.memory));
    bench.guest.notify(ring.port());
    assert!(!bench.guest.wakes_back_end(), "the port stays masked");
    bench.rings.resume();
    assert!(bench.rings.pending(&bench.memory));
    bench.turn();
    assert_eq!(answers(&mut ring).len(), 2);
    bench.assert_clean();
}

#[test]
fn a_long_request_is_carried_on_after_a_pause() {
    let mut bench = Bench::new();
    bench.memory.set_slots(1, 2);
    bench.memory.pattern();
    bench.memory.hold = true;
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(256);
    ring.put(&read(&bench, 0, 3, &pages));
    assert_eq!(bench.serve(&mut ring).len(), 0);
    bench.rings.suspend();
    bench.memory.hold = false;
    bench.turn();
    assert!(bench.rings.idle());
    bench.rings.resume();
    bench.turn();
    assert_eq!(answers(&mut ring).len(), 1);
    assert!(bench.data(&pages) == bench.memory.disk[3 * 512..3 * 512 + 256 * PAGE]);
    bench.assert_clean();
}

#[test]
fn several_queues_of_a_device_and_other_devices_are_apart() {
    let mut bench = Bench::new();
    let mut rings: Vec<_> = (0..4).map(|queue| bench.connect(1, 3, queue)).collect();
    let again = params(&rings[2], name(2), 3, PollPolicy::default());
    assert_eq!(bench.rings.connect(&again).unwrap_err().errno, libc::EALREADY);
    let pages = bench.pages(4);
    for (i, ring) in rings.iter_mut().enumerate() {
        bench.guest.page(pages[i].gref, |page| page.fill(i as u8 + 1));
        let request = write(&bench, i as u64, i as u64 * 8, &pages[i..=i]);
        assert_eq!(bench.ask(ring, &request), status::OKAY);
    }
    assert_eq!(bench.memory.disk[3 * PAGE], 4);
    assert!(!bench.rings.disconnect(7, DEVID + 1) && !bench.rings.disconnect(8, DEVID));
    assert!(bench.rings.disconnect(7, DEVID), "all queues at once");
    assert_eq!(bench.rings.each().count(), 0);
    assert!(!bench.rings.disconnect(7, DEVID));
    bench.assert_clean();
}

#[test]
fn letting_go_with_requests_in_flight_frees_pages_and_port_at_once() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(3);
    bench.memory.hold = true;
    bench.guest.page(pages[0].gref, |page| page.fill(9));
    ring.put(&write(&bench, 0, 0, &pages[..1]));
    ring.put(&read(&bench, 1, 8, &pages[1..2]));
    bench.serve(&mut ring);
    assert!(bench.rings.disconnect(7, DEVID));
    let counts = bench.guest.counts();
    assert_eq!((counts.mapped, counts.bound), (0, 0));
    assert!(!bench.rings.idle());
    // A new ring of the same name while the old requests are still at work.
    let mut next = bench.connect(0, 3, 0);
    bench.memory.hold = false;
    assert_eq!(bench.ask(&mut next, &read(&bench, 2, 0, &pages[2..])), status::OKAY);
    assert_eq!(bench.data(&pages[2..]), [9; PAGE], "the write went on to the image");
    assert_eq!(answers(&mut ring), [], "nobody writes to the old ring");
    bench.assert_clean();
}

#[test]
fn rings_come_and_go_for_ever() {
    let mut bench = Bench::new();
    for i in 0..200 {
        let mut ring = bench.connect(0, 3, 0);
        let pages = bench.pages(1);
        assert_eq!(bench.ask(&mut ring, &read(&bench, i, 0, &pages)), status::OKAY);
        assert!(bench.rings.disconnect(7, DEVID));
    }
    bench.assert_clean();
}

#[test]
fn a_polled_ring_needs_no_notifications() {
    let mut bench = Bench::new();
    let mut ring = bench.guest.ring(0, Layout::WIDE);
    let poll = PollPolicy { duration_us: 1000, idle_threshold: 50 };
    bench.rings.connect(&params(&ring, name(0), 3, poll)).unwrap();
    bench.rings.set_idle(80.0);
    let pages = bench.pages(1);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, 0, &pages)), status::OKAY);
    assert!(bench.rings.pending(&bench.memory), "it is polled");
    let before = bench.guest.counts().event_calls;
    for i in 1..50 {
        bench.now += 900;
        ring.put(&read(&bench, i, 0, &pages));
        assert!(!ring.show(), "the guest need not notify");
        bench.turn();
        assert_eq!(answers(&mut ring).len(), 1);
    }
    assert_eq!(bench.guest.counts().event_calls, before);
    bench.now += 1001;
    bench.turn();
    assert!(!bench.rings.pending(&bench.memory), "polling is over");
    ring.put(&read(&bench, 60, 0, &pages));
    assert!(ring.show(), "and notifications are wanted again");
    bench.rings.set_idle(20.0);
    bench.guest.notify(ring.port());
    assert!(bench.guest.wakes_back_end());
    bench.turn();
    assert!(!bench.rings.pending(&bench.memory), "a busy host does not poll");
    bench.assert_clean();
}

#[test]
fn sectors_of_4096_bytes_are_counted_in_units_of_512() {
    let mut bench = Bench::with(export(4096, false));
    let mut ring = bench.connect(0, 3, 0);
    let pages = bench.pages(1);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, 8, &pages)), status::OKAY);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, SECTORS - 8, &pages)), status::OKAY);
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, 4, &pages)), status::ERROR);
    let half = [Segment { last: 3, ..pages[0] }];
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, 8, &half)), status::ERROR);
    let halves = [half[0], Segment { first: 4, ..pages[0] }];
    assert_eq!(bench.ask(&mut ring, &read(&bench, 0, 8, &halves)), status::OKAY);
    bench.assert_clean();
}

#[test]
fn what_cannot_be_connected_is_refused_with_the_errno_of_the_protocol() {
    let errno = |result: Result<RingParams, _>| {
        let error: frontend::blkif::ConnectError = result.unwrap_err();
        error.errno
    };
    let poll = PollPolicy::default();
    let refs = [0; 8];
    assert_eq!(errno(RingParams::new(name(0), (4, &refs), 1, 3, poll)), libc::EINVAL);
    assert_eq!(errno(RingParams::new(name(0), (u32::MAX, &refs), 1, 3, poll)), libc::EINVAL);
    assert_eq!(errno(RingParams::new(name(0), (0, &refs), 1, 0, poll)), libc::EPROTONOSUPPORT);
    for (queue, queues) in [(2, 2), (8, 9), (0, 9), (u32::MAX, 8)] {
        let refused = RingParams::name((7, 1), (queue, queues)).unwrap_err();
        assert_eq!(refused.errno, libc::EINVAL, "{queue} of {queues}");
    }
    assert_eq!(RingParams::name((7, 1), (77, 0)).unwrap().queue, 0, "as the original's tapback");
    assert_eq!(RingParams::name((0x7ff0, 1), (0, 0)).unwrap_err().errno, libc::EINVAL);
    let mut bench = Bench::new();
    let ring = bench.guest.ring(0, Layout::WIDE);
    let stranger = RingParams::name((3, 1), (0, 1)).unwrap();
    let refused = bench.rings.connect(&params(&ring, stranger, 3, poll)).unwrap_err();
    assert_eq!(refused.errno, libc::EINVAL);
    assert!(refused.text.contains("domain 3, device 1"), "{refused}");
    bench.rings.connect(&params(&ring, name(0), 3, poll)).unwrap();
    // The port is taken now: what was mapped for the second ring is unmapped again.
    let refused = bench.rings.connect(&params(&ring, name(1), 3, poll)).unwrap_err();
    assert!(refused.text.contains("event channel port"), "{refused}");
    assert_eq!(bench.guest.counts().mapped, 1);
    bench.assert_clean();
}

#[test]
fn the_quota_leaves_slots_to_others() {
    let mut bench = Bench::new();
    bench.memory.hold = true;
    let mut ring = bench.connect(3, 3, 0);
    let pages = bench.pages(1);
    for i in 0..256 {
        ring.put(&read(&bench, i, i, &pages));
    }
    bench.serve(&mut ring);
    let free = bench.memory.slots();
    assert!(free.small_free > 0 && free.large_free > 0, "{free:?}");
    bench.memory.hold = false;
    bench.turn();
    assert_eq!(answers(&mut ring).len(), 256);
    bench.assert_clean();
}

/// The rings of one program, as the next one takes them from what the first has said.
fn handed_over(bench: &mut Bench) {
    let states = serde_json::to_vec(&bench.rings.states()).unwrap();
    let states: Vec<RingState> = serde_json::from_slice(&states).unwrap();
    // An exec unmaps, and leaves the ports bound.
    bench.rings = Rings::new(bench.guest.back_end());
    bench.rings.suspend();
    for state in &states {
        bench.rings.adopt(state).unwrap();
        assert!(bench.rings.has(state.name()));
    }
    bench.rings.resume();
}

#[test]
fn another_program_goes_on_with_rings_under_load() {
    for (protocol, order) in [(1, 0), (2, 1), (3, 3)] {
        let mut bench = Bench::new();
        let mut rings = [bench.connect(order, protocol, 0), bench.connect(order, protocol, 1)];
        let layout = rings[0].layout();
        let mut random = Rng::new(u64::from(protocol));
        let mut model = bench.memory.disk.clone();
        let mut id = 0;
        for _ in 0..100 {
            // Some before, some while what was taken is done, some when all is at rest.
            let mut open = 0;
            for step in 0..3 {
                for ring in &mut rings {
                    for _ in 0..random.below(8) {
                        let count =
                            if random.below(5) == 0 { 30 } else { 1 + random.below(11) as usize };
                        let segments = bench.pages(count);
                        let sector = id % (SECTORS / 256) * 256;
                        let data = vec![id as u8 | 1; count * 4096];
                        bench.put_data(&segments, &data);
                        let at = sector as usize * 512;
                        model[at..at + data.len()].copy_from_slice(&data);
                        ring.put(&bench.request(layout, op::WRITE, id, sector, &segments));
                        (id, open) = (id + 1, open + 1);
                    }
                    if ring.show() {
                        bench.guest.notify(ring.port());
                    }
                }
                match step {
                    0 => {
                        bench.memory.hold = true;
                        bench.turn();
                        bench.rings.finish();
                    }
                    1 => {
                        let before = bench.rings.in_flight();
                        bench.turn();
                        assert_eq!(bench.rings.in_flight(), before, "nothing new is taken");
                        bench.memory.hold = false;
                        bench.turn();
                        assert!(bench.rings.at_rest());
                        open -= rings.iter_mut().map(|ring| answers(ring).len()).sum::<usize>();
                    }
                    _ => bench.turn(),
                }
            }
            match random.below(4) {
                0 => bench.rings.go_on(),
                _ => handed_over(&mut bench),
            }
            bench.turn();
            let answered: Vec<_> = rings.iter_mut().flat_map(answers).collect();
            assert!(answered.iter().all(|answer| answer.status == status::OKAY));
            assert_eq!(answered.len(), open, "each is answered once");
        }
        assert!(bench.memory.disk == model);
        let (tally, _) = bench.rings.tally(xen::fake::DOMID, DEVID);
        assert_eq!(tally.answered[1], id, "what was counted goes on");
        bench.assert_clean();
    }
}

#[test]
fn a_broken_ring_stays_broken_and_a_bad_state_is_refused() {
    let mut bench = Bench::new();
    let mut ring = bench.connect(0, 3, 0);
    ring.word(0).store(1000, std::sync::atomic::Ordering::Relaxed);
    bench.guest.notify(ring.port());
    bench.turn();
    handed_over(&mut bench);
    let segments = bench.pages(1);
    ring.put(&read(&bench, 1, 0, &segments));
    assert!(bench.serve(&mut ring).is_empty(), "it is not served any more");
    let good = serde_json::to_value(bench.rings.states()).unwrap()[0].clone();
    for (field, value) in [
        ("refs", serde_json::json!([])),
        ("refs", serde_json::json!([1, 2, 3])),
        ("protocol", 9.into()),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let bad: RingState = serde_json::from_value(bad).unwrap();
        assert!(bench.rings.adopt(&bad).is_err(), "{field}");
    }
    bench.assert_clean();
}
