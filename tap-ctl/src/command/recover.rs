//! `tap-ctl recover`: a block device whose tapdisk died gets another one.

use super::PLAIN;
use super::open::{READ_KEY, explained, key, print_device};
use super::spawn::{end, spawn_and_say};
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, MINOR, Opt, Takes, long};
use crate::failure::{Failure, Outcome};
use std::path::Path;
use tap_ctl::client::{Client, Payload};
use tap_ctl::messages::{Params, Request, flag};
use tap_ctl::paths::RunDir;
use tap_ctl::{record, registry, sys};

pub static COMMAND: Command = Command {
    name: "recover",
    usage: "usage: recover <-m minor> [-E read encryption key from stdin] [--remove the device instead]",
    about: "serve the block device of a tapdisk that died again",
    details: "What was asked of the device waits meanwhile and goes on; a mounted file system sees no error.\nThe image and its options are those that the dead tapdisk had. tap-ctl list --devices shows what waits.",
    options: &OPTIONS,
    examples: &[
        ("recover -m 0", "prints /dev/ublkb0"),
        ("recover -m 0 --remove", "the image is lost: take the device away and free the minor"),
    ],
    listed: Listed::Extra,
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 3] = [
    MINOR.required(),
    READ_KEY,
    long("remove", Takes::Nothing, "take the device away instead; who uses it sees errors"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    let minor = args.minor()?;
    let client = context.client()?;
    let record = record::read(client.run_dir(), minor).map_err(|error| {
        let sentence =
            format!("minor {minor} has no block device that could be recovered: {error}");
        Failure::new(error.errno(), sentence)
    })?;
    let Request::Open { params, .. } = record.request else {
        unreachable!("a record is an OPEN message")
    };
    if args.has("remove") {
        return remove(&client, minor, &params);
    }
    let encrypted = params.has(flag::OPEN_ENCRYPTED);
    if encrypted != args.has("E") {
        let wanted = if encrypted { "needs its key: use -E" } else { "has no key: leave out -E" };
        return Err(Failure::new(libc::EINVAL, format!("the image of minor {minor} {wanted}")));
    }
    let key = key(args.count("E"))?;
    let pid = spawn_and_say()?;
    if let Err(error) = client.attach(pid, minor) {
        end(pid, &error);
        let sentence = format!("minor {minor} is served by a tapdisk that lives: {error}");
        return Err(Failure::new(error.errno(), sentence));
    }
    let payload = Payload { log_path: record.log.as_ref(), key: key.as_deref() };
    match client.open(pid, minor, &params, payload) {
        Ok(info) => {
            remove_dead_sockets(client.run_dir(), minor);
            print_device(&params, &info, None)
        }
        Err(error) => Err(undo(&client, pid, minor, explained(&params, error.into()))),
    }
}

/// Asks a new tapdisk to take the device away; nothing stays.
fn remove(client: &Client, minor: u16, params: &Params) -> Outcome {
    let flags = flag::DEVICE | flag::TAKE_OVER | flag::REMOVE;
    let params = Params { flags, device: params.device, ..Params::default() };
    let pid = spawn_and_say()?;
    if let Err(error) = client.attach(pid, minor) {
        end(pid, &error);
        return Err(error.into());
    }
    let removed = client.open(pid, minor, &params, Payload::default());
    if let Err(error) = removed {
        return Err(undo(client, pid, minor, explained(&params, error.into())));
    }
    client.detach(pid, minor)?;
    remove_dead_sockets(client.run_dir(), minor);
    Ok(registry::free(client.run_dir(), minor.into())?)
}

/// The device waits on.
fn undo(client: &Client, pid: i32, minor: u16, failure: Failure) -> Failure {
    if client.detach(pid, minor).is_err() {
        let _ = sys::terminate(pid);
    }
    failure
}

/// What the dead tapdisk has left of this minor, and its control sockets.
fn remove_dead_sockets(run: &RunDir, minor: u16) {
    let dead = |pid: &i32| !Path::new(&format!("/proc/{pid}")).exists();
    for pid in run.ctl_numbers().unwrap_or_default().into_iter().filter(dead) {
        let own = [run.nbd(pid, minor), run.nbd_old(pid, minor), run.nbdserver(pid, minor)];
        if !own[0].exists() {
            continue;
        }
        let rest = [run.nbdserver_new(pid, minor), run.ctl(pid), run.nbdclient(pid)];
        own.iter().chain(&rest).for_each(|path| drop(std::fs::remove_file(path)));
    }
}
