//! One tapback, a store, and tapdisks.

use crate::guest::Guest;
use crate::tapdisk::Tapdisk;
use slog::{Drain, KV, Logger, Never, OwnedKVList, Record, o};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tap_ctl::paths::RunDir;
use tapback::config::{Config, Limits};
use tapback::daemon::{Daemon, Stop};
use xenstore::Endpoint;
use xenstore_fake::Fake;

pub struct Rig {
    pub fake: Fake,
    pub config: Config,
    run: tempfile::TempDir,
    daemon: Option<(Stop, JoinHandle<()>)>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    /// With a tapback that serves.
    pub fn new() -> Rig {
        let mut rig = Rig::idle();
        rig.start();
        rig
    }

    /// Without one so far.
    pub fn idle() -> Rig {
        let fake = Fake::start();
        let run = tempfile::tempdir().expect("a run directory");
        let limits = Limits {
            ask: Duration::from_secs(5),
            order: Duration::from_secs(5),
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_millis(200),
        };
        let config = Config {
            name: "vbd3".into(),
            only: None,
            barrier: true,
            queues: 4,
            segments: 256,
            places: vec![Endpoint::Socket(fake.socket(0))],
            run: RunDir::at(run.path()),
            limits,
        };
        Rig { fake, config, run, daemon: None, log: Arc::default() }
    }

    pub fn start(&mut self) {
        let (config, lines) = (self.config.clone(), Arc::clone(&self.log));
        let (send, receive) = std::sync::mpsc::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let log = Logger::root(Lines(lines).ignore_res(), o!());
            let daemon = Daemon::new(config, log).expect("the fake listens");
            send.send(daemon.stop_handle()).expect("the test waits");
            let ready = move || ready.send(()).expect("the test waits");
            daemon.run(None, ready).expect("it runs");
        });
        let stop = receive.recv().expect("it starts");
        is_ready.recv_timeout(Duration::from_secs(20)).expect("it gets ready");
        self.daemon = Some((stop, thread));
    }

    pub fn stop(&mut self) {
        let (stop, thread) = self.daemon.take().expect("it runs");
        stop.stop();
        thread.join().expect("it ends well");
        self.fake.wait_clients("no connection", |usage| usage.connections == 0);
    }

    pub fn tapdisk(&self, pid: i32) -> Tapdisk {
        Tapdisk::start(self.run.path(), pid)
    }

    /// What a script writes for this disk.
    pub fn tap_path(&self, pid: i32, minor: u16) -> String {
        format!("{}/nbd{pid}.{minor}", self.run.path().display())
    }

    /// A disk of a guest, plugged by xl, its script done, its guest not started.
    pub fn plugged(&self, domid: u32, devid: u32, tapdisk: &Tapdisk) -> Guest<'_> {
        let guest = Guest::new(&self.fake, domid, devid);
        guest.xl_plug("w");
        guest.wait_backend(2);
        guest.script(&self.tap_path(tapdisk.pid, 0));
        guest
    }

    /// The same, connected.
    pub fn connected(&self, domid: u32, devid: u32, tapdisk: &Tapdisk) -> Guest<'_> {
        let guest = self.plugged(domid, devid, tapdisk);
        guest.start(&[8, 9]);
        guest.wait_backend(4);
        guest.enter(4);
        guest
    }

    /// So many lines of the log so far have this.
    pub fn logs(&self, text: &str) -> usize {
        self.log.lock().expect("no panic").iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.daemon.take() {
            stop.stop();
            let result = thread.join();
            if std::thread::panicking() {
                let lines = self.log.lock().map(|lines| lines.join("\n"));
                eprintln!("tapback's log:\n{}", lines.unwrap_or_default());
            } else {
                result.expect("tapback ends well");
            }
        }
    }
}

struct Lines(Arc<Mutex<Vec<String>>>);

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let mut line = Line(String::new());
        let _ = values.serialize(record, &mut line);
        self.0.lock().expect("no panic").push(format!("{}{}", line.0, record.msg()));
        Ok(())
    }
}

struct Line(String);

impl slog::Serializer for Line {
    fn emit_arguments(&mut self, _: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.push_str(&format!("{value}: "));
        Ok(())
    }
}
