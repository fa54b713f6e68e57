//! `vhd-util`: offline work on VHD images, with the interface of blktap's tool of that name.
//!
//! Standard output and exit codes are what storage managers parse, so they are those of the
//! original, recorded; an exit code is an errno. Nothing here talks to a running daemon.
#![forbid(unsafe_code)]

mod check;
mod coalesce;
mod compact;
mod convert;
mod copy;
mod create;
mod dump;
mod fill;
mod help;
mod info;
mod key;
mod long;
mod map;
mod modify;
mod options;
mod points;
mod progress;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
mod set;
mod snapshot;

use options::Term;
use std::ffi::OsString;
use std::process::ExitCode;

/// Wrong usage.
const EINVAL: i32 = 22;

const USAGE: &str = "usage: vhd-util COMMAND [OPTIONS]\n\
    COMMAND := { create | snapshot | query | read | set | repair | resize | fill | coalesce | \
    modify | scan | check | revert | key | copy }\n";

/// A subcommand: its options in, its exit code out.
type Command = fn(&[OsString], &mut Term) -> i32;

/// All subcommands by name; a new one is a module and a line here.
const COMMANDS: &[(&str, Command)] = &[
    ("check", check::run),
    ("coalesce", coalesce::run),
    ("compact", compact::run),
    ("convert", convert::run),
    ("copy", copy::run),
    ("create", create::run),
    ("fill", fill::run),
    ("info", info::run),
    ("key", key::run),
    ("map", map::run),
    ("modify", modify::run),
    ("query", query::run),
    ("read", read::run),
    ("repair", repair::run),
    ("resize", resize::run),
    ("revert", revert::run),
    ("scan", scan::run),
    ("set", set::run),
    ("snapshot", snapshot::run),
];

fn main() -> ExitCode {
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut term = Term::new();
    let Some(name) = args.first().cloned() else {
        term.say(USAGE);
        return ExitCode::SUCCESS;
    };
    // `--debug` may stand anywhere after the command; it only ever raised logging.
    args.remove(0);
    args.retain(|a| a != "--debug");
    if args.iter().any(|a| a == "--ignore-lock") {
        args.retain(|a| a != "--ignore-lock");
        term.others = vhd_rs::lock::Others::Ignore;
    }
    let command = COMMANDS.iter().find(|(n, _)| name == *n);
    let Some((name, command)) = command else {
        if help::of_tool(&name.to_string_lossy(), &args, &mut term) {
            term.flush();
            return ExitCode::SUCCESS;
        }
        term.say(USAGE);
        term.complain(&format!("invalid COMMAND {}\n", name.to_string_lossy()));
        return ExitCode::SUCCESS;
    };
    let code = match help::of_command(name, &args) {
        Some(text) => {
            term.say(&text);
            0
        }
        None => command(&args, &mut term),
    };
    term.flush();
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}
