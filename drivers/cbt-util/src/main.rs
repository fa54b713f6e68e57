//! `cbt-util`: makes, links, reads and merges changed-block logs, with the interface of blktap's
//! tool of that name.
//!
//! Storage managers look at the exit code, which is an errno, and at what `get` prints. Results go
//! to standard output, everything else to standard error. Nothing here talks to a running daemon.
#![forbid(unsafe_code)]

mod commands;
mod dump;

use cli::{EINVAL, HELP, JSON, Long, Options, Spec, Term};
use std::ffi::OsString;
use std::process::ExitCode;

/// A command.
struct Command {
    name: &'static str,
    /// Options as for getopt; `h` is added by all.
    letters: &'static str,
    long: &'static [Long],
    synopsis: &'static str,
    about: &'static str,
    run: fn(&Options, &mut Term) -> Outcome,
}

/// How a command ended.
enum Outcome {
    Done,
    /// The command's usage, 22.
    Usage,
    /// A message on standard error, and an errno.
    Failed(String, i32),
}

impl From<cbt::CbtError> for Outcome {
    fn from(e: cbt::CbtError) -> Outcome {
        Outcome::Failed(format!("{e}\n"), e.errno())
    }
}

impl From<Result<(), cbt::CbtError>> for Outcome {
    fn from(done: Result<(), cbt::CbtError>) -> Outcome {
        done.map_or_else(Outcome::from, |()| Outcome::Done)
    }
}

const COMMANDS: [Command; 5] = [
    Command {
        name: "create",
        letters: "n:s:h",
        long: &[HELP],
        synopsis: "-n FILE -s BYTES",
        about: "make an empty log for a disk of BYTES bytes, or empty an existing one",
        run: commands::create,
    },
    Command {
        name: "set",
        letters: "n:p:c:f:s:h",
        long: &[HELP],
        synopsis: "-n FILE [-p UUID] [-c UUID] [-f 0|1] [-s BYTES]",
        about: "set the parent log, the child log, the consistent flag, or a larger disk size",
        run: commands::set,
    },
    Command {
        name: "get",
        letters: "n:pcfsbh",
        long: &[HELP, JSON],
        synopsis: "-n FILE -p|-c|-f|-s|-b|--json",
        about: "print the parent log, the child log, the consistent flag, the disk size in bytes, or the raw bitmap; as JSON all but the bitmap",
        run: commands::get,
    },
    Command {
        name: "coalesce",
        letters: "p:c:h",
        long: &[HELP],
        synopsis: "-p PARENT -c CHILD",
        about: "mark in the file CHILD every block that is marked in the file PARENT",
        run: commands::coalesce,
    },
    Command {
        name: "dump",
        letters: "n:h",
        long: &[HELP, JSON],
        synopsis: "-n FILE [--json]",
        about: "show everything in a log: fields, and the changed areas of the disk in bytes",
        run: dump::run,
    },
];

fn main() -> ExitCode {
    cli::begin();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut term = Term::new();
    let code = dispatch(&words, &mut term);
    cli::exit_code(term.finish(code))
}

fn dispatch(words: &[OsString], term: &mut Term) -> i32 {
    let Some((name, rest)) = words.split_first() else {
        term.say(&usage());
        return EINVAL;
    };
    if let Some(command) = COMMANDS.iter().find(|c| *name == *c.name) {
        return run(command, rest, term);
    }
    match name.to_str() {
        Some("--help") => term.say(&help()),
        Some("--version") => term.say(concat!("cbt-util ", env!("CARGO_PKG_VERSION"), "\n")),
        _ => {
            term.complain(&format!("Invalid COMMAND {}\n", show::path(name)));
            term.say(&usage());
        }
    }
    // The original's answer to a command that does not exist, too.
    0
}

fn run(command: &Command, words: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: command.letters, long: command.long };
    let outcome = match Options::parse(command.name, spec, words) {
        Err(complaint) => {
            term.complain(&complaint);
            Outcome::Usage
        }
        Ok(o) if o.has('h') => Outcome::Usage,
        Ok(o) if o.has(HELP.key) => {
            term.say(&format!("{}\n{}\n", synopsis(command), command.about));
            Outcome::Done
        }
        Ok(o) if !o.operands().is_empty() => Outcome::Usage,
        Ok(o) => {
            if let Some(state) = when_stopped(command.name) {
                let remove = cbt::unfinished::remove_all;
                cli::explain_signals("cbt-util", command.name, state, remove);
            }
            (command.run)(&o, term)
        }
    };
    match outcome {
        Outcome::Done => 0,
        Outcome::Usage => {
            term.say(&format!("{}\n", synopsis(command)));
            EINVAL
        }
        Outcome::Failed(text, errno) => {
            term.complain(&text);
            errno
        }
    }
}

/// What a signal in the middle of a command leaves; nothing for one that changes nothing.
fn when_stopped(command: &str) -> Option<&'static str> {
    match command {
        "create" | "set" | "coalesce" => {
            Some("a log that was not whole is not marked consistent; run the same command again")
        }
        _ => None,
    }
}

fn synopsis(command: &Command) -> String {
    format!("usage: cbt-util {} {}", command.name, command.synopsis)
}

fn usage() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
    format!("usage: cbt-util COMMAND [OPTIONS]\nCOMMAND := {{ {} }}\n", names.join(" | "))
}

fn help() -> String {
    let mut text = "cbt-util: changed-block logs of virtual disks\n\n".to_owned() + &usage();
    for command in &COMMANDS {
        text += &format!("\n{} {}\n  {}\n", command.name, command.synopsis, command.about);
    }
    text + "\nExit code: 0, or the errno of the failure (22: wrong usage, 5: not a whole log).\n"
}
