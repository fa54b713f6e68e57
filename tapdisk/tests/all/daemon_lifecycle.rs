//! Attach, open, pause, resume, close, detach in every order (spec/control-socket.md §5; the codes
//! and texts are those of the recorded runs in golden/tap-ctl-lifecycle.txt).

use std::path::PathBuf;

use crate::daemon_support::{Daemon, images, read_only};
use tap_ctl::messages::{Message, flag, kind};
use test_support::nbd::{self, Verb};

/// A daemon with minor 0 attached, and a raw image that it may open.
fn start() -> (Daemon, String, PathBuf) {
    let daemon = Daemon::attached();
    let path = daemon.run.join("a.raw");
    let name = images::raw(&path, 64 << 20);
    (daemon, name, path)
}

/// What `stats` of the original shows, without what we add.
fn original(daemon: &Daemon) -> String {
    let text = daemon.stats_text(0);
    let end = text.find(", \"perf\"").unwrap_or(text.len() - 2);
    format!("{} }}", &text[..end])
}

const TAIL: &str = "\"FIXME_enospc_redirect_count\": 0, \"nbd_mirror_failed\": 0, \
                    \"reqs_outstanding\": 0, \"read_caching\": \"false\" }";

/// The first twelve numbers of a metrics file.
fn metrics(path: &str) -> Vec<u64> {
    let page = std::fs::read(path).unwrap_or_default();
    let numbers = page.chunks_exact(8).map(|raw| u64::from_le_bytes(raw.try_into().unwrap()));
    numbers.take(12).collect()
}

/// spec/xenstore-tapback.md §9: what is there when, and who is counted where.
#[test]
fn shared_memory_tells_of_reads_and_writes() {
    let (daemon, name, _) = start();
    let (folder, tap) =
        (format!("/dev/shm/td3-{}", daemon.pid), format!("/dev/shm/metrics/tap-{}-0", daemon.pid));
    let there = || crate::daemon_support::names(std::path::Path::new(&folder));
    assert!(there().is_empty());
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(there(), ["nbd-0", "nbd-old-0", "vdi-0"]);
    assert_eq!(std::fs::read(&tap).unwrap(), [0; 4096]);
    let mut client = daemon.nbd(0);
    client.write(0, &[7; 65536]).unwrap();
    client.write(1 << 20, &[7; 4096]).unwrap();
    client.read(0, 65536).unwrap();
    let of = |file: &str| metrics(&format!("{folder}/{file}-0"));
    crate::daemon_support::until("the second's numbers", || of("vdi").get(7) == Some(&2));
    let vdi = of("vdi");
    assert_eq!((&vdi[..5], &vdi[6..9]), (&[0, 0, 1, 1, 128][..], &[2, 2, 136][..]));
    assert!(vdi[5] > 0 && vdi[9] > 0 && vdi[10..] == [0, 0], "{vdi:?}");
    let nbd = of("nbd");
    assert_eq!((&nbd[..5], &nbd[6..9]), (&vdi[..5], &vdi[6..9]));
    assert_eq!(of("nbd-old"), [0; 12]);

    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(there(), ["nbd-0", "nbd-old-0"]);
    assert!(!std::path::Path::new(&tap).exists());
    assert_eq!(daemon.resume(0, ""), 0);
    assert_eq!(there(), ["nbd-0", "nbd-old-0", "vdi-0"]);
    assert_eq!(of("vdi"), [0; 12]);
    assert_eq!(of("nbd")[7], 2, "the sockets were not closed");
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    assert!(there().is_empty());
    assert_eq!(daemon.ask(kind::DETACH, 0), 0);
    daemon.wait_for_end();
    assert!(!std::path::Path::new(&folder).exists());
}

#[test]
fn a_raw_disk_from_open_to_the_end() {
    let (daemon, name, path) = start();
    let reply = daemon.call(&crate::daemon_support::open(0, &name, |_| {}), &[]);
    assert_eq!((reply.kind(), reply.info().sectors, reply.info().sector_size), (8, 131_072, 512));
    assert_eq!(daemon.call(&Message::new(kind::DISK_INFO, 0), &[]).info(), reply.info());
    assert_eq!(daemon.open(0, &name), libc::EALREADY);
    assert_eq!(daemon.list(), [(0, 0, name.clone())]);
    let open = [
        "a.raw",
        "ctlP",
        "nbd-oldP.0",
        "nbdP.0",
        "nbdclientP",
        "nbdserver-newP.0",
        "nbdserverP.0",
        "tapdisk",
    ];
    assert_eq!(daemon.names(), open);

    let image = format!(
        "{{ \"name\": \"{}\", \"hits\": [ HITS ], \"fail\": [ 0, 0 ], \"driver\": {{ \"type\": 0, \
         \"name\": \"aio\", \"status\": {{ \"reqs\": {{ \"max\": 352, \"pending\": 0 }} }} }} }}",
        path.display()
    );
    let text = |secs: &str, images: &str| {
        format!("{{ \"name\": \"{name}\", \"secs\": [ {secs} ], \"images\": [ {images} ], {TAIL}")
    };
    assert_eq!(original(&daemon), text("0, 0", &image.replace("HITS", "0, 0")));
    let mut client = daemon.nbd(0);
    client.write(0, &[7; 65536]).unwrap();
    assert_eq!(client.read(0, 65536).unwrap(), [7; 65536]);
    assert_eq!(client.read(1 << 20, 4096).unwrap(), [0; 4096]);
    assert_eq!(original(&daemon), text("136, 128", &image.replace("HITS", "136, 128")));

    assert_eq!(daemon.ask(kind::DETACH, 0), libc::EBUSY);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(daemon.list(), [(0, 0x2a, name.clone())]);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0, "paused already");
    assert_eq!(daemon.open(0, &name), libc::EALREADY);
    assert_eq!(original(&daemon), text("136, 128", ""));
    assert_eq!(daemon.names(), open);
    assert_eq!(daemon.resume(0, ""), 0);
    assert_eq!(daemon.state(0), 0);
    assert_eq!(daemon.resume(0, ""), libc::EINVAL, "not paused");
    assert_eq!(client.read(0, 512).unwrap(), [7; 512], "the same connection goes on");

    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    assert_eq!(daemon.list(), [(0, 2, String::new())]);
    assert_eq!(daemon.names(), ["a.raw", "ctlP", "nbdclientP", "tapdisk"]);
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0, "closed already");
    assert_eq!(
        original(&daemon),
        format!("{{ \"name\": \"(null)\", \"secs\": [ 137, 128 ], \"images\": [  ], {TAIL}")
    );
    assert_eq!(daemon.ask(kind::DETACH, 0), 0);
    assert_eq!(daemon.names(), ["a.raw", "tapdisk"], "gone by the time of the reply");
    daemon.wait_for_end();
    assert!(!daemon.log_file().exists(), "{}", daemon.log());
}

#[test]
fn attached_but_never_opened() {
    let daemon = Daemon::attached();
    assert_eq!(daemon.list(), [(0, 0, String::new())]);
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    assert_eq!(daemon.state(0), 0x2);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(daemon.state(0), 0x2a);
    assert_eq!(daemon.resume(0, ""), libc::EINVAL);
    assert_eq!(daemon.state(0), 0x22a);
    assert_eq!(daemon.ask(kind::DISK_INFO, 0), 0);
    assert_eq!(daemon.ask(kind::DETACH, 0), 0);
    daemon.wait_for_end();
}

#[test]
fn a_disk_closed_while_paused_starts_clean_at_the_next_open() {
    let (daemon, name, _) = start();
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    assert_eq!(daemon.list(), [(0, 0x2a, String::new())]);
    assert_eq!(daemon.names(), ["a.raw", "ctlP", "nbdclientP", "tapdisk"]);
    assert_eq!(daemon.open(0, "aio:/none"), libc::ENOENT);
    assert_eq!(daemon.list(), [(0, 0x2a, String::new())]);
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(daemon.list(), [(0, 0, name)]);
    assert_eq!(daemon.nbd(0).read(0, 512), Ok(vec![0; 512]));
    assert_eq!(daemon.ask(kind::FORCE_SHUTDOWN, 0), 0);
    assert_eq!(daemon.state(0), 2);
}

#[test]
fn the_reply_of_a_forced_close_is_that_of_a_close() {
    let (daemon, name, _) = start();
    assert_eq!(daemon.open(0, &name), 0);
    let reply = daemon.call(&Message::new(kind::FORCE_SHUTDOWN, 0), &[]);
    assert_eq!(reply.kind(), kind::CLOSE_RSP);
}

#[test]
fn resume_changes_the_image_and_keeps_the_old_name_when_it_fails() {
    let (daemon, name, _) = start();
    let (base, leaf) = (daemon.run.join("d.vhd"), daemon.run.join("c.vhd"));
    let small = images::vhd(&base, 1);
    images::child(&leaf, 2, "d.vhd", Some(1));
    assert_eq!(daemon.open(0, &small), 0);
    daemon.nbd(0).write(512, &[5; 512]).unwrap();
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    let child = format!("vhd:{}", leaf.display());
    assert_eq!(daemon.resume(0, &child), 0);
    assert_eq!(daemon.list(), [(0, 0, child.clone())]);
    let paths: Vec<String> =
        (0..2).map(|i| daemon.stats(0)["images"][i]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(paths, [leaf.to_str().unwrap(), base.to_str().unwrap()]);
    assert_eq!(daemon.nbd(0).read(512, 512), Ok(vec![5; 512]));

    // Another size, no type, no such type: refused at once; the disk stays paused under its old
    // name.
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    for (other, errno) in
        [(name.as_str(), libc::EMEDIUMTYPE), ("bogus", libc::EINVAL), ("bogus:/x", libc::ENOENT)]
    {
        assert_eq!(daemon.resume(0, other), errno, "{other}");
        assert_eq!(daemon.list(), [(0, 0x22a, child.clone())]);
    }
    assert_eq!(daemon.resume(0, ""), 0);
    assert_eq!(daemon.list(), [(0, 0, child)]);
}

#[test]
fn resume_tries_again_and_keeps_the_flags_of_open() {
    let (daemon, name, path) = start();
    assert_eq!(daemon.open_with(0, &name, read_only), 0);
    let mut client = daemon.nbd(0);
    assert_eq!(client.write(0, &[1; 512]), Err(1), "EPERM");
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    let mut waiting = daemon.connect();
    waiting.send(&Message::with(kind::RESUME, 0, &tap_ctl::messages::Params::default()), &[]);
    assert!(!waiting.has_reply(std::time::Duration::from_millis(200)));
    assert_eq!(daemon.state(0), 0x2a, "answered while the tries go on");
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(waiting.reply().errno(), 0);
    assert_eq!(client.write(0, &[1; 512]), Err(1), "still read-only");
    assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
}

#[test]
fn resume_gives_up_after_ten_tries() {
    let (daemon, name, path) = start();
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(daemon.resume(0, ""), libc::ENOENT);
    let took = begun.elapsed().as_secs();
    assert!((8..12).contains(&took), "{took} s");
    assert_eq!(daemon.list(), [(0, 0x22a, name)]);
    std::fs::rename(&away, &path).unwrap();
    assert_eq!(daemon.resume(0, ""), 0);
}

#[test]
fn what_is_refused_at_open() {
    let (daemon, raw, path) = start();
    let long = format!("{}:/x", "t".repeat(32));
    for (name, errno) in [
        ("aio:/nonexistent", 2),
        ("vhd:/nonexistent", 2),
        ("bogus:/x", 2),
        ("/golden/w/a.raw", 22),
        ("", 22),
        (":", 2),
        ("aio:", 2),
        ("aio:a.raw", 2),
        (&format!("vhd:{}", path.display()), 22),
        ("qcow2:/x", 2),
        ("tapdisk:/x", 2),
        ("ram:8", 2),
        ("nbd:/nosock", 1),
        ("sync:/x", 38),
        (&long, 36),
        (&format!("aio:/{}", "x".repeat(250)), 2),
        ("aio:/dev/null", 22),
        (&format!("aio:{}", daemon.run.display()), libc::EISDIR),
    ] {
        let want = if name.len() > 240 { libc::ENOENT } else { errno };
        let got = daemon.open(0, name);
        assert!(got == want || name.len() > 240 && got == libc::ENAMETOOLONG, "{name}: {got}");
        assert_eq!(daemon.list(), [(0, 0, String::new())], "{name}");
    }
    assert_eq!(daemon.open(3, &raw), 22, "not attached");
    let with = |flags: u32, extra: &[u8], change: fn(&mut tap_ctl::messages::Params)| {
        let open = crate::daemon_support::open(0, &raw, |params| {
            params.flags = flags;
            change(params);
        });
        daemon.call(&open, extra).errno()
    };
    let log = |name: &str| [name.as_bytes().to_vec(), vec![0; 256 - name.len()]].concat();
    assert_eq!(with(flag::ADD_LOG, &log("/missing.cbt"), |_| {}), 1);
    assert_eq!(with(flag::ADD_LOG, &log(path.to_str().unwrap()), |_| {}), libc::EINVAL);
    assert_eq!(with(flag::REUSE_PRT, &[], |params| params.prt_devnum = 3), 2);
    let vhd = |params: &mut tap_ctl::messages::Params| {
        params.secondary = crate::daemon_support::text("vhd:/x")
    };
    assert_eq!(with(flag::SECONDARY, &[], vhd), libc::ENOENT);
    let null = |params: &mut tap_ctl::messages::Params| {
        params.secondary = crate::daemon_support::text("null")
    };
    assert_eq!(with(flag::SECONDARY | flag::ADD_LCACHE, &[], null), 0);
}

#[test]
fn two_disks_in_one_daemon() {
    let (daemon, name, _) = start();
    daemon.attach(1);
    let other = images::vhd(&daemon.run.join("d.vhd"), 1);
    assert_eq!((daemon.open(0, &name), daemon.open(1, &other)), (0, 0));
    let (mut a, mut b) = (daemon.nbd(0), daemon.nbd(1));
    for i in 0..200u64 {
        a.write(i * 4096, &[1; 4096]).unwrap();
        b.write(i * 4096, &[2; 4096]).unwrap();
    }
    assert_eq!((a.read(4096, 4096), b.read(4096, 4096)), (Ok(vec![1; 4096]), Ok(vec![2; 4096])));
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(b.read(0, 4096), Ok(vec![2; 4096]), "the other one goes on");
    assert_eq!((daemon.ask(kind::CLOSE, 0), daemon.ask(kind::DETACH, 0)), (0, 0));
    assert_eq!(daemon.list(), [(1, 0, other)]);
    assert_eq!(b.read(0, 4096), Ok(vec![2; 4096]), "also without the one that slept for both");
    assert_eq!((daemon.ask(kind::CLOSE, 1), daemon.ask(kind::DETACH, 1)), (0, 0));
    daemon.wait_for_end();
}

#[test]
fn requests_in_flight_survive_pauses() {
    let (daemon, name, _) = start();
    assert_eq!(daemon.open(0, &name), 0);
    let mut client = daemon.nbd(0);
    let mut reader = nbd::Client::over(client.stream.try_clone().unwrap());
    let writer = std::thread::spawn(move || {
        for i in 0..4000u64 {
            client.send(Verb::Write, 0, i % 512 * 4096, 4096, &[i as u8; 4096]);
        }
    });
    let pauses = std::thread::scope(|s| {
        let answered = s.spawn(|| (0..4000).all(|_| reader.receive().result.is_ok()));
        let mut pauses = 0;
        while !answered.is_finished() {
            assert_eq!((daemon.ask(kind::PAUSE, 0), daemon.resume(0, "")), (0, 0));
            pauses += 1;
        }
        assert!(answered.join().unwrap(), "every write succeeds");
        pauses
    });
    writer.join().unwrap();
    assert!(pauses > 1, "{pauses} pauses");
    let stats = daemon.stats(0);
    assert_eq!(stats["sealed"]["allocations"], 0);
    assert_eq!(stats["reqs_outstanding"], 0);
}

#[test]
fn negotiations_may_interleave_and_break_off() {
    let (daemon, name, _) = start();
    assert_eq!(daemon.open(0, &name), 0);
    let connect = || {
        let stream = std::os::unix::net::UnixStream::connect(daemon.socket("nbd", 0)).unwrap();
        nbd::Client::over(stream)
    };
    let (mut a, mut b, mut c) = (connect(), connect(), connect());
    a.begin();
    c.begin();
    drop(c);
    b.begin();
    a.name_export();
    b.name_export();
    assert_eq!((a.size, b.size), (64 << 20, 64 << 20));
    assert_eq!((a.read(0, 512), b.read(0, 512)), (Ok(vec![0; 512]), Ok(vec![0; 512])));
    let turns = || daemon.stats(0)["perf"]["turns"].as_u64().unwrap();
    let (before, after) = (turns(), turns());
    assert!(after - before < 20, "idle: {} turns", after - before);
}
