//! `tap-ctl create`: allocate, spawn, attach, open; or nothing of it.

use super::PLAIN;
use super::allocate::print_marker;
use super::open::{
    BUFFERED, IMAGE, LEAF_CACHE, LOG, PARENT, READ_ONLY, REQUEST_TIMEOUT, SECONDARY, STANDBY,
    params,
};
use super::spawn::spawn_and_say;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Opt, value};
use crate::failure::{Failure, Outcome};
use tap_ctl::client::{Client, Payload};
use tap_ctl::messages::{Params, Text};
use tap_ctl::{registry, sys};

pub static COMMAND: Command = Command {
    name: "create",
    usage: "usage: create <-a type:/path/to/file> [-d device name] [-R readonly] [-e <minor> stack on existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 <path> use secondary image (in mirror mode if no -s)] [-s fail over to the secondary image on ENOSPC] [-t request timeout in seconds] [-D no O_DIRECT] [-C <path/to/logfile> insert log layer to track changed blocks]",
    about: "make a disk: allocate, spawn, attach and open in one step",
    details: "Prints what allocate prints. If a step fails the earlier ones are undone.",
    options: &OPTIONS,
    examples: &[(
        "create -a vhd:/images/disk.vhd",
        "serve a VHD; tap-ctl list shows pid and minor",
    )],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 10] = [
    IMAGE.required(),
    value('d', "NAME", "accepted and ignored"),
    READ_ONLY,
    PARENT,
    LEAF_CACHE,
    SECONDARY,
    STANDBY,
    REQUEST_TIMEOUT,
    BUFFERED,
    LOG,
];

fn run(context: &Context, args: &Args) -> Outcome {
    let (params, log) = params(args)?;
    let client = context.client()?;
    let allocated = registry::allocate(client.run_dir())?;
    let served = serve(&client, allocated.minor, &params, log.as_ref());
    match served {
        Ok(()) => print_marker(&allocated.marker),
        // The first failure is the one to report, so that of the clean-up is dropped.
        Err(_) => drop(registry::free(client.run_dir(), allocated.minor.into())),
    }
    served
}

fn serve(client: &Client, minor: u16, params: &Params, log: Option<&Text>) -> Outcome {
    let pid = spawn_and_say()?;
    if let Err(error) = client.attach(pid, minor) {
        // Without a disk it would run for ever: the original leaves it behind.
        let _ = sys::terminate(pid);
        return Err(Failure::masked(error));
    }
    let payload = Payload { log_path: log, key: None };
    if let Err(error) = client.open(pid, minor, params, payload) {
        // Detaching its last disk ends it; if it does not even answer that, ask it to end.
        if client.detach(pid, minor).is_err() {
            let _ = sys::terminate(pid);
        }
        return Err(error.into());
    }
    Ok(())
}
