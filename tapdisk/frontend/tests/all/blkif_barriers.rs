//! Barriers of a device with several queues: ordered against all of them, without a deadlock, and
//! without holding up anybody else.

use crate::blkif_support::{Bench, answers, name, write};
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingName};
use request::Verb;
use xen::fake::{FrontRing, entry};
use xen::{Layout, Segment, op, status};

const WRITE: Verb = Verb::Write { fua: false };

fn barrier(id: u64, sector: u64, segments: &[Segment]) -> [u8; 112] {
    entry(Layout::WIDE, (op::WRITE_BARRIER, segments.len() as u8), id, sector, segments)
}

/// What the engine was given: verb and first sector.
fn seen(bench: &Bench) -> Vec<(Verb, u64)> {
    bench.memory.seen.iter().map(|request| (request.verb, request.span.start)).collect()
}

fn put(bench: &Bench, ring: &mut FrontRing, request: &[u8; 112]) {
    ring.put(request);
    if ring.show() {
        bench.guest.notify(ring.port());
    }
}

fn ids(ring: &mut FrontRing) -> Vec<u64> {
    let got = answers(ring);
    assert!(got.iter().all(|answer| answer.status == status::OKAY), "{got:?}");
    got.iter().map(|answer| answer.id).collect()
}

/// Lets one request of the engine finish, and gives a turn.
fn finish_one(bench: &mut Bench) {
    (bench.memory.hold, bench.memory.per_turn) = (false, 1);
    bench.rings.take(&mut bench.memory);
    let (slot, request, outcome) = bench.memory.finish().expect("something is at work");
    bench.memory.hold = true;
    bench.rings.complete(&mut bench.memory, slot, &request, outcome);
    bench.turn();
}

/// Two queues: on the second a write at work (0) and one behind it (2), on the first a barrier (1)
/// that came between them.
fn barrier_between_writes(bench: &mut Bench) -> [FrontRing; 2] {
    let mut rings = [bench.connect(0, 3, 0), bench.connect(0, 3, 1)];
    let pages = bench.pages(3);
    bench.memory.hold = true;
    let first = write(bench, 0, 0, &pages[..1]);
    put(bench, &mut rings[1], &first);
    bench.turn();
    put(bench, &mut rings[0], &barrier(1, 8, &pages[1..2]));
    bench.turn();
    let later = write(bench, 2, 16, &pages[2..]);
    put(bench, &mut rings[1], &later);
    bench.turn();
    rings
}

#[test]
fn a_barrier_waits_for_other_queues_and_holds_up_what_comes_behind_it_there() {
    let mut bench = Bench::new();
    let mut rings = barrier_between_writes(&mut bench);
    assert_eq!(seen(&bench), [(WRITE, 0)], "neither the barrier nor what is behind it has begun");
    assert!(!bench.rings.pending(&bench.memory), "the server may sleep meanwhile");
    for begun in 2..=4 {
        finish_one(&mut bench);
        assert_eq!(seen(&bench).len(), begun, "the barrier is alone");
    }
    assert!(ids(&mut rings[0]).is_empty(), "it is answered after its second flush");
    finish_one(&mut bench);
    assert_eq!(ids(&mut rings[0]), [1]);
    let flush = (Verb::Flush, 0);
    assert_eq!(seen(&bench), [(WRITE, 0), flush, (WRITE, 8), flush, (WRITE, 16)]);
    finish_one(&mut bench);
    assert_eq!(ids(&mut rings[1]), [0, 2]);
    bench.assert_clean();
}

#[test]
fn a_long_write_that_has_begun_is_finished_before_the_barrier() {
    let mut bench = Bench::new();
    bench.memory.set_slots(4, 4);
    let mut rings = [bench.connect(0, 3, 0), bench.connect(0, 3, 1)];
    let pages = bench.pages(257);
    bench.memory.hold = true;
    // 16 pieces, for which there are not enough slots at once.
    let long = write(&bench, 0, 0, &pages[..256]);
    put(&bench, &mut rings[1], &long);
    bench.turn();
    put(&bench, &mut rings[0], &barrier(1, 4096, &pages[256..]));
    bench.turn();
    let begun = seen(&bench).len();
    assert!(0 < begun && begun < 16, "{begun} pieces have begun");
    bench.memory.hold = false;
    bench.memory.per_turn = usize::MAX;
    bench.turn();
    assert_eq!((ids(&mut rings[0]), ids(&mut rings[1])), (vec![1], vec![0]));
    let order = seen(&bench);
    assert!(order[..16].iter().all(|(verb, _)| *verb == WRITE), "{order:?}");
    let flush = (Verb::Flush, 0);
    assert_eq!(order[16..], [flush, (WRITE, 4096), flush]);
    bench.assert_clean();
}

#[test]
fn barriers_of_all_queues_at_once_are_answered_and_starve_nobody() {
    let mut bench = Bench::new();
    let mut rings: Vec<_> = (0..4).map(|queue| bench.connect(1, 3, queue)).collect();
    let pages = bench.pages(1);
    for (queue, ring) in (0..).zip(&mut rings) {
        for id in 0..20 {
            // The last queue only writes.
            let sector = 1000 * queue + 8 * id;
            let request = match queue {
                3 => write(&bench, id, sector, &pages),
                _ => barrier(id, sector, &pages),
            };
            put(&bench, ring, &request);
        }
    }
    for _ in 0..60 {
        bench.turn();
    }
    for ring in &mut rings {
        assert_eq!(ids(ring).len(), 20);
    }
    let writes = seen(&bench);
    let place = |sector| writes.iter().position(|w| *w == (WRITE, sector)).expect("it was written");
    assert!(place(3000) < place(16), "the writer does not wait for the third barrier");
    assert!(place(2000) < place(16), "nor does the first barrier of another queue");
    // Between the flushes of a barrier there is its write and nothing else.
    let last = place(2000 + 8 * 19);
    assert_eq!((writes[last - 1].0, writes[last + 1].0), (Verb::Flush, Verb::Flush));
    bench.assert_clean();
}

#[test]
fn other_devices_are_not_held_up() {
    let mut bench = Bench::new();
    let mut rings = [bench.connect(0, 3, 0), bench.connect(0, 3, 1)];
    let mut other = bench.guest.ring(0, Layout::WIDE);
    let named = RingName { devid: 1, ..name(0) };
    let params = crate::blkif_support::params(&other, named, 3, PollPolicy::default());
    bench.rings.connect(&params).expect("connects");
    let pages = bench.pages(3);
    bench.memory.hold = true;
    let first = write(&bench, 0, 0, &pages[..1]);
    put(&bench, &mut rings[1], &first);
    bench.turn();
    put(&bench, &mut rings[0], &barrier(1, 8, &pages[1..2]));
    let theirs = write(&bench, 2, 16, &pages[2..]);
    put(&bench, &mut other, &theirs);
    bench.turn();
    assert_eq!(seen(&bench), [(WRITE, 0), (WRITE, 16)]);
    bench.assert_clean();
}

#[test]
fn a_queue_that_breaks_with_a_barrier_at_its_front_lets_the_others_go_on() {
    let mut bench = Bench::new();
    let mut rings = barrier_between_writes(&mut bench);
    rings[0].lie(5000);
    bench.guest.notify(rings[0].port());
    bench.turn();
    bench.turn();
    assert_eq!(seen(&bench), [(WRITE, 0), (WRITE, 16)], "the barrier is given up");
    bench.memory.hold = false;
    bench.turn();
    assert_eq!(ids(&mut rings[1]), [0, 2]);
    bench.assert_clean();
}
