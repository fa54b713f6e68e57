//! Help for people. What the original prints is [`overview`] and [`Command::usage`]; this adds
//! `--help`, made from the table.

use super::{Command, Listed, Opt, Takes};
use crate::command::COMMANDS;
use std::fmt::Write;

/// Options that every command has.
pub const COMMON: [(&str, &str); 4] = [
    ("-h", "print the short usage of the original"),
    ("--help", "print this help"),
    ("--version", "print the version"),
    ("--debug", "print every control message on stdout, and reasons on stderr"),
];

/// Environment variables.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("TAPDISK_RUN_DIR", "directory of control sockets and minors instead of the usual one"),
    ("TAPDISK_PROGRAM", "daemon program to start instead of the installed one"),
    ("TAP_CTL_VERBOSE", "1: explain every failure on stderr, even if it is not a terminal"),
    ("XDG_RUNTIME_DIR", "parent of the run-time directory of users other than root"),
];

/// The original's help text.
pub fn overview(module: bool) -> String {
    let shown = COMMANDS.iter().filter(|command| match command.listed {
        Listed::Original => true,
        Listed::WithModule => module,
        Listed::Extra => false,
    });
    let names: Vec<&str> = shown.map(|command| command.name).collect();
    format!("usage: tap-ctl COMMAND [OPTIONS]\nCOMMAND := {{ {} }}\n", names.join(" | "))
}

/// `tap-ctl --version`.
pub fn version() -> String {
    concat!("tap-ctl ", env!("CARGO_PKG_VERSION"), "\n").to_owned()
}

/// `tap-ctl --help`.
pub fn long_overview() -> String {
    let mut text =
        "tap-ctl: control running tapdisks\n\nusage: tap-ctl COMMAND [OPTIONS]\n".to_owned();
    section(&mut text, "Commands", COMMANDS.iter().filter(shown).map(|c| (c.name.into(), c.about)));
    section(&mut text, "Options", COMMON.iter().map(|(name, help)| ((*name).into(), *help)));
    section(
        &mut text,
        "Environment",
        ENVIRONMENT.iter().map(|(name, help)| ((*name).into(), *help)),
    );
    text.push_str(
        "\nA disk's life: allocate, spawn, attach, open, (pause, unpause)*, close, detach, free;\n",
    );
    text.push_str(
        "create and destroy do it all. tap-ctl COMMAND --help shows a command's options.\n",
    );
    text
}

/// `tap-ctl COMMAND --help`.
pub fn long(command: &Command) -> String {
    let mut text =
        format!("tap-ctl {}: {}\n\n{}\n", command.name, command.about, synopsis(command));
    if !command.details.is_empty() {
        let _ = write!(text, "\n{}\n", command.details);
    }
    let own = command.options.iter().map(|opt| (names(opt), opt.help));
    let common = COMMON.iter().map(|(name, help)| ((*name).to_owned(), *help));
    section(&mut text, "Options", own.chain(common));
    if !command.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for (line, what) in command.examples {
            let _ = writeln!(text, "  # {what}\n  tap-ctl {line}");
        }
    }
    text
}

/// Is the command shown in texts beyond the original's?
pub fn shown(command: &&&Command) -> bool {
    command.listed != Listed::WithModule
}

/// `usage: tap-ctl NAME …` with the options of the table.
pub fn synopsis(command: &Command) -> String {
    let mut text = format!("usage: tap-ctl {}", command.name);
    for opt in command.options {
        let one = match (opt.short, opt.long) {
            (Some(short), _) => format!("-{short}"),
            (None, long) => format!("--{}", long.unwrap_or_default()),
        };
        let one = match opt.takes {
            Takes::Nothing => one,
            Takes::Value(name) => format!("{one} {name}"),
            Takes::Maybe(name) => format!("{one} [{name}]"),
        };
        let _ = if opt.required { write!(text, " {one}") } else { write!(text, " [{one}]") };
    }
    if !command.operands.is_empty() {
        let _ = write!(text, " {}", command.operands.join("|"));
    }
    text
}

/// `-w, --watch [SECONDS]`.
pub fn names(opt: &Opt) -> String {
    let short = opt.short.map(|short| format!("-{short}"));
    let long = opt.long.map(|long| format!("--{long}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let value = match opt.takes {
        Takes::Nothing => String::new(),
        Takes::Value(name) => format!(" {name}"),
        Takes::Maybe(name) => format!(" [{name}]"),
    };
    names.join(", ") + &value
}

fn section<'a>(text: &mut String, title: &str, rows: impl Iterator<Item = (String, &'a str)>) {
    let _ = writeln!(text, "\n{title}:");
    for (name, help) in rows {
        let _ = writeln!(text, "  {name:<22} {help}");
    }
}
