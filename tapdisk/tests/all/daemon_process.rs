//! Start and end of the process (spec/operations.md §1, §3): verdicts, limits, signals, logs, and
//! nothing left behind.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::daemon_support::{Daemon, command, images, is_root, names, output, skip, until};
use tap_ctl::messages::kind;

fn run_dir() -> tempfile::TempDir {
    // A directory that others can write is refused.
    tap_ctl::sys::settle_umask();
    tempfile::tempdir().unwrap()
}

/// Limits of the program that is started.
fn limit(command: &mut Command, which: u32, value: u64) {
    // SAFETY: setrlimit is safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
            match libc::setrlimit(which as _, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

#[test]
fn whether_there_are_cores_is_the_callers_to_say() {
    for (soft, hard) in [(0, 0), (0, 4096), (4096, 8192), (8192, 8192)] {
        let daemon = Daemon::spawn_with(|start| {
            // SAFETY: setrlimit is safe between fork and exec.
            unsafe {
                start.pre_exec(move || {
                    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
                    match libc::setrlimit(libc::RLIMIT_CORE, &limit) {
                        0 => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    }
                });
            }
        });
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid)).unwrap();
        let cores = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let cores: Vec<&str> = cores.unwrap().split_whitespace().take(2).collect();
        assert_eq!(cores, [soft.to_string(), hard.to_string()]);
    }
}

#[test]
fn usage_and_version() {
    let dir = run_dir();
    let with = |args: &[&str]| {
        let mut command = command(dir.path());
        command.args(args);
        let out = output(command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
    };
    let (code, stdout, stderr) = with(&["-h"]);
    assert!(code == 0 && stdout.is_empty() && stderr.starts_with("usage: tapdisk"), "{stderr}");
    for bad in [&["-Z"][..], &["x"], &["-D", "x"]] {
        let (code, stdout, stderr) = with(bad);
        assert!(code == 22 && stdout.is_empty() && stderr.contains("usage: tapdisk"), "{bad:?}");
    }
    let (code, stdout, _) = with(&["--version"]);
    assert!(code == 0 && stdout.starts_with("tapdisk "));
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn the_caller_gets_the_path_and_the_end_of_its_pipe() {
    // `output` reads to the end: a daemon that kept the pipe would fail it.
    let daemon = Daemon::spawn();
    assert_eq!(daemon.names(), ["ctlP", "nbdclientP"]);
    let mode = fs::metadata(daemon.path("ctl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755 & mode);
    let link = |name: &str| fs::read_link(format!("/proc/{}/{name}", daemon.pid)).unwrap();
    assert_eq!(link("cwd"), Path::new("/"));
    for fd in 0..3 {
        assert_eq!(link(&format!("fd/{fd}")), Path::new("/dev/null"));
    }
    let comm = fs::read_to_string(format!("/proc/{}/comm", daemon.pid)).unwrap();
    assert_eq!(comm, "tapdisk\n");
}

#[test]
fn inherited_descriptors_are_closed() {
    let dir = run_dir();
    let path = dir.path().join("lock");
    let lock = File::create(&path).unwrap();
    // SAFETY: takes numbers; the copy is not closed on exec.
    let copy = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_DUPFD, 100) };
    assert!(copy >= 100);
    let daemon = Daemon::spawn_in(dir.path(), |_| {});
    // SAFETY: closes the copy made above.
    unsafe { libc::close(copy) };
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap().flatten();
    let held = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to == path);
    assert!(!held);
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let dir = run_dir();
    let mut refused: Vec<(&str, Command, i32, &str)> = Vec::new();
    // A run directory that cannot be.
    let file = dir.path().join("file");
    File::create(&file).unwrap();
    refused.push(("a file in the way", command(&file.join("run")), libc::ENOTDIR, "file/run"));
    // One with a path too long for a socket.
    let long = dir.path().join("x".repeat(100));
    refused.push(("a long path", command(&long), libc::ENAMETOOLONG, "cannot listen on"));
    // No descriptors.
    let mut few = command(&dir.path().join("few"));
    limit(&mut few, libc::RLIMIT_NOFILE, 8);
    refused.push(("few descriptors", few, libc::EMFILE, "cannot"));
    for (what, command, errno, sentence) in refused {
        let out = output(command);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(errno), "{what}: {said}");
        assert!(said.starts_with("tapdisk: ") && said.contains(sentence), "{what}: {said}");
        assert_eq!(said.lines().count(), 1, "{what}: {said}");
        assert!(out.stdout.is_empty());
    }
    for left in ["few", &"x".repeat(100)] {
        assert_eq!(names(&dir.path().join(left)), [""; 0]);
    }
}

#[test]
fn stale_sockets_are_replaced_and_files_are_not() {
    let dir = run_dir();
    let daemon = Daemon::attached();
    let name = images::raw(&daemon.run.join("a"), 1 << 20);
    // What a dead tapdisk of the same pid left.
    drop(std::os::unix::net::UnixListener::bind(daemon.socket("nbd", 0)).unwrap());
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!(daemon.nbd(0).size, 1 << 20);
    assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
    File::create(daemon.socket("nbdserver", 0)).unwrap();
    assert_eq!(daemon.open(0, &name), libc::EADDRINUSE);
    assert_eq!(
        daemon.names().iter().filter(|name| name.starts_with("nbd")).count(),
        2,
        "{:?}",
        daemon.names()
    );
    assert_eq!(daemon.state(0), 2);
    drop(dir);
}

#[test]
fn a_kill_leaves_a_stale_socket_and_a_free_marker() {
    let dir = run_dir();
    let daemon = Daemon::spawn_in(dir.path(), |_| {});
    daemon.attach(0);
    daemon.signal(libc::SIGKILL);
    daemon.wait_for_end();
    assert_eq!(daemon.names(), ["ctlP", "nbdclientP", "tapdisk"]);
    let error = std::os::unix::net::UnixStream::connect(daemon.path("ctl")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    let marker = File::open(daemon.marker(0)).unwrap();
    tap_ctl::sys::flock(&marker, tap_ctl::sys::Lock::Try).expect("the lock is gone with it");
}

#[test]
fn a_signal_to_stop_acts_at_once_and_leaves_nothing() {
    for number in [libc::SIGINT, libc::SIGBUS] {
        let daemon = Daemon::spawn();
        daemon.signal(number);
        daemon.wait_for_end();
        assert_eq!(daemon.names(), [""; 0]);
    }
    let daemon = Daemon::attached();
    let path = daemon.run.join("d.vhd");
    let name = images::vhd(&path, 1);
    assert_eq!(daemon.open(0, &name), 0);
    assert_eq!((daemon.ask(kind::PAUSE, 0), daemon.resume(0, "")), (0, 0));
    daemon.signal(libc::SIGINT);
    daemon.wait_for_end();
    assert_eq!(daemon.names(), ["d.vhd", "tapdisk"]);
    assert!(images::last_sector(&path).starts_with(b"conectix"), "closed properly");
}

/// As a script's background job, or a caller with a mask of his own, would start it.
#[test]
fn what_the_caller_ignores_or_blocks_counts_no_more() {
    let numbers = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGCHLD];
    for (ignored, blocked) in [(true, false), (false, true), (true, true)] {
        let start = || {
            Daemon::spawn_with(|start| {
                // SAFETY: these calls are safe between fork and exec; the set is initialised before
                // it is used.
                unsafe {
                    start.pre_exec(move || {
                        let mut set = std::mem::zeroed();
                        libc::sigemptyset(&mut set);
                        for number in numbers {
                            libc::sigaddset(&mut set, number);
                            if ignored {
                                libc::signal(number, libc::SIG_IGN);
                            }
                        }
                        if blocked {
                            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
                        }
                        Ok(())
                    });
                }
            })
        };
        for number in [libc::SIGINT, libc::SIGTERM] {
            let daemon = start();
            daemon.signal(libc::SIGUSR1);
            until("a report", || daemon.log_file().exists());
            daemon.signal(number);
            daemon.wait_for_end();
            assert_eq!(daemon.names(), [""; 0], "{number}: {ignored} {blocked}");
        }
    }
}

#[test]
fn a_signal_to_stop_ends_all_disks_soon() {
    let daemon = Daemon::attached();
    daemon.attach(1);
    for minor in 0..2 {
        let name = images::raw(&daemon.run.join(format!("a{minor}")), 1 << 20);
        assert_eq!(daemon.open(minor, &name), 0);
    }
    daemon.attach(2);
    let begun = std::time::Instant::now();
    daemon.signal(libc::SIGINT);
    daemon.wait_for_end();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(daemon.names(), ["a0", "a1", "tapdisk"]);
}

/// A file system with room for so many names, mounted until this goes.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(names: u32) -> Option<Small> {
        let dir = run_dir();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("nr_inodes={},mode=755", names + 1), "none"]);
        let mounted = is_root() && mount.arg(dir.path()).output().ok()?.status.success();
        mounted.then_some(Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn no_room_in_the_run_directory() {
    let Some(dir) = Small::mount(1) else { return skip("no small tmpfs here (root)") };
    let out = output(command(dir.0.path()));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(libc::ENOSPC), "{said}");
    assert!(said.contains("nbdclient") && said.contains("No space"), "{said}");
    assert_eq!(names(dir.0.path()), [""; 0]);
    // Room for the process and a marker, and for two of the four sockets of a disk.
    let dir = Small::mount(6).expect("mounted before");
    let elsewhere = run_dir();
    let name = images::raw(&elsewhere.path().join("a"), 1 << 20);
    let daemon = Daemon::spawn_in(dir.0.path(), |start| {
        start.env("TAPDISK_LOG_DIR", elsewhere.path());
    });
    daemon.attach(0);
    let before = daemon.names();
    assert_eq!(daemon.open(0, &name), libc::ENOSPC);
    assert_eq!((daemon.names(), daemon.state(0)), (before, 2));
    assert_eq!(daemon.ask(kind::DETACH, 0), 0);
    daemon.wait_for_end();
}

#[test]
fn descriptors_are_kept_in_ten_places() {
    let daemon = Daemon::spawn();
    // Beside the standard streams.
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid)).unwrap().flatten();
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/null")))
            .count()
            - 3
    };
    let send = |name: &str| {
        crate::daemon_support::pass(
            &daemon.path("nbdclient"),
            name,
            &File::open("/dev/null").unwrap(),
        );
    };
    (0..12).for_each(|i| send(&format!("name{i}")));
    until("ten of twelve", || open() == 10);
    send("name3");
    until("replaced", || open() == 10);
    assert!(daemon.list().is_empty());
}

#[test]
fn a_report_keeps_the_log_and_a_rename_starts_a_new_one() {
    let daemon = Daemon::attached();
    let name = images::raw(&daemon.run.join("a"), 1 << 20);
    assert_eq!(daemon.open(0, &name), 0);
    for number in [libc::SIGUSR2, libc::SIGHUP, libc::SIGXFSZ, libc::SIGPIPE] {
        daemon.signal(number);
    }
    assert_eq!(daemon.list().len(), 1, "harmless");
    assert_eq!(daemon.log_file().exists(), !is_root(), "only a note on limits");
    daemon.signal(libc::SIGUSR1);
    until("a report", || daemon.log().contains("minor 0: open aio:"));
    let first = daemon.log().lines().next().unwrap().to_owned();
    assert!(first.ends_with(&format!("tapdisk[{}]: log start, level 0", daemon.pid)), "{first}");
    let old = daemon.logs.join("old");
    fs::rename(daemon.log_file(), &old).unwrap();
    daemon.signal(libc::SIGHUP);
    until("a new file", || daemon.log().contains("log start"));
    assert!(fs::read_to_string(old).unwrap().contains("minor 0: open"));
    assert_eq!((daemon.ask(kind::CLOSE, 0), daemon.ask(kind::DETACH, 0)), (0, 0));
    daemon.wait_for_end();
    assert!(daemon.log().contains("closing log, 0 errors"), "{}", daemon.log());
}

#[test]
fn signals_during_the_start_do_no_harm() {
    for _ in 0..20 {
        let dir = run_dir();
        let mut child = command(dir.path()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // SAFETY: our own child, which is not waited for before.
        unsafe { libc::kill(child.id() as i32, libc::SIGHUP) };
        let status = child.wait().unwrap();
        // Before the very first instruction of ours it may die of it; then nothing is left.
        if status.success() {
            let ctl = names(dir.path()).into_iter().find(|name| name.starts_with("ctl")).unwrap();
            let pid: i32 = ctl[3..].parse().unwrap();
            // SAFETY: the daemon that was just started.
            unsafe { libc::kill(pid, libc::SIGINT) };
            until("the end", || names(dir.path()).is_empty());
        } else {
            assert_eq!(names(dir.path()), [""; 0]);
        }
    }
}

#[test]
fn memory_is_locked_where_that_is_allowed() {
    let daemon = Daemon::attached();
    let name = images::raw(&daemon.run.join("a"), 1 << 20);
    assert_eq!(daemon.open(0, &name), 0);
    let stats = daemon.stats(0);
    let memory = &stats["memory"];
    if !is_root() {
        return skip("only root may lock everything");
    }
    if memory["locked"] == false {
        return skip("this root may not lock memory");
    }
    assert_eq!(memory["arena_locked"], true);
    assert!(memory["locked_bytes"].as_u64() >= memory["arena_bytes"].as_u64(), "{memory}");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(locked << 10 >= memory["arena_bytes"].as_u64().unwrap());
    // A host has hundreds of disks, and none of this can be swapped. The stack of the worker that
    // opened the disk is given back a moment after its answer.
    until("an idle disk has at most 3.8 MB of its own", || own_kib(daemon.pid) <= 3800);
}

/// Private memory of a process, in KiB.
fn own_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    own.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A daemon of an ordinary user with so many bytes of RLIMIT_MEMLOCK.
fn ordinary(memlock: u64) -> Option<(Daemon, tempfile::TempDir)> {
    const NOBODY: u32 = 65534;
    if !is_root() {
        skip("only root can become an ordinary user");
        return None;
    }
    let dir = run_dir();
    // The program may lie where nobody else may look. Not copied by this process: while it has the
    // file open for writing, so may a child of another test, and then it cannot be run (ETXTBSY).
    let program = dir.path().join("tapdisk");
    let copied = Command::new("cp").arg(crate::daemon_support::program()).arg(&program).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let run = dir.path().join("run");
    let daemon = Daemon::spawn_in(&run, |start| {
        let mut other = Command::new(&program);
        other.envs(start.get_envs().filter_map(|(name, value)| Some((name, value?))));
        other.env("TAPDISK_RUN_DIR", &run).uid(NOBODY).gid(NOBODY);
        limit(&mut other, libc::RLIMIT_MEMLOCK, memlock);
        *start = other;
    });
    Some((daemon, dir))
}

#[test]
fn an_ordinary_user_gets_what_the_limit_allows() {
    for (memlock, locked, log) in [
        (8 << 20, true, "raise it with"),
        (1 << 20, true, "requests at once"),
        (64 << 10, false, "unlocked"),
    ] {
        let Some((daemon, dir)) = ordinary(memlock) else { return };
        daemon.attach(0);
        let path = dir.path().join("run/a");
        let name = images::raw(&path, 1 << 20);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        fs::set_permissions(daemon.marker(0), PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(daemon.open(0, &name), 0, "{}", daemon.log());
        let stats = daemon.stats(0);
        assert_eq!(stats["memory"]["locked"], false);
        assert_eq!(stats["memory"]["arena_locked"], locked, "{memlock}: {stats}");
        let mut client = daemon.nbd(0);
        client.write(0, &[7; 65536]).unwrap();
        assert_eq!(client.read(0, 65536), Ok(vec![7; 65536]));
        assert_eq!(daemon.ask(kind::CLOSE, 0), 0);
        until("the log", || daemon.log().contains(log));
        assert!(daemon.log().contains("ulimit -l"), "{}", daemon.log());
        assert_eq!(daemon.ask(kind::DETACH, 0), 0);
        daemon.wait_for_end();
    }
}

#[test]
fn in_the_foreground_it_logs_to_standard_error() {
    let dir = run_dir();
    let mut child = command(dir.path())
        .arg("-D")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    assert_eq!(Path::new(line.trim_end()), dir.path().join(format!("ctl{}", child.id())));
    // SAFETY: our own child.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let mut log = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut log).unwrap();
    assert!(child.wait().unwrap().success() && log.contains("is ready"), "{log}");
}

#[test]
fn an_idle_disk_is_small_and_idle() {
    let daemon = Daemon::attached();
    let name = images::vhd(&daemon.run.join("d.vhd"), 1);
    assert_eq!(daemon.open(0, &name), 0);
    let cpu = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid)).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu();
    let mut client = daemon.connect();
    client.send(&tap_ctl::messages::Message::new(kind::LIST, 0xffff), &[]);
    assert!(client.has_reply(Duration::from_secs(5)));
    assert!(cpu() - before < 20, "idle means idle");
    let resident = daemon.stats(0)["memory"]["resident_bytes"].as_u64().unwrap();
    let limit = if cfg!(debug_assertions) { 16 << 20 } else { 8 << 20 };
    assert!(resident <= limit, "{resident} bytes resident");
}

#[test]
fn a_daemon_whose_parent_was_killed_before_its_verdict_ends() {
    let dir = run_dir();
    // A full pipe holds the daemon up where it prints its path, just before its verdict.
    let (read, write) = tap_ctl::sys::pipe().unwrap();
    let (mut read, mut write) = (File::from(read), File::from(write));
    // SAFETY: takes numbers.
    let room = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    let filling = vec![b'x'; usize::try_from(room).unwrap()];
    write.write_all(&filling).unwrap();
    let mut start = command(dir.path());
    start.stdout(write).stderr(std::process::Stdio::null());
    let mut parent = start.spawn().unwrap();
    drop(start);
    until("the daemon's sockets", || names(dir.path()).len() == 2);
    assert!(parent.try_wait().unwrap().is_none(), "the parent waits for the verdict");
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert_eq!(names(dir.path()).len(), 2, "the daemon is there");
    let mut said = Vec::new();
    // To the end: the daemon has let go of its pipe.
    read.read_to_end(&mut said).unwrap();
    until("the end of the daemon", || names(dir.path()).is_empty());
}
