//! `tap-ctl attach`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID};
use crate::failure::{Failure, Outcome};

pub static COMMAND: Command = Command {
    name: "attach",
    usage: "usage: attach <-p pid> <-m minor>",
    usage_on_stderr: true,
    about: "add a disk to a tapdisk",
    details: "The minor must have been allocated. A refusal exits with 22, whatever the reason.",
    options: &OPTIONS,
    examples: &[("attach -p 4711 -m 0", "after allocate and spawn")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 2] = [PID.required(), MINOR.required()];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    context.client()?.attach(pid, minor).map_err(Failure::masked)
}
