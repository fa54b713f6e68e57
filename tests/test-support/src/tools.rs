//! The second party: other people's programs. One that is missing fails the test and says what to
//! install, because a test that skips itself in silence proves nothing.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Outcome, run};

/// The path of a program.
///
/// # Panics
/// If it is not installed; the message names the Debian package.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let package = match name {
        "qemu-img" | "qemu-io" | "qemu-nbd" => "qemu-utils",
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "losetup" => "mount",
        other => other,
    };
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not installed: run `make deps`, or as root apt-get install {package}")
    })
}

/// Runs qemu-img, which must succeed.
#[track_caller]
pub fn qemu_img<S: AsRef<OsStr>>(folder: &Path, args: &[S]) -> Outcome {
    run(Command::new(tool("qemu-img")).current_dir(folder).args(args), b"").ok()
}

/// Runs qemu-io commands on a file or an NBD address of a format; all must succeed.
#[track_caller]
pub fn qemu_io(format: &str, target: &str, commands: &[&str]) -> Outcome {
    let outcome = io(format, target, commands, false).ok();
    // qemu-io complains about a wrong pattern on standard output.
    assert!(!outcome.out.contains("failed"), "{outcome:?}");
    outcome
}

/// Runs qemu-io commands of which one must fail.
#[track_caller]
pub fn qemu_io_fails(format: &str, target: &str, commands: &[&str]) {
    let outcome = io(format, target, commands, false);
    let text = format!("{}{}", outcome.out, outcome.err);
    let failed = outcome.code != 0 || text.contains("failed") || text.contains("rror");
    assert!(failed, "none failed: {outcome:?}");
}

fn io(format: &str, target: &str, commands: &[&str], read_only: bool) -> Outcome {
    let mut qemu = Command::new(tool("qemu-io"));
    if read_only {
        qemu.arg("-r");
    }
    qemu.args(["-f", format]);
    commands.iter().for_each(|command| {
        qemu.args(["-c", command]);
    });
    run(qemu.arg(target), b"")
}

/// Runs nbdinfo with options on an address; it must succeed.
#[track_caller]
pub fn nbdinfo(options: &[&str], uri: &str) -> Outcome {
    run(Command::new(tool("nbdinfo")).args(options).arg(uri), b"").ok()
}
