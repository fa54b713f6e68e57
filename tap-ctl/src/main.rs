//! `tap-ctl COMMAND [OPTIONS]`: control running tapdisks. Facts: `tap-ctl.md`.
//!
//! ```text
//!  argv ─► main ─► command::find ─► cli::getopt ─► command/<name>.rs ─► tap_ctl (library)
//!                        └── one table of commands and options ──► help, completions, man page
//! ```
//!
//! What the original prints and returns is kept to the byte, with one exception: a failure explains
//! itself with one more line on stderr, before the original's: on a terminal always, elsewhere
//! where the reason is one that only the tapdisk knows. SM and xapi log what they find there. Who
//! sends both to one place (`2>&1`) may look for `/tapdisk-` in it, which a sentence can have, and
//! gets no more than the original's line.
#![deny(unsafe_code)]

mod cli;
mod command;
mod failure;
mod syslog;

use cli::getopt::{self, Parsed};
use cli::{Command, Context, help, nearest, print};
use failure::Failure;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use tap_ctl::error::strerror;

fn main() -> ExitCode {
    tap_ctl::sys::settle_umask();
    tap_ctl::sys::settle_children();
    let argv: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((word, rest)) = argv.split_first() else {
        return overview();
    };
    match word.to_str() {
        Some("--help") => return show(&help::long_overview()),
        Some("--version") => return show(&help::version()),
        _ => {}
    }
    match command::find(word, command::kernel_module_present()) {
        Some(command) => run(command, rest),
        None => unknown(word),
    }
}

fn show(text: &str) -> ExitCode {
    print(text);
    ExitCode::SUCCESS
}

/// The original's help; exit 0, also for a command that does not exist.
fn overview() -> ExitCode {
    show(&help::overview(command::kernel_module_present()))
}

fn unknown(word: &OsStr) -> ExitCode {
    syslog::error(&format!("tap-err:main: unknown command '{}'", show::path(word)));
    if nearest::is_watched() {
        let names = command::COMMANDS.iter().map(|command| command.name);
        let meant = nearest::nearest(&word.to_string_lossy(), names);
        let meant = meant.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
        eprintln!("tap-ctl: there is no command {}{meant}\n", show::path(word));
    }
    overview()
}

fn run(command: &'static Command, args: &[OsString]) -> ExitCode {
    let mut args = args.to_vec();
    let debug = cli::take_debug(&mut args);
    let verbose = debug || std::env::var_os("TAP_CTL_VERBOSE").is_some_and(|value| value == "1");
    let result = match getopt::parse(command.options, &args) {
        Ok(Parsed::Args(args)) => (command.run)(&Context { debug }, &args),
        Ok(Parsed::Usage) => return usage(command),
        Ok(Parsed::Help) => return show(&help::long(command)),
        Ok(Parsed::Version) => return show(&help::version()),
        Err(complaint) => {
            eprintln!("{}: {}", command.name, show::lines(&complaint.to_string()));
            if let Some(meant) = nearest::option(command.options, &args)
                && nearest::is_watched()
            {
                eprintln!("{}: did you mean --{meant}?", command.name);
            }
            Err(Failure::Usage)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(command, failure, verbose),
    }
}

/// `-h`: on stdout, except for attach.
fn usage(command: &Command) -> ExitCode {
    if command.usage_on_stderr {
        eprintln!("{}", command.usage);
    } else {
        print(&format!("{}\n", command.usage));
    }
    ExitCode::SUCCESS
}

/// Whether standard output and standard error go to one file or pipe.
fn is_mixed() -> bool {
    let meta = |fd: BorrowedFd<'_>| File::from(fd.try_clone_to_owned()?).metadata();
    let (out, err) = (meta(std::io::stdout().as_fd()), meta(std::io::stderr().as_fd()));
    match (out, err) {
        (Ok(out), Ok(err)) => (out.dev(), out.ino()) == (err.dev(), err.ino()),
        _ => false,
    }
}

/// Report a failure: what the original prints last is the text of the errno, and this is the exit
/// status. The log has the whole sentence, and people get it too.
fn fail(command: &Command, failure: Failure, verbose: bool) -> ExitCode {
    let errno = match failure {
        Failure::Usage => {
            eprintln!("{}", command.usage);
            libc::EINVAL
        }
        Failure::Line { exit, line } => {
            eprintln!("{}", show::lines(line));
            return ExitCode::from(exit);
        }
        Failure::Absent { line } => {
            print(&format!("{line}\n"));
            return ExitCode::from(failure::MODULE_ABSENT_EXIT);
        }
        Failure::Error { errno, sentence, said, loud } => {
            let sentence = show::line(sentence.as_bytes());
            syslog::error(&format!("tap-err:{}: {sentence}", command.name));
            eprint!("{}", show::lines(&said));
            let loud = loud && !is_mixed();
            if loud || verbose || std::io::IsTerminal::is_terminal(&std::io::stderr()) {
                eprintln!("tap-ctl {}: {sentence}", command.name);
            }
            errno
        }
    };
    eprintln!("{}", strerror(errno));
    ExitCode::from((errno & 0xff) as u8)
}
