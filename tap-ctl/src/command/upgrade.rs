//! `tap-ctl upgrade`: running tapdisks go on with the program that is installed now.

use super::PLAIN;
use super::program::Program;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, Opt, PID, Takes, long, print};
use crate::failure::{Failure, Outcome};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tap_ctl::client::Client;
use tap_ctl::error::Error;
use tap_ctl::messages::{Text, Upgraded, kind};
use tap_ctl::spawn;
use tap_ctl::upgrade::ask;

pub static COMMAND: Command = Command {
    name: "upgrade",
    usage: "usage: upgrade <-p pid | --all> [--program PATH] [--json]",
    about: "let running tapdisks go on with the program that is installed now",
    details: "The process, its disks, clients and guests stay; they wait for some milliseconds. Whether the program can take over is found out before. --all leaves out those that run it already. Where one cannot be upgraded now the reason is said, its disks go on as before, and the exit status is that of the first.",
    options: &OPTIONS,
    examples: &[
        ("upgrade --all", "after an update of the package"),
        ("upgrade -p 4711 --json", "how long its disks waited"),
    ],
    listed: Listed::Extra,
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 4] = [
    PID,
    long("all", Takes::Nothing, "all tapdisks that run another program"),
    long("program", Takes::Value("PATH"), "this program, not the one that tap-ctl spawns"),
    long("json", Takes::Nothing, "print a JSON array, an object a tapdisk"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    upgrade(context, args).map_err(Failure::aloud)
}

fn upgrade(context: &Context, args: &Args) -> Outcome {
    let client = context.client()?;
    let only = args.number("p")?;
    if only.is_some() == args.has("all") {
        return Err(Failure::Usage);
    }
    let wanted = args.value("program").map_or_else(spawn::program, PathBuf::from);
    let program = std::fs::canonicalize(&wanted).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        Failure::new(errno, format!("there is no program {}: {error}", show::path(&wanted)))
    })?;
    ask(&program)?;
    let pids = match only {
        Some(pid) => vec![pid],
        None => client.run_dir().ctl_numbers()?,
    };
    let (mut first, mut said) = (Ok(()), Vec::new());
    for pid in pids {
        if only.is_none() && (client.pid(pid).is_err() || runs(pid, &program)) {
            continue;
        }
        let upgraded = one(&client, pid, &program);
        match &upgraded {
            Ok(done) if !args.has("json") => print(&line(pid, done)),
            Ok(_) => {}
            // The first goes the way of every failure.
            Err(error) if first.is_ok() => first = Err(error.clone()),
            Err(error) => eprintln!("tap-ctl: {error}"),
        }
        said.push(object(pid, &upgraded));
    }
    if args.has("json") {
        print(&format!("{}\n", Value::from(said)));
    }
    Ok(first?)
}

fn runs(pid: i32, program: &Path) -> bool {
    Program::of(pid).is_some_and(|now| !now.replaced && now.path == program)
}

fn one(client: &Client, pid: i32, program: &Path) -> Result<Upgraded, Error> {
    let bytes = program.as_os_str().as_bytes();
    let text = Text::new(bytes)
        .map_err(|error| Error::Argument { errno: error.errno(), reason: error.to_string() })?;
    client.upgrade(pid, &text).map_err(|error| match error {
        // It says that there is no such message, with the cookie of none.
        Error::Refused { kind: kind::UPGRADE, errno: libc::EINVAL, ref reason, .. }
            if reason.as_ref().is_none_or(|text| text.contains("does not exist")) =>
        {
            let reason = format!(
                "tapdisk {pid} is of a release that cannot be upgraded while it runs: its disks get \
                 the new program when they are attached the next time"
            );
            Error::Argument { errno: libc::ENOSYS, reason }
        }
        error => error,
    })
}

fn line(pid: i32, done: &Upgraded) -> String {
    let version = show::line(done.version.as_bytes()).into_owned();
    let (ms, disks) = (done.pause_us.div_ceil(1000), done.disks);
    let what = if disks == 1 { "disk" } else { "disks" };
    format!("{pid}: runs tapdisk {version}, {disks} {what} waited for {ms} ms\n")
}

fn object(pid: i32, upgraded: &Result<Upgraded, Error>) -> Value {
    let version = |done: &Upgraded| String::from_utf8_lossy(done.version.as_bytes()).into_owned();
    match upgraded {
        Ok(done) => json!({
            "pid": pid, "version": version(done), "disks": done.disks, "pause_us": done.pause_us,
            "error": null,
        }),
        Err(error) => json!({"pid": pid, "error": error.to_string(), "errno": error.errno()}),
    }
}
