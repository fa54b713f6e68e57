//! The edge: what is accepted, what is refused and how.

use super::*;
use crate::messages::{MESSAGE_BYTES, Response};

fn all() -> Vec<Request> {
    let params = Params {
        flags: flag::ADD_LOG,
        path: Text::new(b"vhd:/x").expect("short"),
        ..Params::default()
    };
    vec![
        Request::Pid,
        Request::List,
        Request::Stats { minor: 1 },
        Request::Attach { minor: 2 },
        Request::Detach { minor: 3 },
        Request::Open { minor: 4, params },
        Request::Pause { minor: 5 },
        Request::Resume { minor: 6, params },
        Request::Close { minor: 7 },
        Request::ForceShutdown { minor: 8 },
        Request::Connect { minor: 9, blkif: ring_name(3, 51712) },
        Request::Disconnect { domid: 3, devid: 51712 },
        Request::DiskInfo { minor: 10 },
        Request::Commit { minor: 11, path: Text::new(b"/sr/x").expect("short") },
        Request::QueryCommit { minor: 12 },
        Request::CancelCommit { minor: 13, wait: true },
        Request::Limit { minor: 14, rates: Rates { burst_ms: Some(3), ..Rates::default() } },
        Request::Upgrade { program: Text::new(b"/usr/libexec/tapdisk").expect("short") },
    ]
}

#[test]
fn every_request_survives_the_wire() {
    for request in all() {
        let frame = request.to_message().encode();
        assert_eq!(validate_request(&frame), Ok(request));
        assert_eq!(Message::decode(&frame).cookie(), request.cookie());
    }
}

#[test]
fn numbers_of_requests_and_replies() {
    let numbers: Vec<(u16, u16)> =
        all().iter().map(|request| (request.kind(), request.reply_kind())).collect();
    let expected = [
        (3, 4),
        (19, 20),
        (21, 22),
        (5, 6),
        (15, 16),
        (7, 8),
        (9, 10),
        (11, 12),
        (13, 14),
        (23, 14),
        (24, 25),
        (26, 27),
        (28, 29),
        (31, 32),
        (33, 34),
        (35, 36),
        (102, 103),
        (100, 101),
    ];
    assert_eq!(numbers, expected);
}

#[test]
fn refuses_every_number_that_is_no_request() {
    let requests: Vec<u16> = all().iter().map(Request::kind).collect();
    for number in (0..=u16::MAX).filter(|number| !requests.contains(number)) {
        let frame = Message::new(number, 5).encode();
        let reason = validate_request(&frame).expect_err("not a request");
        let expected = match number {
            1..=36 => RefuseReason::NoHandler(number),
            _ => RefuseReason::UnknownType(number),
        };
        assert_eq!(reason, expected);
        let reply = reason.reply(&frame);
        assert_eq!((reply.kind(), reply.cookie()), (kind::ERROR, 0));
        assert_eq!(reply.body(), Ok(Response { error: 22 }));
    }
}

#[test]
fn refuses_an_unterminated_path_in_every_message() {
    for request in all() {
        let mut frame = request.to_message().encode();
        frame[20..276].fill(b'x');
        let reason = validate_request(&frame).expect_err("no NUL");
        assert_eq!((reason, reason.reply(&frame).cookie()), (RefuseReason::PathNotTerminated, 0));
    }
}

#[test]
fn a_nul_in_the_last_byte_of_the_path_is_enough() {
    let mut frame = Request::Pid.to_message().encode();
    frame[20..275].fill(b'x');
    assert_eq!(validate_request(&frame), Ok(Request::Pid));
}

#[test]
fn refuses_an_unterminated_secondary_with_the_cookie() {
    let params = Params { flags: flag::SECONDARY, ..Params::default() };
    let mut frame = Request::Open { minor: 4, params }.to_message().encode();
    frame[282..538].fill(b'x');
    let reason = validate_request(&frame).expect_err("no NUL");
    assert_eq!((reason, reason.reply(&frame).cookie()), (RefuseReason::SecondaryNotTerminated, 4));
}

#[test]
fn refuses_an_unterminated_pool_with_the_cookie() {
    let mut frame = Request::Connect { minor: 9, blkif: ring_name(1, 2) }.to_message().encode();
    frame[21..312].fill(b'x');
    frame[22] = 0;
    let reason = validate_request(&frame).expect_err("no NUL");
    assert_eq!((reason, reason.reply(&frame).cookie()), (RefuseReason::PoolNotTerminated, 9));
}

#[test]
fn payload_follows_what_the_flags_say() {
    let open = |flags| Request::Open { minor: 0, params: Params { flags, ..Params::default() } };
    let resume =
        |flags| Request::Resume { minor: 0, params: Params { flags, ..Params::default() } };
    assert!(open(flag::ADD_LOG).log_path_follows() && !open(flag::ADD_LOG).key_follows());
    assert!(open(flag::OPEN_ENCRYPTED).key_follows() && !open(0).log_path_follows());
    assert!(resume(flag::ADD_LOG).log_path_follows());
    assert!(!resume(flag::OPEN_ENCRYPTED).key_follows(), "the key given at OPEN is kept");
}

#[test]
fn any_bytes_are_handled() {
    // A xorshift with a fixed seed: every frame gives a request or a reason, never a panic.
    let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
    for round in 0..20_000u32 {
        let mut frame = [0; MESSAGE_BYTES];
        for chunk in frame.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            chunk.copy_from_slice(&x.to_ne_bytes()[..chunk.len()]);
        }
        frame[0..2].copy_from_slice(&((round % 40) as u16).to_ne_bytes());
        let _ = validate_request(&frame).map_err(|reason| reason.to_string());
    }
}
