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
mod keys;
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
use vhd_rs::lock::Others;

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

/// What a signal in the middle of a command leaves; nothing for one that changes nothing.
fn when_stopped(command: &str) -> Option<&'static str> {
    let state = match command {
        "coalesce" | "compact" | "fill" => {
            "no data is lost; run the same command again, and vhd-util repair on the image that \
             was written if vhd-util check finds fault with it"
        }
        "repair" | "revert" => "no data is lost; run the same command again",
        "resize" => {
            "no data is lost; if there is a journal (-j) take it back with vhd-util revert, and \
             run the same command again"
        }
        "key" | "modify" | "set" => {
            "the image has its old state or the new one; look with vhd-util query, and run the \
             same command again"
        }
        "convert" | "copy" | "create" | "snapshot" => "the old images are as they were",
        _ => return None,
    };
    Some(state)
}

fn main() -> ExitCode {
    cli::begin();
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    // `--debug` may stand anywhere after the command, even between an option and its value; it only
    // ever raised logging. `--ignore-lock` is as free.
    let name = (!args.is_empty()).then(|| args.remove(0));
    args.retain(|a| a != "--debug");
    let others = match args.iter().any(|a| a == "--ignore-lock") {
        true => Others::Ignore,
        false => Others::Refuse,
    };
    args.retain(|a| a != "--ignore-lock");
    let mut term = Term::new(others);
    let code = dispatch(name, &args, &mut term);
    cli::exit_code(term.finish(code))
}

fn dispatch(name: Option<OsString>, args: &[OsString], term: &mut Term) -> i32 {
    let Some(name) = name else {
        term.say(USAGE);
        return 0;
    };
    if let Some((name, command)) = COMMANDS.iter().find(|(n, _)| name == *n) {
        return match help::of_command(name, args) {
            Some(text) => {
                term.say(&text);
                0
            }
            None => {
                if let Some(state) = when_stopped(name) {
                    cli::explain_signals("vhd-util", name, state, image::unfinished::remove_all);
                }
                command(args, term)
            }
        };
    }
    if !help::of_tool(&name.to_string_lossy(), args, term) {
        term.say(USAGE);
        term.complain(&format!("invalid COMMAND {}\n", show::path(&name)));
    }
    0
}
