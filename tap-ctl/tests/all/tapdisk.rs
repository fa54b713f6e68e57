//! The command against scripted tapdisks that speak the 544-byte protocol.

use crate::common::{Run, Setup, send};
use std::io::Write;
use std::os::unix::net::UnixStream;
use tap_ctl::messages::{
    Device, ImageInfo, ListEntry, Message, Params, Request, StatInfo, TapdiskPid, Text, flag, kind,
};

fn text(text: &str) -> Text {
    Text::new(text.as_bytes()).expect("short")
}

fn entry(count: i32, minor: i32, state: u32, path: &str) -> ListEntry {
    ListEntry { count, minor, state, path: text(path), device: None }
}

/// Answer PID and LIST as a tapdisk with `entries` does.
fn serve_list(pid: i32, entries: &[ListEntry], request: &Request, stream: &mut UnixStream) {
    match request {
        Request::Pid => send(stream, &Message::with(kind::PID_RSP, 0, &TapdiskPid { pid })),
        Request::List => {
            for entry in entries.iter().chain([&ListEntry::END]) {
                send(stream, &Message::with(kind::LIST_RSP, 0xffff, entry));
            }
        }
        other => panic!("not asked for in this test: {other:?}"),
    }
}

fn ok(request: &Request, stream: &mut UnixStream) {
    send(stream, &Message::new(request.reply_kind(), request.cookie()));
}

fn refuse(errno: i32) -> impl FnMut(&Request, &mut UnixStream) + Send {
    move |request, stream| send(stream, &Message::error(request.cookie(), errno))
}

#[test]
fn list_prints_disks_in_reverse_order_then_orphans() {
    let setup = Setup::new();
    for _ in 0..3 {
        setup.run(&["allocate"]);
    }
    let disks = [entry(2, 0, 0, "vhd:/a b=c.vhd"), entry(1, 1, 0x2a, "")];
    let first = setup.tapdisk(99, 2, move |r, s| serve_list(99, &disks, r, s));
    let second = setup.tapdisk(100, 2, |r, s| serve_list(100, &[], r, s));
    let expected =
        "pid=100\npid=99 minor=1 state=0x2a\npid=99 minor=0 state=0 args=vhd:/a b=c.vhd\nminor=2\n";
    assert_eq!(setup.run(&["list"]), Run::ok(expected));
    assert_eq!(first.join().expect("thread"), [Request::Pid, Request::List]);
    second.join().expect("thread");
}

#[test]
fn list_filters_are_anded() {
    let line = "pid=99 minor=0 state=0 args=vhd:/x\n";
    let cases = [
        ("list -p 99", line),
        ("list -m 0", line),
        ("list -t vhd", line),
        ("list -f /x", line),
        ("list -p99 -m0 -tvhd -f/x", line),
        ("list -m 1", ""),
        ("list -t vh", ""),
        ("list -f x", ""),
        ("list -m 0 -t aio", ""),
    ];
    for (words, expected) in cases {
        let setup = Setup::new();
        let tapdisk =
            setup.tapdisk(99, 2, |r, s| serve_list(99, &[entry(1, 0, 0, "vhd:/x")], r, s));
        let args: Vec<&str> = words.split(' ').collect();
        assert_eq!(setup.run(&args), Run::ok(expected), "{words}");
        tapdisk.join().expect("thread");
    }
}

#[test]
fn list_of_an_absent_or_stale_pid_is_empty() {
    let setup = Setup::new();
    assert_eq!(setup.run(&["list", "-p", "1"]), Run::ok(""));
    setup.tapdisk(5, 0, |_, _| {}).join().expect("thread");
    assert_eq!(setup.run(&["list"]), Run::ok(""), "the socket is there, its tapdisk is dead");
}

#[test]
fn list_takes_replies_in_pieces() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 2, |request, stream| {
        let body = match request {
            Request::Pid => {
                Message::with(kind::PID_RSP, 0, &TapdiskPid { pid: 99 }).encode().to_vec()
            }
            _ => [entry(1, 3, 2, ""), ListEntry::END]
                .iter()
                .flat_map(|entry| Message::with(kind::LIST_RSP, 0, entry).encode())
                .collect(),
        };
        for byte in body {
            stream.write_all(&[byte]).expect("one byte");
        }
    });
    assert_eq!(setup.run(&["list"]), Run::ok("pid=99 minor=3 state=0x2\n"));
    tapdisk.join().expect("thread");
}

#[test]
fn a_tapdisk_that_closes_early_is_listed_by_pid_only() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 2, |request, stream| match request {
        Request::Pid => serve_list(99, &[], request, stream),
        _ => {
            let first = Message::with(kind::LIST_RSP, 0, &entry(2, 0, 0, "vhd:/x"));
            stream.write_all(&first.encode()).expect("one entry");
            stream.write_all(&first.encode()[..300]).expect("a part of the next");
        }
    });
    assert_eq!(setup.run(&["list"]), Run::ok("pid=99\n"));
    tapdisk.join().expect("thread");
}

#[test]
fn list_as_json() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let device = Some(Device::Ublk(3));
    let disks = [ListEntry { device, ..entry(1, 4, 0x2a, "vhd:/x") }];
    // This very process plays the tapdisk, so its program is this test.
    let pid = std::process::id().cast_signed();
    let tapdisk = setup.tapdisk(pid, 4, move |r, s| serve_list(pid, &disks, r, s));
    let program = std::env::current_exe().expect("a path");
    let run = setup.run(&["list", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).expect("JSON");
    let expected = serde_json::json!([
        {"pid": pid, "minor": 4, "state": 42, "state_text": "closed,quiesced,paused", "type": "vhd",
         "path": "/x", "device": "/dev/ublkb3", "program": program, "program_replaced": false},
        {"pid": null, "minor": 0, "state": null, "state_text": null, "type": null, "path": null,
         "device": null, "program": null, "program_replaced": null},
    ]);
    assert_eq!(value, expected);
    let program = program.display();
    let line = format!("program={program} replaced=no pid={pid} minor=4 state=0x2a args=vhd:/x\n");
    assert_eq!(setup.run(&["list", "--programs"]), Run::ok(&line));
    tapdisk.join().expect("thread");
}

#[test]
fn debug_prints_messages_on_stdout() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, ok);
    let run = setup.run(&["attach", "-p", "99", "--debug", "-m", "7"]);
    let expected =
        "sending 'attach' message (uuid = 7)\nreceived 'attach response' message (uuid = 7)\n";
    assert_eq!(run, Run::ok(expected));
    tapdisk.join().expect("thread");
}

#[test]
fn errnos_come_through_except_for_attach_and_detach() {
    let cases = [
        ("close -p 99 -m 9", 19, Run::failed(19, "No such device")),
        ("close -f -p 99 -m 9", 19, Run::failed(19, "No such device")),
        ("pause -p 99 -m 9", 19, Run::failed(19, "No such device")),
        ("unpause -p 99 -m 9", 124, Run::failed(124, "Wrong medium type")),
        ("open -p 99 -m 9 -a vhd:/x", 114, Run::failed(114, "Operation already in progress")),
        ("stats -p 99 -m 9", 19, Run::failed(19, "No such device")),
        ("attach -p 99 -m 9", 17, Run::failed(22, "Invalid argument")),
        (
            "detach -p 99 -m 9",
            16,
            Run {
                stdout: "got unexpected result 'error' from 99\n".into(),
                ..Run::failed(22, "Invalid argument")
            },
        ),
        ("destroy -p 99 -m 9", 19, Run::failed(19, "No such device")),
    ];
    for (words, errno, expected) in cases {
        let setup = Setup::new();
        let tapdisk = setup.tapdisk(99, 1, refuse(errno));
        let args: Vec<&str> = words.split(' ').collect();
        assert_eq!(setup.run(&args), expected, "{words}");
        tapdisk.join().expect("thread");
    }
}

#[test]
fn no_reply_is_eio_and_a_late_one_is_etimedout() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, |_, _| {});
    assert_eq!(setup.run(&["pause", "-p", "99", "-m", "0"]), Run::failed(5, "Input/output error"));
    tapdisk.join().expect("thread");
    for command in ["close", "pause", "destroy"] {
        let setup = Setup::new();
        // Hold the connection until tap-ctl gives up: the read then sees the end.
        let tapdisk = setup.tapdisk(99, 1, |_, s| drop(std::io::Read::read(s, &mut [0])));
        let run = setup.run(&[command, "-p", "99", "-m", "0", "-t", "0"]);
        assert_eq!(run, Run::failed(110, "Connection timed out"), "{command}");
        tapdisk.join().expect("thread");
    }
}

#[test]
fn options_of_open_become_flags() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, |request, stream| {
        let mut log = [0; 256];
        std::io::Read::read_exact(stream, &mut log).expect("the log path");
        assert_eq!(&log[..5], b"/log\0");
        send(stream, &Message::with(kind::OPEN_RSP, request.cookie(), &ImageInfo::default()));
    });
    let words = "open -p 99 -m 3 -a vhd:/x -R -r -e 5 -2 aio:/y -s -t 40 -D -C /log";
    assert_eq!(setup.run(&words.split(' ').collect::<Vec<_>>()), Run::ok(""));
    let expected = Params {
        flags: flag::RDONLY
            | flag::ADD_LOG
            | flag::ADD_LCACHE
            | flag::REUSE_PRT
            | flag::SECONDARY
            | flag::STANDBY
            | flag::NO_O_DIRECT,
        devnum: 3,
        path: text("vhd:/x"),
        prt_devnum: 5,
        req_timeout: 40,
        secondary: text("aio:/y"),
        ..Params::default()
    };
    let asked = tapdisk.join().expect("thread");
    assert_eq!(asked, [Request::Open { minor: 3, params: expected }]);
}

#[test]
fn options_of_unpause_become_fields() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, |request, stream| {
        std::io::Read::read_exact(stream, &mut [0; 256]).expect("the log path");
        ok(request, stream);
    });
    let words = "unpause -p 99 -m 3 -2 null -c /log";
    assert_eq!(setup.run(&words.split(' ').collect::<Vec<_>>()), Run::ok(""));
    let expected = Params {
        flags: flag::SECONDARY | flag::ADD_LOG,
        devnum: 3,
        secondary: text("null"),
        ..Params::default()
    };
    let asked = tapdisk.join().expect("thread");
    assert_eq!(asked, [Request::Resume { minor: 3, params: expected }]);
}

#[test]
fn destroy_closes_detaches_and_frees() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let tapdisk = setup.tapdisk(99, 2, ok);
    assert_eq!(setup.run(&["destroy", "-p", "99", "-m", "0"]), Run::ok(""));
    assert!(!setup.run_dir().marker(0).exists());
    let asked = tapdisk.join().expect("thread");
    assert_eq!(asked, [Request::Close { minor: 0 }, Request::Detach { minor: 0 }]);
}

/// Refuses CLOSE with EIO; the disk then has this state.
fn lost_storage(bits: u32) -> impl FnMut(&Request, &mut UnixStream) + Send {
    move |request, stream| match request {
        Request::Close { .. } => send(stream, &Message::error(request.cookie(), libc::EIO)),
        Request::List => serve_list(99, &[entry(1, 0, bits, "")], request, stream),
        _ => ok(request, stream),
    }
}

#[test]
fn destroy_removes_a_disk_that_closed_with_an_error() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let tapdisk = setup.tapdisk(99, 3, lost_storage(0x2));
    let failed = Run::failed(5, "Input/output error");
    assert_eq!(setup.run(&["destroy", "-p", "99", "-m", "0"]), failed);
    assert!(!setup.run_dir().marker(0).exists());
    let asked = tapdisk.join().expect("thread");
    assert_eq!(asked, [Request::Close { minor: 0 }, Request::List, Request::Detach { minor: 0 }]);
}

#[test]
fn destroy_leaves_a_disk_that_is_still_open() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let tapdisk = setup.tapdisk(99, 2, lost_storage(0));
    let failed = Run::failed(5, "Input/output error");
    assert_eq!(setup.run(&["destroy", "-p", "99", "-m", "0"]), failed);
    assert!(setup.run_dir().marker(0).exists());
    tapdisk.join().expect("thread");
}

/// Answer STATS with a text.
fn stats(document: &'static str) -> impl FnMut(&Request, &mut UnixStream) + Send {
    move |request, stream| match request {
        Request::Stats { minor } => {
            let length = document.len() as u64;
            send(stream, &Message::with(kind::STATS_RSP, *minor, &StatInfo { length }));
            stream.write_all(document.as_bytes()).expect("text");
        }
        other => serve_list(99, &[entry(1, 4, 0, "vhd:/x")], other, stream),
    }
}

#[test]
fn stats_ends_with_two_line_feeds() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, stats("{ \"name\": \"vhd:/x\" }"));
    let run = setup.run(&["stats", "-p", "99", "-m", "4"]);
    assert_eq!(run, Run::ok("{ \"name\": \"vhd:/x\" }\n\n"));
    tapdisk.join().expect("thread");
}

#[test]
fn stats_as_json_is_checked() {
    let args = ["stats", "-p", "99", "-m", "4", "--json"];
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, stats("{ \"name\": \"x\", \"secs\": [ 1, 2 ] }"));
    assert_eq!(setup.run(&args), Run::ok("{\"name\":\"x\",\"secs\":[1,2]}\n"));
    tapdisk.join().expect("thread");
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 1, stats("{ \"name\": \"a\"b\" }"));
    assert_eq!(setup.run(&args), Run::failed(71, "Protocol error"));
    tapdisk.join().expect("thread");
}

#[test]
fn watch_of_one_disk_stops_after_count() {
    let setup = Setup::new();
    let document = "{ \"name\": \"vhd:/x\", \"secs\": [ 0, 0 ], \"perf\": { \"inflight\": 3 } }";
    let tapdisk = setup.tapdisk(99, 3, stats(document));
    let run = setup.run(&["stats", "-w", "0", "--count", "2", "-p", "99", "-m", "4"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!((run.rc, lines.len()), (0, 3), "one head and two lines: {}", run.stdout);
    let words: Vec<&str> = lines[2].split_whitespace().collect();
    assert_eq!(words, ["4", "99", "vhd:/x", "-", "-", "0.0", "0.0", "-/-", "-/-", "3"]);
    tapdisk.join().expect("thread");
}

#[test]
fn watch_of_all_disks_as_json() {
    let setup = Setup::new();
    let document = "{ \"name\": \"vhd:/x\", \"secs\": [ 0, 0 ] }";
    let tapdisk = setup.tapdisk(99, 6, stats(document));
    let run = setup.run(&["stats", "--watch=0", "--count=1", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&run.stdout).expect("one JSON document");
    assert_eq!((&value["disks"][0]["pid"], &value["disks"][0]["minor"]), (&99.into(), &4.into()));
    tapdisk.join().expect("thread");
}

#[test]
fn watch_of_an_absent_disk_fails() {
    let setup = Setup::new();
    let run = setup.run(&["stats", "-w", "0", "--count", "1", "-p", "99", "-m", "4"]);
    assert_eq!(run, Run::failed(2, "No such file or directory"));
}
