//! The commands, one file each, and the table of them.

mod allocate;
mod attach;
mod close;
mod commit;
mod create;
mod destroy;
mod detach;
mod doctor;
mod extra;
mod free;
mod limit;
mod list;
mod metrics;
mod module;
mod open;
mod pause;
mod program;
mod recover;
mod spawn;
mod stats;
mod unpause;
mod upgrade;

use crate::cli::{Command, Listed};
use std::ffi::OsStr;

/// All commands, in the order in which the original lists its own.
pub static COMMANDS: [&Command; 25] = [
    &list::COMMAND,
    &allocate::COMMAND,
    &free::COMMAND,
    &create::COMMAND,
    &destroy::COMMAND,
    &spawn::COMMAND,
    &attach::COMMAND,
    &detach::COMMAND,
    &open::COMMAND,
    &close::COMMAND,
    &pause::COMMAND,
    &unpause::COMMAND,
    &stats::COMMAND,
    &module::MAJOR,
    &module::CHECK,
    &recover::COMMAND,
    &upgrade::COMMAND,
    &commit::COMMIT,
    &commit::QUERY,
    &commit::CANCEL,
    &limit::COMMAND,
    &metrics::COMMAND,
    &doctor::COMMAND,
    &extra::COMPLETIONS,
    &extra::MAN,
];

pub use module::kernel_module_present;

/// The command of that name; those of the kernel module exist only where it does.
pub fn find(name: &OsStr, module: bool) -> Option<&'static Command> {
    let known = |command: &&&Command| module || command.listed != Listed::WithModule;
    COMMANDS.iter().filter(known).find(|command| name == command.name).copied()
}

/// What most commands are.
const PLAIN: Command = Command {
    name: "",
    usage: "",
    usage_on_stderr: false,
    about: "",
    details: "",
    options: &[],
    operands: &[],
    examples: &[],
    listed: Listed::Original,
    run: |_, _| Ok(()),
};
