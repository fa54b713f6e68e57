//! `tap-ctl allocate`: the kernel module's minor where there is the module, a marker elsewhere.

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Opt, value, write};
use crate::failure::Outcome;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tap_ctl::minors;

pub static COMMAND: Command = Command {
    name: "allocate",
    usage: "usage: allocate",
    about: "reserve the lowest free minor and print the path of its marker",
    details: "Where the kernel has the blktap module the minor is the module's, with a ring and a block device, and the path of\nthe block device is printed.",
    options: &OPTIONS,
    examples: &[(
        "allocate",
        "prints /run/blktap-control/tapdisk/tapdisk-0, then -1, …; with the module /dev/xen/blktap-2/tapdev0",
    )],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 1] = [NODE];

/// Releases with the module took `-d`, and callers may still pass it.
pub const NODE: Opt = value(
    'd',
    "NAME",
    "with the kernel's blktap module: make the block device's node here; ignored without it",
);

fn run(context: &Context, args: &Args) -> Outcome {
    print_path(&minors::allocate(&context.run_dir()?, args.value("d").map(Path::new))?.path);
    Ok(())
}

/// The path and LF. Its bytes are kept, whatever they are.
pub fn print_path(path: &Path) {
    let _ = write(&[path.as_os_str().as_bytes(), b"\n"].concat());
}
