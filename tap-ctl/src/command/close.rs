//! `tap-ctl close`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, flag, value};
use crate::failure::Outcome;

pub static COMMAND: Command = Command {
    name: "close",
    usage: "usage: close <-p pid> <-m minor> [-f force] [-t timeout secs]",
    about: "close the image of a disk",
    details: "The disk stays attached. After a timeout (exit 110) the tapdisk goes on closing.",
    options: &OPTIONS,
    examples: &[("close -p 4711 -m 0 -t 120", "wait two minutes at most")],
    run,
    ..PLAIN
};

pub const TIMEOUT: Opt = value('t', "SECONDS", "wait at most so long; without it for ever");

static OPTIONS: [Opt; 4] =
    [PID.required(), MINOR.required(), flag('f', "do not wait for guest rings"), TIMEOUT];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    Ok(context.client()?.close(pid, minor, args.has("f"), args.seconds("t")?)?)
}
