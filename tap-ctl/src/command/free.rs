//! `tap-ctl free`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt};
use crate::failure::{Failure, Outcome};
use tap_ctl::{leftovers, minors};

pub static COMMAND: Command = Command {
    name: "free",
    usage: "usage: free <-m minor>",
    about: "give a minor back",
    details: "Fails while a tapdisk has the minor attached. With the kernel's blktap module its nodes go too.",
    options: &OPTIONS,
    examples: &[("free -m 3", "after its disk was closed and detached")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 1] = [MINOR.required()];

fn run(context: &Context, args: &Args) -> Outcome {
    let minor = args.minor()?;
    let run = context.run_dir()?;
    leftovers::sweep(&run);
    // A device that waits for a tapdisk is found by its minor.
    if let Some(device) = super::list::waiting(&run, minor.into()) {
        let sentence = format!(
            "{device} of minor {minor} waits for a tapdisk: tap-ctl recover -m {minor}, then destroy it"
        );
        return Err(Failure::new(libc::EBUSY, sentence));
    }
    Ok(minors::free(&run, minor)?)
}
