//! Servers that break off, lie, or say nothing: whatever is in flight fails with EIO, whatever
//! comes later with ETIMEDOUT, and nothing else is harmed.
use std::net::Shutdown;
use std::time::{Duration, Instant};

use disk::remote::Why;
use request::disk::{Disk, FileId, Kind};

use super::support::{Bench, PATIENCE, each, offer, reply};

/// Two requests in flight; the server does something; it is over.
fn ends(
    bench: &dyn Fn(disk::remote::Offer) -> Bench,
    why: Why,
    act: impl Fn(&mut Bench, [[u8; 8]; 2]),
) {
    let mut b = bench(offer());
    b.push(0, Kind::Read, 0, 1024);
    b.push(1, Kind::Sync, 0, 0);
    assert_eq!(b.turn(), []);
    let handles = [b.request().handle, b.request().handle];
    act(&mut b, handles);
    assert_over(&mut b, why);
}

fn assert_over(b: &mut Bench, why: Why) {
    assert_eq!(b.finish(2), [(0, Err(libc::EIO)), (1, Err(libc::EIO))], "{why}");
    assert_eq!((b.disk.take_ended(), b.disk.take_ended()), (Some((FileId(0), why)), None));
    assert!(b.ended.is());
    b.push(0, Kind::Read, 0, 512);
    b.push(1, Kind::Discard { bytes: 512 }, 0, 0);
    let late = Err(libc::ETIMEDOUT);
    assert_eq!(b.finish(2), [(0, late), (1, late)]);
    b.disk.tick(Instant::now());
    b.assert_local_works();
}

#[test]
fn a_server_that_answers_nonsense_is_left() {
    each(|bench| {
        ends(bench, Why::Magic, |b, _| b.say(b"HTTP/1.1 400 Bad"));
        ends(bench, Why::Magic, |b, handles| {
            // A structured reply, which was not agreed on.
            b.say(&[&0x668e_33efu32.to_be_bytes()[..], &[0; 4], &handles[0], &[0; 4]].concat());
        });
        ends(bench, Why::Magic, |b, handles| {
            // Data where an error was reported.
            b.say(&[&reply(handles[0], 5)[..], &[7; 1024]].concat());
        });
    });
}

#[test]
fn a_server_that_answers_what_was_not_asked_is_left() {
    each(|bench| {
        ends(bench, Why::Handle, |b, _| b.say(&reply([0xff; 8], 0)));
        ends(bench, Why::Handle, |b, [_, mut sync]| {
            sync[0] ^= 1;
            b.say(&reply(sync, 0));
        });
        ends(bench, Why::Handle, |b, [_, sync]| {
            // Twice, when the place has another request.
            b.say(&reply(sync, 0));
            assert_eq!(b.finish(1), [(1, Ok(0))]);
            b.push(1, Kind::Sync, 0, 0);
            assert_eq!(b.turn(), []);
            b.request();
            b.say(&reply(sync, 0));
        });
    });
}

#[test]
fn an_answer_to_what_is_not_all_sent_is_nonsense() {
    each(|bench| {
        let mut b = bench(offer());
        for tag in 0..16 {
            b.push(tag, Kind::Write, 0, 65536);
        }
        assert_eq!(b.turn(), []);
        // The server reads nothing but the first header; the last write cannot be on its way.
        let mut last = b.request().handle;
        last[7] += 15;
        b.say(&reply(last, 0));
        assert!(b.finish(16).iter().all(|done| done.1 == Err(libc::EIO)));
        assert_eq!(b.disk.take_ended(), Some((FileId(0), Why::Handle)));
    });
}

#[test]
fn a_connection_that_closes_takes_its_requests_with_it() {
    each(|bench| {
        ends(bench, Why::Closed, |b, _| b.far.shutdown(Shutdown::Both).unwrap());
        ends(bench, Why::Closed, |b, [read, _]| {
            // In the middle of the data.
            b.say(&[&reply(read, 0)[..], &[7; 700]].concat());
            b.far.shutdown(Shutdown::Both).unwrap();
        });
        ends(bench, Why::Closed, |b, [read, _]| {
            // In the middle of a header.
            b.say(&reply(read, 0)[..10]);
            b.far.shutdown(Shutdown::Write).unwrap();
        });
    });
}

#[test]
fn what_was_answered_before_the_end_counts() {
    each(|bench| {
        let mut b = bench(offer());
        b.push(0, Kind::Read, 0, 512);
        b.push(1, Kind::Sync, 0, 0);
        assert_eq!(b.turn(), []);
        let (read, _) = (b.request(), b.request());
        b.say(&[&reply(read.handle, 0)[..], &[3; 512]].concat());
        b.far.shutdown(Shutdown::Both).unwrap();
        // Sending finds the end first.
        b.push(2, Kind::Write, 0, 65536);
        let eio = Err(libc::EIO);
        assert_eq!(b.finish(3), [(0, Ok(512)), (1, eio), (2, eio)]);
        assert!(b.holds(0, 512, 3));
    });
}

#[test]
fn a_request_without_an_answer_ends_the_connection_in_time() {
    each(|bench| {
        let mut b = bench(offer());
        let start = Instant::now();
        b.disk.tick(start);
        b.push(0, Kind::Read, 0, 1024);
        assert_eq!(b.turn(), []);
        b.disk.tick(start + Duration::from_secs(1));
        b.push(1, Kind::Sync, 0, 0);
        assert_eq!(b.turn(), []);
        // The server is alive, and yet one request is left out.
        let mut now = start + Duration::from_secs(1);
        let read = b.request();
        while now < start + PATIENCE {
            let sync = b.request();
            b.say(&reply(sync.handle, 0));
            assert_eq!(b.finish(1), [(1, Ok(0))]);
            b.push(1, Kind::Sync, 0, 0);
            assert_eq!(b.turn(), []);
            b.disk.tick(now);
            now += Duration::from_secs(30);
        }
        assert!(!b.ended.is(), "not yet: {read:?}");
        b.disk.tick(start + Duration::from_secs(1) + PATIENCE);
        assert!(b.disk.has_finished(), "the caller does not sleep on it");
        assert_over(&mut b, Why::Silent);
    });
}

#[test]
fn an_end_is_noticed_while_nothing_is_asked() {
    each(|bench| {
        for (say, why) in [(&b""[..], Why::Closed), (&[0; 16], Why::Magic)] {
            let mut b = bench(offer());
            b.disk.tick(Instant::now());
            assert!(!b.ended.is());
            b.say(say);
            b.far.shutdown(Shutdown::Write).unwrap();
            b.disk.tick(Instant::now());
            assert_eq!(b.disk.take_ended(), Some((FileId(0), why)));
            b.assert_local_works();
        }
    });
}
