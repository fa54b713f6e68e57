//! `tap-ctl commit`, `query`, `cancel`: an image goes into its parent while the disk is in
//! use. Texts and exit codes are those of blktap's qcow2 builds (docs/spec/qcow2.md §4.2).

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, MINOR, Opt, PID, Takes, flag, long, print, value};
use crate::failure::{Failure, Outcome};
use tap_ctl::error::Error;
use tap_ctl::messages::CommitStatus;

pub static COMMIT: Command = Command {
    name: "commit",
    usage: "usage: commit <-p pid> <-m minor> <-a /path/to/file>",
    about: "merge an image of the chain into its parent while the disk is in use",
    details: "It begins and goes on in the tapdisk; query tells how far it is. Then the image that \
              was merged is no\nimage of the chain any more, and whoever owns it may delete it.",
    options: &[
        PID.required(),
        MINOR.required(),
        value('a', "PATH", "the image to be merged into its parent").required(),
    ],
    examples: &[(
        "commit -p 4711 -m 0 -a /sr/middle.qcow2",
        "shorten a chain under a running guest",
    )],
    listed: Listed::Extra,
    run: commit,
    ..PLAIN
};

pub static QUERY: Command = Command {
    name: "query",
    usage: "usage: query <-p pid> <-m minor>",
    about: "print how far the last commit is",
    details: "Once a commit is over it is concluded until the next one begins or the disk is \
              closed; one that has\nfailed or was cancelled is an error each time it is asked for.",
    options: &QUERY_OPTIONS,
    examples: &[("query -p 4711 -m 0", "Commit status 'running' (4194304/1073741824)")],
    listed: Listed::Extra,
    run: query,
    ..PLAIN
};

static QUERY_OPTIONS: [Opt; 3] = [
    PID.required(),
    MINOR.required(),
    long("json", Takes::Nothing, "print a JSON document on one line"),
];

pub static CANCEL: Command = Command {
    name: "cancel",
    usage: "usage: cancel <-p pid> <-m minor> [-w]",
    about: "stop a commit",
    details: "What was merged so far stays in the parent, where the image above hides it.",
    options: &CANCEL_OPTIONS,
    examples: &[("cancel -p 4711 -m 0 -w", "nothing is written to the parent any more")],
    listed: Listed::Extra,
    run: cancel,
    ..PLAIN
};

static CANCEL_OPTIONS: [Opt; 3] = [
    PID.required(),
    MINOR.required(),
    flag('w', "wait until nothing is written to the parent any more"),
];

fn commit(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let path = args.path("a")?.ok_or(Failure::Usage)?;
    Ok(context.client()?.commit(pid, minor, path)?)
}

fn query(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let CommitStatus { current, total, status } = context.client()?.query(pid, minor)?;
    let status = status.to_string();
    if args.has("json") {
        let json = serde_json::json!({ "status": status, "current": current, "total": total });
        print(&format!("{json}\n"));
    } else {
        print(&format!("Commit status '{status}' ({current}/{total})\n"));
    }
    Ok(())
}

/// What a tapdisk refuses is no more than unexpected there.
fn cancel(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    context.client()?.cancel(pid, minor, args.has("w")).map_err(|error| match error {
        Error::Refused { .. } => Failure::masked(error),
        other => other.into(),
    })
}
