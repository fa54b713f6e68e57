//! `nbd:` images (spec/drivers.md §6.10): disks of other tapdisks, of servers that behave and of
//! servers that do not.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use crate::daemon_support::{Daemon, images, read_only, until};
use tap_ctl::messages::{Message, Params, flag, kind};
use test_support::nbd::Verb;

const BYTES: u64 = 16 << 20;

/// A daemon that serves a raw image, and the name under which another one can open it.
fn server() -> (Daemon, String) {
    let daemon = Daemon::attached();
    let raw = images::raw(&daemon.run.join("a.raw"), BYTES);
    assert_eq!(daemon.open(0, &raw), 0);
    let name = format!("nbd:{}", daemon.socket("nbd", 0).display());
    (daemon, name)
}

#[test]
fn a_disk_of_another_tapdisk_is_written_read_paused_and_closed() {
    let (far, name) = server();
    for engine in ["uring", "aio"] {
        let near = Daemon::spawn_with(crate::daemon_support::set("TAPDISK_ENGINE", engine));
        near.attach(0);
        assert_eq!(near.open(0, &name), 0);
        assert_eq!(near.list(), [(0, 0, name.clone())]);
        let mut client = near.nbd(0);
        assert_eq!(client.size, BYTES);
        for i in 0..64u64 {
            client.write(i * 70_000 / 512 * 512, &vec![i as u8 + 1; 65536]).unwrap();
        }
        client.flush().unwrap();
        let through = far.nbd(0).read(0, 1 << 20);
        assert_eq!(client.read(0, 1 << 20), through);
        assert_eq!((near.ask(kind::PAUSE, 0), near.resume(0, "")), (0, 0));
        assert_eq!(client.read(0, 1 << 20), through, "after a pause");
        let stats = near.stats(0);
        assert_eq!(stats["images"][0]["driver"]["type"], 15);
        assert_eq!(stats["images"][0]["driver"]["name"], "nbd");
        assert_eq!(stats["sealed"]["allocations"], 0);
        assert_eq!((near.ask(kind::CLOSE, 0), near.ask(kind::DETACH, 0)), (0, 0));
        near.wait_for_end();
    }
}

#[test]
fn a_disk_of_the_same_tapdisk_is_a_parent() {
    let (daemon, name) = server();
    daemon.nbd(0).write(4096, &[7; 4096]).unwrap();
    daemon.attach(1);
    images::child(&daemon.run.join("c.vhd"), 1, "a.raw", None);
    let chain = daemon.run.join("chain");
    fs::write(&chain, format!("vhd:{}/c.vhd\n{name}\n", daemon.run.display())).unwrap();
    assert_eq!(daemon.open(1, &format!("x-chain:{}", chain.display())), 0);
    let mut client = daemon.nbd(1);
    assert_eq!(client.read(4096, 4096), Ok(vec![7; 4096]));
    client.write(4608, &[9; 512]).unwrap();
    let want = [vec![7; 512], vec![9; 512], vec![7; 3072]].concat();
    assert_eq!(client.read(4096, 4096), Ok(want));
    assert_eq!(daemon.nbd(0).read(4096, 4096), Ok(vec![7; 4096]), "the parent is only read");
    assert_eq!((daemon.ask(kind::CLOSE, 1), daemon.ask(kind::CLOSE, 0)), (0, 0));
}

#[test]
fn what_cannot_be_reached_is_not_permitted() {
    let daemon = Daemon::attached();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = listener.local_addr().unwrap();
    drop(listener);
    images::raw(&daemon.run.join("file"), 4096);
    for name in ["/nosock".into(), refused.to_string(), "name".into(), String::new()] {
        assert_eq!(daemon.open(0, &format!("nbd:{name}")), libc::EPERM, "{name}");
    }
    assert_eq!(daemon.open(0, &format!("nbd:{}/file", daemon.run.display())), libc::EPERM);
    assert_eq!(daemon.list(), [(0, 0, String::new())]);
}

#[test]
fn an_export_for_reading_is_opened_for_reading() {
    let far = Daemon::attached();
    let raw = images::raw(&far.run.join("a.raw"), BYTES);
    assert_eq!(far.open_with(0, &raw, read_only), 0);
    let name = format!("nbd:{}", far.socket("nbd", 0).display());
    let near = Daemon::attached();
    assert_eq!(near.open(0, &name), libc::EROFS);
    assert_eq!(near.open_with(0, &name, read_only), 0);
    assert_eq!(near.nbd(0).read(0, 512), Ok(vec![0; 512]));
}

// ---- passed descriptors ------------------------------------------------------------------------

/// A storage migration (spec/operations.md §11): both ends of a stream are passed, the disk is
/// paused and unpaused, and the same stream is negotiated on anew each time.
#[test]
fn a_passed_stream_is_greeted_anew_after_each_pause() {
    for receiver in ["nbdserver", "nbdserver-new"] {
        let (far, _) = server();
        let (their_end, our_end) = UnixStream::pair().unwrap();
        crate::daemon_support::pass(&far.socket(receiver, 0), "informative", &their_end);
        let near = Daemon::attached();
        crate::daemon_support::pass(&near.path("nbdclient"), "mirror", &our_end);
        // Nobody but the two daemons has the stream any more.
        drop((their_end, our_end));
        assert_eq!(near.open(0, "nbd:other"), libc::EPERM);
        assert_eq!(near.open(0, "nbd:mirror"), 0);
        near.attach(1);
        assert_eq!(near.open(1, "nbd:mirror"), libc::EPERM, "it is in use");
        let mut client = near.nbd(0);
        for i in 1..6 {
            client.write(u64::from(i) * 4096, &[i; 4096]).unwrap();
            assert_eq!((near.ask(kind::PAUSE, 0), near.resume(0, "")), (0, 0), "{receiver} {i}");
            assert_eq!(client.read(u64::from(i) * 4096, 4096), Ok(vec![i; 4096]));
        }
        assert_eq!(far.nbd(0).read(5 * 4096, 4096), Ok(vec![5; 4096]));
        assert_eq!((near.ask(kind::CLOSE, 0), near.open(1, "nbd:mirror")), (0, 0));
    }
}

/// The source's side of it: the stream becomes the mirror of a running disk, over several pauses,
/// until the destination dies.
#[test]
fn a_passed_stream_mirrors_a_running_disk() {
    let (far, _) = server();
    let (their_end, our_end) = UnixStream::pair().unwrap();
    crate::daemon_support::pass(&far.socket("nbdserver", 0), "dp", &their_end);
    let near = Daemon::attached();
    crate::daemon_support::pass(&near.path("nbdclient"), "dp", &our_end);
    drop((their_end, our_end));
    assert_eq!(near.open(0, &images::raw(&near.run.join("leaf"), BYTES)), 0);
    let mut client = near.nbd(0);
    client.write(0, &[1; 4096]).unwrap();
    assert_eq!(near.ask(kind::PAUSE, 0), 0);
    let secondary = crate::daemon_support::text("nbd:dp");
    let mirror = Params { secondary, flags: flag::SECONDARY, ..Params::default() };
    assert_eq!(near.call(&Message::with(kind::RESUME, 0, &mirror), &[]).errno(), 0);
    for i in 2..6 {
        client.write(u64::from(i) * 4096, &[i; 4096]).unwrap();
        assert_eq!(far.nbd(0).read(u64::from(i) * 4096, 4096), Ok(vec![i; 4096]));
        assert_eq!((near.ask(kind::PAUSE, 0), near.resume(0, "")), (0, 0));
        assert_eq!(near.stats(0)["nbd_mirror_failed"], 0, "pause {i}");
    }
    assert_eq!(types(&near), [0, 15]);
    assert_eq!(far.nbd(0).read(0, 4096), Ok(vec![0; 4096]), "only what is written from now on");
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]));
    far.signal(libc::SIGKILL);
    far.wait_for_end();
    for i in 6..9 {
        client.write(u64::from(i) * 4096, &[i; 4096]).unwrap();
        assert_eq!(client.read(u64::from(i) * 4096, 4096), Ok(vec![i; 4096]));
    }
    assert_eq!(near.stats(0)["nbd_mirror_failed"], 1);
    assert_eq!(near.ask(kind::CLOSE, 0), 0);
}

#[test]
fn a_server_that_died_fails_requests_until_the_disk_is_paused_and_unpaused() {
    for engine in ["uring", "aio"] {
        let (far, name) = server();
        let near = Daemon::spawn_with(crate::daemon_support::set("TAPDISK_ENGINE", engine));
        near.attach(0);
        assert_eq!(near.open(0, &name), 0);
        let mut client = near.nbd(0);
        client.write(0, &[1; 4096]).unwrap();
        far.signal(libc::SIGKILL);
        far.wait_for_end();
        let eio = 5;
        assert_eq!(client.read(0, 4096), Err(eio));
        assert_eq!(client.write(0, &[1; 4096]), Err(eio));
        assert_eq!(near.stats(0)["images"][0]["fail"], serde_json::json!([8, 8]));
        near.signal(libc::SIGUSR1);
        until("the log tells", || near.log().contains("is lost: the server closed the connection"));
        assert_eq!((near.ask(kind::PAUSE, 0), near.state(0)), (0, 0x2a));
        fs::remove_file(far.socket("nbd", 0)).unwrap();
        let listener = UnixListener::bind(far.socket("nbd", 0)).unwrap();
        let again = std::thread::spawn(move || oldstyle(listener.accept().unwrap().0));
        assert_eq!(near.resume(0, ""), 0);
        assert_eq!(client.read(0, 4096), Ok(vec![0xa5; 4096]));
        assert_eq!(near.ask(kind::CLOSE, 0), 0);
        again.join().unwrap();
    }
}

/// An oldstyle server that serves reads until DISC.
fn oldstyle(mut stream: UnixStream) {
    let head = [0x4e42_444d_4147_4943, 0x0000_4202_8186_1253, BYTES].map(u64::to_be_bytes);
    stream.write_all(&head.concat()).unwrap();
    stream.write_all(&[0; 128]).unwrap();
    let mut request = [0; 28];
    loop {
        stream.read_exact(&mut request).unwrap();
        match request[7] {
            0 => {
                let bytes = u32::from_be_bytes(request[24..].try_into().unwrap()) as usize;
                let head = [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &request[8..16]].concat();
                stream.write_all(&[head, vec![0xa5; bytes]].concat()).unwrap();
            }
            2 => return,
            other => panic!("command {other}"),
        }
    }
}

#[test]
fn a_server_that_says_nothing_costs_the_time_limit_of_the_disk() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("silent");
    let listener = UnixListener::bind(&path).unwrap();
    let silent = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let head = [0x4e42_444d_4147_4943, 0x0000_4202_8186_1253, BYTES].map(u64::to_be_bytes);
        stream.write_all(&[&head.concat()[..], &[0; 128]].concat()).unwrap();
        // All that the client says, until it gives up.
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard.len()
    });
    let open = daemon.open_with(0, &format!("nbd:{}", path.display()), |p| p.req_timeout = 2);
    assert_eq!(open, 0);
    let mut client = daemon.nbd(0);
    let start = Instant::now();
    client.send(Verb::Read, 0, 0, 512, &[]);
    client.send(Verb::Read, 0, 4096, 512, &[]);
    assert_eq!(client.receive().result, Err(5));
    assert_eq!(client.receive().result, Err(5));
    let took = start.elapsed().as_millis();
    assert!((1_900..10_000).contains(&took), "{took} ms");
    assert_eq!(silent.join().unwrap(), 2 * 28, "no farewell");
    assert_eq!(client.read(0, 512), Err(5), "later requests fail at once");
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
}

// ---- -e: the disk of another tapdisk in place of the parents -----------------------------------

/// Opens minor 0 with `-e minor`.
fn reuse(daemon: &Daemon, name: &str, minor: u32) -> i32 {
    daemon.open_with(0, name, |params| {
        params.flags |= flag::REUSE_PRT;
        params.prt_devnum = minor;
    })
}

/// Types of the images, leaf first.
fn types(daemon: &Daemon) -> Vec<u64> {
    let images = daemon.stats(0)["images"].as_array().unwrap().clone();
    images.iter().map(|image| image["driver"]["type"].as_u64().unwrap()).collect()
}

/// A daemon that serves `d.vhd` as minor 3 in a run directory that others may share.
fn parent_tapdisk(run: &Path) -> Daemon {
    let daemon = Daemon::spawn_in(run, |_| {});
    daemon.attach(3);
    assert_eq!(daemon.open(3, &format!("vhd:{}", run.join("d.vhd").display())), 0);
    daemon
}

#[test]
fn a_leaf_reads_through_the_tapdisk_of_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    images::vhd(&run.join("d.vhd"), 1);
    let leaf = images::child(&run.join("c.vhd"), 2, "d.vhd", Some(1));
    let near = Daemon::spawn_in(run, |_| {});
    near.attach(0);
    assert_eq!(reuse(&near, &leaf, 3), libc::ENOENT);
    let far = parent_tapdisk(run);
    far.nbd(3).write(1 << 20, &[5; 4096]).unwrap();
    assert_eq!(reuse(&near, &leaf, 3), 0);
    assert_eq!(types(&near), [4, 15]);
    let mut client = near.nbd(0);
    assert_eq!(client.read(1 << 20, 4096), Ok(vec![5; 4096]));
    client.write((1 << 20) + 512, &[6; 512]).unwrap();
    let want = [vec![5; 512], vec![6; 512], vec![5; 3072]].concat();
    assert_eq!(client.read(1 << 20, 4096), Ok(want.clone()));
    assert_eq!(far.nbd(3).read(1 << 20, 4096), Ok(vec![5; 4096]));
    // As recorded of the original, a resume opens the parents that the leaf names.
    assert_eq!((near.ask(kind::PAUSE, 0), far.ask(kind::CLOSE, 3), near.resume(0, "")), (0, 0, 0));
    assert_eq!(types(&near), [4, 4]);
    assert_eq!(client.read(1 << 20, 4096), Ok(want));
}

#[test]
fn a_dead_tapdisk_s_socket_is_passed_over_and_two_living_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    images::vhd(&run.join("d.vhd"), 1);
    let leaf = images::child(&run.join("c.vhd"), 2, "d.vhd", Some(1));
    let dead = parent_tapdisk(run);
    dead.signal(libc::SIGKILL);
    dead.wait_for_end();
    let near = Daemon::spawn_in(run, |_| {});
    near.attach(0);
    assert_eq!(reuse(&near, &leaf, 3), libc::EPERM, "the only socket there is");
    let _far = parent_tapdisk(run);
    assert_eq!(reuse(&near, &leaf, 3), 0);
    assert_eq!(near.ask(kind::CLOSE, 0), 0);
    let other = Daemon::spawn_in(run, |_| {});
    other.attach(4);
    fs::hard_link(other.path("ctl"), other.socket("nbd", 3)).unwrap();
    assert_eq!(reuse(&near, &leaf, 3), libc::EINVAL);
}

#[test]
fn only_a_leaf_that_has_a_parent_takes_another_disk_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let whole = images::vhd(&run.join("d.vhd"), 1);
    let raw = images::raw(&run.join("a.raw"), BYTES);
    let far = parent_tapdisk(run);
    far.attach(0);
    let copy = format!("vhd:{}", run.join("w.vhd").display());
    fs::copy(run.join("d.vhd"), run.join("w.vhd")).unwrap();
    fs::write(run.join("chain"), format!("{whole}\n")).unwrap();
    let chain = format!("x-chain:{}", run.join("chain").display());
    for name in [copy, raw, chain] {
        assert_eq!(reuse(&far, &name, 3), libc::EINVAL, "{name}");
    }
}
