//! Who is waited for before an image is read and written (docs/locks.md): the dead, whose writes
//! are still on their way; those who live and write. Needs root and /dev/fuse for the former.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon_support::fuse::Hanging;
use crate::daemon_support::{Client, Daemon, images, open, read_only, set, skip, until};
use image::Holder;
use tap_ctl::messages::{Message, Params, flag, kind};
use test_support::nbd::{self, Verb};

const MIB: usize = 1 << 20;
/// Where the table of a small VHD is.
const TABLE: u64 = 1536;

fn daemon(engine: &str) -> Daemon {
    let daemon = Daemon::spawn_with(set("TAPDISK_ENGINE", engine));
    daemon.attach(0);
    daemon
}

/// Slow storage of so many bytes.
fn storage(bytes: usize) -> Option<Hanging> {
    let storage = Hanging::mount(bytes);
    if storage.is_none() {
        skip("no FUSE here (root, /dev/fuse)");
    }
    storage
}

fn name(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}

/// What a disk says that it waits for.
fn waits(daemon: &Daemon) -> Option<String> {
    daemon.stats(0)["waits"].as_str().map(str::to_owned)
}

/// A daemon with one write of ones on its way, to `at` of the file, and who asked for it.
fn writing(engine: &str, image: &str, storage: &Hanging, at: u64) -> (Daemon, nbd::Client) {
    let daemon = daemon(engine);
    assert_eq!(daemon.open(0, image), 0);
    storage.delay_write(at);
    let mut client = daemon.nbd(0);
    client.send(Verb::Write, 0, 0, 65536, &[1; 65536]);
    storage.wait_for_delayed();
    (daemon, client)
}

/// A daemon that is dead, with one write to `at` of the file on its way.
fn ghost(engine: &str, image: &str, storage: &Hanging, at: u64) -> Daemon {
    let (dead, _) = writing(engine, image, storage, at);
    dead.signal(libc::SIGKILL);
    dead
}

/// Asks for an image and waits until the daemon says that it waits for the dead.
fn begin(daemon: &Daemon, request: &Message) -> Client {
    let mut client = daemon.connect();
    client.send(request, &[]);
    until("it says what it waits for", || {
        waits(daemon).is_some_and(|text| text.contains("process that has ended"))
    });
    client
}

#[test]
fn an_open_waits_for_the_writes_of_the_dead() {
    for engine in ["uring", "aio"] {
        let Some(storage) = storage(MIB) else { return };
        let image = name("aio", &storage.path());
        let _dead = ghost(engine, &image, &storage, 0);
        let next = daemon(engine);
        let mut opening = begin(&next, &open(0, &image, |_| {}));
        assert!(next.log().contains("process that has ended"), "the log says so too");
        storage.land();
        assert_eq!(opening.reply().errno(), 0, "{engine}");
        assert_eq!(waits(&next), None, "{engine}");
        let mut client = next.nbd(0);
        assert_eq!(client.read(0, 512), Ok(vec![1; 512]), "{engine}: what landed is read");
        assert_eq!(client.write(0, &[2; 4096]), Ok(()));
        assert_eq!(client.flush(), Ok(()));
        assert_eq!(storage.bytes(0, 4096), [2; 4096], "{engine}");
    }
}

/// The table that lands late is the one that the next tapdisk reads, and not one that takes blocks
/// from it.
#[test]
fn a_table_on_its_way_does_not_take_the_next_ones_blocks() {
    let Some(storage) = storage(32 * MIB) else { return };
    let dir = tempfile::tempdir().unwrap();
    images::vhd(&dir.path().join("v"), 7);
    let vhd = std::fs::read(dir.path().join("v")).unwrap();
    storage.put(&vhd);
    let file = File::options().write(true).open(storage.path()).unwrap();
    file.set_len(vhd.len() as u64).unwrap();
    drop(file);
    let image = name("vhd", &storage.path());
    let _dead = ghost("uring", &image, &storage, TABLE);
    let next = daemon("uring");
    let mut opening = begin(&next, &open(0, &image, |_| {}));
    storage.land();
    assert_eq!(opening.reply().errno(), 0);
    let block = 2 * MIB as u64;
    let mut client = next.nbd(0);
    assert_eq!(client.write(4 * block, &[2; 4096]), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    drop(client);
    assert_eq!(next.ask(kind::CLOSE, 0), 0);
    assert_eq!(next.open(0, &image), 0);
    let mut client = next.nbd(0);
    assert_eq!(client.read(4 * block, 4096), Ok(vec![2; 4096]), "what was flushed is there");
    assert_eq!(client.read(0, 4096), Ok(vec![1; 4096]), "and what landed late");
}

/// Readers rely on a quiet image as well, also of a parent; and a resume opens like an open.
#[test]
fn readers_children_and_resumes_wait_too() {
    let Some(storage) = storage(MIB) else { return };
    let image = name("aio", &storage.path());
    let _dead = ghost("uring", &image, &storage, 0);

    let reader = daemon("uring");
    let mut opening = begin(&reader, &open(0, &image, read_only));

    let resumed = daemon("uring");
    let dir = tempfile::tempdir().unwrap();
    let other = images::raw(&dir.path().join("other"), MIB as u64);
    assert_eq!(resumed.open(0, &other), 0);
    assert_eq!(resumed.ask(kind::PAUSE, 0), 0);
    let params = Params { path: crate::daemon_support::text(&image), ..Params::default() };
    let mut resuming = begin(&resumed, &Message::with(kind::RESUME, 0, &params));

    let mirrored = daemon("uring");
    let second = |params: &mut Params| {
        params.flags |= flag::SECONDARY;
        params.secondary = crate::daemon_support::text(&image);
    };
    let leaf = images::raw(&dir.path().join("leaf"), MIB as u64);
    let mut mirroring = begin(&mirrored, &open(0, &leaf, second));

    storage.land();
    assert_eq!(opening.reply().errno(), 0);
    assert_eq!(reader.nbd(0).read(0, 512), Ok(vec![1; 512]));
    // One of the two has the image now, and the other waits for it: both are answered.
    assert_eq!(resuming.reply().errno(), 0);
    assert_eq!(mirroring.reply().errno(), 0);
}

/// A disk that waits is closed without waiting any longer, and a daemon told to stop stops.
#[test]
fn nobody_is_kept_waiting_by_the_dead_who_no_longer_wants_the_image() {
    let Some(storage) = storage(MIB) else { return };
    let image = name("aio", &storage.path());
    let _dead = ghost("uring", &image, &storage, 0);
    let next = daemon("uring");
    let mut opening = begin(&next, &open(0, &image, |_| {}));
    next.signal(libc::SIGINT);
    assert_eq!(opening.reply().errno(), libc::ECANCELED);
    next.wait_for_end();
}

/// A close does not wait for its turn behind an open that waits.
#[test]
fn a_disk_that_waits_is_closed_at_once() {
    let Some(storage) = storage(MIB) else { return };
    let image = name("aio", &storage.path());
    let _dead = ghost("uring", &image, &storage, 0);
    let next = daemon("uring");
    let mut opening = begin(&next, &open(0, &image, |_| {}));
    let since = std::time::Instant::now();
    assert_eq!(next.ask(kind::CLOSE, 0), 0);
    assert_eq!(opening.reply().errno(), libc::ECANCELED);
    assert!(since.elapsed() < std::time::Duration::from_secs(30), "{:?}", since.elapsed());
    assert_eq!(next.ask(kind::DETACH, 0), 0);
    next.wait_for_end();
}

/// Tools see the same: who it is, and when it is over.
#[test]
fn the_lock_of_the_dead_is_told_from_that_of_the_living() {
    let Some(storage) = storage(MIB) else { return };
    let image = name("aio", &storage.path());
    let dead = ghost("uring", &image, &storage, 0);
    dead.wait_for_end();
    let file = File::open(storage.path()).unwrap();
    let mut seen = Vec::new();
    let got = image::acquire(&file, true, &mut |who, _| {
        if seen.is_empty() {
            storage.land();
        }
        seen.push(who);
        true
    });
    assert_eq!((got.unwrap(), seen.first()), (None, Some(&Holder::Dead)));
    drop(file);
    let alive = daemon("uring");
    assert_eq!(alive.open(0, &image), 0);
    let file = File::open(storage.path()).unwrap();
    let got = image::acquire(&file, true, &mut |_, _| false).unwrap();
    assert_eq!(got, Some(Holder::Writer(alive.pid)));
    assert_eq!(vhd_rs::lock::named(alive.pid), format!("tapdisk {}", alive.pid));
}

/// A loop device over a file, without a page cache between them.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Loop {
        let mut losetup = Command::new("losetup");
        let out = losetup.args(["--show", "-f", "--direct-io=on"]).arg(file).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Loop(String::from_utf8(out.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn devices_are_fenced_like_files() {
    let Some(storage) = storage(MIB) else { return };
    let device = Loop::over(&storage.path());
    let image = format!("aio:{}", device.0);
    let _dead = ghost("uring", &image, &storage, 0);
    let next = daemon("uring");
    let mut opening = begin(&next, &open(0, &image, |_| {}));
    storage.land();
    assert_eq!(opening.reply().errno(), 0);
    let mut client = next.nbd(0);
    assert_eq!(client.write(0, &[2; 4096]), Ok(()));
    assert_eq!(client.flush(), Ok(()));
    assert_eq!(storage.bytes(0, 4096), [2; 4096]);
}

/// A VHD in a folder of its own, served by a first daemon with something in it.
struct Two {
    _dir: tempfile::TempDir,
    path: PathBuf,
    image: String,
    first: Daemon,
    second: Daemon,
}

fn two(engine: &str) -> Two {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let image = images::vhd(&path, 3);
    let (first, second) = (daemon(engine), daemon(engine));
    assert_eq!(first.open(0, &image), 0);
    assert_eq!(first.nbd(0).write(0, &[1; 4096]), Ok(()));
    Two { _dir: dir, path, image, first, second }
}

/// What a check finds.
fn fault(path: &Path) -> Option<String> {
    let file = File::open(path).unwrap();
    let report = vhd_rs::check(&file, path, &vhd_rs::CheckOptions::default()).unwrap();
    report.fault.map(|fault| format!("{fault:?}"))
}

/// `xl migrate` to the same host opens twice: the second disk is there at once, its requests wait,
/// and it shows what the first one wrote last.
#[test]
fn a_disk_that_is_handed_over_shows_what_was_written_last() {
    for (engine, killed) in [("uring", false), ("aio", false), ("uring", true)] {
        let Two { _dir, path, image, first, second } = two(engine);
        assert_eq!(second.open(0, &image), 0, "as ever");
        assert_eq!(second.state(0), 0, "as one that is open");
        let said = waits(&second).expect("it says that it waits");
        let who = format!("tapdisk {}", first.pid);
        assert!(said.contains(&who) && said.contains(path.to_str().unwrap()), "{said}");
        let mut waiting = second.nbd(0);
        waiting.send(Verb::Read, 0, 3 << 20, 4096, &[]);
        // A block that the second has not seen in the table.
        let mut client = first.nbd(0);
        assert_eq!(client.write(3 << 20, &[7; 4096]), Ok(()));
        assert_eq!(client.flush(), Ok(()));
        drop(client);
        match killed {
            true => first.signal(libc::SIGKILL),
            false => assert_eq!(first.ask(kind::CLOSE, 0), 0),
        }
        let reply = waiting.receive();
        assert_eq!(reply.result, Ok(()), "{engine}");
        assert_eq!(reply.data, [7; 4096], "{engine}: what was written last");
        assert_eq!(waits(&second), None);
        assert_eq!(waiting.write(5 << 20, &[8; 4096]), Ok(()));
        assert_eq!(waiting.read(0, 4096), Ok(vec![1; 4096]));
        drop(waiting);
        assert_eq!(second.ask(kind::CLOSE, 0), 0);
        assert_eq!(fault(&path), None, "{engine}, killed {killed}");
    }
}

/// It may be paused, resumed and closed while it waits, and the first disk is none the worse.
#[test]
fn a_disk_that_waits_can_be_paused_and_closed() {
    let Two { _dir, path, image, first, second } = two("uring");
    assert_eq!(second.open(0, &image), 0);
    assert_eq!(second.open(0, &image), libc::EALREADY);
    assert_eq!(second.ask(kind::PAUSE, 0), 0);
    assert_eq!(second.state(0), 0x2a);
    assert_eq!(waits(&second), None);
    assert_eq!(second.resume(0, ""), 0);
    assert!(waits(&second).is_some(), "as after an open");
    assert_eq!(second.ask(kind::CLOSE, 0), 0);
    assert_eq!(second.state(0), 2);
    let mut client = first.nbd(0);
    assert_eq!(client.write(5 << 20, &[5; 4096]), Ok(()));
    drop(client);
    assert_eq!(first.ask(kind::CLOSE, 0), 0);
    assert_eq!(fault(&path), None);
    assert_eq!(second.open(0, &image), 0);
    assert_eq!(waits(&second), None);
    assert_eq!(second.nbd(0).read(5 << 20, 4096), Ok(vec![5; 4096]));
}

/// The same file by another driver, and as a secondary, is the same file.
#[test]
fn a_held_file_is_held_under_any_name() {
    let Two { _dir, path, first, second, .. } = two("uring");
    let link = path.with_extension("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for image in [name("aio", &path), name("vhd", &link), name("aio", &link)] {
        assert_eq!(second.open(0, &image), 0);
        assert!(waits(&second).is_some(), "{image}");
        assert_eq!(second.ask(kind::CLOSE, 0), 0);
    }
    let leaf = images::vhd(&path.with_extension("leaf"), 4);
    let held = name("vhd", &path);
    let second_image = |params: &mut Params| {
        params.flags |= flag::SECONDARY;
        params.secondary = crate::daemon_support::text(&held);
    };
    assert_eq!(second.open_with(0, &leaf, second_image), 0);
    assert!(waits(&second).is_some(), "a mirror");
    let mut client = second.nbd(0);
    client.send(Verb::Write, 0, 0, 512, &[9; 512]);
    assert_eq!(first.nbd(0).read(0, 4096), Ok(vec![1; 4096]));
    assert_eq!(first.ask(kind::CLOSE, 0), 0);
    assert_eq!(client.receive().result, Ok(()), "it goes on with both");
}

/// Who only reads does not wait, and a writer does not wait for readers.
#[test]
fn readers_and_a_writer_stand_beside_each_other() {
    let Two { _dir, image, first, second, .. } = two("uring");
    assert_eq!(second.open_with(0, &image, read_only), 0);
    assert_eq!(waits(&second), None);
    assert!(second.nbd(0).read(0, 4096).is_ok());
    assert_eq!(first.ask(kind::CLOSE, 0), 0);
    assert_eq!(first.open(0, &image), 0);
    assert_eq!(waits(&first), None);
    assert_eq!(first.nbd(0).write(0, &[2; 4096]), Ok(()));
    // A writer among readers keeps another writer off.
    let third = daemon("uring");
    assert_eq!(third.open(0, &image), 0);
    assert!(waits(&third).is_some_and(|text| text.contains(&first.pid.to_string())));
}

#[test]
fn strict_mode_refuses_leaf_and_secondary() {
    let Two { _dir, path, image, first: _first, .. } = two("uring");
    let strict = Daemon::spawn_with(set("TAPDISK_LOCK", "strict"));
    strict.attach(0);
    assert_eq!(strict.open(0, &image), libc::EBUSY);
    let leaf = images::vhd(&path.with_extension("leaf"), 4);
    let second = |params: &mut Params| {
        params.flags |= flag::SECONDARY;
        params.secondary = crate::daemon_support::text(&image);
    };
    assert_eq!(strict.open_with(0, &leaf, second), libc::EBUSY);
    assert_eq!(strict.open_with(0, &image, read_only), 0);
}

#[test]
fn sigterm_is_an_orderly_end() {
    let Some(storage) = storage(MIB) else { return };
    let (daemon, _client) = writing("uring", &name("aio", &storage.path()), &storage, 0);
    daemon.signal(libc::SIGTERM);
    until("asked to stop", || daemon.state(0) & 0x40 != 0);
    assert!(daemon.is_running());
    storage.land();
    daemon.wait_for_end();
    assert_eq!(daemon.names(), ["tapdisk"], "its sockets are gone");
    assert_eq!(storage.bytes(0, 65536), [1; 65536]);
}

/// Storage that hangs does not make it a process that cannot be ended: a second SIGTERM ends it at
/// once, and so do ten seconds.
#[test]
fn sigterm_ends_a_tapdisk_whose_storage_hangs() {
    for signals in [2, 1] {
        let Some(storage) = storage(MIB) else { return };
        let (daemon, _client) = writing("uring", &name("aio", &storage.path()), &storage, 0);
        daemon.signal(libc::SIGTERM);
        if signals == 2 {
            until("asked to stop", || daemon.state(0) & 0x40 != 0);
            daemon.signal(libc::SIGTERM);
        }
        daemon.wait_for_end();
        assert!(daemon.log().contains("SIGTERM"), "{signals}");
    }
}
