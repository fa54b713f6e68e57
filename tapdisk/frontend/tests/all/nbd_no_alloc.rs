//! Nothing on the path of a request allocates, and it is cheap.

use std::time::Duration;

use crate::nbd_support::client::{Reply, cmd, request};
use crate::nbd_support::{Bench, Client};
use frontend::Frontend;

/// A turn whose frontend calls are watched.
fn turn(bench: &mut Bench) {
    bench.poll.poll(&mut bench.events, Some(Duration::ZERO)).unwrap();
    bench.events.iter().for_each(|event| bench.server.event(event));
    bench.memory.seen.clear();
    crate::counting::watch(true);
    bench.server.take(&mut bench.memory);
    crate::counting::watch(false);
    while let Some((slot, request, outcome)) = bench.memory.finish() {
        crate::counting::watch(true);
        bench.server.complete(&mut bench.memory, slot, &request, outcome);
        crate::counting::watch(false);
    }
    crate::counting::watch(true);
    bench.server.kick(&mut bench.memory);
    crate::counting::watch(false);
}

fn round(bench: &mut Bench, client: &mut Client, structured: bool) {
    let mut all = Vec::new();
    for i in 0..32u64 {
        all.extend(request(cmd::READ, 0, i, i * 8192, if i % 8 == 0 { 256 << 10 } else { 4096 }));
        all.extend(request(cmd::WRITE, 1, i, i * 4096, 4096));
        all.resize(all.len() + 4096, i as u8);
        all.extend(request(cmd::FLUSH, 0, i, 0, 0));
        all.extend(request(cmd::STATUS, 0, i, 0, 1 << 20));
        all.extend(request(cmd::READ, 0, i, 1, 1));
    }
    all.extend(request(cmd::WRITE, 0, 99, 0, 300 << 10));
    all.resize(all.len() + (300 << 10), 7);
    let mut rest = &all[..];
    let mut sink = vec![0; 1 << 20];
    for _ in 0..200 {
        if let Ok(n) = std::io::Write::write(&mut client.socket, rest) {
            rest = &rest[n..];
        }
        turn(bench);
        let _ = std::io::Read::read(&mut client.socket, &mut sink);
    }
    assert!(rest.is_empty());
    let cookie = client.next_cookie() + 1000;
    client.send(bench, &request(if structured { cmd::CACHE } else { cmd::FLUSH }, 0, cookie, 0, 0));
    assert_eq!(client.reply(bench), Reply::Simple { error: 0, cookie });
}

#[test]
fn the_path_of_a_request_does_not_allocate() {
    for structured in [true, false] {
        let mut bench = Bench::new();
        bench.memory.pattern();
        let mut client = if structured { bench.structured() } else { bench.simple() };
        round(&mut bench, &mut client, structured);
        crate::counting::calls();
        for _ in 0..5 {
            round(&mut bench, &mut client, structured);
        }
        // The fake engine's own vectors grow in `status`, outside the watched calls.
        assert_eq!(crate::counting::calls(), 0, "structured {structured}");
        bench.assert_clean();
    }
}
