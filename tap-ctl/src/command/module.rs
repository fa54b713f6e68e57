//! `tap-ctl major` and `tap-ctl check`, which the releases with the kernel module have. Without
//! the module they are unknown commands, as in the releases that did away with it.

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, Opt, flag, print};
use crate::failure::{Failure, Outcome};
use std::fs;
use tap_ctl::module::control_minor;

pub static MAJOR: Command = Command {
    name: "major",
    usage: "usage: major [-b | -c ]",
    about: "print the major number of the block driver tapdev",
    options: &MAJOR_OPTIONS,
    listed: Listed::WithModule,
    run: print_major,
    ..PLAIN
};

pub static CHECK: Command = Command {
    name: "check",
    usage: "usage: check",
    about: "print ok if the kernel module is there",
    listed: Listed::WithModule,
    run: check,
    ..PLAIN
};

static MAJOR_OPTIONS: [Opt; 2] =
    [flag('b', "of the block device (default)"), flag('c', "of the character device; refused")];

/// Has the kernel the module? Then `/proc/misc` has its control device.
pub fn kernel_module_present() -> bool {
    fs::read_to_string("/proc/misc").is_ok_and(|misc| in_misc(&misc))
}

fn in_misc(misc: &str) -> bool {
    control_minor(misc).is_some()
}

fn print_major(_context: &Context, args: &Args) -> Outcome {
    if args.has("c") {
        let sentence = "the character device has no major number of its own; leave out -c";
        return Err(Failure::new(libc::EINVAL, sentence));
    }
    let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
    let absent = || Failure::new(libc::ENODEV, "/proc/devices has no block driver tapdev");
    let major = block_major(&devices, "tapdev").ok_or_else(absent)?;
    print(&format!("{major}\n"));
    Ok(())
}

/// The major number of a driver in the second half of `/proc/devices`.
fn block_major(devices: &str, driver: &str) -> Option<u32> {
    let block = devices.split_once("Block devices:")?.1;
    let mut rows = block.lines().filter_map(|line| line.trim().split_once(' '));
    rows.find(|(_, name)| name.trim() == driver)?.0.parse().ok()
}

fn check(_context: &Context, _args: &Args) -> Outcome {
    match fs::read_to_string("/proc/misc") {
        Ok(misc) if in_misc(&misc) => {
            print("ok\n");
            Ok(())
        }
        Ok(_) => Err(Failure::Absent { line: "blktap kernel module not installed" }),
        Err(_) => Err(Failure::Absent { line: "failed to open /proc/misc" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_half_counts() {
        let devices = "Character devices:\n  1 tapdev\n\nBlock devices:\n  8 sd\n253 tapdev\n";
        assert_eq!(block_major(devices, "tapdev"), Some(253));
        assert_eq!(block_major(devices, "nbd"), None);
    }
}
