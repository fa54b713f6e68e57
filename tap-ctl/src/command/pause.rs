//! `tap-ctl pause`

use super::PLAIN;
use super::close::TIMEOUT;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID};
use crate::failure::Outcome;

pub static COMMAND: Command = Command {
    name: "pause",
    usage: "usage: pause <-p pid> <-m minor> [-t timeout secs]",
    about: "finish the requests in flight and close the image until unpause",
    details: "New requests wait. After a timeout (exit 110) the pause stays in force and completes later.",
    options: &OPTIONS,
    examples: &[("pause -p 4711 -m 0", "before a snapshot")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 3] = [PID.required(), MINOR.required(), TIMEOUT];

/// The original parses `-t` and then ends in its usage text; here it works as in `close`.
fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    Ok(context.client()?.pause(pid, minor, args.seconds("t")?)?)
}
