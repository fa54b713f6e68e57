//! Completions for shells, made from the table.

use super::help::{COMMON, shown};
use super::{Command, Opt, Takes};
use crate::command::COMMANDS;
use std::fmt::Write;

/// `complete -F` for bash: the commands, then the options of the command.
pub fn bash() -> String {
    let commands: Vec<&str> = COMMANDS.iter().filter(shown).map(|command| command.name).collect();
    let mut text = "# bash completion of tap-ctl; made by: tap-ctl completions bash\n".to_owned();
    text.push_str("_tap_ctl() {\n  local cur=${COMP_WORDS[COMP_CWORD]} words\n");
    text.push_str("  if [ \"$COMP_CWORD\" -eq 1 ]; then\n");
    let _ = writeln!(text, "    words='{} --help --version'", commands.join(" "));
    text.push_str("  else case ${COMP_WORDS[1]} in\n");
    for command in COMMANDS.iter().filter(shown) {
        let _ = writeln!(text, "    {}) words='{}' ;;", command.name, words(command).join(" "));
    }
    text.push_str("    *) words= ;;\n  esac; fi\n");
    text.push_str("  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n");
    text.push_str("complete -o default -F _tap_ctl tap-ctl\n");
    text
}

/// `#compdef` for zsh.
pub fn zsh() -> String {
    let mut text =
        "#compdef tap-ctl\n# made by: tap-ctl completions zsh\n_tap-ctl() {\n".to_owned();
    text.push_str("  if (( CURRENT == 2 )); then\n    local -a commands=(\n");
    for command in COMMANDS.iter().filter(shown) {
        let _ = writeln!(text, "      '{}:{}'", command.name, zsh_text(command.about));
    }
    text.push_str("    )\n    _describe command commands\n    return\n  fi\n");
    text.push_str(
        "  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n",
    );
    for command in COMMANDS.iter().filter(shown) {
        let _ = write!(text, "    {}) _arguments", command.name);
        for opt in command.options {
            zsh_option(&mut text, opt);
        }
        if !command.operands.is_empty() {
            let _ = write!(text, " \\\n      ':word:({})'", command.operands.join(" "));
        }
        text.push_str(" ;;\n");
    }
    text.push_str("  esac\n}\n_tap-ctl \"$@\"\n");
    text
}

/// `complete -c` lines for fish.
pub fn fish() -> String {
    let mut text = "# made by: tap-ctl completions fish\n".to_owned();
    for command in COMMANDS.iter().filter(shown) {
        let _ = writeln!(
            text,
            "complete -c tap-ctl -n __fish_use_subcommand -f -a {} -d '{}'",
            command.name,
            fish_text(command.about)
        );
        let seen = format!("complete -c tap-ctl -n '__fish_seen_subcommand_from {}'", command.name);
        for opt in command.options {
            let short = opt.short.map(|short| format!(" -s {short}")).unwrap_or_default();
            let long = opt.long.map(|long| format!(" -l {long}")).unwrap_or_default();
            let value = if matches!(opt.takes, Takes::Value(_)) { " -r" } else { "" };
            let _ = writeln!(text, "{seen}{short}{long}{value} -d '{}'", fish_text(opt.help));
        }
        for word in command.operands {
            let _ = writeln!(text, "{seen} -f -a {word}");
        }
    }
    text
}

fn words(command: &Command) -> Vec<String> {
    let short = command.options.iter().filter_map(|opt| opt.short).map(|c| format!("-{c}"));
    let long = command.options.iter().filter_map(|opt| opt.long).map(|name| format!("--{name}"));
    let common = COMMON.iter().map(|(name, _)| (*name).to_owned());
    let operands = command.operands.iter().map(|word| (*word).to_owned());
    short.chain(long).chain(common).chain(operands).collect()
}

fn zsh_option(text: &mut String, opt: &Opt) {
    let value = match opt.takes {
        Takes::Nothing => String::new(),
        Takes::Value(name) => format!(":{name}:_files"),
        Takes::Maybe(name) => format!("::{name}:"),
    };
    let short = opt.short.map(|short| format!("-{short}"));
    let long = opt.long.map(|long| format!("--{long}"));
    for name in short.into_iter().chain(long) {
        let _ = write!(text, " \\\n      '{name}[{}]{value}'", zsh_text(opt.help));
    }
}

/// Inside single quotes, brackets and colons are for _arguments.
fn zsh_text(text: &str) -> String {
    let text = text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]");
    text.replace(':', "\\:")
}

fn fish_text(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\'', "\\'")
}
