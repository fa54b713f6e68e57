//! `td-util`: makes and examines raw and VHD images, with the interface of blktap's tool of that
//! name.
//!
//! Old file-based storage managers call it where newer ones call `vhd-util`. It does the same with
//! VHDs, with the type and the names as operands; an exit code is an errno, except 255 for what is
//! no command. Nothing here talks to a running daemon.
#![forbid(unsafe_code)]

mod query;
mod raw;
mod vhd;

use cli::{EINVAL, JSON, Long, Options, Spec, Term};
use std::ffi::OsString;
use std::process::ExitCode;

/// No command, or none that there is.
const NO_COMMAND: i32 = 255;

/// What a command does with an image of one type: an exit code, or none for wrong usage.
type Run = fn(&Options, &mut Term) -> Option<i32>;

/// A command.
struct Command {
    name: &'static str,
    letters: &'static str,
    long: &'static [Long],
    synopsis: &'static str,
    vhd: Run,
    aio: Run,
}

const COMMANDS: [Command; 4] = [
    Command {
        name: "create",
        letters: "rbh",
        long: &[],
        synopsis: "create vhd [-r reserve] MB FILE | create aio -r MB FILE",
        vhd: vhd::create,
        aio: raw::create,
    },
    Command {
        name: "snapshot",
        letters: "ml:h",
        long: &[],
        synopsis: "snapshot vhd [-m parent is raw] [-l depth limit] FILE PARENT",
        vhd: vhd::snapshot,
        aio: |_, _| None,
    },
    Command {
        name: "query",
        letters: "vpfdbh",
        long: &[JSON],
        synopsis: "query vhd [-v size (MB)] [-p parent] [-f fields] [-d chain depth] \
            [-b use the footer's copy] [--json] FILE | query aio [-v size (MB)] [--json] FILE",
        vhd: query::vhd,
        aio: raw::query,
    },
    Command {
        name: "set",
        letters: "h",
        long: &[],
        synopsis: "set vhd FILE hidden VALUE",
        vhd: vhd::set,
        aio: |_, _| None,
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
    let first = words.first().and_then(|word| word.to_str());
    match first {
        Some("--help") => {
            term.say(&usage());
            return 0;
        }
        Some("--version") => {
            term.say(concat!("td-util ", env!("CARGO_PKG_VERSION"), "\n"));
            return 0;
        }
        _ => {}
    }
    let command = words.first().map(|name| (name, COMMANDS.iter().find(|c| *name == *c.name)));
    if let Some((name, None)) = command {
        term.complain(&format!("invalid COMMAND {}\n{}", show::path(name), usage()));
        return NO_COMMAND;
    }
    let (Some((_, Some(command))), [_, kind, rest @ ..]) = (command, words) else {
        term.complain(&usage());
        return NO_COMMAND;
    };
    let run = match kind.to_str() {
        Some("vhd") => command.vhd,
        Some("aio") => command.aio,
        _ => {
            term.complain(&format!("invalid TYPE {}\n{}", show::path(kind), usage()));
            return NO_COMMAND;
        }
    };
    let spec = Spec { letters: command.letters, long: command.long };
    let wrong = |term: &mut Term| {
        term.say(&format!("usage: td-util {}\n", command.synopsis));
        EINVAL
    };
    match Options::parse(command.name, spec, rest) {
        Ok(o) if o.has('h') => {
            wrong(term);
            0
        }
        Ok(o) => {
            if let Some(state) = when_stopped(command.name) {
                cli::explain_signals("td-util", command.name, state, image::unfinished::remove_all);
            }
            run(&o, term).unwrap_or_else(|| wrong(term))
        }
        Err(complaint) => {
            term.complain(&complaint);
            wrong(term)
        }
    }
}

/// What a signal in the middle of a command leaves; nothing for one that changes nothing.
fn when_stopped(command: &str) -> Option<&'static str> {
    match command {
        "create" | "snapshot" => Some("the old images are as they were"),
        "set" => Some("the image has its old state or the new one; run the same command again"),
        _ => None,
    }
}

fn usage() -> String {
    let names: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
    let mut text = format!(
        "usage: td-util COMMAND TYPE [OPTIONS] ...\nCOMMAND := {{ {} }}\nTYPE := {{ vhd | aio }}\n",
        names.join(" | ")
    );
    for command in &COMMANDS {
        text += &format!("  {}\n", command.synopsis);
    }
    text
}
