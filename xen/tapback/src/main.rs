//! `tapback`: see the library. This is the command line and the way into the background.
#![deny(unsafe_code)]

mod options;

use options::{Asked, Serve};
use slog::{Level, warn};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use tap_ctl::paths::RunDir;
use tapback::config::{Config, Limits};
use tapback::daemon::{Daemon, wait_for_store};
use tapback::instance::Instance;
use tapback::log::{Target, logger};
use tapback::sys::{Signals, own_session};
use xenstore::Endpoint;

/// First word of a process that was started to serve in the background.
const DETACHED: &str = "--detached";
/// What it prints when it serves.
const READY: &str = "ready";
/// What tapdisks need to reach a guest's memory.
const GNTDEV: &str = "/dev/xen/gntdev";

fn main() -> ExitCode {
    tap_ctl::sys::settle_umask();
    tap_ctl::sys::settle_children();
    let mut words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let detached = words.first().is_some_and(|word| word == DETACHED);
    if detached {
        words.remove(0);
    }
    let serve = match options::parse(&words) {
        Ok(Asked::Help) => return print(&options::help()),
        Ok(Asked::Version) => return print(&format!("tapback {}\n", env!("CARGO_PKG_VERSION"))),
        Ok(Asked::Serve(serve)) => serve,
        Err(complaint) => {
            eprint!("{complaint}{}", options::usage());
            return ExitCode::FAILURE;
        }
    };
    let result = match (detached, serve.foreground) {
        (true, _) => in_background(serve),
        (false, true) => run(serve, Target::Stderr, || ()),
        (false, false) => return launch(&words, &serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            // In the background standard output leads to whoever waits there.
            if detached {
                println!("{sentence}");
            }
            eprintln!("tapback: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Start a process of our own for the background, and wait until it serves or says why not.
fn launch(words: &[OsString], serve: &Serve) -> ExitCode {
    let mut command = Command::new("/proc/self/exe");
    command.arg(DETACHED).args(words).current_dir("/");
    if let Some(path) = &serve.pidfile {
        // Relative to where we are, not to where it will be.
        command.arg("-p").arg(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let said = match command.spawn() {
        Ok(child) => {
            let mut line = String::new();
            let read = child.stdout.map(|pipe| BufReader::new(pipe).read_line(&mut line));
            match read {
                Some(Ok(1..)) => line,
                _ => "the process for the background ended without a word; see syslog".to_owned(),
            }
        }
        Err(error) => format!("cannot start a process for the background: {error}"),
    };
    match said.trim_end() {
        READY => ExitCode::SUCCESS,
        sentence => {
            eprintln!("tapback: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn in_background(serve: Serve) -> Result<(), String> {
    own_session();
    run(serve, Target::Syslog, || {
        // Who started us may have lost patience; that is no reason not to serve.
        let _ = writeln!(std::io::stdout(), "{READY}");
    })
}

fn run(serve: Serve, target: Target, ready: impl FnOnce() + 'static) -> Result<(), String> {
    let signals = Signals::open().map_err(|error| format!("cannot watch signals: {error}"))?;
    let log = logger(target, if serve.verbose { Level::Debug } else { Level::Info });
    let run = RunDir::locate().map_err(|error| error.to_string())?;
    let config = Config {
        name: serve.name,
        only: serve.only,
        barrier: serve.barrier,
        queues: serve.queues,
        segments: serve.segments,
        places: Endpoint::usual(),
        run: run.clone(),
        limits: Limits::default(),
    };
    let (name, only) = (config.name.clone(), config.only);
    if serve.wait && !wait_for_store(&config.places, &signals, &log)? {
        return Ok(());
    }
    let daemon = Daemon::new(config, log.clone())?;
    if !Path::new(GNTDEV).exists() {
        warn!(
            log,
            "{GNTDEV} is missing: tapdisks cannot connect to guests before the module \
            xen-gntdev is loaded"
        );
    }
    let mut instance = Instance::take(&run, &name, only)?;
    if let Some(path) = &serve.pidfile {
        instance.write_pid(path)?;
    }
    let result = daemon.run(Some(signals), ready);
    drop(instance);
    result
}
