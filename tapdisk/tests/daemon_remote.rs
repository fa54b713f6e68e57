//! `nbd:` images (spec/drivers.md §6.10): disks of other tapdisks, of servers that behave and of servers that
//! do not.
mod daemon_support;

use std::fs;

use daemon_support::{Daemon, images, read_only};
use tap_ctl::messages::kind;

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
        let near = Daemon::spawn_with(daemon_support::set("TAPDISK_ENGINE", engine));
        near.attach(0);
        assert_eq!(near.open(0, &name), 0);
        assert_eq!(near.list(), [(0, 0, name.clone())]);
        let mut client = near.nbd(0);
        assert_eq!(client.bytes, BYTES);
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
