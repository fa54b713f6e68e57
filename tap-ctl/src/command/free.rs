//! `tap-ctl free`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt};
use crate::failure::Outcome;
use tap_ctl::registry;

pub static COMMAND: Command = Command {
    name: "free",
    usage: "usage: free <-m minor>",
    about: "give a minor back",
    details: "Fails while a tapdisk has the minor attached.",
    options: &OPTIONS,
    examples: &[("free -m 3", "after its disk was closed and detached")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 1] = [MINOR.required()];

fn run(context: &Context, args: &Args) -> Outcome {
    let minor = args.minor()?;
    Ok(registry::free(&context.run_dir()?, minor.into())?)
}
