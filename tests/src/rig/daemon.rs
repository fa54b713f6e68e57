//! A run directory with its daemons, and a disk that one of them serves.
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use test_support::nbd::Client;
use test_support::sys;
use test_support::{Outcome, PATIENCE, Programs, on_terminal, programs, run, surround};

/// A disk engine of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// Linux AIO.
    Aio,
}

/// A folder for images, a run directory and a folder for logs. Daemons that are left at the end are
/// killed.
pub struct Rig {
    home: TempDir,
    engine: Engine,
    programs: &'static Programs,
}

impl Rig {
    /// A new one, empty.
    pub fn new(engine: Engine) -> Rig {
        let home = tempfile::Builder::new().prefix("rig").tempdir().expect("a folder in TMPDIR");
        fs::create_dir(home.path().join("w")).expect("a folder for images");
        Rig { home, engine, programs: programs() }
    }

    /// The folder of images.
    pub fn work(&self) -> PathBuf {
        self.home.path().join("w")
    }

    /// The path of an image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.work().join(name)
    }

    /// `type:path` of an image.
    pub fn name(&self, kind: &str, name: &str) -> String {
        format!("{kind}:{}", self.path(name).display())
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.home.path().join("r")
    }

    /// A command in this rig's surroundings, started in the folder of images.
    pub fn command(&self, program: &Path) -> Command {
        let engine = match self.engine {
            Engine::Uring => "uring",
            Engine::Aio => "aio",
        };
        let mut command = Command::new(program);
        surround(&mut command, &self.run_dir(), &self.log_dir());
        command
            .current_dir(self.work())
            .env("TAPDISK_PROGRAM", &self.programs.tapdisk)
            .env("TAPDISK_ENGINE", engine)
            .env("TZ", "UTC");
        command
    }

    fn log_dir(&self) -> PathBuf {
        self.home.path().join("l")
    }

    /// Runs tap-ctl.
    #[track_caller]
    pub fn tap_ctl<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        self.tap_ctl_with(args, b"")
    }

    /// Runs tap-ctl with something on its standard input.
    #[track_caller]
    pub fn tap_ctl_with<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Outcome {
        run(self.command(&self.programs.tap_ctl).args(args), input)
    }

    /// Runs tap-ctl on a terminal.
    #[track_caller]
    pub fn tap_ctl_on_terminal<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        on_terminal(self.command(&self.programs.tap_ctl).args(args))
    }

    /// Runs vhd-util in the folder of images.
    #[track_caller]
    pub fn vhd_util<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        run(self.command(&self.programs.vhd_util).args(args), b"")
    }

    /// Serves an image given as `type:path`, which must succeed.
    #[track_caller]
    pub fn serve(&self, image: &str, options: &[&str]) -> Served<'_> {
        match self.try_serve(image, options) {
            Ok(served) => served,
            Err(refused) => panic!("{refused:?}\n--- log\n{}", self.log()),
        }
    }

    /// Serves an image, or tells how that was refused.
    ///
    /// # Errors
    /// What `tap-ctl create` did.
    #[track_caller]
    pub fn try_serve(&self, image: &str, options: &[&str]) -> Result<Served<'_>, Outcome> {
        let mut args = vec!["create", "-a", image];
        args.extend(options);
        let created = self.tap_ctl(&args);
        if created.code != 0 {
            return Err(created);
        }
        let minor = created.out.trim_end().rsplit('-').next().and_then(|n| n.parse().ok());
        let minor: u16 = minor.unwrap_or_else(|| panic!("no minor in {created:?}"));
        let pid = self.pid_of(minor).unwrap_or_else(|| panic!("minor {minor} is not listed"));
        Ok(Served { rig: self, pid, minor, ended: Cell::new(false) })
    }

    /// Serves an image with a key, step by step as a storage manager does it, or tells how the open
    /// ended.
    ///
    /// # Errors
    /// What `tap-ctl open` did; nothing is left then.
    #[track_caller]
    pub fn serve_with_key(&self, image: &str, key: &[u8]) -> Result<Served<'_>, Outcome> {
        let pid = self.tap_ctl(&["spawn"]).ok().out.trim_end().to_owned();
        let path = self.tap_ctl(&["allocate"]).ok().out;
        let minor = path.trim_end().rsplit('-').next().expect("a path ends with the minor");
        let disk = ["-p", &pid, "-m", minor];
        self.tap_ctl(&[&["attach"], &disk[..]].concat()).ok();
        let opened = self.tap_ctl_with(&[&["open"], &disk[..], &["-a", image, "-E"]].concat(), key);
        if opened.code != 0 {
            self.tap_ctl(&[&["detach"], &disk[..]].concat()).ok();
            self.tap_ctl(&["free", "-m", minor]).ok();
            return Err(opened);
        }
        let pid = pid.parse().expect("spawn prints a pid");
        let minor = minor.parse().expect("a minor is a number");
        Ok(Served { rig: self, pid, minor, ended: Cell::new(false) })
    }

    /// The daemon that has a minor.
    pub fn pid_of(&self, minor: u16) -> Option<i32> {
        let listed = self.tap_ctl(&["list", "-m", &minor.to_string()]).ok();
        listed.out.strip_prefix("pid=")?.split(' ').next()?.parse().ok()
    }

    /// What the daemons have written into their log files.
    pub fn log(&self) -> String {
        let files = fs::read_dir(self.log_dir()).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect()
    }

    /// Waits until no daemon is left, then demands that none left anything behind: no socket, no
    /// marker.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        for (pid, process) in self.daemons() {
            assert!(sys::wait_readable(&process, PATIENCE), "tapdisk {pid} is left over");
        }
        let mut left = Vec::new();
        for folder in [self.run_dir(), self.run_dir().join("tapdisk")] {
            let names = fs::read_dir(folder).into_iter().flatten().flatten();
            left.extend(names.map(|name| name.path()).filter(|path| !path.is_dir()));
        }
        assert!(left.is_empty(), "left behind: {left:?}");
    }

    /// Waits for the end of a daemon.
    #[track_caller]
    pub fn wait_gone(&self, pid: i32) {
        if let Ok(process) = sys::pidfd(pid) {
            assert!(sys::wait_readable(&process, PATIENCE), "tapdisk {pid} does not end");
        }
    }

    /// Sends a signal to a daemon of this rig.
    #[track_caller]
    pub fn signal(&self, pid: i32, signal: i32) {
        let process = self.daemons().into_iter().find(|(daemon, _)| *daemon == pid);
        sys::kill(&process.unwrap_or_else(|| panic!("no tapdisk {pid}")).1, signal);
    }

    /// The running daemons of this run directory.
    pub(super) fn daemons(&self) -> Vec<(i32, OwnedFd)> {
        let names = fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        // The sockets of one that is ending go one by one, so each kind is looked at.
        let pids = names.filter_map(|name| {
            let name = name.file_name();
            let name = name.to_str()?;
            let pid = name.strip_prefix("ctl").or_else(|| name.strip_prefix("nbdclient"))?;
            pid.parse().ok()
        });
        let pids: std::collections::BTreeSet<i32> = pids.collect();
        let daemons = pids.into_iter().filter_map(|pid: i32| {
            let process = sys::pidfd(pid).ok()?;
            // A stale socket may bear the number of somebody else's process.
            let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            (program.file_name() == self.programs.tapdisk.file_name()).then_some((pid, process))
        });
        daemons.collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let daemons = self.daemons();
        daemons.iter().for_each(|(_, process)| sys::kill(process, libc::SIGKILL));
        for (pid, process) in daemons {
            if !sys::wait_readable(&process, PATIENCE) {
                eprintln!("tapdisk {pid} does not die");
            }
        }
        if std::thread::panicking() {
            eprintln!("--- log of the daemons\n{}---", self.log());
        }
    }
}

/// A disk that is served. Dropped, it is closed the hard way.
pub struct Served<'a> {
    rig: &'a Rig,
    /// The daemon.
    pub pid: i32,
    /// The minor.
    pub minor: u16,
    ended: Cell<bool>,
}

impl Served<'_> {
    /// The NBD socket.
    pub fn socket(&self) -> PathBuf {
        self.rig.run_dir().join(format!("nbd{}.{}", self.pid, self.minor))
    }

    /// The NBD socket for other programs.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    /// A new connection.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    /// Runs `tap-ctl COMMAND -p PID -m MINOR …`.
    #[track_caller]
    pub fn tell(&self, command: &str, more: &[&str]) -> Outcome {
        let (pid, minor) = (self.pid.to_string(), self.minor.to_string());
        let mut args = vec![command, "-p", &pid, "-m", &minor];
        args.extend(more);
        self.rig.tap_ctl(&args)
    }

    /// Pauses.
    #[track_caller]
    pub fn pause(&self) {
        self.tell("pause", &[]).ok();
    }

    /// Resumes.
    #[track_caller]
    pub fn unpause(&self, more: &[&str]) {
        self.tell("unpause", more).ok();
    }

    /// The statistics.
    #[track_caller]
    pub fn stats(&self) -> serde_json::Value {
        let told = self.tell("stats", &[]).ok();
        serde_json::from_str(told.out.lines().next().unwrap_or_default()).expect("stats are JSON")
    }

    /// Closes in an orderly way; the daemon must end.
    #[track_caller]
    pub fn destroy(self) {
        self.tell("destroy", &[]).ok();
        self.ended.set(true);
        self.rig.wait_gone(self.pid);
    }

    /// Kills the daemon and frees the minor, as SM does after a crash.
    #[track_caller]
    pub fn crash(self) {
        self.kill();
    }

    fn kill(&self) {
        if let Ok(process) = sys::pidfd(self.pid) {
            sys::kill(&process, libc::SIGKILL);
            assert!(sys::wait_readable(&process, PATIENCE), "tapdisk {} does not die", self.pid);
        }
        self.ended.set(true);
        let names = fs::read_dir(self.rig.run_dir()).into_iter().flatten().flatten();
        let (alone, with_minor) = (self.pid.to_string(), format!("{}.{}", self.pid, self.minor));
        for name in names {
            let text = name.file_name().to_string_lossy().into_owned();
            let number = text.trim_start_matches(|c: char| !c.is_ascii_digit());
            if number == alone || number == with_minor {
                let _ = fs::remove_file(name.path());
            }
        }
        self.rig.tap_ctl(&["free", "-m", &self.minor.to_string()]);
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        // After a failure the rig ends what runs, by itself.
        if !self.ended.get() && !std::thread::panicking() {
            self.kill();
        }
    }
}
