//! `tap-ctl allocate`

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Opt, value, write};
use crate::failure::Outcome;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tap_ctl::registry;

pub static COMMAND: Command = Command {
    name: "allocate",
    usage: "usage: allocate",
    about: "reserve the lowest free minor and print the path of its marker",
    options: &OPTIONS,
    examples: &[("allocate", "prints /run/blktap-control/tapdisk/tapdisk-0, then -1, …")],
    run,
    ..PLAIN
};

/// Releases before 4.0.2 took `-d`, and callers may still pass it.
static OPTIONS: [Opt; 1] = [value('d', "NAME", "accepted and ignored")];

fn run(context: &Context, _args: &Args) -> Outcome {
    print_marker(&registry::allocate(&context.run_dir()?)?.marker);
    Ok(())
}

/// The marker's path and LF. Its bytes are kept, whatever they are.
pub fn print_marker(marker: &Path) {
    let _ = write(&[marker.as_os_str().as_bytes(), b"\n"].concat());
}
