//! `tap-ctl destroy`: close, detach, free; stops at the first failure, unless the disk is closed
//! all the same.

use super::PLAIN;
use super::close::TIMEOUT;
use super::detach::detach;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID};
use crate::failure::Outcome;
use std::time::Duration;
use tap_ctl::client::{Client, LIST_LIMIT};
use tap_ctl::error::Error;
use tap_ctl::leftovers;
use tap_ctl::messages::{ListEntry, state};
use tap_ctl::minors;

pub static COMMAND: Command = Command {
    name: "destroy",
    usage: "usage: destroy <-p pid> <-m minor> [-t timeout secs]",
    about: "remove a disk: close, detach and free in one step",
    details: "The tapdisk exits after its last disk. -t applies to the close. Where the last flush fails the disk \
              is removed as well, and the exit status is the flush's error.",
    options: &OPTIONS,
    examples: &[("destroy -p 4711 -m 0", "the opposite of create")],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 3] = [PID.required(), MINOR.required(), TIMEOUT];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let client = context.client()?;
    let destroyed = destroy(&client, pid, minor, args.seconds("t")?);
    // Afterwards: who names a dead tapdisk is told so (ECONNREFUSED, from its socket).
    leftovers::sweep(client.run_dir());
    destroyed
}

fn destroy(client: &Client, pid: i32, minor: u16, limit: Option<Duration>) -> Outcome {
    let closed = client.close(pid, minor, false, limit);
    if let Err(error) = closed {
        if !is_closed(client, pid, minor, &error) {
            return Err(error.into());
        }
        // Its storage is lost, say: the last flush failed, and nothing that could be tried again is
        // left.
        remove(client, pid, minor)?;
        return Err(error.into());
    }
    remove(client, pid, minor)
}

/// Who was still making the disk takes it away as well when it is closed, and may be faster: what
/// is gone is no failure.
fn remove(client: &Client, pid: i32, minor: u16) -> Outcome {
    let this = |entry: &ListEntry| entry.minor == i32::from(minor);
    if let Err(failure) = detach(client, pid, minor)
        && client.list(pid, LIST_LIMIT).is_ok_and(|disks| disks.iter().any(this))
    {
        return Err(failure);
    }
    let run = client.run_dir();
    match minors::free(run, minor) {
        Err(_) if minors::all(run).is_ok_and(|all| !all.contains(&i32::from(minor))) => Ok(()),
        freed => Ok(freed?),
    }
}

/// Whether the tapdisk closed the disk though it reports an error.
fn is_closed(client: &Client, pid: i32, minor: u16, error: &Error) -> bool {
    match error {
        // Unknown, or in use.
        Error::Refused { .. } if matches!(error.errno(), libc::ENODEV | libc::EBUSY) => false,
        Error::Refused { .. } => client.list(pid, LIST_LIMIT).is_ok_and(|disks| {
            let mut this = disks.iter().filter(|entry| entry.minor == i32::from(minor));
            this.any(|entry| entry.state & state::CLOSED != 0)
        }),
        _ => false,
    }
}
