//! What is asked, and what becomes of the answers.
use disk::remote::Offer;
use request::disk::{Disk, Kind};

use super::support::{ALL, DEPTH, FLUSH, READ, TRIM, WRITE, ZEROES, buf, each, offer, reply};

#[test]
fn each_operation_is_a_request_and_answers_come_in_any_order() {
    each(|bench| {
        let mut b = bench(offer());
        b.fill(1, 1024, 7);
        b.push(0, Kind::Read, 4096, 512);
        b.push(1, Kind::Write, 1 << 33, 1024);
        b.push(2, Kind::Sync, 77, 0);
        b.push(3, Kind::Zero { bytes: 1 << 31, punch: true }, 512, 0);
        b.push(4, Kind::Zero { bytes: 512, punch: false }, 0, 0);
        b.push(5, Kind::Discard { bytes: 1 << 20 }, 1 << 20, 0);
        assert_eq!(b.turn(), []);
        let mut handles = Vec::new();
        for (command, flags, at, bytes) in [
            (READ, 0, 4096, 512),
            (WRITE, 0, 1 << 33, 1024),
            (FLUSH, 0, 0, 0),
            (ZEROES, 0, 512, 1 << 31),
            (ZEROES, 2, 0, 512),
            (TRIM, 0, 1 << 20, 1 << 20),
        ] {
            let r = b.request();
            assert_eq!((r.command, r.flags, r.at, r.bytes), (command, flags, at, bytes));
            if command == WRITE {
                assert_eq!(b.data(1024), [7; 1024]);
            }
            handles.push(r.handle);
        }
        for handle in handles.iter().skip(1).rev() {
            b.say(&reply(*handle, 0));
        }
        b.say(&[&reply(handles[0], 0)[..], &[9; 512]].concat());
        let done = b.finish(6);
        let moved = [512, 1024, 0, 0, 0, 0];
        assert!(done.iter().zip(moved).all(|(done, n)| done.1 == Ok(n)), "{done:?}");
        assert!(b.holds(0, 512, 9));
        b.assert_local_works();
    });
}

#[test]
fn what_a_server_does_not_offer_is_not_asked() {
    each(|bench| {
        for flags in [0, 1, ALL & !1] {
            let mut b = bench(Offer { flags, ..offer() });
            b.push(0, Kind::Sync, 0, 0);
            b.push(1, Kind::Discard { bytes: 512 }, 0, 0);
            b.push(2, Kind::Zero { bytes: 512, punch: true }, 0, 0);
            b.push(3, Kind::Grow { bytes: 512 }, 0, 0);
            let no = Err(libc::EOPNOTSUPP);
            assert_eq!(b.finish(4), [(0, Ok(0)), (1, Ok(0)), (2, no), (3, no)]);
        }
    });
}

#[test]
fn an_operation_longer_than_the_server_takes_is_done_in_part() {
    each(|bench| {
        let mut b = bench(Offer { longest: 1536, ..offer() });
        b.push(0, Kind::Read, 0, 4096);
        b.push(1, Kind::Write, 0, 4096);
        b.turn();
        let (read, write) = (b.request(), b.request());
        assert_eq!((read.bytes, write.bytes), (1536, 1536));
        b.data(1536);
        b.say(&[&reply(write.handle, 0)[..], &reply(read.handle, 0), &[1; 1536]].concat());
        assert_eq!(b.finish(2), [(0, Ok(1536)), (1, Ok(1536))]);
    });
}

#[test]
fn an_error_is_that_request_s_alone() {
    each(|bench| {
        let mut b = bench(offer());
        let numbers = [(28, libc::ENOSPC), (1, libc::EPERM), (-5i32 as u32, libc::EIO), (9999, 5)];
        for (number, errno) in numbers {
            b.push(0, Kind::Read, 0, 512);
            b.push(1, Kind::Write, 0, 512);
            b.turn();
            let (read, write) = (b.request(), b.request());
            b.data(512);
            b.say(&reply(read.handle, number));
            b.say(&reply(write.handle, 0));
            assert_eq!(b.finish(2), [(0, Err(errno)), (1, Ok(512))]);
        }
        assert!(!b.ended.is());
    });
}

#[test]
fn a_command_that_is_announced_and_called_invalid_is_as_good_as_not_offered() {
    each(|bench| {
        let mut b = bench(offer());
        b.push(0, Kind::Zero { bytes: 512, punch: true }, 0, 0);
        b.push(1, Kind::Discard { bytes: 512 }, 0, 0);
        b.push(2, Kind::Sync, 0, 0);
        b.turn();
        for _ in 0..3 {
            let handle = b.request().handle;
            b.say(&reply(handle, 22));
        }
        assert_eq!(b.finish(3), [(0, Err(libc::EOPNOTSUPP)), (1, Ok(0)), (2, Ok(0))]);
    });
}

#[test]
fn answers_may_come_byte_by_byte() {
    each(|bench| {
        let mut b = bench(offer());
        b.push(0, Kind::Read, 0, 1024);
        b.push(1, Kind::Read, 0, 512);
        b.push(2, Kind::Write, 0, 512);
        b.turn();
        let handles = [0; 3].map(|_| b.request().handle);
        b.data(512);
        let all = [
            &reply(handles[1], 0)[..],
            &[1; 512],
            &reply(handles[2], 0),
            &reply(handles[0], 0),
            &[2; 1024],
        ];
        let all = all.concat();
        let mut done = Vec::new();
        for part in all.chunks(5) {
            b.say(part);
            done.extend(b.turn());
        }
        assert_eq!(done, [(1, Ok(512)), (2, Ok(512)), (0, Ok(1024))]);
        assert!(b.holds(0, 1024, 2) && b.holds(1, 512, 1));
    });
}

#[test]
fn more_than_the_socket_takes_is_sent_as_it_takes_it() {
    each(|bench| {
        let mut b = bench(offer());
        let server = b.far.try_clone().unwrap();
        let echo = std::thread::spawn(move || echo(server, 4 * DEPTH as usize));
        for round in 0..4u8 {
            for tag in 0..DEPTH {
                b.fill(tag, 65536, tag as u8 + round);
                b.push(tag, Kind::Write, u64::from(tag) << 16, 65536);
            }
            let done = b.finish(DEPTH as usize);
            assert!(done.iter().all(|(_, result)| *result == Ok(65536)), "{done:?}");
        }
        for (i, (at, sum)) in echo.join().unwrap().into_iter().enumerate() {
            let value = (at >> 16) + (i / DEPTH as usize) as u64;
            assert_eq!(sum, value * 65536, "write {i} at {at}");
        }
    });
}

/// Takes writes slowly; gives offset and sum of bytes of each. Each pair is answered in the other
/// order.
fn echo(mut from: std::os::unix::net::UnixStream, count: usize) -> Vec<(u64, u64)> {
    use std::io::{Read, Write};
    let (mut seen, mut held) = (Vec::new(), Vec::new());
    let mut message = vec![0; 28 + 65536];
    while seen.len() < count {
        for piece in message.chunks_mut(9000) {
            from.read_exact(piece).unwrap();
        }
        let sum = message[28..].iter().map(|byte| u64::from(*byte)).sum();
        seen.push((u64::from_be_bytes(message[16..24].try_into().unwrap()), sum));
        held.push(reply(message[8..16].try_into().unwrap(), 0));
        if held.len() == 2 {
            held.drain(..).rev().for_each(|reply| from.write_all(&reply).unwrap());
        }
    }
    seen
}

#[test]
fn the_files_may_change_between_sessions() {
    each(|bench| {
        let mut b = bench(offer());
        b.push(0, Kind::Sync, 0, 0);
        b.turn();
        let handle = b.request().handle;
        b.say(&reply(handle, 0));
        assert_eq!(b.finish(1), [(0, Ok(0))]);
        b.disk.set_files(&[]).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        b.disk.set_remotes(Vec::new(), super::support::PATIENCE).unwrap();
        b.disk.set_files(&[std::os::fd::AsRawFd::as_raw_fd(&file)]).unwrap();
        b.push(0, Kind::Read, 0, 512);
        assert_eq!(b.finish(1), [(0, Ok(512))]);
        assert!(b.disk.arena_ref().slice(buf(0, 512)).iter().all(|byte| *byte == 0));
    });
}
