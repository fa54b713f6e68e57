//! The control socket (spec/control-socket.md §2–3, §8: 1–7, 10): every request gets its reply, and
//! no client can do harm.

use std::io::Write;
use std::time::Duration;

use crate::daemon_support::{Client, Daemon, PATIENCE, open, text, until};
use tap_ctl::messages::{MESSAGE_BYTES, Message, Params, flag, kind};
use test_support::rng::Rng;

/// Long enough for a reply that is not going to come.
const A_MOMENT: Duration = Duration::from_millis(50);

fn pid_of(daemon: &Daemon) -> i32 {
    let reply = daemon.call(&Message::new(kind::PID, 9), &[]);
    assert_eq!((reply.bytes.len(), reply.kind()), (MESSAGE_BYTES, kind::PID_RSP));
    i32::from_ne_bytes(reply.bytes[8..12].try_into().unwrap())
}

#[test]
fn the_pid_then_the_end() {
    let daemon = Daemon::spawn();
    let mut frame = [0; 544];
    frame[0] = 3;
    let mut client = daemon.connect();
    client.stream.write_all(&frame).unwrap();
    let reply = client.reply();
    assert_eq!(reply.bytes.len(), 544);
    assert_eq!((reply.bytes[0], &reply.bytes[8..12]), (4, &daemon.pid.to_ne_bytes()[..]));
}

#[test]
fn unknown_types_and_unterminated_strings_are_refused_with_cookie_0() {
    let daemon = Daemon::spawn();
    for number in [0, 1, 4, 17, 30, 32, 36, 37, 65535] {
        let reply = daemon.call(&Message::new(number, 5), &[]);
        assert_eq!((reply.errno(), reply.message().cookie()), (22, 0), "type {number}");
    }
    for number in [kind::PID, kind::LIST, kind::OPEN, kind::CLOSE] {
        let mut frame = Message::new(number, 5).encode();
        frame[20..276].fill(b'x');
        let reply = daemon.call(&Message::decode(&frame), &[]);
        assert_eq!((reply.errno(), reply.message().cookie()), (22, 0), "type {number}");
    }
    let mut frame = open(5, "aio:/x", |p| p.flags = flag::SECONDARY).encode();
    frame[282..538].fill(b'x');
    assert_eq!(daemon.call(&Message::decode(&frame), &[]).errno(), 22);
}

#[test]
fn a_list_has_no_limit() {
    let daemon = Daemon::spawn();
    assert_eq!(daemon.list(), []);
    for n in [1u16, 7, 20] {
        (daemon.list().len() as u16..n).for_each(|minor| daemon.attach(minor));
        let minors: Vec<i32> = daemon.list().iter().map(|entry| entry.0).collect();
        assert!(minors.into_iter().eq(0..i32::from(n)), "in order of attachment");
    }
}

#[test]
fn attach_and_detach_errors() {
    let daemon = Daemon::attached();
    assert_eq!(daemon.ask(kind::ATTACH, 0), libc::EEXIST);
    assert_eq!(daemon.ask(kind::ATTACH, 1), 1, "no marker");
    assert_eq!(daemon.ask(kind::DETACH, 1), libc::ENODEV);
    for number in [kind::PAUSE, kind::RESUME, kind::CLOSE, kind::FORCE_SHUTDOWN, kind::DISK_INFO] {
        assert_eq!(daemon.ask(number, 1), libc::ENODEV, "type {number}");
    }
    assert_eq!(daemon.ask(kind::STATS, 1), libc::ENODEV);
    assert_eq!(daemon.ask(kind::XENBLKIF_CONNECT, 1), libc::ENODEV);
    assert_eq!(daemon.ask(kind::XENBLKIF_CONNECT, 0), libc::EPROTONOSUPPORT, "no protocol");
    assert_eq!(daemon.ask(kind::XENBLKIF_DISCONNECT, 0), libc::ENODEV);
}

/// A marker that somebody else holds, and a client who wants it attached.
fn attach_in_vain(daemon: &Daemon, minor: u16) -> (std::fs::File, Client) {
    let marker = std::fs::File::create(daemon.marker(minor)).unwrap();
    tap_ctl::sys::flock(&marker, tap_ctl::sys::Lock::Try).unwrap();
    let mut client = daemon.connect();
    client.send(&Message::new(kind::ATTACH, minor), &[]);
    assert!(!client.has_reply(A_MOMENT));
    (marker, client)
}

#[test]
fn a_marker_that_another_holds_is_waited_for_without_holding_anybody_up() {
    let daemon = Daemon::attached();
    let (marker, mut client) = attach_in_vain(&daemon, 1);
    assert_eq!(daemon.list().len(), 1);
    drop(marker);
    assert_eq!(client.reply().errno(), 0);
    // And one whose client goes away is forgotten.
    let (_marker, client) = attach_in_vain(&daemon, 2);
    drop(client);
    assert_eq!(daemon.ask(kind::DETACH, 1), 0, "the next one has its turn");
}

#[test]
fn a_request_may_come_in_any_pieces() {
    let daemon = Daemon::attached();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let params = Params {
        path: text(&format!("aio:{}", image.path().display())),
        flags: flag::ADD_LOG | flag::OPEN_ENCRYPTED,
        ..Params::default()
    };
    let mut bytes = Message::with(kind::OPEN, 0, &params).encode().to_vec();
    bytes.extend([b"/log".to_vec(), vec![0; 252], vec![32], vec![7; 32]].concat());
    for size in [1, 7, 543, 545, 900] {
        let mut client = daemon.connect();
        for piece in bytes.chunks(size) {
            client.stream.write_all(piece).unwrap();
        }
        assert_eq!(
            client.reply().errno(),
            1,
            "the image is there, the log is not; pieces of {size}"
        );
    }
}

#[test]
fn a_payload_that_does_not_come_is_an_error() {
    let daemon = Daemon::attached();
    let begun = |after: &[u8]| {
        let mut client = daemon.connect();
        client.send(&open(0, "aio:/none", |p| p.flags = flag::OPEN_ENCRYPTED), after);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        client.reply().errno()
    };
    assert_eq!(begun(&[]), libc::EIO);
    assert_eq!(begun(&[32, 1, 2]), libc::EIO);
    assert_eq!(begun(&[0]), libc::EINVAL);
    assert_eq!(begun(&[129]), libc::EINVAL);
    // A short message gets no reply.
    let mut client = daemon.connect();
    client.stream.write_all(&[3; 100]).unwrap();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.reply().bytes.len(), 0);
}

#[test]
fn silent_clients_hold_nobody_up() {
    let daemon = Daemon::spawn();
    let silent: Vec<Client> = (0..40).map(|_| daemon.connect()).collect();
    assert_eq!(pid_of(&daemon), daemon.pid);
    let mut half: Vec<Client> = (0..40).map(|_| daemon.connect()).collect();
    half.iter_mut().for_each(|client| {
        // The first of them may be gone already.
        let _ = client.stream.write_all(&[3; 300]);
    });
    assert_eq!(pid_of(&daemon), daemon.pid);
    drop((silent, half));
    assert_eq!(pid_of(&daemon), daemon.pid);
}

#[test]
fn a_second_request_on_a_busy_connection_is_refused() {
    let daemon = Daemon::attached();
    let (marker, mut client) = attach_in_vain(&daemon, 1);
    client.send(&Message::new(kind::PID, 0), &[]);
    assert!(client.has_reply(PATIENCE));
    drop(marker);
    let reply = client.reply();
    assert_eq!(reply.bytes.len(), 2 * MESSAGE_BYTES);
    assert_eq!((reply.errno(), reply.message().cookie()), (libc::EBUSY, 0));
    let second = Message::decode(reply.bytes[MESSAGE_BYTES..].first_chunk().unwrap());
    assert_eq!(second.kind(), kind::ATTACH_RSP);
}

#[test]
fn what_a_client_asked_for_is_done_also_when_it_leaves() {
    let daemon = Daemon::spawn();
    std::fs::File::create(daemon.marker(0)).unwrap();
    let mut client = daemon.connect();
    client.send(&Message::new(kind::ATTACH, 0), &[]);
    drop(client);
    until("attached", || daemon.list().len() == 1);
}

#[test]
fn a_reply_waits_for_a_slow_reader() {
    let daemon = Daemon::spawn();
    (0..20).for_each(|minor| daemon.attach(minor));
    let mut clients: Vec<Client> = (0..20).map(|_| daemon.connect()).collect();
    let request = Message::new(kind::LIST, 0xffff);
    clients.iter_mut().for_each(|client| client.send(&request, &[]));
    assert_eq!(pid_of(&daemon), daemon.pid);
    for client in &mut clients {
        assert_eq!(client.reply().bytes.len(), 21 * MESSAGE_BYTES);
    }
}

#[test]
fn stats_of_all_disks_are_an_array() {
    let daemon = Daemon::spawn();
    assert_eq!(daemon.stats_text(0xffff), "[  ]");
    daemon.attach(0);
    daemon.attach(1);
    assert_eq!(daemon.stats(0xffff).as_array().map(Vec::len), Some(2));
    assert_eq!(
        daemon.stats_text(0),
        "{ \"name\": \"(null)\", \"secs\": [ 0, 0 ], \"images\": [  ], \
         \"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \"reqs_outstanding\": 0, \
         \"read_caching\": \"false\" }"
    );
}

#[test]
fn noise_does_no_harm() {
    let daemon = Daemon::spawn();
    let seed = 0x5eed_u64;
    eprintln!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut random = || rng.next() >> 32;
    for _ in 0..1000 {
        let mut bytes: Vec<u8> = (0..1200).map(|_| random() as u8).collect();
        if random() % 2 == 0 {
            bytes[..4].copy_from_slice(&[(random() % 32) as u8, 0, 0, 0]);
            bytes[275] = 0;
        }
        let mut client = daemon.connect();
        let _ = client.stream.write_all(&bytes[..random() as usize % 1200]);
        if random() % 2 == 0 {
            let _ = client.stream.shutdown(std::net::Shutdown::Write);
        }
    }
    assert_eq!(pid_of(&daemon), daemon.pid);
    assert_eq!(daemon.list(), []);
}
