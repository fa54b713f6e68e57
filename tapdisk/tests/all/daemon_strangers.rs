//! Who may speak to a daemon, and what it makes for others to use (docs/security.md).

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon_support::{Daemon, PATIENCE, images, is_root, skip, until};
use tap_ctl::messages::{Message, kind};

const NOBODY: libc::uid_t = 65534;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A daemon whose caller had left this umask, with an open disk that has written down all it writes
/// down.
fn daemon_under(umask: u32) -> Daemon {
    let daemon = Daemon::spawn_with(|start: &mut Command| {
        // SAFETY: umask is safe between fork and exec.
        unsafe {
            start.pre_exec(move || {
                libc::umask(umask);
                Ok(())
            });
        }
    });
    daemon.attach(0);
    let name = images::raw(&daemon.run.join("a"), 1 << 20);
    assert_eq!(daemon.open(0, &name), 0);
    daemon
}

fn sockets(daemon: &Daemon) -> Vec<PathBuf> {
    let disk = ["nbd", "nbd-old", "nbdserver", "nbdserver-new"].map(|s| daemon.socket(s, 0));
    let process = ["ctl", "nbdclient"].map(|name| daemon.path(name));
    process.into_iter().chain(disk).collect()
}

#[test]
fn sockets_are_their_owners_alone_whatever_the_umask() {
    for umask in [0, 0o022, 0o077, 0o777] {
        let daemon = daemon_under(umask);
        for socket in sockets(&daemon) {
            assert_eq!(mode(&socket), 0o600, "umask {umask:03o}: {}", socket.display());
        }
    }
}

#[test]
fn others_write_nothing_that_a_daemon_makes() {
    for (umask, own) in [(0, 0o022), (0o022, 0o022), (0o077, 0o077), (0o777, 0o077)] {
        let daemon = daemon_under(umask);
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).unwrap();
        assert!(status.contains(&format!("Umask:\t{own:04o}\n")), "{umask:03o}: {status}");
        daemon.signal(libc::SIGUSR1);
        until("a report", || daemon.log_file().exists());
        assert_eq!(mode(&daemon.logs), 0o755 & !own);
        assert_eq!(mode(&daemon.log_file()), 0o644 & !own);
        assert_eq!(mode(Path::new(&format!("/dev/shm/td3-{}", daemon.pid))), 0o700);
    }
}

#[test]
fn a_run_directory_that_others_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let out = crate::daemon_support::output(crate::daemon_support::command(dir.path()));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(libc::EACCES), "{said}");
    assert!(said.contains("can be written by others (mode 1777): chmod go-w it"), "{said}");
    assert_eq!(crate::daemon_support::names(dir.path()), [""; 0]);
}

/// Does something as another user. Linux keeps credentials by thread, and only std's calls know of
/// it.
fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: takes numbers; it changes this thread alone, which ends here.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            assert_eq!(done, 0);
            act()
        });
        thread.join().unwrap()
    })
}

/// What a stranger gets who is let through to a socket and asks for something.
fn answer(socket: &Path, request: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("the file lets everybody in");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Who is turned away may hear of it at any moment.
    let _ = stream.write_all(request);
    let mut got = Vec::new();
    match stream.read_to_end(&mut got) {
        Ok(_) => got,
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => got,
        Err(e) => panic!("{}: not turned away: {e}", socket.display()),
    }
}

#[test]
fn a_stranger_is_turned_away_also_where_the_files_let_him_in() {
    if !is_root() {
        return skip("only root can become a stranger");
    }
    let daemon = daemon_under(0);
    // Somebody has "repaired" the permissions.
    fs::set_permissions(&daemon.run, PermissionsExt::from_mode(0o755)).unwrap();
    let all = sockets(&daemon);
    for socket in &all {
        fs::set_permissions(socket, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let request = Message::new(kind::PAUSE, 0);
    for socket in &all {
        let got = as_nobody(|| answer(socket, request.as_bytes()));
        assert!(got.is_empty(), "{}: {got:?}", socket.display());
    }
    assert_eq!(daemon.state(0), 0, "not paused");
    // Those who may come in still do.
    assert_eq!((daemon.ask(kind::PAUSE, 0), daemon.resume(0, "")), (0, 0));
    assert_eq!(daemon.nbd(0).size, 1 << 20);
    assert_eq!((daemon.ask(kind::CLOSE, 0), daemon.ask(kind::DETACH, 0)), (0, 0));
    daemon.wait_for_end();
    let log = daemon.log();
    for door in ["/ctl", "/nbdclient", "NBD sockets"] {
        let told = |line: &str| line.contains(door) && line.contains("user 65534 (process ");
        assert!(log.lines().any(told), "{door}: {log}");
    }
}
