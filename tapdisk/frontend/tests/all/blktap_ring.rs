//! The ring of the blktap module over a kernel in memory.

use crate::blktap_support::{Bench, DISK, engine};
use frontend::Frontend;
use frontend::blktap::abi::{Entry, Message, SEGMENTS_MAX, Segment, op, status};
use frontend::blktap::fake::Answer;
use frontend::blktap::{Malformed, Notice, OWN_SLOTS, Tap};
use frontend::nbd::Export;
use image::Span;
use request::{Slots, Verb};

/// A whole page of data, at sector 8 of the disk.
fn one(operation: u8, id: u64) -> Entry {
    let mut segments = [Segment::default(); SEGMENTS_MAX];
    segments[0].last = 7;
    Entry { operation, count: 1, id, sector: 8, segments, ..Entry::default() }
}

#[test]
fn each_operation_is_asked_for_as_it_was_meant() {
    let mut bench = Bench::new(DISK);
    let cases = [
        (op::READ, 0, Verb::Read),
        (op::WRITE, 0, Verb::Write { fua: false }),
        (op::WRITE, 1, Verb::Write { fua: true }),
        (op::FLUSH, 0, Verb::Flush),
        (op::TRIM, 0, Verb::Discard { fua: false }),
        (op::WRITE_ZEROES, 0, Verb::Zero { keep: false, fast: false, fua: false }),
        (op::WRITE_ZEROES, 3, Verb::Zero { keep: true, fast: false, fua: true }),
    ];
    for (operation, flags, verb) in cases {
        bench.memory.seen.clear();
        let id = bench.kernel.ask(operation, flags, 80, 24);
        bench.turn();
        assert_eq!(bench.answers(), [Answer { id, operation, status: status::OKAY }], "{verb:?}");
        let span =
            if verb == Verb::Flush { Span::default() } else { Span { start: 80, count: 24 } };
        let seen: Vec<_> = bench.memory.seen.iter().map(|r| (r.verb, r.span)).collect();
        assert_eq!(seen, [(verb, span)]);
    }
    bench.end();
}

#[test]
fn data_go_to_the_sectors_that_the_segments_name() {
    let mut bench = Bench::new(DISK);
    bench.memory.pattern();
    let before = bench.memory.disk.clone();
    let mut entry = one(op::WRITE, 5);
    entry.count = 3;
    for (segment, (first, last)) in entry.segments.iter_mut().zip([(6, 7), (0, 7), (3, 3)]) {
        *segment = Segment { first, last };
    }
    bench.kernel.put(&entry);
    bench.kernel.data(5, |data| {
        for (i, sector) in data.chunks_exact_mut(512).enumerate() {
            sector.fill(i as u8);
        }
    });
    bench.turn();
    assert_eq!(bench.statuses(), [(5, status::OKAY)]);
    let written = &bench.memory.disk[8 * 512..19 * 512];
    let sectors: Vec<u8> = written.chunks_exact(512).map(|sector| sector[0]).collect();
    assert_eq!(sectors, [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 19]);
    assert!(written.chunks_exact(512).all(|s| s.iter().all(|byte| *byte == s[0])));
    assert_eq!(bench.memory.disk[..8 * 512], before[..8 * 512]);
    assert_eq!(bench.memory.disk[19 * 512..], before[19 * 512..]);
    // And back, where the pages hold something else.
    bench.kernel.data(5, |data| data.fill(0xaa));
    bench.kernel.put(&Entry { operation: op::READ, ..entry });
    bench.turn();
    assert_eq!(bench.statuses(), [(5, status::OKAY)]);
    bench.kernel.data(5, |data| {
        let of = |sector: usize| data[sector * 512];
        assert_eq!([5, 6, 7, 8, 15, 16, 19, 20].map(of), [0xaa, 6, 7, 8, 15, 0xaa, 19, 0xaa]);
    });
    bench.end();
}

#[test]
fn another_program_goes_on_where_this_one_stopped() {
    let mut memory = engine::Memory::new(DISK);
    memory.set_slots(4, 4 + OWN_SLOTS);
    let mut bench = Bench::over(memory);
    // Past the end of the ring, so that indices and places differ.
    for i in 0..40 {
        bench.kernel.ask(op::WRITE, 0, i * 8, 8);
        bench.turn();
        bench.answers();
    }
    // More than there are slots for: some are begun, some were looked at, one was not.
    let mut ids: Vec<u8> = (0..31).map(|i| bench.kernel.ask(op::READ, 0, i * 8, 8)).collect();
    bench.kernel.show();
    bench.tap.take(&mut bench.memory);
    bench.tap.suspend();
    ids.push(bench.kernel.ask(op::READ, 0, 8, 8));
    bench.kernel.show();
    bench.settle();
    let mut answered = bench.statuses();
    assert!(bench.tap.idle() && (1..31).contains(&answered.len()), "{answered:?}");
    bench.tap.stop(&mut bench.memory);
    let mut next = Bench { tap: Tap::adopt(bench.kernel.side(), true), ..bench };
    assert!(next.tap.start(&mut next.memory) && next.tap.pending(&next.memory));
    next.settle();
    answered.extend(next.statuses());
    answered.sort();
    ids.sort();
    assert_eq!(answered, ids.iter().map(|id| (*id, status::OKAY)).collect::<Vec<_>>());
    let id = next.kernel.ask(op::WRITE, 0, 16, 8);
    next.turn();
    assert_eq!(next.statuses(), [(id, status::OKAY)]);
    next.end();
}

#[test]
fn answers_of_a_turn_cost_one_call() {
    let mut bench = Bench::new(DISK);
    for i in 0..32 {
        bench.kernel.ask(op::READ, 0, i * 8, 8);
    }
    bench.turn();
    assert_eq!(bench.answers().len(), 32);
    assert_eq!(bench.kernel.calls().responds, 1);
    bench.turn();
    assert_eq!(bench.kernel.calls().responds, 1, "nothing to say");
    let c = bench.tap.counters();
    assert_eq!((c.requests[0], c.answers, c.batches, c.kicks, c.polls), (32, 32, 1, 1, 0));
    bench.end();
}

/// Modules without EVENTS put requests only when they are polled, so a ring that was full has to
/// be.
#[test]
fn an_older_module_is_polled_when_its_ring_was_full() {
    let mut bench = Bench::new(DISK);
    bench.tap.set_events(false);
    for count in [31, 32] {
        for i in 0..count {
            bench.kernel.ask(op::READ, 0, i * 8, 8);
        }
        bench.turn();
        assert_eq!(bench.answers().len(), count as usize);
    }
    assert_eq!(bench.kernel.calls().polls, 1);
    bench.end();
}

#[test]
fn the_kernel_is_asked_to_wake_us_of_the_next_request_only() {
    let mut bench = Bench::new(DISK);
    bench.turn();
    assert!(!bench.kernel.wakes());
    bench.kernel.ask(op::READ, 0, 0, 8);
    assert!(bench.kernel.wakes());
    bench.turn();
    assert!(!bench.kernel.wakes());
    // While the disk is paused nobody is woken.
    bench.tap.suspend();
    bench.turn();
    bench.kernel.ask(op::READ, 0, 0, 8);
    bench.turn();
    bench.kernel.ask(op::READ, 0, 0, 8);
    assert_eq!(bench.answers().len(), 1);
    bench.tap.resume();
    bench.turn();
    assert_eq!(bench.answers().len(), 2);
    bench.end();
}

#[test]
fn what_the_disk_does_not_allow_fails_alone() {
    let mut bench = Bench::new(DISK);
    let bad = [
        bench.kernel.ask(op::READ, 0, 2041, 8),
        bench.kernel.ask(op::WRITE, 0, u64::MAX - 3, 8),
        bench.kernel.ask(op::TRIM, 0, 0, u32::MAX),
    ];
    let unknown = bench.kernel.ask(77, 0, 0, 8);
    let good = bench.kernel.ask(op::READ, 0, 2040, 8);
    bench.turn();
    let mut expected: Vec<(u8, i16)> = bad.iter().map(|id| (*id, status::ERROR)).collect();
    expected.extend([(unknown, status::NOT_SUPPORTED), (good, status::OKAY)]);
    assert_eq!(bench.statuses(), expected);
    assert_eq!((bench.memory.seen.len(), bench.tap.counters().errors), (1, 4));
    bench.end();
    let mut bench = Bench::new(Export { read_only: true, ..DISK });
    for operation in [op::WRITE, op::TRIM, op::WRITE_ZEROES] {
        let id = bench.kernel.ask(operation, 0, 0, 8);
        bench.turn();
        assert_eq!(bench.statuses(), [(id, status::ERROR)], "{operation}");
    }
    bench.end();
    let mut bench = Bench::new(Export { sector_size: 4096, ..DISK });
    let (odd, whole) = (bench.kernel.ask(op::WRITE, 0, 4, 8), bench.kernel.ask(op::WRITE, 0, 8, 8));
    bench.turn();
    assert_eq!(bench.statuses(), [(odd, status::ERROR), (whole, status::OKAY)]);
    bench.end();
}

#[test]
fn an_error_of_the_image_is_an_error_of_its_request() {
    let mut bench = Bench::new(DISK);
    bench.memory.bad.insert(11);
    bench.kernel.data(0, |data| data.fill(0xaa));
    let (bad, good) = (bench.kernel.ask(op::READ, 0, 8, 8), bench.kernel.ask(op::READ, 0, 16, 8));
    bench.turn();
    assert_eq!(bench.statuses(), [(bad, status::ERROR), (good, status::OKAY)]);
    bench.kernel.data(bad, |data| assert!(data.iter().all(|byte| *byte == 0xaa)));
    bench.end();
}

#[test]
fn nonsense_closes_the_ring_and_gives_every_slot_back() {
    let segment = |first, last| {
        let mut entry = one(op::WRITE, 3);
        entry.segments[0] = Segment { first, last };
        entry
    };
    let cases = [
        (one(op::READ, 32), Malformed::Id(32)),
        (one(op::FLUSH, u64::MAX), Malformed::Id(u64::MAX)),
        // In use: the bench has asked with it before.
        (one(op::READ, 0), Malformed::Id(0)),
        (Entry { count: 0, ..one(op::READ, 3) }, Malformed::Count(0)),
        (Entry { count: 12, ..one(op::WRITE, 3) }, Malformed::Count(12)),
        (segment(4, 3), Malformed::Segment { first: 4, last: 3 }),
        (segment(0, 8), Malformed::Segment { first: 0, last: 8 }),
    ];
    for (entry, why) in cases {
        let mut bench = Bench::new(DISK);
        bench.memory.hold = true;
        assert_eq!(bench.kernel.ask(op::READ, 0, 0, 8), 0);
        bench.turn();
        bench.kernel.put(&entry);
        bench.kernel.put(&one(op::READ, 9));
        bench.turn();
        assert!(bench.tap.is_broken() && !bench.tap.idle(), "{why:?}");
        assert_eq!(bench.tap.take_notice(), Some(Notice::Broken(why)));
        // Its side goes while the engine still works.
        assert!(bench.tap.take_side().is_some());
        bench.memory.hold = false;
        bench.settle();
        assert_eq!(bench.answers(), [], "{why:?}");
        bench.end();
    }
}

#[test]
fn a_producer_that_runs_away_closes_the_ring() {
    for (asked, lie) in [(0, 33), (0, u32::MAX), (5, 38), (32, 33)] {
        let mut bench = Bench::new(DISK);
        bench.memory.hold = true;
        for i in 0..asked {
            bench.kernel.ask(op::READ, 0, i * 8, 8);
        }
        bench.turn();
        bench.kernel.lie(lie);
        bench.turn_as_it_is();
        let Some(Notice::Broken(Malformed::Runaway { req_prod, .. })) = bench.tap.take_notice()
        else {
            panic!("{asked} {lie}: the ring is served on");
        };
        assert_eq!(req_prod, lie);
        bench.memory.hold = false;
        bench.settle();
        bench.end();
    }
}

#[test]
fn a_module_that_takes_no_answers_is_served_no_longer() {
    let mut bench = Bench::new(DISK);
    bench.kernel.refuse(libc::ENOTTY);
    bench.kernel.ask(op::READ, 0, 0, 8);
    bench.kernel.ask(op::WRITE, 0, 8, 8);
    bench.turn();
    assert!(bench.tap.is_broken() && bench.tap.take_side().is_some());
    assert_eq!(bench.tap.take_notice(), Some(Notice::KickFailed(libc::ENOTTY)));
    bench.end();
}

#[test]
fn a_pause_leaves_requests_in_the_ring_and_an_end_fails_them() {
    let mut bench = Bench::new(DISK);
    bench.tap.suspend();
    let id = bench.kernel.ask(op::READ, 0, 0, 8);
    bench.turn();
    assert!(bench.answers().is_empty() && bench.tap.idle() && !bench.tap.pending(&bench.memory));
    bench.tap.resume();
    assert!(bench.tap.pending(&bench.memory));
    bench.turn();
    assert_eq!(bench.statuses(), [(id, status::OKAY)]);
    bench.tap.refuse();
    let id = bench.kernel.ask(op::WRITE, 0, 0, 8);
    bench.turn();
    assert_eq!(bench.statuses(), [(id, status::ERROR)]);
    bench.end();
}

/// Other clients may hold all slots but the ring's own.
#[test]
fn with_its_own_slots_every_request_gets_on() {
    let mut bench = Bench::new(DISK);
    let mut others = Vec::new();
    while let Some(slot) = bench.memory.reserve(0) {
        others.push(slot);
    }
    for i in 0..32 {
        bench.kernel.ask(if i % 2 == 0 { op::READ } else { op::WRITE }, 0, i * 8, 8);
    }
    bench.turn();
    assert_eq!(bench.statuses().len(), usize::from(OWN_SLOTS), "as many as it has of its own");
    assert!(bench.tap.pending(&bench.memory));
    bench.settle();
    assert_eq!(bench.statuses().len(), 32 - usize::from(OWN_SLOTS));
    for slot in others {
        bench.memory.release(slot);
    }
    bench.end();
}

#[test]
fn without_slots_of_its_own_it_does_not_start() {
    let mut bench = Bench::new(DISK);
    bench.tap.stop(&mut bench.memory);
    let held: Vec<_> = std::iter::from_fn(|| bench.memory.reserve(0)).collect();
    bench.memory.release(*held.last().expect("slots"));
    assert!(!bench.tap.start(&mut bench.memory));
    assert_eq!(bench.memory.reserved(), held.len() - 1, "and takes none");
}

#[test]
fn a_very_long_trim_is_cut_and_answered_once() {
    const SECTORS: u64 = 1 << 23;
    // The fake disk is not as large: it answers EINVAL, which comes back as an error, once.
    let mut bench = Bench::new(DISK);
    bench.kernel.ask(op::TRIM, 0, 0, 2048);
    bench.turn();
    assert_eq!(bench.statuses(), [(0, status::OKAY)]);
    let pieces = |bench: &Bench| bench.memory.seen.iter().map(|r| r.span.count).collect::<Vec<_>>();
    assert_eq!(pieces(&bench), [2048]);
    let mut memory = bench.end();
    memory.seen.clear();
    let mut large = LargeDisk { memory, sectors: SECTORS };
    let kernel = frontend::blktap::fake::Kernel::default();
    let mut tap = frontend::blktap::Tap::new(kernel.side());
    assert!(tap.start(&mut large));
    let mut kernel = kernel;
    kernel.ask(op::TRIM, 0, 0, SECTORS as u32);
    kernel.show();
    tap.take(&mut large);
    assert_eq!(large.memory.seen.iter().map(|r| r.span.count).collect::<Vec<_>>(), [1 << 22; 2]);
    while let Some((slot, request, outcome)) = large.memory.finish() {
        tap.complete(&mut large, slot, &request, outcome);
    }
    tap.kick(&mut large);
    assert_eq!(kernel.answer().map(|answer| answer.status), Some(status::ERROR));
    assert_eq!(kernel.answer(), None);
}

/// The fake disk, larger than it is.
struct LargeDisk {
    memory: crate::blktap_support::engine::Memory,
    sectors: u64,
}

impl Slots for LargeDisk {
    fn reserve(&mut self, bytes: u32) -> Option<request::SlotId> {
        self.memory.reserve(bytes)
    }
    fn slot_bytes_max(&self) -> u32 {
        self.memory.slot_bytes_max()
    }
    fn buffer(&self, slot: request::SlotId) -> &[u8] {
        self.memory.buffer(slot)
    }
    fn buffer_mut(&mut self, slot: request::SlotId) -> &mut [u8] {
        self.memory.buffer_mut(slot)
    }
    fn start(&mut self, slot: request::SlotId, request: request::Request) {
        self.memory.start(slot, request);
    }
    fn reuse(&mut self, slot: request::SlotId) {
        self.memory.reuse(slot);
    }
    fn release(&mut self, slot: request::SlotId) {
        self.memory.release(slot);
    }
    fn slots(&self) -> request::SlotCounts {
        self.memory.slots()
    }
    fn sectors(&self) -> u64 {
        self.sectors
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_only(&self) -> bool {
        false
    }
}

#[test]
fn what_the_module_says_is_heard_once() {
    let mut bench = Bench::new(DISK);
    bench.kernel.page().say(3);
    bench.turn();
    assert!(bench.tap.has_message());
    assert_eq!(bench.tap.take_message(), Some(Message::Close));
    bench.turn();
    assert!(!bench.tap.has_message());
    assert_eq!(bench.tap.take_message(), None);
    // Also while the disk is paused.
    bench.tap.suspend();
    bench.kernel.page().say(2);
    bench.turn();
    assert_eq!(bench.tap.take_message(), Some(Message::Resume));
    bench.end();
}

#[test]
fn a_request_costs_no_allocation() {
    let mut bench = Bench::new(DISK);
    bench.memory.seen.reserve(64);
    for round in 0..1000 {
        if round == 10 {
            // The engine of the tests has grown its own tables.
            crate::counting::calls();
        }
        bench.memory.seen.clear();
        for i in 0..32 {
            bench.kernel.ask(
                [op::READ, op::WRITE][i % 2],
                0,
                round % 64 * 8,
                8 + 8 * (i as u32 % 11),
            );
        }
        bench.kernel.show();
        crate::counting::watch(true);
        bench.tap.take(&mut bench.memory);
        crate::counting::watch(false);
        while let Some((slot, request, outcome)) = bench.memory.finish() {
            crate::counting::watch(true);
            bench.tap.complete(&mut bench.memory, slot, &request, outcome);
            crate::counting::watch(false);
        }
        crate::counting::watch(true);
        bench.tap.kick(&mut bench.memory);
        crate::counting::watch(false);
        bench.settle();
        assert_eq!(bench.answers().len(), 32);
    }
    assert_eq!(crate::counting::calls(), 0);
    bench.end();
}
