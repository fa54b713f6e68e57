//! `qcow2-util`: offline work on qcow2 images. Under the name `qemu-img` it is the part of QEMU's
//! tool that storage managers call, with its texts and exit codes.
//!
//! What it does not do it refuses with a sentence. An image that another process writes is not
//! changed; reading one is allowed.
#![forbid(unsafe_code)]

mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod help;
mod info;
mod json;
mod map;
mod measure;
mod open;
mod parameters;
mod rebase;
mod resize;
mod size;
mod snapshot;
mod tool;
mod walk;

use std::ffi::OsString;
use std::process::ExitCode;

use tool::{Outcome, Tool};

/// A subcommand: its words in, its exit code out.
type Command = fn(&[OsString], &mut Tool) -> Outcome;

/// All subcommands by name; a new one is a module, a line here, and a row of the help.
const COMMANDS: &[(&str, Command)] = &[
    ("check", check::run),
    ("commit", commit::run),
    ("compare", compare::run),
    ("convert", convert::run),
    ("create", create::run),
    ("info", info::run),
    ("map", map::run),
    ("measure", measure::run),
    ("rebase", rebase::run),
    ("resize", resize::run),
    ("snapshot", snapshot::run),
];

/// What a signal in the middle of a command leaves; nothing for one that changes nothing.
fn when_stopped(command: &str) -> Option<&'static str> {
    Some(match command {
        "check" | "commit" | "rebase" | "resize" => "no data is lost; run the same command again",
        "convert" => "the old image is as it was",
        "create" => "there is no new image, or a whole one",
        _ => return None,
    })
}

fn main() -> ExitCode {
    cli::begin();
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    let name = std::path::Path::new(&name).file_name().unwrap_or_default().to_owned();
    let qemu = name == "qemu-img";
    let mut tool = Tool::new(if qemu { "qemu-img" } else { "qcow2-util" }, qemu);
    let words: Vec<OsString> = words.collect();
    let code = match dispatch(&words, &mut tool) {
        Ok(code) => code,
        Err(fail) => {
            tool.complain(&fail.text);
            fail.code
        }
    };
    cli::exit_code(tool.finish(code))
}

fn dispatch(words: &[OsString], tool: &mut Tool) -> Outcome {
    let Some((name, rest)) = words.split_first() else {
        let text = format!("Not enough arguments\nTry '{} --help' for more info", tool.name);
        return Err(text.into());
    };
    if let Some((name, command)) = COMMANDS.iter().find(|(known, _)| name == known) {
        if rest.iter().any(|word| word == "--help" || word == "-h") {
            tool.say(&help::of_command(name, tool.name));
            return Ok(0);
        }
        if let Some(state) = when_stopped(name) {
            cli::explain_signals(tool.name, name, state, image::unfinished::remove_all);
        }
        return command(rest, tool);
    }
    if let Some(text) = help::of_tool(&name.to_string_lossy(), rest, tool.name) {
        tool.say(&text);
        return Ok(0);
    }
    let text = format!(
        "Command not found: {}\nTry '{} --help' for more info; what is not there, QEMU's qemu-img \
         has",
        show::path(name),
        tool.name
    );
    Err(text.into())
}
