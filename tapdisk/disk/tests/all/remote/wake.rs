//! Nobody sleeps while a server has something to say.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use request::disk::{Disk, Kind};

use super::support::{Bench, DEPTH, LIMIT, each, offer, reply};

/// A poll as the server's: it has the connections and, where it has to, the engine.
fn poll(b: &Bench) -> Poll {
    let poll = Poll::new().unwrap();
    for (token, fd) in [b.disk.poll_fd(), b.disk.wake_fd()].into_iter().enumerate() {
        poll.registry().register(&mut SourceFd(&fd), Token(token), Interest::READABLE).unwrap();
    }
    poll
}

/// Sleeps as the server does: inside the engine if it can, else in the poll.
fn sleep(b: &mut Bench, poll: &mut Poll, events: &mut Events) {
    use std::os::fd::AsRawFd;
    let start = Instant::now();
    match b.disk.submit_and_wait(poll.as_raw_fd(), LIMIT) {
        Some(result) => {
            result.unwrap();
            look(poll, events, Duration::ZERO);
        }
        None => {
            b.disk.submit().unwrap();
            let limit = if b.disk.has_finished() { Duration::ZERO } else { LIMIT };
            look(poll, events, limit);
        }
    }
    assert!(start.elapsed() < LIMIT / 2, "a wake-up was lost");
}

/// What the kernel interrupts, for work of the ring, is done again by the caller.
fn look(poll: &mut Poll, events: &mut Events, limit: Duration) {
    match poll.poll(events, Some(limit)) {
        Err(error) if error.kind() != std::io::ErrorKind::Interrupted => panic!("{error}"),
        _ => {}
    }
}

#[test]
fn a_sleeper_is_woken_by_every_answer() {
    each(|bench| {
        let mut b = bench(offer());
        let mut poll = poll(&b);
        let mut events = Events::with_capacity(8);
        let mut far = b.far.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let mut request = [0; 28];
            let mut count = 0u32;
            // Until the client goes.
            while far.read_exact(&mut request).is_ok() {
                let mut answer = reply(request[8..16].try_into().unwrap(), 0);
                answer.resize(16 + 4096, 7);
                // Now and then in two parts, so that a wake-up brings half of it.
                let (a, z) =
                    answer.split_at(if count.is_multiple_of(3) { 100 } else { answer.len() });
                far.write_all(a).unwrap();
                std::thread::yield_now();
                far.write_all(z).unwrap();
                count += 1;
            }
            count
        });
        let mut left = [200u32; DEPTH as usize];
        (0..DEPTH).for_each(|tag| b.push(tag, Kind::Read, 0, 4096));
        let mut finished = 0;
        while finished < 200 * DEPTH {
            sleep(&mut b, &mut poll, &mut events);
            while let Some((tag, result)) = b.disk.reap() {
                assert_eq!(result, Ok(4096));
                finished += 1;
                left[tag as usize] -= 1;
                if left[tag as usize] > 0 {
                    b.push(tag, Kind::Read, 0, 4096);
                }
            }
        }
        b.far.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(server.join().unwrap(), 200 * DEPTH);
    });
}

#[test]
fn room_to_send_wakes_too() {
    each(|bench| {
        let mut b = bench(offer());
        let mut poll = poll(&b);
        let mut events = Events::with_capacity(8);
        for tag in 0..DEPTH {
            b.push(tag, Kind::Write, 0, 65536);
        }
        assert_eq!(b.turn(), [], "the socket is full");
        let mut far = b.far.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            // All is taken before the first answer, so that only room to send can wake.
            let mut message = vec![0; 28 + 65536];
            let mut handles = Vec::new();
            for _ in 0..DEPTH {
                far.read_exact(&mut message).unwrap();
                handles.push(message[8..16].try_into().unwrap());
            }
            handles.into_iter().for_each(|handle| far.write_all(&reply(handle, 0)).unwrap());
        });
        let mut done = 0;
        while done < DEPTH {
            sleep(&mut b, &mut poll, &mut events);
            done += std::iter::from_fn(|| b.disk.reap()).count() as u32;
        }
        server.join().unwrap();
    });
}
