//! Opening and closing chains of images (spec/drivers.md §5, vhd.md §10): what does not belong
//! together is refused, what was only looked at is not changed, and what was written is closed
//! properly.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::daemon_support::{Daemon, images, is_root, read_only, set, skip, until};
use tap_ctl::messages::{flag, kind};

fn close(daemon: &Daemon) {
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
}

/// The errno of an open, which changes no byte of any file around, and the last line of the log.
fn refused(daemon: &Daemon, name: &str) -> (i32, String) {
    let bytes = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let files =
            fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_type().unwrap().is_file());
        let mut all: Vec<_> = files
            .map(|e| (e.file_name().to_string_lossy().into_owned(), fs::read(e.path()).unwrap()))
            .collect();
        all.sort();
        all
    };
    let before = bytes(&daemon.run);
    let errno = daemon.open(0, name);
    assert!(bytes(&daemon.run) == before, "{name} changed something");
    (errno, daemon.log().lines().last().unwrap_or_default().to_owned())
}

#[test]
fn an_empty_or_tiny_image() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("e");
    File::create(&path).unwrap();
    let (errno, line) = refused(&daemon, &format!("aio:{}", path.display()));
    assert!(errno == 22 && line.contains("truncate -s") && line.contains("/e"), "{errno} {line}");
    assert_eq!(refused(&daemon, &format!("vhd:{}", path.display())).0, libc::EPIPE);
    fs::write(&path, [1; 511]).unwrap();
    assert_eq!(refused(&daemon, &format!("aio:{}", path.display())).0, 22);
    fs::write(&path, [1; 1000]).unwrap();
    assert_eq!(daemon.open(0, &format!("aio:{}", path.display())), 0);
    assert_eq!(daemon.nbd(0).size, 512);
}

#[test]
fn parents_must_be_the_ones_meant() {
    let daemon = Daemon::attached();
    let at = |name: &str| daemon.run.join(name);
    images::vhd(&at("base"), 1);
    images::raw(&at("raw"), images::BYTES);
    let wrong = images::child(&at("wrong"), 2, "base", Some(9));
    let (errno, line) = refused(&daemon, &wrong);
    assert!(errno == 22 && line.contains("01010101-0101") && line.contains("09090909"), "{line}");
    let missing = images::child(&at("missing"), 3, "nowhere", Some(1));
    let (errno, line) = refused(&daemon, &missing);
    assert!(errno == 2 && line.contains("nowhere"), "{errno} {line}");
    let over_raw = images::child(&at("over_raw"), 4, "raw", None);
    fs::File::options().write(true).open(at("raw")).unwrap().write_all_at(&[7; 512], 1024).unwrap();
    assert_eq!(daemon.open(0, &over_raw), 0);
    assert_eq!(daemon.nbd(0).read(1024, 512), Ok(vec![7; 512]));
    close(&daemon);
    let vhd_as_raw = images::child(&at("vhd_as_raw"), 5, "raw", Some(1));
    assert_eq!(refused(&daemon, &vhd_as_raw).0, 22, "a raw file is no VHD");
}

#[test]
fn a_cycle_is_found_at_once() {
    let daemon = Daemon::attached();
    let at = |name: &str| daemon.run.join(name);
    let own = images::child(&at("own"), 1, "own", Some(1));
    let begun = Instant::now();
    let (errno, line) = refused(&daemon, &own);
    assert!(errno == libc::ELOOP && line.contains("own ancestor"), "{errno} {line}");
    let a = images::child(&at("a"), 2, "b", Some(3));
    images::child(&at("b"), 3, "c", Some(4));
    images::child(&at("c"), 4, "a", Some(2));
    assert_eq!(refused(&daemon, &a).0, libc::ELOOP);
    // A copy of a parent with the same id: other files, the same circle.
    let x = images::child(&at("x"), 5, "y", Some(6));
    images::child(&at("y"), 6, "z", Some(5));
    images::child(&at("z"), 5, "y", Some(6));
    assert_eq!(refused(&daemon, &x).0, libc::ELOOP);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_chain_may_have_128_images() {
    let daemon = Daemon::attached();
    let at = |n: u8| daemon.run.join(format!("i{n}"));
    images::vhd(&at(0), 0);
    crate::daemon_support::images::vhd(&at(0), 200);
    let mut name = String::new();
    for n in 1..=128u8 {
        let parent = if n == 1 { 200 } else { n - 1 };
        name = images::child(&at(n), n, &format!("i{}", n - 1), Some(parent));
        if n == 127 {
            assert_eq!(daemon.open(0, &name), 0);
            assert_eq!(daemon.stats(0)["images"].as_array().unwrap().len(), 128);
            daemon.nbd(0).write(0, &[1; 512]).unwrap();
            close(&daemon);
        }
    }
    let (errno, line) = refused(&daemon, &name);
    assert!(errno == libc::ELOOP && line.contains("128"), "{errno} {line}");
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let daemon = Daemon::attached();
    let fifo = daemon.run.join("fifo");
    let path = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: a path that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    for (path, errno) in [
        (fifo.to_str().unwrap(), 22),
        ("/dev/zero", 22),
        (daemon.run.to_str().unwrap(), libc::EISDIR),
        (daemon.path("ctl").to_str().unwrap(), 22),
    ] {
        for kind in ["aio", "vhd"] {
            assert_eq!(daemon.open(0, &format!("{kind}:{path}")), errno, "{kind}:{path}");
        }
    }
}

#[test]
fn a_chain_file_lists_images_leaf_first() {
    let daemon = Daemon::attached();
    let at = |name: &str| daemon.run.join(name);
    images::raw(&at("raw"), images::BYTES);
    images::child(&at("leaf"), 4, "raw", None);
    let list = at("chain");
    let (leaf, raw) = (at("leaf"), at("raw"));
    fs::write(&list, format!("vhd:{}\naio:{}\n", leaf.display(), raw.display())).unwrap();
    let name = format!("x-chain:{}", list.display());
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(daemon.stats(0)["images"].as_array().unwrap().len(), 2);
    assert_eq!(daemon.nbd(0).write(0, &[1; 512]), Ok(()));
    close(&daemon);
    fs::write(&list, format!("aio:{}\nvhd:{}\n", raw.display(), leaf.display())).unwrap();
    assert_eq!(refused(&daemon, &name).0, 22, "a raw image has no parent");
    fs::write(&list, "nonsense\n").unwrap();
    assert_eq!(refused(&daemon, &name).0, 22);
}

#[test]
fn a_read_only_disk_changes_nothing() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("d.vhd");
    let name = images::vhd(&path, 1);
    // Its trailing footer is damaged, which a writable open would repair at the end.
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[0; 512], length - 512)
        .unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let before = fs::read(&path).unwrap();
    assert_eq!(daemon.open_with(0, &name, read_only), 0);
    let mut client = daemon.nbd(0);
    assert_eq!((client.read(0, 512), client.write(0, &[1; 512])), (Ok(vec![0; 512]), Err(1)));
    assert_eq!((daemon.ask(kind::PAUSE, 0), daemon.resume(0, "")), (0, 0));
    close(&daemon);
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_damaged_trailing_footer_is_repaired_at_close() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("d.vhd");
    let name = images::vhd(&path, 1);
    let good = images::last_sector(&path);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 512], file.metadata().unwrap().len() - 512).unwrap();
    assert_eq!(daemon.open(0, &name), 0);
    close(&daemon);
    assert!(images::last_sector(&path) == good);
    file.set_len(file.metadata().unwrap().len() - 512).unwrap();
    assert_eq!(daemon.open(0, &name), 0);
    close(&daemon);
    assert!(images::last_sector(&path) == good);
}

#[test]
fn the_footer_stands_at_the_end_before_and_after_a_pause() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("d.vhd");
    let name = images::vhd(&path, 1);
    let good = images::last_sector(&path);
    assert_eq!(daemon.open(0, &name), 0);
    assert!(images::last_sector(&path) == good);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert_eq!(daemon.resume(0, ""), 0);
    assert!(images::last_sector(&path) == good);
    assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
    assert!(images::last_sector(&path) == good);
    // A resume that fails writes nothing.
    let child = images::child(&daemon.run.join("c.vhd"), 2, "gone", Some(1));
    let leaf = images::last_sector(&daemon.run.join("c.vhd"));
    let mut waiting = daemon.connect();
    let params = tap_ctl::messages::Params {
        path: crate::daemon_support::text(&child),
        ..Default::default()
    };
    waiting.send(&tap_ctl::messages::Message::with(kind::RESUME, 0, &params), &[]);
    assert!(!waiting.has_reply(Duration::from_millis(100)));
    assert!(images::last_sector(&daemon.run.join("c.vhd")) == leaf);
}

#[test]
fn what_was_written_is_there_after_the_close() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("d.vhd");
    let name = images::vhd(&path, 1);
    let good = images::last_sector(&path);
    assert_eq!(daemon.open(0, &name), 0);
    let mut client = daemon.nbd(0);
    client.write(5 << 20, &[9; 8192]).unwrap();
    client.flush().unwrap();
    close(&daemon);
    assert!(images::last_sector(&path) == good);
    assert!(fs::metadata(&path).unwrap().len() < 5 << 20, "space taken ahead is given back");
    assert_eq!(daemon.open_with(0, &name, read_only), 0);
    assert_eq!(daemon.nbd(0).read(5 << 20, 8192), Ok(vec![9; 8192]));
}

#[test]
fn a_pause_lets_go_of_the_files() {
    let daemon = Daemon::attached();
    for name in [images::vhd(&daemon.run.join("d"), 1), images::raw(&daemon.run.join("a"), 1 << 20)]
    {
        assert_eq!(daemon.open(0, &name), 0);
        let path = name.split_once(':').unwrap().1;
        let file = File::open(path).unwrap();
        assert!(tap_ctl::sys::flock(&file, tap_ctl::sys::Lock::Try).is_err(), "locked while open");
        daemon.nbd(0).write(0, &[1; 4096]).unwrap();
        assert_eq!(daemon.ask(kind::PAUSE, 0), 0);
        // The lock goes with the last reference to the file, the kernel's own among them.
        tap_ctl::sys::flock(&file, tap_ctl::sys::Lock::Try).expect("nobody has it open");
        drop(file);
        assert_eq!(daemon.resume(0, ""), 0);
        close(&daemon);
        let file = File::open(path).unwrap();
        tap_ctl::sys::flock(&file, tap_ctl::sys::Lock::Try).expect("nobody has it open");
    }
}

#[test]
fn a_second_writer_waits_or_is_refused() {
    let daemon = Daemon::attached();
    let name = images::raw(&daemon.run.join("a"), 1 << 20);
    waits_or_is_refused(&daemon, &name);
}

#[test]
fn a_second_writer_of_a_device_too() {
    let daemon = Daemon::attached();
    let Some(device) = Loop::new(&daemon.run.join("a"), 512).filter(|_| is_root()) else {
        return skip("no loop devices here (root, loop module)");
    };
    waits_or_is_refused(&daemon, &format!("aio:{}", device.0));
}

/// Opens an image in one daemon, then in two more.
#[track_caller]
fn waits_or_is_refused(daemon: &Daemon, name: &str) {
    assert_eq!(daemon.open(0, name), 0);
    let other = Daemon::attached();
    assert_eq!(other.open(0, name), 0);
    let who = format!("being written by tapdisk {}", daemon.pid);
    assert!(other.stats(0)["waits"].as_str().is_some_and(|text| text.contains(&who)));
    crate::daemon_support::until("the log", || other.log().contains(&who));
    let strict = Daemon::spawn_with(set("TAPDISK_LOCK", "strict"));
    strict.attach(0);
    assert_eq!(strict.open(0, name), libc::EBUSY);
    assert_eq!(strict.open_with(0, name, read_only), 0);
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    crate::daemon_support::until("the other disk's turn", || other.stats(0)["waits"].is_null());
    // Beside the reader, which is strict only about what it writes itself.
    assert_eq!(other.nbd(0).write(0, &[1; 512]), Ok(()));
}

#[test]
fn read_caching_is_shown_and_never_used_for_writing() {
    let daemon = Daemon::attached();
    let base = daemon.run.join("base");
    images::vhd(&base, 1);
    let name = images::child(&daemon.run.join("leaf"), 2, "base", Some(1));
    assert_eq!(daemon.open_with(0, &name, |params| params.flags = flag::NO_O_DIRECT), 0);
    assert_eq!(daemon.stats(0)["read_caching"], "true");
    // Flags of the open files, leaf and parent; a file system may have no O_DIRECT.
    let direct = |path: &Path| {
        let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap().flatten();
        let fd =
            fds.into_iter().find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path)).unwrap();
        let info = format!("/proc/{}/fdinfo/{}", daemon.pid, fd.file_name().to_str().unwrap());
        let text = fs::read_to_string(info).unwrap();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap() & libc::O_DIRECT != 0
    };
    let run = daemon.run.canonicalize().unwrap();
    assert!(!direct(&run.join("base")));
    if !direct(&run.join("leaf")) {
        skip("the file system of the temporary directory has no O_DIRECT");
    }
}

/// A block device of 8 MiB over a file, with sectors of so many bytes.
struct Loop(String);

impl Loop {
    fn new(path: &Path, sector: u32) -> Option<Loop> {
        File::create(path).unwrap().set_len(8 << 20).unwrap();
        let mut losetup = std::process::Command::new("losetup");
        losetup.args(["--show", "-f", "-b", &sector.to_string()]).arg(path);
        let out = losetup.output().ok().filter(|out| out.status.success())?;
        Some(Loop(String::from_utf8(out.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The device keeps its protection for whoever gets it next.
        let _ = std::process::Command::new("blockdev").args(["--setrw", &self.0]).status();
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

impl Loop {
    fn protect(&self, how: &str) {
        let done = std::process::Command::new("blockdev").args([how, &self.0]).status();
        assert!(done.unwrap().success(), "blockdev {how}");
    }
}

#[test]
fn a_write_protected_device_is_refused_at_open_and_closes_all_the_same() {
    let daemon = Daemon::attached();
    let Some(device) = Loop::new(&daemon.run.join("a"), 512).filter(|_| is_root()) else {
        return skip("no loop devices here (root, loop module)");
    };
    let vhd = images::vhd(Path::new(&device.0), 1);
    for name in [vhd.clone(), format!("aio:{}", device.0)] {
        device.protect("--setro");
        assert_eq!(daemon.open(0, &name), libc::EROFS, "{name}");
        assert_eq!(daemon.open_with(0, &name, read_only), 0);
        assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
        device.protect("--setrw");
        // Protected while it is open: writes fail, and there is nothing left that a close could
        // fail of.
        for end in [kind::CLOSE, kind::PAUSE] {
            assert_eq!(daemon.open(0, &name), 0, "{name}");
            daemon.nbd(0).write(0, &[1; 4096]).unwrap();
            device.protect("--setro");
            assert!(daemon.nbd(0).write(4096, &[2; 4096]).is_err());
            assert_eq!(daemon.ask(end, 0), 0, "{name}");
            device.protect("--setrw");
        }
        assert_eq!(daemon.resume(0, ""), 0);
        assert_eq!(daemon.nbd(0).read(0, 4096), Ok(vec![1; 4096]), "what was acknowledged");
        assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    }
    let log = daemon.log();
    assert!(log.contains("is write-protected: open it read-only (-R), or lift it"), "{log}");
    assert!(log.contains("has become write-protected; its end stays"), "{log}");
}

#[test]
fn block_devices_of_both_sector_sizes() {
    let daemon = Daemon::attached();
    for sector in [512, 4096] {
        let file = daemon.run.join(format!("dev{sector}"));
        let Some(device) = Loop::new(&file, sector).filter(|_| is_root()) else {
            return skip("no loop devices here (root, loop module)");
        };
        let reply =
            daemon.call(&crate::daemon_support::open(0, &format!("aio:{}", device.0), |_| {}), &[]);
        assert_eq!(
            (reply.errno(), reply.info().sectors, reply.info().sector_size),
            (0, 16384, sector)
        );
        let mut client = daemon.nbd(0);
        assert_eq!(client.size, 8 << 20, "sectors are counted in 512 bytes");
        client.write(4096, &[3; 4096]).unwrap();
        assert_eq!(client.read(4096, 4096), Ok(vec![3; 4096]));
        assert_eq!(client.read(512, 512).is_ok(), sector == 512);
        client.flush().unwrap();
        close(&daemon);
        let vhd = daemon.open(0, &format!("vhd:{}", device.0));
        assert_eq!(vhd, 22);
    }
}

#[test]
fn the_log_says_which_image_failed_and_why() {
    let daemon = Daemon::attached();
    let path = daemon.run.join("wild");
    let name = images::vhd(&path, 1);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // The BAT's first entry, behind footer and header: a place that no file has.
    file.write_all_at(&0x00ff_ff00_u32.to_be_bytes(), 1536).unwrap();
    assert_eq!(daemon.open_with(0, &name, read_only), 0);
    assert_eq!(daemon.nbd(0).read(0, 512), Err(libc::EIO as u32));
    let want = format!("{}: the BAT entry points outside the file: ", path.display());
    // Lines wait in memory while a disk is served.
    close(&daemon);
    until("the log has it", || daemon.log().contains(&want));
}
