//! `tap-ctl destroy`: close, detach, free; stops at the first failure.

use super::PLAIN;
use super::close::TIMEOUT;
use super::detach::detach;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID};
use crate::failure::Outcome;
use tap_ctl::minors;

pub static COMMAND: Command = Command {
    name: "destroy",
    usage: "usage: destroy <-p pid> <-m minor> [-t timeout secs]",
    about: "remove a disk: close, detach and free in one step",
    details: "The tapdisk exits after its last disk. -t applies to the close.",
    options: &OPTIONS,
    examples: &[("destroy -p 4711 -m 0", "the opposite of create")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 3] = [PID.required(), MINOR.required(), TIMEOUT];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let client = context.client()?;
    client.close(pid, minor, false, args.seconds("t"))?;
    detach(&client, pid, minor)?;
    Ok(minors::free(client.run_dir(), minor)?)
}
