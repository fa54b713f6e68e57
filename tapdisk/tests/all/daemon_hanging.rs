//! Storage that hangs or fails (spec/control-socket.md §8: 8; operations.md §12: 4, 5). Needs root
//! and /dev/fuse.

use std::time::{Duration, Instant};

use crate::daemon_support::fuse::Hanging;
use crate::daemon_support::{Daemon, images, set, skip, until};
use tap_ctl::messages::{Message, flag, kind};
use test_support::nbd::Verb;

const A_MOMENT: Duration = Duration::from_millis(100);

/// A disk of 1 MiB on storage that obeys.
fn start(timeout_s: u16) -> Option<(Daemon, Hanging, String)> {
    let Some(storage) = Hanging::mount(1 << 20) else {
        skip("no FUSE here (root, /dev/fuse)");
        return None;
    };
    let daemon = Daemon::attached();
    let name = format!("aio:{}", storage.path().display());
    assert_eq!(daemon.open_with(0, &name, |params| params.req_timeout = timeout_s), 0);
    Some((daemon, storage, name))
}

#[test]
fn a_pause_waits_for_a_hanging_write_and_holds_only_exclusive_requests_up() {
    let Some((daemon, storage, _)) = start(0) else { return };
    storage.hold();
    let mut client = daemon.nbd(0);
    client.send(Verb::Write, 0, 0, 4096, &[1; 4096]);
    storage.wait_for_held(1);
    let mut pause = daemon.connect();
    pause.send(&Message::new(kind::PAUSE, 0), &[]);
    until("pausing", || daemon.state(0) == 0x14);
    assert_eq!(daemon.stats(0)["reqs_outstanding"], 1);
    let mut info = daemon.connect();
    info.send(&Message::new(kind::DISK_INFO, 0), &[]);
    assert!(!info.has_reply(A_MOMENT) && !pause.has_reply(A_MOMENT));
    storage.release();
    assert_eq!(pause.reply().errno(), 0);
    assert_eq!(info.reply().info().sectors, 2048);
    assert_eq!(client.receive().result, Ok(()), "answered during the pause");
    assert_eq!(daemon.state(0), 0x2a);
}

#[test]
fn a_pause_stays_in_force_when_its_client_leaves() {
    let Some((daemon, storage, name)) = start(0) else { return };
    storage.hold();
    let mut client = daemon.nbd(0);
    client.send(Verb::Read, 0, 0, 4096, &[]);
    storage.wait_for_held(1);
    let mut pause = daemon.connect();
    pause.send(&Message::new(kind::PAUSE, 0), &[]);
    until("pausing", || daemon.state(0) == 0x14);
    drop(pause);
    assert_eq!(
        daemon.resume(0, ""),
        libc::EINVAL,
        "not paused yet, and no longer waiting behind it"
    );
    assert_eq!(daemon.open(0, &name), libc::EALREADY);
    assert_eq!(daemon.ask(kind::DETACH, 0), libc::EBUSY);
    let mut again = daemon.connect();
    again.send(&Message::new(kind::PAUSE, 0), &[]);
    assert!(!again.has_reply(A_MOMENT));
    storage.release();
    assert_eq!(again.reply().errno(), 0);
    assert_eq!(daemon.state(0), 0x2a);
    assert_eq!(daemon.resume(0, ""), 0);
    assert_eq!(client.receive().result, Ok(()));
}

#[test]
fn a_close_waits_for_a_hanging_request_of_a_client_it_has_dropped() {
    let Some((daemon, storage, _)) = start(0) else { return };
    storage.hold();
    let mut client = daemon.nbd(0);
    client.send(Verb::Write, 0, 0, 4096, &[1; 4096]);
    storage.wait_for_held(1);
    let mut close = daemon.connect();
    close.send(&Message::new(kind::CLOSE, 0), &[]);
    let mut end = [0];
    assert_eq!(
        std::io::Read::read(&mut client.stream, &mut end).unwrap_or(0),
        0,
        "dropped at once"
    );
    assert!(!close.has_reply(A_MOMENT));
    assert_eq!(daemon.list().len(), 1);
    storage.release();
    assert_eq!(close.reply().errno(), 0);
    assert_eq!(daemon.state(0), 2);
}

#[test]
fn a_signal_to_stop_waits_for_what_is_in_flight() {
    let Some((daemon, storage, _)) = start(0) else { return };
    storage.hold();
    let mut client = daemon.nbd(0);
    client.send(Verb::Write, 0, 0, 4096, &[1; 4096]);
    storage.wait_for_held(1);
    daemon.signal(libc::SIGINT);
    until("asked to stop", || daemon.state(0) & 0x40 != 0);
    assert!(daemon.is_running());
    storage.release();
    daemon.wait_for_end();
    assert_eq!(daemon.names(), ["tapdisk"]);
}

#[test]
fn passing_errors_are_tried_again_and_others_are_not() {
    let Some((daemon, storage, _)) = start(2) else { return };
    let mut client = daemon.nbd(0);
    storage.fail_next(&[libc::EBUSY, libc::EBUSY, libc::EBUSY]);
    assert_eq!(client.write(0, &[1; 4096]), Ok(()), "EBUSY three times, then good");
    storage.fail_next(&[libc::EIO]);
    let begun = Instant::now();
    assert_eq!(client.read(0, 4096), Err(5), "EIO at once");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]));
    // Not EAGAIN: io_uring tries that again by itself, out of our sight.
    storage.fail_always(libc::EBUSY);
    let begun = Instant::now();
    assert!(client.write(0, &[2; 4096]).is_err(), "EBUSY for ever");
    let took = begun.elapsed().as_secs_f64();
    assert!((1.5..6.0).contains(&took), "{took} s for -t 2");
    storage.fail_always(0);
    assert_eq!(client.write(0, &[2; 4096]), Ok(()));
    assert_eq!(daemon.stats(0)["images"][0]["fail"], serde_json::json!([8, 8]));
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    until("the log", || daemon.log().contains("Read of 8 sectors at 0 failed"));
}

#[test]
fn a_hanging_open_holds_up_neither_lists_nor_other_disks() {
    let Some((daemon, _storage, _)) = start(0) else { return };
    daemon.attach(1);
    let slow = Hanging::mount(1 << 20).expect("a second one");
    slow.hold();
    let mut open = daemon.connect();
    let name = format!("vhd:{}", slow.path().display());
    open.send(&crate::daemon_support::open(1, &name, |_| {}), &[]);
    slow.wait_for_held(1);
    assert_eq!(daemon.list().len(), 2);
    assert_eq!(daemon.nbd(0).write(0, &[1; 512]), Ok(()));
    assert!(!open.has_reply(A_MOMENT));
    slow.release();
    assert_eq!(open.reply().errno(), 22, "it is no VHD");
}

/// `-D`: a read through the page cache that has to wait for the storage holds nobody else up, with
/// either engine (AIO by itself would wait within io_submit).
#[test]
fn a_cold_read_through_the_page_cache_holds_nobody_up() {
    const BLOCK: u64 = 2 << 20;
    /// Farther than anybody reads ahead.
    const FAR: u64 = 1 << 20;
    for engine in ["uring", "aio"] {
        let Some(storage) = Hanging::mount(32 << 20) else { return skip("no FUSE here") };
        storage.use_page_cache();
        let dir = tempfile::tempdir().unwrap();
        images::vhd(&dir.path().join("v"), 7);
        storage.put(&std::fs::read(dir.path().join("v")).unwrap());
        let daemon = Daemon::spawn_with(set("TAPDISK_ENGINE", engine));
        daemon.attach(0);
        let image = format!("vhd:{}", storage.path().display());
        assert_eq!(daemon.open(0, &image), 0);
        let mut client = daemon.nbd(0);
        assert_eq!(client.write(0, &[7; 4096]), Ok(()));
        assert_eq!(client.write(FAR, &[7; 4096]), Ok(()));
        drop(client);
        assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
        let cached = |params: &mut tap_ctl::messages::Params| {
            params.flags |= flag::RDONLY | flag::NO_O_DIRECT;
        };
        assert_eq!(daemon.open_with(0, &image, cached), 0);
        let mut client = daemon.nbd(0);
        assert_eq!(client.read(0, 512), Ok(vec![7; 512]), "{engine}: the bitmap is known now");
        storage.hold();
        client.send(Verb::Read, 0, FAR, 4096, &[]);
        storage.wait_for_held(1);
        let mut other = daemon.nbd(0);
        assert_eq!(other.read(2 * BLOCK, 4096), Ok(vec![0; 4096]), "{engine}");
        assert_eq!(daemon.list().len(), 1, "{engine}");
        storage.release();
        let reply = client.receive();
        assert_eq!((reply.result, reply.data), (Ok(()), vec![7; 4096]), "{engine}");
        assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    }
}
