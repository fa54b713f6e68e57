//! `tap-ctl list`: what runs here. Takes no lock, so it races with exits and tolerates them.

mod rows;

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, Takes, long, value, write};
use crate::failure::Outcome;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;

pub use rows::{Row, collect, waiting};

pub static COMMAND: Command = Command {
    name: "list",
    usage: "usage: list [-h] [-p pid] [-m minor] [-t type] [-f file]\n\nLists tapdisks in the following format:\n     pid minor state       type file",
    about: "list tapdisks, their disks, and minors that nobody has attached",
    details: "On a terminal: pid, minor, state, type, file. Elsewhere one line of key=value a record.",
    options: &OPTIONS,
    examples: &[
        ("list", "everything"),
        ("list -t vhd -f /images/disk.vhd", "the disks that serve this file"),
        ("list --devices", "block devices; one without pid waits for tap-ctl recover"),
        ("list --programs", "after an update: which disks still run the replaced tapdisk"),
        ("list --json", "an array of objects"),
    ],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 7] = [
    PID,
    MINOR,
    value('t', "TYPE", "only images of this type"),
    value('f', "FILE", "only this file"),
    long("devices", Takes::Nothing, "only block devices, each line with device=PATH in front"),
    long("programs", Takes::Nothing, "each line with program=PATH replaced=yes|no in front"),
    long("json", Takes::Nothing, "print a JSON array"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    let mut rows = collect(&context.client()?, args.number("p")?)?;
    let (pid, minor) = (args.number("p")?, args.number("m")?);
    let (kind, file) = (args.value("t"), args.value("f"));
    rows.retain(|row| {
        pid.is_none_or(|pid| row.pid == Some(pid))
            && minor.is_none_or(|minor| row.minor == Some(minor))
            && kind.is_none_or(|kind| row.kind() == Some(kind.as_bytes()))
            && file.is_none_or(|file| row.file() == Some(file.as_bytes()))
    });
    let text = if args.has("json") {
        format!("{}\n", rows.iter().map(Row::json).collect::<serde_json::Value>()).into_bytes()
    } else if args.has("devices") {
        rows.iter().flat_map(Row::for_devices).collect()
    } else if args.has("programs") {
        rows.iter().flat_map(Row::for_programs).collect()
    } else if std::io::stdout().is_terminal() {
        rows.iter().flat_map(Row::for_people).collect()
    } else {
        rows.iter().flat_map(Row::for_machines).collect()
    };
    let _ = write(&text);
    Ok(())
}
