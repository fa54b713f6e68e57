//! Clients that behave badly cost only themselves; pausing and closing under load.

use std::time::{Duration, Instant};

use crate::nbd_support::client::{Reply, cmd, request};
use crate::nbd_support::{Bench, Client, export};
use frontend::Frontend;
use frontend::nbd::{CLIENTS_MAX, Notice, Why};
use request::Slots;
use test_support::rng::Rng;

/// Reads, writes and checks through a client while others misbehave.
fn assert_proceeds(bench: &mut Bench, client: &mut Client) {
    for i in 0..20u8 {
        let data = vec![i + 1; 128 << 10];
        let cookie = client.write(bench, 0, 32 << 20, &data);
        assert_eq!(client.simple_error(bench, cookie), 0);
        let cookie = client.request(bench, cmd::READ, 0, 32 << 20, 128 << 10);
        assert!(client.read_chunks(bench, cookie, 32 << 20, 128 << 10).0 == data);
    }
}

/// A client that asks for more than the socket holds and reads nothing of it.
fn deaf(bench: &mut Bench, structured: bool) -> Client {
    let mut client = if structured { bench.structured() } else { bench.simple() };
    let all: Vec<u8> = (0..300)
        .flat_map(|i| request(cmd::READ, 0, i, 4096 * i, if i % 2 == 0 { 4096 } else { 1 << 20 }))
        .collect();
    client.send(bench, &all);
    client
}

#[test]
fn deaf_clients_do_not_stop_the_others() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut good = bench.structured();
    let mut deaf: Vec<_> = (0..6).map(|i| deaf(&mut bench, i % 2 == 0)).collect();
    bench.settle();
    assert!(!bench.more, "nothing to do for clients that do not read");
    assert_proceeds(&mut bench, &mut good);
    let now = Instant::now();
    for seconds in [0, 30, 59] {
        bench.server.tick(now + Duration::from_secs(seconds));
        bench.settle();
        assert_eq!(bench.server.clients(), 7);
    }
    // One of them reads something: it has another minute.
    deaf[0].recv(&mut bench, 1 << 20);
    bench.server.tick(now + Duration::from_secs(60));
    bench.settle();
    assert_eq!(bench.server.clients(), 2);
    let stuck =
        bench.notices().into_iter().filter(|n| matches!(n, Notice::Ended { why: Why::Stuck, .. }));
    assert_eq!(stuck.count(), 5);
    assert_proceeds(&mut bench, &mut good);
    drop(deaf);
    bench.settle();
    bench.assert_clean();
}

#[test]
fn clients_that_stop_in_a_payload_hold_one_slot_at_most() {
    let mut bench = Bench::new();
    let mut good = bench.structured();
    let mut stopped = Vec::new();
    for (sent, slots) in [(0, 0), (1, 1), (65_536, 1), (65_537, 1), (100_000, 1)] {
        let before = bench.memory.reserved();
        let mut client = bench.structured();
        client.send(&mut bench, &request(cmd::WRITE, 0, 9, 0, 1 << 20));
        client.send(&mut bench, &vec![1; sent]);
        bench.settle();
        assert!(bench.memory.reserved() - before <= slots, "after {sent} bytes");
        stopped.push(client);
    }
    // Small writes hold none before they are whole.
    let before = bench.memory.reserved();
    let mut client = bench.structured();
    client.send(&mut bench, &request(cmd::WRITE, 0, 9, 0, 4096));
    client.send(&mut bench, &[1; 4095]);
    bench.settle();
    assert_eq!(bench.memory.reserved(), before);
    assert_proceeds(&mut bench, &mut good);
    stopped.clear();
    drop(client);
    bench.assert_clean();
}

#[test]
fn clients_that_vanish_in_the_middle_of_requests_leave_nothing() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut random = Rng::new(77);
    for round in 0..200 {
        let mut client = if round % 2 == 0 { bench.structured() } else { bench.simple() };
        bench.memory.hold = round % 3 == 0;
        let mut all = Vec::new();
        for i in 0..10 {
            all.extend(request(cmd::READ, 0, i, 0, 512 * (1 + random.below(2000)) as u32));
            let n = 512 * (1 + random.below(400)) as usize;
            all.extend(request(cmd::WRITE, 0, i, 0, n as u32));
            all.extend(vec![5; n]);
        }
        all.truncate(random.below(all.len() as u64) as usize);
        // Not `send`: a held engine takes no more at some point.
        let _ = std::io::Write::write(&mut client.socket, &all);
        (0..4).for_each(|_| bench.turn());
        drop(client);
        bench.settle();
        bench.memory.hold = false;
        bench.assert_clean();
        assert_eq!(bench.server.clients(), 0, "round {round}");
    }
}

#[test]
fn too_many_clients_are_turned_away_and_places_come_back() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| bench.structured()).collect();
    bench.connect(false).assert_closed(&mut bench);
    assert_eq!(bench.server.counters().refused, 1);
    assert_eq!(bench.server.clients(), CLIENTS_MAX);
    clients.truncate(3);
    bench.settle();
    clients.push(bench.structured());
    for client in &mut clients {
        assert_proceeds(&mut bench, client);
    }
}

#[test]
fn notices_are_dropped_and_counted_when_nobody_fetches_them() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        drop(bench.connect(false));
        bench.settle();
    }
    assert_eq!(bench.notices().len(), 32);
    assert_eq!(bench.server.counters().notices_lost, 200 - 32);
}

#[test]
fn while_suspended_replies_go_out_and_nothing_comes_in() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut client = bench.structured();
    bench.memory.hold = true;
    let cookie = client.request(&mut bench, cmd::READ, 0, 0, 4096);
    bench.settle();
    bench.server.suspend();
    let later = client.write(&mut bench, 0, 4096, &vec![8; 100 << 10]);
    let mut newcomer = bench.connect(false);
    bench.memory.hold = false;
    let (data, _) = client.read_chunks(&mut bench, cookie, 0, 4096);
    assert!(data == bench.memory.disk[..4096]);
    client.assert_silent(&mut bench);
    assert!(bench.server.idle());
    newcomer.greeting(&mut bench);
    newcomer.send(&mut bench, &[0, 0, 0, 3]);
    newcomer.assert_silent(&mut bench);
    bench.server.set_export(export());
    bench.server.resume();
    assert_eq!(client.simple_error(&mut bench, later), 0);
    assert!(bench.memory.disk[4096..4096 + (100 << 10)].iter().all(|&b| b == 8));
    newcomer.send(&mut bench, &crate::nbd_support::client::option(1, b""));
    newcomer.recv(&mut bench, 10);
}

#[test]
fn suspending_in_the_middle_of_everything_loses_nothing() {
    for seed in 0..20 {
        println!("seed {seed}");
        let mut random = Rng::new(seed);
        let mut bench = Bench::new();
        let mut client = bench.structured();
        let data: Vec<u8> = (0..3u32 << 20).map(|i| (i / 100) as u8).collect();
        let mut all = request(cmd::WRITE, 0, 1, 0, data.len() as u32);
        all.extend(&data);
        all.extend(request(cmd::READ, 0, 2, 0, data.len() as u32));
        let mut rest = &all[..];
        while !rest.is_empty() {
            let n = rest.len().min(1 + random.below(300_000) as usize);
            client.send(&mut bench, &rest[..n]);
            rest = &rest[n..];
            bench.turn();
            bench.server.suspend();
            bench.settle();
            assert!(bench.server.idle());
            bench.server.set_export(export());
            bench.server.resume();
        }
        assert_eq!(client.simple_error(&mut bench, 1), 0);
        assert!(client.read_chunks(&mut bench, 2, 0, data.len()).0 == data);
        bench.assert_clean();
    }
}

#[test]
fn closing_drops_everybody_and_takes_back_every_slot() {
    let mut bench = Bench::new();
    bench.memory.pattern();
    let mut asleep = bench.connect(false);
    asleep.greeting(&mut bench);
    let deaf = deaf(&mut bench, true);
    let mut stopped = bench.structured();
    stopped.send(&mut bench, &request(cmd::WRITE, 0, 9, 0, 1 << 20));
    stopped.send(&mut bench, &[1; 100_000]);
    bench.settle();
    bench.memory.hold = true;
    let mut waiting = bench.simple();
    waiting.request(&mut bench, cmd::READ, 0, 0, 256 << 10);
    bench.settle();
    bench.server.hang_up(&mut bench.memory);
    asleep.assert_closed(&mut bench);
    assert!(!bench.server.idle(), "the engine has slots of the last client");
    bench.memory.hold = false;
    bench.settle();
    waiting.assert_closed(&mut bench);
    drop(deaf);
    bench.assert_clean();
}

#[test]
fn a_client_that_closes_right_after_its_last_words_is_seen() {
    // Both in one event: the end must be found behind the data.
    for bytes in [1, 28, 4095, 65_536, 200_000] {
        let mut bench = Bench::new();
        let mut client = bench.structured();
        bench.settle();
        let mut all = request(cmd::WRITE, 0, 1, 0, 4 << 20);
        all.resize(bytes, 0);
        let _ = std::io::Write::write(&mut client.socket, &all);
        drop(client);
        bench.settle();
        assert_eq!(bench.server.clients(), 0, "{bytes}");
        bench.assert_clean();
    }
}

#[test]
fn random_bytes_never_panic_or_leak() {
    for seed in 0..300 {
        println!("seed {seed}");
        let mut random = Rng::new(seed);
        let mut bench = Bench::new();
        let mut good = bench.structured();
        let mut client = match seed % 4 {
            0 => bench.connect(false),
            1 => bench.connect(true),
            2 => bench.structured(),
            _ => bench.simple(),
        };
        for _ in 0..random.below(60) {
            let bytes = words(&mut random);
            let _ = std::io::Write::write(&mut client.socket, &bytes);
            if random.below(2) == 0 {
                bench.turn();
            }
            if random.below(8) == 0 {
                let mut sink = [0; 10_000];
                let _ = std::io::Read::read(&mut client.socket, &mut sink);
            }
        }
        bench.settle();
        let cookie = good.request(&mut bench, cmd::FLUSH, 0, 0, 0);
        assert_eq!(good.reply(&mut bench), Reply::Simple { error: 0, cookie });
        drop(client);
        bench.assert_clean();
        assert_eq!(bench.server.clients(), 1);
    }
}

/// Something that looks like the protocol for a while.
fn words(random: &mut Rng) -> Vec<u8> {
    let length = random.below(80) as usize;
    let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    let small = random.below(300) as u32 * 512;
    match random.below(6) {
        0 => noise,
        1 => crate::nbd_support::client::option(random.below(14) as u32, &noise),
        2 => 3u32.to_be_bytes().to_vec(),
        3 => request(random.below(10) as u16, random.below(40) as u16, 1, 512, small),
        4 => request(cmd::READ, 0, random.next(), random.below(1 << 27), small * 8),
        _ => {
            let mut bytes = request(cmd::WRITE, 0, 2, 0, small);
            bytes.resize(28 + small as usize, 0x25);
            bytes
        }
    }
}

#[test]
fn slots_are_shared_fairly() {
    let mut bench = Bench::new();
    bench.memory.hold = true;
    let held = |bench: &Bench| {
        let counts = bench.memory.slots();
        (counts.small - counts.small_free, counts.large - counts.large_free)
    };
    let mut before = (0, 0);
    for n in 1..=6u16 {
        let _client = std::mem::ManuallyDrop::new(deaf(&mut bench, true));
        bench.settle();
        let now = held(&bench);
        let (small, large) = (now.0 - before.0, now.1 - before.1);
        assert!(small >= 2 || large >= 2, "client {n} has something");
        let share = |all: u16| if n == 1 { all - all / 6 } else { (all / (n + 1)).max(2) };
        assert!(small <= share(96) && large <= share(32), "client {n}: {small} {large}");
        before = now;
        if n == 3 {
            return;
        }
    }
}
