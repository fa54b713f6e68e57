//! The negotiation, byte by byte: every option, and every way to do it wrong.

use std::time::{Duration, Instant};

use crate::nbd_support::client::{be32, be64, cmd, contexts, info, option, request};
use crate::nbd_support::{Bench, Client, SECTORS, export};
use frontend::Frontend;
use frontend::nbd::{Export, Notice, Why};

const ACK: u32 = 1;
const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const TOO_BIG: u32 = 0x8000_0009;

/// A client that has been greeted and has sent its flags.
fn greeted(bench: &mut Bench, flags: u32) -> Client {
    let mut client = bench.connect(false);
    client.greeting(bench);
    client.send(bench, &flags.to_be_bytes());
    client
}

/// Sends one option and collects its replies up to ACK or an error.
fn ask(bench: &mut Bench, client: &mut Client, raw: &[u8]) -> Vec<(u32, Vec<u8>)> {
    client.send(bench, raw);
    let mut replies = Vec::new();
    loop {
        let reply = client.option_reply(bench);
        assert_eq!(reply.option, be32(raw, 8));
        replies.push((reply.kind, reply.data));
        if reply.kind == ACK || reply.kind & (1 << 31) != 0 {
            return replies;
        }
    }
}

fn only(replies: Vec<(u32, Vec<u8>)>) -> u32 {
    assert_eq!(replies.len(), 1, "{replies:?}");
    replies[0].0
}

/// The client can still be served.
fn assert_serves(bench: &mut Bench, client: &mut Client) {
    let replies = ask(bench, client, &option(7, &info("x", &[])));
    assert_eq!(replies.last().unwrap().0, ACK);
    let cookie = client.request(bench, cmd::FLUSH, 0, 0, 0);
    assert_eq!(client.simple_error(bench, cookie), 0);
}

#[test]
fn export_name_with_and_without_zeroes() {
    for (flags, bytes) in [(1, 134), (3, 10), (0, 134)] {
        let mut bench = Bench::new();
        let mut client = greeted(&mut bench, flags);
        client.send(&mut bench, &option(1, "any ☃ name".as_bytes()));
        let reply = client.recv(&mut bench, bytes);
        assert_eq!(be64(&reply, 0), SECTORS * 512);
        // FLAGS FLUSH FUA TRIM ZEROES MULTI CACHE FAST_ZERO
        assert_eq!(reply[8..10], (1u16 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048).to_be_bytes());
        assert!(reply[10..].iter().all(|&b| b == 0));
        client.assert_silent(&mut bench);
        let cookie = client.request(&mut bench, cmd::FLUSH, 0, 0, 0);
        assert_eq!(client.simple_error(&mut bench, cookie), 0);
    }
}

#[test]
fn a_read_only_disk_announces_no_writes() {
    let export = Export { read_only: true, sector_size: 4096, ..export() };
    let mut bench = Bench::with(export);
    let mut client = greeted(&mut bench, 3);
    assert_eq!(only(ask(&mut bench, &mut client, &option(8, &[]))), ACK);
    let replies = ask(&mut bench, &mut client, &option(6, &info("", &[])));
    assert_eq!(replies[0].1[10..], (1u16 | 2 | 4 | 8 | 128 | 256 | 1024).to_be_bytes());
    assert_eq!(be64(&replies[0].1, 2), SECTORS * 512, "sectors are 512 bytes, always");
    assert_eq!((be32(&replies[1].1, 2), be32(&replies[1].1, 6)), (4096, 4096));
}

#[test]
fn info_and_go_answer_what_is_asked() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    for (code, wanted, kinds) in
        [(6, &[][..], &[0u16, 3][..]), (6, &[1, 2, 3, 77], &[0, 3, 1, 2]), (7, &[2], &[0, 3, 2])]
    {
        let replies = ask(&mut bench, &mut client, &option(code, &info("disk", wanted)));
        let (end, infos) = replies.split_last().unwrap();
        assert_eq!(end, &(ACK, vec![]));
        let got: Vec<_> =
            infos.iter().map(|(k, d)| (*k, u16::from_be_bytes([d[0], d[1]]))).collect();
        assert_eq!(got, kinds.iter().map(|&k| (3, k)).collect::<Vec<_>>());
        assert_eq!(infos[1].1[2..], *[512u32, 4096, 32 << 20].map(u32::to_be_bytes).as_flattened());
        if wanted.contains(&1) {
            assert_eq!(&infos[2].1[2..], b"disk");
        }
    }
    let cookie = client.request(&mut bench, cmd::FLUSH, 0, 0, 0);
    assert_eq!(client.simple_error(&mut bench, cookie), 0);
}

#[test]
fn list_names_one_export() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    let replies = ask(&mut bench, &mut client, &option(3, &[]));
    assert_eq!(replies, [(2, b"\0\0\0\x0etapdisk_client".to_vec()), (ACK, vec![])]);
    assert_eq!(only(ask(&mut bench, &mut client, &option(3, b"x"))), INVALID);
    assert_serves(&mut bench, &mut client);
}

#[test]
fn abort_is_acknowledged_and_closed() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    assert_eq!(only(ask(&mut bench, &mut client, &option(2, &[]))), ACK);
    client.assert_closed(&mut bench);
    assert_eq!(bench.server.clients(), 0);
    assert_eq!(bench.server.counters().dropped, 0, "not the client's fault");
}

#[test]
fn unknown_options_are_refused_and_their_payload_skipped() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    // STARTTLS, EXTENDED_HEADERS, PEEK_EXPORT, nonsense
    for code in [5, 11, 4, 0, 12, u32::MAX] {
        for payload in [0, 1, 16, 10_000] {
            let raw = option(code, &vec![0x49; payload]);
            assert_eq!(only(ask(&mut bench, &mut client, &raw)), UNSUP);
        }
    }
    assert_serves(&mut bench, &mut client);
}

#[test]
fn an_oversized_option_is_skipped_and_answered() {
    for (code, bytes) in [(99, 16385), (6, 70_000), (10, 1 << 20)] {
        let mut bench = Bench::new();
        let mut client = greeted(&mut bench, 3);
        let raw = option(code, &vec![0; bytes]);
        assert_eq!(only(ask(&mut bench, &mut client, &raw)), TOO_BIG);
        assert_serves(&mut bench, &mut client);
    }
}

#[test]
fn options_beyond_all_limits_drop_the_client() {
    let mut bench = Bench::new();
    let head = |code, bytes: u32| {
        let mut raw = option(code, &[]);
        raw[12..].copy_from_slice(&bytes.to_be_bytes());
        raw
    };
    for raw in [head(99, u32::MAX), head(6, (4 << 20) + 1), head(1, 20_000)] {
        let mut client = greeted(&mut bench, 3);
        client.send(&mut bench, &raw);
        client.assert_closed(&mut bench);
    }
    let mut client = greeted(&mut bench, 3);
    for _ in 0..4 {
        let raw = option(99, &vec![0; 1 << 20]);
        assert_eq!(only(ask(&mut bench, &mut client, &raw)), TOO_BIG);
    }
    client.send(&mut bench, &head(99, 1));
    client.assert_closed(&mut bench);
    assert_eq!(bench.server.counters().dropped, 4);
}

#[test]
fn thirty_two_options_are_answered_and_no_more() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    let name = "n".repeat(256);
    let mut all = Vec::new();
    // The longest answers there are, all before one byte of them is read.
    (0..32).for_each(|_| all.extend(option(6, &info(&name, &[1, 2, 3]))));
    client.send(&mut bench, &all);
    bench.settle();
    for _ in 0..32 {
        let kinds: Vec<_> = (0..5).map(|_| client.option_reply(&mut bench).kind).collect();
        assert_eq!(kinds, [3, 3, 3, 3, 1]);
    }
    client.assert_silent(&mut bench);
    client.send(&mut bench, &option(7, &info("", &[])));
    client.assert_closed(&mut bench);
    let ended = Notice::Ended { client: 0, why: Why::TooManyOptions };
    assert!(bench.notices().contains(&ended));
}

#[test]
fn wrong_magic_and_unknown_flags_drop_the_client_at_once() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    client.send(&mut bench, b"IHAVEOPS");
    client.assert_closed(&mut bench);
    for flags in [4, 0x8000_0003, 0x0003_0000] {
        greeted(&mut bench, flags).assert_closed(&mut bench);
    }
    assert_eq!(bench.server.clients(), 0);
}

#[test]
fn malformed_options_are_invalid_and_the_client_lives() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    assert_eq!(only(ask(&mut bench, &mut client, &option(8, b"x"))), INVALID);
    assert_eq!(only(ask(&mut bench, &mut client, &option(8, &[]))), ACK);
    let good = info("name", &[3]);
    let mut cases = vec![vec![], vec![0; 5], vec![0xff; 10]];
    cases.push(good[..good.len() - 1].to_vec());
    cases.push([&good[..], b"x"].concat());
    for data in cases {
        assert_eq!(only(ask(&mut bench, &mut client, &option(7, &data))), INVALID, "{data:x?}");
    }
    let good = contexts("name", &["base:allocation"]);
    for data in [&[][..], &[0; 7], &good[..good.len() - 1], &[&good[..], b"x"].concat(), &[0xff; 9]]
    {
        for code in [9, 10] {
            assert_eq!(only(ask(&mut bench, &mut client, &option(code, data))), INVALID);
        }
    }
    assert_serves(&mut bench, &mut client);
}

#[test]
fn metadata_contexts_need_structured_replies() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    for code in [9, 10] {
        let raw = option(code, &contexts("", &["base:allocation"]));
        assert_eq!(only(ask(&mut bench, &mut client, &raw)), INVALID);
    }
    assert_serves(&mut bench, &mut client);
}

#[test]
fn metadata_contexts_are_listed_and_set() {
    let mut bench = Bench::new();
    let mut client = greeted(&mut bench, 3);
    assert_eq!(only(ask(&mut bench, &mut client, &option(8, &[]))), ACK);
    let found =
        |id: u8| vec![(4, [&[0, 0, 0, id][..], b"base:allocation"].concat()), (ACK, vec![])];
    let nothing = vec![(ACK, vec![])];
    for (code, queries, expected) in [
        (9, &[][..], found(0)),
        (9, &["base:"], found(0)),
        (9, &["qemu:dirty-bitmap:x", "base:allocation"], found(0)),
        (9, &["qemu:"], nothing.clone()),
        (10, &["base:allocation"], found(1)),
        (10, &["x", "base:allocation", "base:allocation"], found(1)),
        (10, &["base:"], nothing.clone()),
        (10, &[], nothing.clone()),
    ] {
        let replies = ask(&mut bench, &mut client, &option(code, &contexts("e", queries)));
        assert_eq!(replies, expected, "{code} {queries:?}");
    }
    // The last SET selected nothing.
    ask(&mut bench, &mut client, &option(7, &info("", &[])));
    client.request(&mut bench, cmd::STATUS, 0, 0, 4096);
    let reply = client.reply(&mut bench);
    assert!(format!("{reply:?}").contains("kind: 32769"), "{reply:?}");
}

/// Everything a modern client sends, up to a read.
fn whole_negotiation() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option(5, &[]));
    bytes.extend(option(8, &[]));
    bytes.extend(option(3, &[]));
    bytes.extend(option(10, &contexts("export", &["base:allocation", "x"])));
    bytes.extend(option(7, &info("export", &[1, 2, 3])));
    bytes.extend(request(cmd::READ, 0, 1, 0, 4096));
    bytes.extend(request(cmd::WRITE, 0, 2, 4096, 4096));
    bytes.extend([0x5a; 4096]);
    bytes
}

/// What is said to that, after the greeting.
fn whole_answer(bench: &mut Bench, client: &mut Client) -> Vec<u8> {
    bench.settle();
    let mut all = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.socket, &mut all);
    all
}

#[test]
fn one_byte_at_a_time_gives_the_same_answer() {
    let answers = [1, 3, usize::MAX].map(|step| {
        let mut bench = Bench::new();
        let mut client = bench.connect(false);
        for part in whole_negotiation().chunks(step.min(1 << 20)) {
            client.send(&mut bench, part);
            bench.turn();
        }
        let answer = whole_answer(&mut bench, &mut client);
        bench.assert_clean();
        answer
    });
    assert!(answers[0].len() > 4096 / 64);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
}

#[test]
fn two_negotiations_interleaved_byte_by_byte() {
    let mut bench = Bench::new();
    let (mut a, mut b) = (bench.connect(false), bench.connect(false));
    for byte in whole_negotiation() {
        a.send(&mut bench, &[byte]);
        bench.turn();
        b.send(&mut bench, &[byte]);
        bench.turn();
    }
    let answer = whole_answer(&mut bench, &mut a);
    assert_eq!(answer, whole_answer(&mut bench, &mut b));
    assert_eq!(bench.server.counters().writes, 2);
}

#[test]
fn a_client_that_vanishes_at_any_byte_harms_nobody() {
    let mut bench = Bench::new();
    let mut other = bench.structured();
    let all = whole_negotiation();
    for end in 0..=all.len() {
        let mut client = bench.connect(false);
        client.send(&mut bench, &all[..end]);
        if end % 2 == 0 {
            bench.settle();
        }
        drop(client);
        bench.settle();
        assert_eq!(bench.server.clients(), 1, "gone after {end} bytes");
        assert!(!bench.more, "nothing to do after {end} bytes");
    }
    let cookie = other.request(&mut bench, cmd::FLUSH, 0, 0, 0);
    assert_eq!(other.simple_error(&mut bench, cookie), 0);
    bench.assert_clean();
}

#[test]
fn a_negotiation_has_thirty_seconds() {
    let mut bench = Bench::new();
    let now = Instant::now();
    let mut slow = greeted(&mut bench, 3);
    let mut served = bench.simple();
    // Passed descriptors may wait for their first word as long as they like.
    let mut silent = bench.connect(false);
    silent.greeting(&mut bench);
    for seconds in [0, 29] {
        bench.server.tick(now + Duration::from_secs(seconds));
        slow.assert_silent(&mut bench);
    }
    bench.server.tick(now + Duration::from_secs(30));
    slow.assert_closed(&mut bench);
    assert!(bench.notices().contains(&Notice::Ended { client: 0, why: Why::Slow }));
    bench.server.tick(now + Duration::from_secs(3600));
    served.assert_silent(&mut bench);
    silent.assert_silent(&mut bench);
}

#[test]
fn time_stands_still_while_the_disk_is_paused() {
    let mut bench = Bench::new();
    let now = Instant::now();
    let mut client = greeted(&mut bench, 3);
    bench.settle();
    bench.server.tick(now);
    bench.server.suspend();
    bench.server.tick(now + Duration::from_secs(100));
    bench.server.set_export(export());
    bench.server.resume();
    bench.server.tick(now + Duration::from_secs(101));
    assert_serves(&mut bench, &mut client);
}

#[test]
fn a_new_greeting_follows_a_disconnect() {
    let mut bench = Bench::new();
    let mut client = bench.structured();
    for _ in 0..3 {
        client.request(&mut bench, cmd::DISC, 0, 0, 0);
        client.negotiate(&mut bench);
        let cookie = client.write(&mut bench, 0, 0, &[1; 512]);
        assert_eq!(client.simple_error(&mut bench, cookie), 0);
    }
    client.request(&mut bench, cmd::DISC, 0, 0, 0);
    // Features do not survive.
    client.negotiate_simple(&mut bench);
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, 512);
    assert_eq!(client.simple_error(&mut bench, cookie), 0);
    assert_eq!(client.recv(&mut bench, 512), [1; 512]);
    client.request(&mut bench, cmd::DISC, 0, 0, 0);
    drop(client);
    bench.settle();
    assert_eq!(bench.server.clients(), 0);
}

#[test]
fn a_disconnect_waits_for_what_is_under_way() {
    let mut bench = Bench::new();
    let mut client = bench.simple();
    bench.memory.hold = true;
    let first = client.request(&mut bench, cmd::READ, 0, 0, 200 << 10);
    let second = client.request(&mut bench, cmd::FLUSH, 0, 0, 0);
    client.request(&mut bench, cmd::DISC, 0, 0, 0);
    client.assert_silent(&mut bench);
    bench.memory.hold = false;
    bench.memory.order = crate::nbd_support::engine::Order::Reverse;
    let mut left = vec![first, second];
    while !left.is_empty() {
        let crate::nbd_support::client::Reply::Simple { error: 0, cookie } =
            client.reply(&mut bench)
        else {
            panic!("a simple reply");
        };
        if cookie == first {
            client.recv(&mut bench, 200 << 10);
        }
        left.retain(|&c| c != cookie);
    }
    client.negotiate(&mut bench);
}

#[test]
fn the_oldstyle_greeting_and_its_repetition() {
    let mut bench = Bench::new();
    let mut client = bench.connect(true);
    for _ in 0..3 {
        let hello = client.recv(&mut bench, 152);
        assert_eq!(&hello[..8], b"NBDMAGIC");
        assert_eq!(be64(&hello, 8), 0x0000_4202_8186_1253);
        assert_eq!(be64(&hello, 16), SECTORS * 512);
        assert!(hello[24..].iter().all(|&b| b == 0));
        let cookie = client.write(&mut bench, 0, 4096, &[9; 4096]);
        assert_eq!(client.simple_error(&mut bench, cookie), 0);
        let cookie = client.request(&mut bench, cmd::READ, 0, 4096, 4096);
        assert_eq!(client.simple_error(&mut bench, cookie), 0);
        assert_eq!(client.recv(&mut bench, 4096), [9; 4096]);
        client.request(&mut bench, cmd::DISC, 0, 0, 0);
    }
}

#[test]
fn interest_in_a_disconnected_migration_does_not_time_out() {
    let mut bench = Bench::new();
    let now = Instant::now();
    let mut client = bench.structured();
    client.request(&mut bench, cmd::DISC, 0, 0, 0);
    bench.settle();
    for seconds in [0, 3600] {
        bench.server.tick(now + Duration::from_secs(seconds));
        bench.settle();
    }
    client.negotiate(&mut bench);
}
