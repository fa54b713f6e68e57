//! `tap-ctl upgrade`: the program of a running tapdisk is replaced under its clients
//! (docs/upgrade.md).
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::{Rig, Served, programs};

use super::writer::{Writer, verify};

/// Sectors that are written: 16 MiB.
const SECTORS: u64 = 32 << 10;
/// Upgrades in a row.
const UPGRADES: u64 = 25;

fn upgrade(rig: &Rig, tapdisk: i32) -> serde_json::Value {
    let pid = tapdisk.to_string();
    let done = rig.tap_ctl(&["upgrade", "-p", &pid, "--json"]).ok();
    let all: serde_json::Value = serde_json::from_str(&done.out).expect("a JSON array");
    assert_eq!((&all[0]["pid"], &all[0]["disks"]), (&tapdisk.into(), &1.into()), "{all}");
    all[0].clone()
}

/// An NBD request's head.
fn head(verb: Verb, cookie: u64, at: u64, bytes: u32) -> Vec<u8> {
    let words = [0x2560_9513u32.to_be_bytes(), (verb as u32).to_be_bytes()];
    [&words.concat()[..], &cookie.to_be_bytes(), &at.to_be_bytes(), &bytes.to_be_bytes()].concat()
}

/// A connection past an old-style greeting would need another socket; this one has said the least
/// that the new style takes: its flags, and that it wants the export.
fn plain_client(served: &Served<'_>) -> UnixStream {
    let mut stream = UnixStream::connect(served.socket()).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    stream
}

fn negotiate(stream: &mut UnixStream) {
    // NBD_OPT_EXPORT_NAME, with an empty name; no zeroes behind the answer.
    let option = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &[0; 4]].concat();
    stream.write_all(&option).expect("sent");
    let mut export = [0; 10];
    stream.read_exact(&mut export).expect("the size and the flags");
}

fn answer(stream: &mut UnixStream, cookie: u64) {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0], "a simple reply without an error");
    assert_eq!(reply[8..], cookie.to_be_bytes());
}

/// A disk whose tapdisk hands a planted fault on; its pid and its socket.
fn serve_with_fault(rig: &Rig, when: &str) -> (String, PathBuf) {
    let planted = rig
        .command(&programs().tap_ctl)
        .args(["create", "-a", &rig.name("vhd", "a.vhd")])
        .env("TAPDISK_RESUME_FAULT", when)
        .output()
        .expect("tap-ctl runs");
    assert!(planted.status.success(), "{planted:?}");
    let pid = rig.pid_of(0).expect("it is listed").to_string();
    let socket = rig.run_dir().join(format!("nbd{pid}.0"));
    (pid, socket)
}

both_engines! {
    fn upgrades_under_a_writer(rig) {
        rig.vhd_util(&["create", "-n", "p.vhd", "-s", "20"]).ok();
        rig.vhd_util(&["snapshot", "-n", "a.vhd", "-p", "p.vhd"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut idle = served.client();
        idle.fill(19 << 20, 4096, 7).unwrap();
        let writer = Writer::start(&served.socket(), SECTORS, 1);
        let mut pauses: Vec<u64> = (0..UPGRADES)
            .map(|_| {
                writer.wait_for(40);
                upgrade(rig, served.pid)["pause_us"].as_u64().expect("a time")
            })
            .collect();
        writer.wait_for(300);
        let written = writer.finish();
        pauses.sort_unstable();
        println!("pauses in µs: {pauses:?}");
        idle.expect(19 << 20, 4096, 7);
        assert!(verify(&mut served.client(), &written) > 300);
        // What was counted goes on, and so does the log.
        let written = served.stats()["secs"][1].as_u64().expect("a number");
        assert!(written > UPGRADES * 40, "{written} sectors");
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd", "-p"]).ok();
        rig.assert_nothing_left();
    }

    /// Clients at every point of their life: greeted, in the middle of a head, in the middle of a
    /// payload, with answers that they do not read.
    fn an_upgrade_meets_clients_wherever_they_are(rig) {
        tests::rig::files::sparse(&rig.path("a.raw"), 20 << 20);
        let served = rig.serve(&rig.name("aio", "a.raw"), &[]);
        let (mut fresh, mut half) = (plain_client(&served), plain_client(&served));
        negotiate(&mut half);
        let request = head(Verb::Write, 5, 8192, 4096);
        half.write_all(&request[..11]).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        upgrade(rig, served.pid);
        negotiate(&mut fresh);
        fresh.write_all(&head(Verb::Flush, 9, 0, 0)).unwrap();
        answer(&mut fresh, 9);
        half.write_all(&request[11..]).unwrap();
        half.write_all(&[3; 1000]).unwrap();
        // Its payload has begun: that is waited for, but not for ever.
        let pid = served.pid.to_string();
        std::thread::sleep(Duration::from_millis(50));
        let refused = rig.tap_ctl(&["upgrade", "-p", &pid]).exits(libc::EBUSY);
        assert!(refused.err.contains("in the middle of a request"), "{refused:?}");
        fresh.write_all(&head(Verb::Flush, 10, 0, 0)).unwrap();
        answer(&mut fresh, 10);
        std::thread::scope(|scope| {
            let tapdisk = served.pid;
            let upgraded = scope.spawn(move || upgrade(rig, tapdisk));
            std::thread::sleep(Duration::from_millis(300));
            half.write_all(&[3; 3096]).unwrap();
            answer(&mut half, 5);
            upgraded.join().expect("it was upgraded")
        });
        served.client().expect(8192, 4096, 3);
        half.write_all(&head(Verb::Disconnect, 0, 0, 0)).unwrap();
        served.destroy();
        rig.assert_nothing_left();
    }

    /// A key, a changed-block log, a mirror, a descriptor of a client that came through the
    /// receiver: nothing of it is lost.
    fn what_was_asked_for_at_open_stays(rig) {
        let key: Vec<u8> = (0..64).collect();
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        let file = rig.path("a,aes-xts-plain,512.key");
        std::fs::write(&file, &key).unwrap();
        rig.vhd_util(&["key", "-s", "-n", "a.vhd", "-k", &file.display().to_string()]).ok();
        let served = match rig.serve_with_key(&rig.name("vhd", "a.vhd"), &key) {
            Ok(served) => served,
            Err(refused) => panic!("{refused:?}"),
        };
        served.client().fill(0, 1 << 20, 9).unwrap();
        upgrade(rig, served.pid);
        let mut client = served.client();
        client.expect(0, 1 << 20, 9);
        client.fill(1 << 20, 4096, 8).unwrap();
        client.flush().unwrap();
        served.pause();
        let raw = std::fs::read(rig.path("a.vhd")).unwrap();
        assert!(!raw.windows(64).any(|bytes| bytes == [8; 64] || bytes == [9; 64]), "it is encrypted");
        served.unpause(&[]);
        client.expect(1 << 20, 4096, 8);
        served.destroy();

        rig.vhd_util(&["create", "-n", "b.vhd", "-s", "20"]).ok();
        rig.vhd_util(&["create", "-n", "m.vhd", "-s", "20"]).ok();
        let second = rig.name("vhd", "m.vhd");
        let served = rig.serve(&rig.name("vhd", "b.vhd"), &["-2", &second]);
        upgrade(rig, served.pid);
        served.client().fill(4096, 4096, 6).unwrap();
        served.destroy();
        for name in ["b.vhd", "m.vhd"] {
            let served = rig.serve(&rig.name("vhd", name), &["-R"]);
            served.client().expect(4096, 4096, 6);
            served.destroy();
        }
        rig.assert_nothing_left();
    }

    /// Whatever is wrong with the other program, or with the moment: the disk goes on.
    fn an_upgrade_that_fails_leaves_everything_as_it_was(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        let (pid, socket) = serve_with_fault(rig, "1");
        let mut client = tests::rig::nbd::Client::connect(&socket);
        let mut byte = 0;
        let mut goes_on = || {
            byte += 1;
            client.fill(4096, 4096, byte).unwrap();
            client.expect(4096, 4096, byte);
        };
        goes_on();
        for (program, errno, why) in [
            ("/nowhere/tapdisk", libc::ENOENT, "there is no program"),
            ("/bin/true", libc::ENOEXEC, "does not say that it can"),
            ("/bin/false", libc::ENOEXEC, "cannot take over"),
        ] {
            let refused = rig.tap_ctl(&["upgrade", "-p", &pid, "--program", program]).exits(errno);
            assert!(refused.err.contains(why), "{refused:?}");
            goes_on();
        }
        // It says that it can, and the kernel cannot run it a moment later.
        let liar = rig.path("liar");
        std::fs::write(&liar, "#!/bin/sh\nprintf x > \"$0\"\necho tapdisk 9 can resume\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&liar, mode).unwrap();
        let liar = liar.display().to_string();
        let refused = rig.tap_ctl(&["upgrade", "-p", &pid, "--program", &liar]);
        assert!(refused.exits(libc::ENOEXEC).err.contains("does not take over"));
        goes_on();
        if cfg!(debug_assertions) {
            let refused = rig.tap_ctl(&["upgrade", "-p", &pid]).exits(libc::EIO);
            assert!(refused.err.contains("a planted fault; the old one goes on"), "{refused:?}");
            goes_on();
        }
        rig.tap_ctl(&["pause", "-p", &pid, "-m", "0"]).ok();
        let refused = rig.tap_ctl(&["upgrade", "-p", &pid]).exits(libc::EBUSY);
        assert!(refused.err.contains("paused"), "{refused:?}");
        rig.tap_ctl(&["unpause", "-p", &pid, "-m", "0"]).ok();
        goes_on();
        drop(client);
        rig.tap_ctl(&["destroy", "-p", &pid, "-m", "0"]).ok();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        rig.assert_nothing_left();
    }

    /// It has the sockets, the clients and the disks already when it finds that it cannot.
    fn a_program_that_fails_when_it_has_everything_gives_it_back(rig) {
        if !cfg!(debug_assertions) {
            // A release has no planted fault.
            return;
        }
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        let (pid, socket) = serve_with_fault(rig, "late");
        let mut client = tests::rig::nbd::Client::connect(&socket);
        for byte in 1..4 {
            client.fill(4096, 4096, byte).unwrap();
            let refused = rig.tap_ctl(&["upgrade", "-p", &pid]).exits(libc::EIO);
            assert!(refused.err.contains("a planted fault; the old one goes on"), "{refused:?}");
            client.expect(4096, 4096, byte);
            tests::rig::nbd::Client::connect(&socket).expect(4096, 4096, byte);
        }
        drop(client);
        rig.tap_ctl(&["destroy", "-p", &pid, "-m", "0"]).ok();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        rig.assert_nothing_left();
    }
}
