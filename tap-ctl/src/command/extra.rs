//! `tap-ctl completions` and `tap-ctl man`: texts made from the table.

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, completions, man, print};
use crate::failure::{Failure, Outcome};

pub static COMPLETIONS: Command = Command {
    name: "completions",
    usage: "usage: completions <bash|zsh|fish>",
    about: "print a completion script for a shell",
    operands: &["bash", "zsh", "fish"],
    examples: &[
        ("completions bash >/etc/bash_completion.d/tap-ctl", "for bash"),
        ("completions fish >~/.config/fish/completions/tap-ctl.fish", "for fish"),
    ],
    listed: Listed::Extra,
    run: print_completions,
    ..PLAIN
};

pub static MAN: Command = Command {
    name: "man",
    usage: "usage: man",
    about: "print the man page (roff)",
    examples: &[("man | man -l -", "read it")],
    listed: Listed::Extra,
    run: print_man,
    ..PLAIN
};

fn print_completions(_context: &Context, args: &Args) -> Outcome {
    let text = match args.operands.first().and_then(|word| word.to_str()) {
        Some("bash") => completions::bash(),
        Some("zsh") => completions::zsh(),
        Some("fish") => completions::fish(),
        _ => return Err(Failure::Usage),
    };
    print(&text);
    Ok(())
}

fn print_man(_context: &Context, _args: &Args) -> Outcome {
    print(&man::page());
    Ok(())
}
