//! `tap-ctl unpause`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, value};
use crate::failure::Outcome;
use tap_ctl::messages::{Params, Text, flag};

pub static COMMAND: Command = Command {
    name: "unpause",
    usage: "usage: unpause <-p pid> <-m minor> [-a type:/path/to/file] [-2 secondary] [-c </path/to/logfile> insert log layer to track changed blocks]",
    about: "open the image of a paused disk again and go on",
    details: "\
        Without -c a log that was in force is removed; without -2 a secondary stays.\n\
        What is opened with a catch is told as by open.",
    options: &OPTIONS,
    examples: &[
        ("unpause -p 4711 -m 0", "go on with the same image"),
        ("unpause -p 4711 -m 0 -a vhd:/images/new-leaf.vhd", "go on with another one"),
    ],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 5] = [
    PID.required(),
    MINOR.required(),
    value('a', "TYPE:PATH", "open this image instead of the former one"),
    value('2', "TYPE:PATH", "mirror writes to this image; null removes the mirror"),
    value('c', "PATH", "track changed blocks in this log"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let secondary = args.image("2")?;
    let params = Params {
        flags: if secondary.is_some() { flag::SECONDARY } else { 0 },
        path: args.image("a")?.unwrap_or(Text::EMPTY),
        secondary: secondary.unwrap_or(Text::EMPTY),
        ..Params::default()
    };
    let log = args.path("c")?;
    Ok(context.client()?.unpause(pid, minor, &params, log.as_ref())?)
}
