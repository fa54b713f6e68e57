//! `tap-ctl stats`: the statistics of a disk, once or again and again.

pub mod sample;
mod watch;

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, Takes, long, write};
use crate::failure::{Failure, Outcome};
use tap_ctl::messages::COOKIE_ALL;

pub static COMMAND: Command = Command {
    name: "stats",
    usage: "usage: stats <-p pid> <-m minor>\n\nPrints a Python dictionary with the VBD stats. The images are listed in reverse order (leaf to root)",
    about: "print the statistics of a disk, or watch disks at work",
    details: "-p and -m are needed without -w; with it they choose among all disks.\nLatencies are upper bounds in microseconds; r is read, w is write.",
    options: &OPTIONS,
    examples: &[
        ("stats -p 4711 -m 0", "the counters since attach"),
        ("stats -w", "a live table of all disks, every second"),
        ("stats -w 5 -p 4711 -m 0 --count 12 --json", "one disk for a minute, for a program"),
    ],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 5] = [
    PID,
    MINOR,
    long("watch", Takes::Maybe("SECONDS"), "show rates and latencies every SECONDS (default 1)")
        .or('w'),
    long("count", Takes::Value("N"), "with --watch: stop after N intervals"),
    long("json", Takes::Nothing, "print one JSON document a line"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    if args.has("watch") {
        return watch::run(&context.client()?, args);
    }
    let (pid, minor) = (args.pid()?, args.minor()?);
    let text = context.client()?.stats(pid, minor)?;
    // The original ends the text with two LF: one of the transfer, one of the command.
    let text = if args.has("json") { one_line(&text)? } else { [&text[..], b"\n\n"].concat() };
    let _ = write(&text);
    Ok(())
}

/// The daemon's document, parsed and written again on one line. (Its own need not be valid: an
/// original tapdisk does not escape image names.)
fn one_line(text: &[u8]) -> Result<Vec<u8>, Failure> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| {
        let sentence = format!("the statistics are no JSON: {error}; try without --json");
        Failure::new(libc::EPROTO, sentence)
    })?;
    Ok(show::json(&format!("{value}\n")).into_owned().into_bytes())
}

/// Is this minor a wildcard, answered with an array?
fn is_all(minor: i32) -> bool {
    minor == i32::from(COOKIE_ALL)
}
