//! `tap-ctl create`: allocate, spawn, attach, open; or nothing of it.

use super::PLAIN;
use super::allocate::{NODE, print_path};
use super::attach;
use super::open::{
    BUFFERED, DEVICE, DEVICE_NAME, IMAGE, LEAF_CACHE, LOG, PARENT, QUEUES, READ_ONLY,
    REQUEST_TIMEOUT, SECONDARY, STANDBY, explained, params, print_device,
};
use super::spawn::{end, spawn_and_say};
use crate::cli::args::Args;
use crate::cli::{Command, Context, Opt};
use crate::failure::Outcome;
use std::path::Path;
use tap_ctl::client::{Client, Payload};
use tap_ctl::leftovers;
use tap_ctl::messages::{Params, Text, flag as bit};
use tap_ctl::minors::{self, Minor};
use tap_ctl::sys;

pub static COMMAND: Command = Command {
    name: "create",
    usage: "usage: create <-a type:/path/to/file> [-d device name] [-R readonly] [-e <minor> stack on existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 <path> use secondary image (in mirror mode if no -s)] [-s fail over to the secondary image on ENOSPC] [-t request timeout in seconds] [-D no O_DIRECT] [-C <path/to/logfile> insert log layer to track changed blocks]",
    about: "make a disk: allocate, spawn, attach and open in one step",
    details: "Prints what allocate prints, or with --device the block device instead: it comes last, so that who reads its name\nmay use it. If a step fails the earlier ones are undone. A device outlives its tapdisk (see recover), but for the\nblktap module's.",
    options: &OPTIONS,
    examples: &[
        ("create -a vhd:/images/disk.vhd", "serve a VHD; tap-ctl list shows pid and minor"),
        ("create -a vhd:/images/disk.vhd --device", "prints /dev/ublkb0, which can be mounted"),
    ],
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 13] = [
    IMAGE.required(),
    NODE,
    READ_ONLY,
    PARENT,
    LEAF_CACHE,
    SECONDARY,
    STANDBY,
    REQUEST_TIMEOUT,
    BUFFERED,
    LOG,
    DEVICE,
    DEVICE_NAME,
    QUEUES,
];

fn run(context: &Context, args: &Args) -> Outcome {
    let (params, log) = params(args)?;
    let client = context.client()?;
    leftovers::sweep(client.run_dir());
    let node = args.value("d").map(Path::new);
    let allocated = minors::allocate(client.run_dir(), node)?;
    let served = serve(&client, &allocated, &params, log.as_ref());
    match served {
        Ok(()) if params.has(bit::DEVICE) => {}
        Ok(()) => print_path(&allocated.path),
        // The first failure is the one to report, so that of the clean-up is dropped.
        Err(_) => drop(minors::free(client.run_dir(), allocated.minor)),
    }
    served
}

fn serve(client: &Client, to: &Minor, params: &Params, log: Option<&Text>) -> Outcome {
    let minor = to.minor;
    let pid = spawn_and_say()?;
    if let Err(error) = client.attach(pid, minor) {
        // Without a disk it would run for ever: the original leaves it behind.
        end(pid, &error);
        return Err(attach::explained(client, minor, error));
    }
    let payload = Payload { log_path: log, key: None };
    let opened = client.open(pid, minor, params, payload);
    let opened = opened.map_err(|error| explained(params, error.into()));
    let opened = opened.and_then(|info| {
        let printed = print_device(params, &info, Some(&to.path));
        if printed.is_err() {
            let _ = client.close(pid, minor, true, None);
        }
        printed
    });
    if let Err(failure) = opened {
        // Detaching its last disk ends it; if it does not even answer that, ask it to end.
        if client.detach(pid, minor).is_err() {
            let _ = sys::terminate(pid);
        }
        return Err(failure);
    }
    Ok(())
}
