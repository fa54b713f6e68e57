//! Start one tapdisk (`tap-ctl.md` §4.4).
//!
//! ```text
//!  tap-ctl ── fork, exec "tapdisk" ──► child ── daemonises ──► tapdisk
//!     │  ◄── exit code (errno) ──────────┘                        │
//!     └──◄── pipe: sentences, then <run dir>/ctl<pid> ────────────┘
//! ```
//!
//! The program is the one of tap-ctl's own installation; the variables TAPDISK and TAPDISK2 are
//! ignored, as the original does. First match:
//! 1. `$TAPDISK_PROGRAM`, for tests and for running out of a build tree;
//! 2. `<folder of tap-ctl>/../libexec/tapdisk`;
//! 3. `<folder of tap-ctl>/tapdisk`, which is where cargo puts it;
//! 4. `$TAPDISK_LIBEXECDIR/tapdisk`, where the variable is that of the build;
//! 5. `/usr/libexec/tapdisk`.

use crate::error::{Error, io_errno, strerror};
use crate::paths::pid_of_ctl;
use crate::sys;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// How often a child that was killed by SIGUSR1 is started again.
const TRIES_MAX: u32 = 10;
/// Longest text that a starting daemon may print, in bytes; the rest is not read.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// A daemon that was started. Its control socket accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spawned {
    /// Its pid.
    pub pid: i32,
    /// What it printed besides the path of its control socket; usually empty.
    pub said: String,
}

/// Start the daemon of this installation.
///
/// # Errors
/// [`Error::Spawn`]: ENOENT if there is no program, the daemon's own errno, EINTR if it was
/// killed, EPERM if it gave no control path.
pub fn spawn() -> Result<Spawned, Error> {
    spawn_program(&program())
}

/// Start a given daemon program.
///
/// # Errors
/// See [`spawn`].
pub fn spawn_program(program: &Path) -> Result<Spawned, Error> {
    for _ in 0..TRIES_MAX {
        if let Some(spawned) = try_once(program)? {
            return Ok(spawned);
        }
    }
    let reason = format!("it was killed by SIGUSR1 {TRIES_MAX} times");
    Err(failure(program, libc::EINTR, reason, String::new()))
}

/// The daemon program of this installation; the module's text has the order of search.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("TAPDISK_PROGRAM").filter(|name| !name.is_empty()) {
        return program.into();
    }
    let exe = std::env::current_exe().ok();
    let found = candidates(exe.as_deref()).into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| LAST_RESORT.into())
}

const LAST_RESORT: &str = "/usr/libexec/tapdisk";

fn candidates(exe: Option<&Path>) -> Vec<PathBuf> {
    let folder = exe.and_then(Path::parent);
    let beside = folder.map(|folder| [folder.join("../libexec/tapdisk"), folder.join("tapdisk")]);
    let built = option_env!("TAPDISK_LIBEXECDIR").map(|dir| Path::new(dir).join("tapdisk"));
    beside.into_iter().flatten().chain(built).collect()
}

/// `None`: killed by SIGUSR1, to be started again.
fn try_once(program: &Path) -> Result<Option<Spawned>, Error> {
    let cannot = |error: std::io::Error| {
        let errno = io_errno(&error);
        failure(program, errno, strerror(errno), String::new())
    };
    let (read, write) = sys::pipe().map_err(cannot)?;
    let mut command = Command::new(program);
    command.arg0("tapdisk").stdin(Stdio::null());
    command.stdout(write.try_clone().map_err(cannot)?).stderr(write);
    let mut child = command.spawn().map_err(cannot)?;
    // The command holds our copies of the pipe's write end: without this there is no end-of-file.
    drop(command);
    let status = child.wait().map_err(cannot)?;
    let mut pipe = File::from(read);
    match status.code() {
        Some(0) => control_path(program, pipe).map(Some),
        None if status.signal() == Some(libc::SIGUSR1) => Ok(None),
        _ => {
            let said = what_it_said(&mut pipe);
            // The parent was killed after the daemon had begun: it is not known to the caller, so
            // it goes.
            let ctl = said.lines().rev().find_map(|line| pid_of_ctl(Path::new(line)));
            if let Some(pid) = ctl {
                let _ = sys::interrupt(pid);
            }
            Err(died(program, status, said))
        }
    }
}

/// Read up to the line with the path of the control socket.
fn control_path(program: &Path, pipe: File) -> Result<Spawned, Error> {
    let mut said = String::new();
    for line in BufReader::new(pipe.take(SAID_BYTES_MAX)).split(b'\n') {
        let Ok(line) = line else { break };
        let path = Path::new(OsStr::from_bytes(&line));
        if let Some(pid) = pid_of_ctl(path).filter(|_| path.is_absolute()) {
            return Ok(Spawned { pid, said });
        }
        said.push_str(&String::from_utf8_lossy(&line));
        said.push('\n');
    }
    let reason = "it printed no path of a control socket".to_owned();
    Err(failure(program, libc::EPERM, reason, said))
}

/// What is in the pipe of a child that has died. A grandchild may hold the pipe open, so this
/// takes what is there and does not wait for the end.
fn what_it_said(pipe: &mut File) -> String {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    while (said.len() as u64) < SAID_BYTES_MAX && sys::readable(pipe.as_fd(), Duration::ZERO) {
        match pipe.read(&mut part) {
            Ok(count) if count > 0 => said.extend_from_slice(&part[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// A non-zero exit code is the errno of the failure; a signal is EINTR.
fn died(program: &Path, status: ExitStatus, said: String) -> Error {
    match (status.code(), status.signal()) {
        (Some(errno), _) => failure(program, errno, strerror(errno), said),
        (None, signal) => {
            let reason = format!("it was killed by signal {}", signal.unwrap_or(0));
            failure(program, libc::EINTR, reason, said)
        }
    }
}

fn failure(program: &Path, errno: i32, reason: String, said: String) -> Error {
    Error::Spawn { program: program.to_owned(), errno, reason, said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    /// Start a daemon that is a shell script.
    fn started(script: &str) -> Result<Spawned, Error> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let program = dir.path().join("daemon");
        let options = std::fs::OpenOptions::new().write(true).create(true).mode(0o700).clone();
        // No signal is ignored that the tests' caller ignores.
        let text = format!("#!/usr/bin/env -S --default-signal sh\n{script}\n");
        write!(options.open(&program).expect("open"), "{text}").expect("write");
        // Another test's fork may hold the script open for writing for a moment: ETXTBSY.
        loop {
            match spawn_program(&program) {
                Err(Error::Spawn { errno: libc::ETXTBSY, .. }) => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    #[test]
    fn a_daemon_whose_parent_was_killed_is_not_left_running() {
        // Whoever runs the tests in the background has SIGINT ignored, and sleep would inherit
        // that.
        let words = ["--default-signal=INT", "sleep", "100"];
        let mut daemon = Command::new("env").args(words).spawn().expect("sleep");
        // Until it is sleep it may still be a copy of ourselves.
        let name = format!("/proc/{}/comm", daemon.id());
        while std::fs::read_to_string(&name).expect("it runs") != "sleep\n" {
            std::thread::yield_now();
        }
        let said = format!("echo /run/x/ctl{}; kill -9 $$", daemon.id());
        assert_eq!(error(&said).0, libc::EINTR);
        assert_eq!(daemon.wait().expect("its end").signal(), Some(libc::SIGINT));
    }

    fn error(script: &str) -> (i32, String) {
        match started(script).expect_err("does not start") {
            Error::Spawn { errno, said, .. } => (errno, said),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_pid_is_in_the_control_path() {
        let spawned = started("echo /run/blktap-control/ctl4711").expect("starts");
        assert_eq!(spawned, Spawned { pid: 4711, said: String::new() });
    }

    #[test]
    fn sentences_before_the_path_are_kept() {
        let spawned = started("echo cannot lock memory >&2; echo /r/ctl1").expect("starts");
        assert_eq!(spawned, Spawned { pid: 1, said: "cannot lock memory\n".into() });
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_open_is_not_waited_for() {
        // The daemon holds the pipe until the fifo is opened, which is after spawn returned.
        let dir = tempfile::tempdir().expect("temporary directory");
        let fifo = dir.path().join("fifo");
        let script = format!("mkfifo {0}; (echo /r/ctl5; exec cat {0}) & exit 0", fifo.display());
        assert_eq!(started(&script).expect("starts").pid, 5);
        File::options().write(true).open(&fifo).expect("the daemon is there");
    }

    #[test]
    fn the_exit_code_is_the_errno() {
        assert_eq!(error("echo no memory; exit 12"), (12, "no memory\n".into()));
    }

    #[test]
    fn no_path_is_eperm() {
        assert_eq!(error("exit 0"), (1, String::new()));
        assert_eq!(error("echo hello; exit 0"), (1, "hello\n".into()));
        assert_eq!(error("echo ctl5; exit 0").0, 1, "not a path");
    }

    #[test]
    fn a_signal_is_eintr() {
        assert_eq!(error("kill -TERM $$").0, 4);
        assert_eq!(error("kill -USR1 $$").0, 4, "after the last try");
    }

    #[test]
    fn sigusr1_starts_it_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mark = dir.path().join("mark");
        let script = format!(
            "if test -e {0}; then echo /r/ctl2; else : >{0}; kill -USR1 $$; fi",
            mark.display()
        );
        assert_eq!(started(&script).expect("starts").pid, 2);
    }

    #[test]
    fn argv_0_is_tapdisk() {
        // The interpreter line hides argv[0] of a script; mkdir without operands complains with it.
        match spawn_program(Path::new("/bin/mkdir")) {
            Err(Error::Spawn { said, .. }) => assert!(said.contains("tapdisk"), "{said}"),
            other => panic!("mkdir without operands is a failure: {other:?}"),
        }
    }

    #[test]
    fn no_program_is_enoent() {
        let error = spawn_program(Path::new("/nonexistent/tapdisk")).expect_err("absent");
        assert_eq!(error.errno(), 2);
    }

    #[test]
    fn looks_in_its_own_installation_first() {
        let found = candidates(Some(Path::new("/opt/sbin/tap-ctl")));
        assert_eq!(found[0], Path::new("/opt/sbin/../libexec/tapdisk"));
        assert_eq!(found[1], Path::new("/opt/sbin/tapdisk"));
    }
}
