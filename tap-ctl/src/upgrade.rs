//! Whether a program can take over from a running tapdisk, found out before anything is stopped
//! (docs/upgrade.md).
use crate::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a tapdisk hands over; a program says whether it can read it. Grows when an older program
/// could not make sense of what a newer one writes.
pub const FORMAT: u32 = 1;
/// The option that asks.
pub const CAN_RESUME: &str = "--can-resume";
/// The option that takes over; the number of a descriptor is its value.
pub const RESUME: &str = "--resume";

/// Asks a program. What it says of itself.
///
/// # Errors
/// ENOEXEC for a program that cannot take over, or cannot be run.
pub fn ask(program: &Path) -> Result<String, Error> {
    let refuse = |why: &str| Error::Argument {
        errno: libc::ENOEXEC,
        reason: format!("{} cannot take over from a running tapdisk: {why}", show::path(program)),
    };
    let mut asked = Command::new(program);
    asked.arg(format!("{CAN_RESUME}={FORMAT}")).stdin(Stdio::null());
    let said = asked.output().map_err(|error| refuse(&error.to_string()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let version = text.strip_prefix("tapdisk ").and_then(|rest| rest.split(' ').next());
    match version.filter(|_| said.status.success() && text.contains("can resume")) {
        Some(version) => Ok(version.to_owned()),
        None if said.status.success() => Err(refuse("it does not say that it can")),
        None => {
            let error = String::from_utf8_lossy(&said.stderr);
            Err(refuse(&show::line(error.trim().as_bytes())))
        }
    }
}
