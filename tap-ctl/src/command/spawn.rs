//! `tap-ctl spawn`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, print};
use crate::failure::Outcome;
use std::io::IsTerminal;
use tap_ctl::error::Error;
use tap_ctl::spawn::spawn;
use tap_ctl::sys;

pub static COMMAND: Command = Command {
    name: "spawn",
    usage: "usage: spawn",
    about: "start a tapdisk and print its pid",
    details: "Its control socket accepts connections when this returns. A tapdisk ends by itself after its last detach.",
    examples: &[("spawn", "prints the pid, such as 4711")],
    run,
    ..PLAIN
};

fn run(_context: &Context, _args: &Args) -> Outcome {
    let pid = spawn_and_say()?;
    match std::io::stdout().is_terminal() {
        true => print(&format!("tapdisk spawned with pid {pid}\n")),
        false => print(&format!("{pid}\n")),
    }
    Ok(())
}

/// Start a tapdisk; what it says while it starts goes to our stderr.
pub fn spawn_and_say() -> Result<i32, Error> {
    let spawned = spawn()?;
    eprint!("{}", spawned.said);
    Ok(spawned.pid)
}

/// Ends a tapdisk that was started for a disk and could not be given it. One that answers takes its
/// sockets along.
pub fn end(pid: i32, why: &Error) {
    let _ = match why {
        Error::Refused { .. } => sys::interrupt(pid),
        _ => sys::terminate(pid),
    };
}
