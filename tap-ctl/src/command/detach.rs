//! `tap-ctl detach`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, print};
use crate::failure::{Failure, Outcome};
use tap_ctl::client::Client;
use tap_ctl::error::Error;
use tap_ctl::messages::{kind, type_name};

pub static COMMAND: Command = Command {
    name: "detach",
    usage: "usage: detach <-p pid> <-m minor>",
    about: "remove a disk from a tapdisk, which exits after its last",
    details: "Close the disk first. A refusal exits with 22, whatever the reason.",
    options: &OPTIONS,
    examples: &[("detach -p 4711 -m 0", "after close; then free -m 0")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 2] = [PID.required(), MINOR.required()];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    detach(&context.client()?, pid, minor)
}

/// Detach with the original's line on stdout for a refusal (`tap-ctl.md` §4.7).
pub fn detach(client: &Client, pid: i32, minor: u16) -> Outcome {
    let result = client.detach(pid, minor);
    let reply = match result {
        Err(Error::Refused { .. }) => Some(kind::ERROR),
        Err(Error::Unexpected { reply, .. }) => Some(reply),
        _ => None,
    };
    if let Some(reply) = reply {
        print(&format!("got unexpected result '{}' from {pid}\n", type_name(reply)));
    }
    result.map_err(Failure::masked)
}
