//! Requests and their answers: data, errors, limits, order.

use crate::nbd_support::client::{Reply, be32, cmd, request};
use crate::nbd_support::engine::Order;
use crate::nbd_support::{Bench, Client, SECTORS, export};
use frontend::nbd::{Export, Notice, Why};
use request::Verb;
use test_support::rng::Rng;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST_ZERO: u16 = 16;
const SIZE: u64 = SECTORS * 512;
const K: u32 = 1 << 10;
const M: u32 = 1 << 20;

/// The error of any answer; reads' data are thrown away.
fn error(bench: &mut Bench, client: &mut Client, cmd: u16, flags: u16, at: u64, n: u32) -> u32 {
    let cookie = client.request(bench, cmd, flags, at, n);
    match client.reply(bench) {
        Reply::Simple { error, cookie: got } => {
            assert_eq!(got, cookie);
            error
        }
        Reply::Chunk { last: true, kind, cookie: got, data } => {
            assert_eq!(got, cookie);
            if kind == 0x8001 { be32(&data, 0) } else { 0 }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_requests_are_answered_and_the_connection_lives() {
    for structured in [true, false] {
        let mut bench = Bench::new();
        let mut client = if structured { bench.structured() } else { bench.simple() };
        for (expected, cmd, flags, at, bytes) in [
            (22, cmd::READ, 0, 1, 512),
            (22, cmd::READ, 0, 0, 511),
            (22, cmd::READ, 0, SIZE, 512),
            (22, cmd::READ, 0, SIZE - 512, 1024),
            (22, cmd::READ, 0, u64::MAX - 511, 512),
            (22, cmd::READ, 0, 0, 32 * M + 512),
            (22, cmd::READ, 0x8000, 0, 512),
            (22, cmd::READ, NO_HOLE, 0, 512),
            (22, cmd::TRIM, 0, SIZE - 512, 1024),
            (22, cmd::TRIM, 0, 1, 1024),
            (22, cmd::CACHE, 0, SIZE, 512),
            (22, cmd::CACHE, DF, 0, 512),
            (28, cmd::ZERO, 0, SIZE - 512, 1024),
            (22, cmd::ZERO, 0, 0, 100),
            (22, cmd::FLUSH, 0, 512, 0),
            (22, cmd::FLUSH, 0, 0, 512),
            (22, cmd::STATUS, 0, 0, 0),
            (22, cmd::STATUS, 0, SIZE, 512),
            (22, 8, 0, 0, 0),
            (22, 99, 0, 0, 512),
            (0, cmd::FLUSH, FUA, 0, 0),
            (0, cmd::CACHE, FUA, 0, 64 * M),
            (0, cmd::READ, 0, SIZE, 0),
            (0, cmd::TRIM, FUA, 0, 64 * M),
            (0, cmd::ZERO, FUA | NO_HOLE | FAST_ZERO, 0, 64 * M),
        ] {
            let got = error(&mut bench, &mut client, cmd, flags, at, bytes);
            assert_eq!(got, expected, "{cmd} {flags} {at} {bytes} structured {structured}");
        }
        assert_eq!(bench.memory.seen.len(), 3, "flush, trim and zero reached the engine");
        bench.assert_clean();
    }
}

#[test]
fn refused_writes_are_read_to_their_end() {
    let mut bench = Bench::new();
    let mut client = bench.structured();
    for (expected, flags, at, bytes) in [
        (28, 0, SIZE, 512),
        (28, 0, SIZE - 512, 4096),
        (22, 0, u64::MAX, 0),
        (22, 0, 1, 512),
        (22, 0, 0, 100),
        (22, DF, 0, 8192),
        (22, 0, 0, 32 * M + 512),
        (22, 0, 0, 64 * M),
        (0, FUA, 0, 512),
    ] {
        let cookie = client.write(&mut bench, flags, at, &vec![7; bytes as usize]);
        assert_eq!(client.simple_error(&mut bench, cookie), expected, "{at} {bytes}");
    }
    assert_eq!(bench.memory.seen.len(), 1);
    client.send(&mut bench, &request(cmd::WRITE, 0, 1, 0, 64 * M + 1));
    client.assert_closed(&mut bench);
    assert!(bench.notices().contains(&Notice::Ended { client: 0, why: Why::AbsurdLength }));
}

#[test]
fn a_read_only_disk_refuses_with_eperm() {
    let mut bench = Bench::with(Export { read_only: true, fast_zero: false, ..export() });
    let mut client = bench.structured();
    for command in [cmd::TRIM, cmd::ZERO] {
        assert_eq!(error(&mut bench, &mut client, command, 0, 0, 4096), 1);
    }
    assert_eq!(error(&mut bench, &mut client, cmd::ZERO, FAST_ZERO, 0, 4096), 22);
    let cookie = client.write(&mut bench, 0, 0, &[0; 4096]);
    assert_eq!(client.simple_error(&mut bench, cookie), 1);
    assert_eq!(error(&mut bench, &mut client, cmd::FLUSH, 0, 0, 0), 0);
}

#[test]
fn sectors_of_4096_bytes_set_the_alignment() {
    let mut bench = Bench::with(Export { sector_size: 4096, ..export() });
    let mut client = bench.structured();
    assert_eq!(error(&mut bench, &mut client, cmd::READ, 0, 512, 4096), 22);
    assert_eq!(error(&mut bench, &mut client, cmd::READ, 0, 0, 512), 22);
    assert_eq!(error(&mut bench, &mut client, cmd::READ, 0, 4096, 4096), 0);
}

#[test]
fn a_wrong_request_magic_drops_only_that_client() {
    let mut bench = Bench::new();
    let (mut bad, mut good) = (bench.structured(), bench.structured());
    bad.send(&mut bench, &[0x11; 28]);
    bad.assert_closed(&mut bench);
    assert_eq!(error(&mut bench, &mut good, cmd::FLUSH, 0, 0, 0), 0);
    assert_eq!(bench.server.counters().dropped, 1);
}

#[test]
fn verbs_and_their_flags_reach_the_engine() {
    let mut bench = Bench::new();
    let mut client = bench.structured();
    for (cmd, flags) in [
        (cmd::TRIM, 0),
        (cmd::TRIM, FUA),
        (cmd::ZERO, NO_HOLE),
        (cmd::ZERO, FAST_ZERO | FUA),
        (cmd::FLUSH, 0),
        (cmd::STATUS, 0),
    ] {
        let bytes = if cmd == cmd::FLUSH { 0 } else { 8192 };
        error(&mut bench, &mut client, cmd, flags, 0, bytes);
    }
    let cookie = client.write(&mut bench, FUA, 0, &[1; 512]);
    client.simple_error(&mut bench, cookie);
    let verbs: Vec<_> = bench.memory.seen.iter().map(|r| r.verb).collect();
    let zero = |keep, fast, fua| Verb::Zero { keep, fast, fua };
    assert_eq!(
        verbs,
        [
            Verb::Discard { fua: false },
            Verb::Discard { fua: true },
            zero(true, false, false),
            zero(false, true, true),
            Verb::Flush,
            Verb::Status,
            Verb::Write { fua: true },
        ]
    );
}

#[test]
fn long_reads_come_in_any_order_and_whole() {
    for order in [Order::Arrival, Order::Reverse, Order::Random] {
        for (at, bytes) in [(0, 32 * M), (512, 64 * K), (65_024, M + 512), (4096, 64 * K + 512)] {
            for structured in [true, false] {
                let mut bench = Bench::new();
                bench.memory.pattern();
                bench.memory.disk[128 << 10..900 << 10].fill(0);
                bench.memory.order = order;
                bench.memory.per_turn = 3;
                let mut client = if structured { bench.structured() } else { bench.simple() };
                let cookie = client.request(&mut bench, cmd::READ, 0, at, bytes);
                let data = match structured {
                    true => client.read_chunks(&mut bench, cookie, at, bytes as usize).0,
                    false => {
                        assert_eq!(client.simple_error(&mut bench, cookie), 0);
                        client.recv(&mut bench, bytes as usize)
                    }
                };
                let range = at as usize..at as usize + bytes as usize;
                assert!(data == bench.memory.disk[range], "{order:?} {at} {bytes} {structured}");
                bench.assert_clean();
            }
        }
    }
}

#[test]
fn many_long_simple_reads_at_once_do_not_wait_for_each_other_for_ever() {
    for (seed, slots) in [(1, (96, 32)), (2, (4, 3)), (3, (1, 1)), (4, (2, 8))] {
        println!("seed {seed}");
        let mut bench = Bench::new();
        bench.memory.set_slots(slots.0, slots.1);
        bench.memory.pattern();
        bench.memory.order = Order::Random;
        bench.memory.random = Rng::new(seed);
        bench.memory.per_turn = 2;
        bench.memory.bad.extend([5000]);
        let mut client = bench.simple();
        let mut random = Rng::new(seed);
        let mut open = std::collections::BTreeMap::new();
        for round in 0..200 {
            while open.len() < 20 && round < 180 {
                let at = random.below(64) * 65_536 + random.below(100) * 512;
                let bytes = (1 + random.below(900)) as u32 * 512;
                if !(at..at + u64::from(bytes)).contains(&(5000 * 512)) {
                    open.insert(client.request(&mut bench, cmd::READ, 0, at, bytes), (at, bytes));
                    open.insert(client.request(&mut bench, cmd::FLUSH, 0, 0, 0), (0, 0));
                    open.insert(client.request(&mut bench, 77, 0, 0, 0), (22, 0));
                }
            }
            let Some(Reply::Simple { error, cookie }) =
                (!open.is_empty()).then(|| client.reply(&mut bench))
            else {
                break;
            };
            let (at, bytes) = open.remove(&cookie).expect("asked once");
            if bytes == 0 {
                assert_eq!(u64::from(error), at);
                continue;
            }
            let data = client.recv(&mut bench, bytes as usize);
            assert_eq!(error, 0);
            assert!(data == bench.memory.disk[at as usize..][..bytes as usize]);
        }
        bench.assert_clean();
    }
}

#[test]
fn a_failing_piece_of_a_structured_read_is_told_by_its_offset() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    bench.memory.bad.extend([200, 1000]);
    bench.memory.order = Order::Reverse;
    let mut client = bench.structured();
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, M);
    let (data, mut errors) = client.read_chunks(&mut bench, cookie, 0, M as usize);
    errors.sort_unstable();
    assert_eq!(errors, [(5, 64 << 10), (5, 448 << 10)]);
    assert!(data[..64 << 10] == bench.memory.disk[..64 << 10]);
    assert!(data[512 << 10..] == bench.memory.disk[512 << 10..M as usize]);
    assert_eq!(error(&mut bench, &mut client, cmd::TRIM, 0, 200 * 512, 512), 5);
    assert_eq!(error(&mut bench, &mut client, cmd::STATUS, 0, 200 * 512, 512), 5);
    let cookie = client.write(&mut bench, 0, 0, &vec![1; 512 << 10]);
    assert_eq!(client.simple_error(&mut bench, cookie), 5);
    bench.assert_clean();
}

#[test]
fn a_simple_read_that_fails_early_is_answered_without_data() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    bench.memory.bad.extend([300]);
    bench.memory.order = Order::Reverse;
    let mut client = bench.simple();
    for bytes in [M, 160 * K, 16 * M] {
        let cookie = client.request(&mut bench, cmd::READ, 0, 0, bytes);
        assert_eq!(client.simple_error(&mut bench, cookie), 5);
        client.assert_silent(&mut bench);
    }
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, 4096);
    assert_eq!(client.simple_error(&mut bench, cookie), 0);
    assert!(client.recv(&mut bench, 4096) == bench.memory.disk[..4096]);
    bench.assert_clean();
}

#[test]
fn a_simple_read_that_fails_late_costs_the_connection() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    bench.memory.bad.extend([1500]);
    bench.memory.per_turn = 1;
    let mut client = bench.simple();
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, M);
    assert_eq!(client.simple_error(&mut bench, cookie), 0);
    client.recv(&mut bench, 64 << 10);
    bench.settle();
    assert!(bench.notices().contains(&Notice::Ended { client: 0, why: Why::ReadFailed }));
    bench.assert_clean();
}

#[test]
fn df_reads_are_one_chunk_or_overflow() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut client = bench.structured();
    let cookie = client.request(&mut bench, cmd::READ, DF, 512, 64 * K);
    let Reply::Chunk { last: true, kind: 1, data, .. } = client.reply(&mut bench) else {
        panic!("one chunk of data");
    };
    assert_eq!(data.len(), 8 + (64 << 10));
    assert_eq!(error(&mut bench, &mut client, cmd::READ, DF, 0, 64 * K + 512), 75);
    let mut simple = bench.simple();
    assert_eq!(error(&mut bench, &mut simple, cmd::READ, DF, 0, 512), 22);
    assert!(cookie > 0);
}

#[test]
fn zeros_are_sent_as_holes() {
    let mut bench = Bench::new();
    bench.memory.disk[4096 + 4095] = 1;
    let mut client = bench.structured();
    for (at, kind, length) in [(0, 2, 12), (4096, 1, 8 + 4096), (8192, 2, 12)] {
        client.request(&mut bench, cmd::READ, 0, at, 4096);
        let Reply::Chunk { last: true, kind: got, data, .. } = client.reply(&mut bench) else {
            panic!("one chunk");
        };
        assert_eq!((got, data.len()), (kind, length));
    }
    bench.assert_clean();
}

#[test]
fn block_status_tells_data_from_holes() {
    let mut bench = Bench::new();
    bench.memory.disk[64 << 10..192 << 10].fill(1);
    let mut client = bench.structured();
    for (flags, expected) in
        [(0, &[(65_536, 3), (131_072, 0), (65_536, 3)][..]), (REQ_ONE, &[(65_536, 3)])]
    {
        let cookie = client.request(&mut bench, cmd::STATUS, flags, 0, 256 * K);
        let Reply::Chunk { last: true, kind: 5, cookie: got, data } = client.reply(&mut bench)
        else {
            panic!("one chunk");
        };
        assert_eq!((got, be32(&data, 0)), (cookie, 1));
        let extents: Vec<_> = data[4..].chunks(8).map(|e| (be32(e, 0), be32(e, 4))).collect();
        assert_eq!(extents, expected);
    }
    // The whole disk, and 4 GiB less a sector are lengths like any other.
    assert_eq!(error(&mut bench, &mut client, cmd::STATUS, 0, 0, SIZE as u32), 0);
    bench.assert_clean();
}

#[test]
fn writes_in_odd_fragments_arrive_whole() {
    for (seed, bytes) in [(1, 32 * M), (2, 64 * K), (3, 64 * K + 512), (4, 4096), (5, 4608), (6, M)]
    {
        println!("seed {seed}");
        let mut bench = Bench::new();
        let mut client = bench.structured();
        let mut random = Rng::new(seed);
        let data: Vec<u8> = (0..bytes).map(|i| (i / 512 + i) as u8).collect();
        let mut all = Vec::new();
        for i in 0..3 {
            all.extend(request(cmd::WRITE, 0, i, 512, bytes));
            all.extend(&data);
            all.extend(request(cmd::READ, 0, 100 + i, 0, 512));
        }
        let mut rest = &all[..];
        while !rest.is_empty() {
            let n = (1 + random.below(1 + u64::from(bytes / 20))) as usize;
            let (now, later) = rest.split_at(n.min(rest.len()));
            client.send(&mut bench, now);
            bench.turn();
            rest = later;
        }
        for _ in 0..6 {
            match client.reply(&mut bench) {
                Reply::Simple { error, .. } => assert_eq!(error, 0),
                Reply::Chunk { last, cookie, .. } => assert!(last && cookie >= 100),
            }
        }
        assert!(bench.memory.disk[512..512 + bytes as usize] == data);
        bench.assert_clean();
    }
}

#[test]
fn two_hundred_requests_at_once_are_all_answered_in_batches() {
    for structured in [true, false] {
        let mut bench = Bench::new();
        bench.memory.pattern();
        let mut client = if structured { bench.structured() } else { bench.simple() };
        let before = bench.server.counters();
        let all: Vec<u8> =
            (0..200).flat_map(|i| request(cmd::READ, 0, i, i * 4096, 4096)).collect();
        client.send(&mut bench, &all);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let cookie = match client.reply(&mut bench) {
                Reply::Simple { error: 0, cookie } => {
                    assert_eq!(
                        client.recv(&mut bench, 4096)[..8],
                        (cookie * 512 + 1).to_le_bytes()
                    );
                    cookie
                }
                Reply::Chunk { last: true, kind: 1, cookie, data } => {
                    assert_eq!(data[8..16], (cookie * 512 + 1).to_le_bytes());
                    cookie
                }
                other => panic!("{other:?}"),
            };
            assert!(seen.insert(cookie));
        }
        let after = bench.server.counters();
        let calls = after.receives - before.receives + after.sends - before.sends;
        assert!(calls <= 24, "{calls} system calls for 200 requests");
        bench.assert_clean();
    }
}

#[test]
fn minimum_reserves_are_enough_for_everything() {
    let mut bench = Bench::new();
    bench.memory.set_slots(1, 1);
    bench.memory.pattern();
    let mut client = bench.structured();
    let cookie = client.write(&mut bench, 0, 4096, &vec![3; 8 << 20]);
    assert_eq!(client.simple_error(&mut bench, cookie), 0);
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, 8 * M);
    let (data, errors) = client.read_chunks(&mut bench, cookie, 0, 8 << 20);
    assert!(errors.is_empty() && data == bench.memory.disk[..8 << 20]);
    assert_eq!(error(&mut bench, &mut client, cmd::STATUS, 0, 0, M), 0);
    bench.assert_clean();
}
