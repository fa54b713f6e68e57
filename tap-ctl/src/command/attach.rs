//! `tap-ctl attach`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID};
use crate::failure::{Failure, Outcome};
use tap_ctl::client::Client;
use tap_ctl::error::Error;
use tap_ctl::module::Module;

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
    let client = context.client()?;
    client.attach(pid, minor).map_err(|error| explained(&client, minor, error))
}

/// The reply has room for an errno only: what it most likely means for the module's ring.
pub fn explained(client: &Client, minor: u16, error: Error) -> Failure {
    let module = Module::find(client.run_dir()).filter(|module| module.has(minor));
    let hint = match (&error, module) {
        (Error::Refused { errno: libc::EBUSY, .. }, Some(module)) => match module.pid(minor) {
            Some(pid) => format!("; process {pid} has its ring"),
            None => "; another process has its ring".to_string(),
        },
        (Error::Refused { errno: libc::EINVAL, .. }, Some(_)) => {
            "; the blktap module is of another version than this tapdisk knows".to_string()
        }
        _ => String::new(),
    };
    match Failure::masked(error) {
        Failure::Error { errno, sentence, said, loud } => {
            Failure::Error { errno, sentence: sentence + &hint, said, loud }
        }
        other => other,
    }
}
