//! From `main` to a daemon that is ready (spec/operations.md §1.1), and its end.
//!
//! ```text
//!   tap-ctl spawn ─► tapdisk ── fork ──► daemon: sockets, memory, limits … ready
//!                      │ waits                     │ prints <run dir>/ctl<pid>, gives its verdict
//!                      └──── exits with it ◄───────┘
//! ```
//! The path is printed, and 0 given, only when everything that can fail has succeeded; before that
//! a failure is one sentence on the caller's pipe and its errno as exit code, and no socket stays
//! behind.
mod detach;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use mio::{Poll, Registry, Waker};
use slog::{Logger, info};
use tap_ctl::messages::Text;
use tap_ctl::paths::RunDir;
use tap_ctl::upgrade::{CAN_RESUME, FORMAT, RESUME};

use crate::confine::{self, Mode};
use crate::control::{Arriving, Control, Daemon};
use crate::formats::key::Keys;
use crate::handover::{self, WHY, resume_args};
use crate::log::Log;
use crate::memory::Memory;
use crate::receiver::Receiver;
use crate::sealed;
use crate::server::{self, Server};
use crate::signals::{self, Signals};
use crate::vbd::Env;
use crate::vbd::metrics::{Folder, SHM};
use detach::{Caller, daemonise};
use host::carry::{self, Fetcher};
use host::protection::{self, Protection};
use host::sys;

#[cfg(not(feature = "unprotected"))]
const VERSION: &str = env!("CARGO_PKG_VERSION");
#[cfg(feature = "unprotected")]
const VERSION: &str = tap_ctl::UNPROTECTED;

/// Of a program that was built for debugging, or with the simulator; `make install` looks for it.
const CANARY: &str = "built like the feature `canary`: bugs can be planted, for tests only";

/// Where the log files of root are.
const LOG_DIR: &str = "/var/log/blktap";
/// Environment variable that overrides it.
const LOG_DIR_VARIABLE: &str = "TAPDISK_LOG_DIR";
/// `abort` or `count`: what a call of the allocator in the sealed part does.
const SEAL_VARIABLE: &str = "TAPDISK_SEAL";
/// Debug builds only: the program that is to take over does not. `late`: it finds so when it has
/// taken the disks over.
const FAULT_VARIABLE: &str = "TAPDISK_RESUME_FAULT";
/// Descriptors at most.
const FILES_MAX: u64 = 65536;

const USAGE: &str = "usage: tapdisk [-D] [-h]
Serves virtual disks; it is started by tap-ctl spawn and told what to do through its control socket.
  -D         stay in the foreground and log to standard error
  -h, --help this text
  --version  name and version
  --can-resume=FORMAT  whether it could take over from a running tapdisk (tap-ctl upgrade)
  --resume=DESCRIPTOR  take over, in the same process; for a running tapdisk only
environment: TAPDISK_RUN_DIR (sockets), TAPDISK_LOG_DIR (log files), TAPDISK_ENGINE (uring or aio),
  TAPDISK_LOCK=strict (refuse an image that another process has locked, rather than wait for it),
  TAPDISK_SANDBOX=off (keep all capabilities and system calls; or errno, kill)
";

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// On standard error, as the original; in long form where one looks for it.
    Help {
        long: bool,
    },
    Version,
    Serve {
        foreground: bool,
    },
    /// Takes over from another program in this process; the descriptor with its state.
    Resume {
        state: i32,
        foreground: bool,
        /// Why another program, which was to take over, did not.
        why: Option<String>,
    },
    /// Whether it could: the format that would be handed over.
    CanResume(u32),
    /// With the letter that is no option.
    Usage(Option<char>),
}

/// A start that failed: errno and a sentence.
struct Failure(i32, String);

impl Failure {
    fn io(doing: &str, error: &io::Error) -> Failure {
        Failure(error.raw_os_error().unwrap_or(libc::EINVAL), format!("cannot {doing}: {error}"))
    }
}

impl From<tap_ctl::error::Error> for Failure {
    fn from(error: tap_ctl::error::Error) -> Failure {
        Failure(error.errno(), error.to_string())
    }
}

/// The program.
pub fn main() -> ExitCode {
    tap_ctl::sys::settle_umask();
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    match wanted(&args) {
        Wanted::Help { long } => {
            if long {
                print!("{USAGE}");
            } else {
                eprint!("{USAGE}");
            }
            ExitCode::SUCCESS
        }
        Wanted::Version => {
            println!("tapdisk {VERSION}");
            if engine::bug::CAN_BE_PLANTED {
                println!("{CANARY}");
            }
            ExitCode::SUCCESS
        }
        Wanted::Usage(letter) => {
            if let Some(letter) = letter {
                eprintln!("tapdisk: invalid option -- '{letter}'");
            }
            eprint!("{USAGE}");
            ExitCode::from(22)
        }
        Wanted::CanResume(format) if format == FORMAT => {
            println!("tapdisk {VERSION} can resume format {format}");
            ExitCode::SUCCESS
        }
        Wanted::CanResume(format) => {
            eprintln!("tapdisk {VERSION} resumes format {FORMAT}, not {format}");
            ExitCode::from(errno_code(libc::EPROTO))
        }
        Wanted::Resume { state, foreground, why } => resume(state, foreground, why),
        Wanted::Serve { foreground: true } => serve(None),
        Wanted::Serve { foreground: false } => daemonise(),
    }
}

/// Options may be clustered; anything else is an error.
fn wanted(args: &[std::ffi::OsString]) -> Wanted {
    let mut wanted = Wanted::Serve { foreground: false };
    for arg in args {
        let text = arg.to_str().unwrap_or_default();
        if let Some((option, value)) = text.split_once('=') {
            match (option, &mut wanted) {
                (WHY, Wanted::Resume { why, .. }) => *why = Some(value.to_owned()),
                (CAN_RESUME, _) => match value.parse() {
                    Ok(format) => return Wanted::CanResume(format),
                    Err(_) => return Wanted::Usage(None),
                },
                (RESUME, _) => match value.parse() {
                    Ok(state) => wanted = Wanted::Resume { state, foreground: false, why: None },
                    Err(_) => return Wanted::Usage(None),
                },
                _ => return Wanted::Usage(None),
            }
            continue;
        }
        match arg.to_str() {
            Some("--help") => return Wanted::Help { long: true },
            Some("--version") => return Wanted::Version,
            Some(text) if text.len() > 1 && text.starts_with('-') => {
                for letter in text[1..].chars() {
                    match letter {
                        'h' => return Wanted::Help { long: false },
                        'D' => match &mut wanted {
                            Wanted::Resume { foreground, .. } => *foreground = true,
                            _ => wanted = Wanted::Serve { foreground: true },
                        },
                        other => return Wanted::Usage(Some(other)),
                    }
                }
            }
            _ => return Wanted::Usage(None),
        }
    }
    wanted
}

/// Sets everything up, reports, and serves.
fn serve(mut caller: Option<Caller>) -> ExitCode {
    let mut server = match prepare(caller.is_none(), None) {
        Ok(server) => server,
        Err(Failure(errno, text)) => {
            let sentence = format!("tapdisk: {text}\n");
            let code = errno_code(errno);
            match &mut caller {
                Some(caller) => {
                    let _ = caller.stderr.write_all(sentence.as_bytes());
                    let _ = caller.verdict.write_all(&[code]);
                }
                None => eprint!("{sentence}"),
            }
            return ExitCode::from(code);
        }
    };
    let line = format!("{}\n", server.ctl.display());
    match caller.take() {
        Some(mut caller) => {
            let _ = caller.stdout.write_all(line.as_bytes());
            // A parent that was killed has told its caller that there is no daemon: nobody would
            // ever end this one.
            if caller.verdict.write_all(&[0]).is_err() {
                return ExitCode::from(errno_code(libc::EPIPE));
            }
        }
        None => {
            print!("{line}");
            let _ = io::stdout().flush();
        }
    }
    server.server.run();
    let Ready { server, log, .. } = server;
    drop(server);
    log.close();
    ExitCode::SUCCESS
}

/// Goes on where another program stopped. What is wrong with its state is found before anything is
/// touched, and then that program goes on: `why` says so to it.
fn resume(state: i32, foreground: bool, why: Option<String>) -> ExitCode {
    let mut fetcher = Fetcher::default();
    let refused = |error: &dyn std::fmt::Display| {
        eprintln!("tapdisk: cannot take over: {error}");
        ExitCode::from(errno_code(libc::EINVAL))
    };
    let memory = match fetcher.fetch(state) {
        Ok(memory) => memory,
        Err(error) => return refused(&error),
    };
    let (left, keys) = match handover::read(&memory) {
        Ok(read) => read,
        Err(error) => return refused(&error),
    };
    let before = fetcher.fetch(left.program);
    let again = why.is_some();
    let left = Left { state: left, keys, fetcher: &mut fetcher, why };
    // What is dropped on the way back is the old program's.
    carry::take_over(true);
    let prepared = fault(again, "1")
        .and_then(|()| prepare(foreground, Some(left)))
        .and_then(|ready| fault(again, "late").map(|()| ready));
    let mut ready = match prepared {
        Ok(ready) => ready,
        Err(Failure(_, why)) => {
            let _ = refused(&why);
            let Some(before) = before.ok().filter(|_| !again) else {
                return ExitCode::from(errno_code(libc::EINVAL));
            };
            return refused(&sys::execute(&before, &resume_args(state, foreground, Some(&why))));
        }
    };
    carry::take_over(false);
    // Nobody goes back: that program's file need not stay on the disk.
    drop(before);
    fetcher.close();
    handover::forget(memory);
    ready.server.run();
    let Ready { server, log, .. } = ready;
    drop(server);
    log.close();
    ExitCode::SUCCESS
}

/// For a test of the way back: the first program that is to take over does not.
fn fault(again: bool, when: &str) -> Result<(), Failure> {
    let planted = cfg!(debug_assertions)
        && std::env::var_os(FAULT_VARIABLE).is_some_and(|value| value == *when);
    match planted && !again {
        true => Err(Failure(libc::EIO, "a planted fault".into())),
        false => Ok(()),
    }
}

/// A daemon that only has to be run.
struct Ready {
    server: Server,
    ctl: PathBuf,
    log: Log,
}

/// What another program has left.
struct Left<'a> {
    state: handover::State,
    keys: Keys,
    fetcher: &'a mut Fetcher,
    /// It is this program, since another one could not take over.
    why: Option<String>,
}

fn prepare(foreground: bool, left: Option<Left<'_>>) -> Result<Ready, Failure> {
    signals::hold_back();
    sys::one_malloc_arena();
    match std::env::var_os(SEAL_VARIABLE) {
        Some(value) if value == "abort" => sealed::abort_when_broken(true),
        Some(value) if value == "count" => sealed::abort_when_broken(false),
        _ => {}
    }
    let sandbox = Mode::of_environment().map_err(|text| Failure(libc::EINVAL, text))?;
    let run = RunDir::locate()?;
    run.create(0o755)?;
    let pid = i32::try_from(std::process::id())
        .map_err(|_| Failure(libc::EINVAL, "a huge pid".into()))?;
    let open_log = if left.is_some() { Log::go_on } else { Log::open };
    let sink = open_log(pid, log_dirs(&run), foreground);
    let log = sink.logger();
    limits(&log);
    let poll = Poll::new().map_err(|e| Failure::io("make an epoll descriptor", &e))?;
    let registry =
        || poll.registry().try_clone().map_err(|e| Failure::io("share the epoll descriptor", &e));
    let waker =
        Waker::new(poll.registry(), server::WAKER).map_err(|e| Failure::io("make a waker", &e))?;
    let signals = Signals::open().map_err(|e| Failure::io("receive signals", &e))?;
    let ctl = run.ctl(pid);
    let mut left = left;
    let (control, receiver) = sockets((&run, pid), poll.registry(), left.as_mut())?;
    let memory = Memory::lock();
    if let Memory::Limited { why, .. } = &memory {
        sink.note(why);
    }
    confine::confine(&log, sandbox, left.as_ref().and_then(|left| left.state.filter));
    let env = Env {
        run,
        pid,
        log: log.clone(),
        sink: sink.clone(),
        registry: registry()?,
        waker: Arc::new(waker),
        memory,
        folder: folder(pid, &log),
        stash: receiver.stash(),
        foreground,
    };
    let mut daemon = Daemon::new(env, receiver);
    if let Some(Left { state, keys, fetcher, why }) = left {
        info!(log, "takes over from tapdisk {}", show::line(state.version.as_bytes()));
        let version = Text::new(VERSION.as_bytes()).unwrap_or_default();
        let arriving = Arriving { paused_us: state.paused_us, version, why };
        let adopted = daemon.adopt(arriving, state.disks, (keys, fetcher));
        adopted.map_err(|e| Failure::io("take over the disks", &e))?;
    }
    let server = Server::new(poll, daemon, control, signals)
        .map_err(|e| Failure::io("poll for signals", &e))?;
    info!(log, "tapdisk {VERSION} is ready");
    #[cfg(feature = "unprotected")]
    slog::warn!(log, "{}", tap_ctl::UNPROTECTED);
    Ok(Ready { server, ctl, log: sink })
}

/// The sockets of the process, new ones or those that another program has left.
fn sockets(
    (run, pid): (&RunDir, i32),
    registry: &Registry,
    left: Option<&mut Left<'_>>,
) -> Result<(Control, Receiver), Failure> {
    let (ctl, path) = (run.ctl(pid), run.nbdclient(pid));
    let listening = |path: &Path, e: &io::Error| {
        let errno = e.raw_os_error().unwrap_or(libc::EINVAL);
        Failure(errno, format!("cannot listen on {}: {e}", show::path(path)))
    };
    let Some(Left { state, fetcher, .. }) = left else {
        let control = Control::open(ctl.clone(), registry, server::CONTROL);
        let control = control.map_err(|e| listening(&ctl, &e))?;
        let receiver = Receiver::open(path.clone(), registry, server::RECEIVER);
        return Ok((control, receiver.map_err(|e| listening(&path, &e))?));
    };
    let wrong = |e: io::Error| Failure::io("take over the sockets", &e);
    let place = (path, registry, server::RECEIVER);
    let receiver = Receiver::adopt(place, &state.receiver, fetcher).map_err(wrong)?;
    let place = (ctl, registry, server::CONTROL);
    Ok((Control::adopt(place, &state.control, fetcher).map_err(wrong)?, receiver))
}

/// Where log files go: the first that can be written.
fn log_dirs(run: &RunDir) -> Vec<PathBuf> {
    match std::env::var_os(LOG_DIR_VARIABLE) {
        Some(dir) => vec![dir.into()],
        None => vec![LOG_DIR.into(), run.path().to_owned()],
    }
}

/// What is told in shared memory; without it disks are served all the same.
fn folder(pid: i32, log: &Logger) -> Folder {
    Folder::create(Path::new(SHM), pid).unwrap_or_else(|error| {
        info!(log, "no metrics: cannot make {SHM}/td3-{pid}: {error}");
        Folder::none(pid)
    })
}

/// Limits and standing with the kernel. None of it is worth failing for.
fn limits(log: &Logger) {
    let (_, hard) = sys::limit(libc::RLIMIT_NOFILE);
    let files = hard.min(FILES_MAX);
    let _ = sys::set_limit(libc::RLIMIT_NOFILE, (files, hard));
    confine::raise_limits();
    // RLIMIT_CORE stays as the caller set it: whether there are cores is not for us to say.
    let has = |p| protection::has(p);
    if !(has(Protection::Flusher) && sys::set_io_flusher()) {
        info!(
            log,
            "PR_SET_IO_FLUSHER is not to be had (Linux 5.6, CAP_SYS_RESOURCE): what the kernel \
             allocates in our calls may wait for this disk under memory pressure"
        );
    }
    if !(has(Protection::Priority) && sys::raise_priority()) {
        info!(log, "the priority stays as it is (CAP_SYS_NICE): busy processes may come first");
    }
    let score = if has(Protection::Oom) { "-1000" } else { "0" };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score) {
        info!(log, "the OOM killer may choose this process: {error}");
    }
}

/// An errno as an exit code.
fn errno_code(errno: i32) -> u8 {
    u8::try_from(errno).ok().filter(|code| *code != 0).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &[&str]) -> Wanted {
        wanted(&args.iter().map(|arg| (*arg).into()).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line() {
        assert_eq!(of(&[]), Wanted::Serve { foreground: false });
        assert_eq!(of(&["-D"]), Wanted::Serve { foreground: true });
        assert_eq!(of(&["-Dh"]), Wanted::Help { long: false });
        assert_eq!(of(&["-D", "--help"]), Wanted::Help { long: true });
        assert_eq!(of(&["--version"]), Wanted::Version);
        assert_eq!(of(&["-DZ"]), Wanted::Usage(Some('Z')));
        for bad in [&["x"][..], &["-"], &["-D", "x"]] {
            assert_eq!(of(bad), Wanted::Usage(None), "{bad:?}");
        }
    }
}
