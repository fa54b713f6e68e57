//! Completions for shells.
use super::table::{ENTRIES, FILE};

/// For bash.
pub(super) fn bash() -> String {
    let names: Vec<&str> = ENTRIES.iter().map(|e| e.name).collect();
    let mut out = String::from("# bash completion of vhd-util\n_vhd_util() {\n");
    out.push_str(
        "  local cur=${COMP_WORDS[COMP_CWORD]} words\n  if [ \"$COMP_CWORD\" = 1 ]; then\n",
    );
    out.push_str(&format!("    words='{} --help --version'\n  else\n", names.join(" ")));
    out.push_str("    case ${COMP_WORDS[1]} in\n");
    for entry in ENTRIES {
        let flags: Vec<&str> = entry.options.iter().map(|(flag, _, _)| *flag).collect();
        out.push_str(&format!("      {}) words='{} --help' ;;\n", entry.name, flags.join(" ")));
    }
    out.push_str("      *) words= ;;\n    esac\n  fi\n");
    out.push_str("  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\n");
    out.push_str("complete -o default -F _vhd_util vhd-util\n");
    out
}

/// For zsh.
pub(super) fn zsh() -> String {
    let quoted = |text: &str| text.replace('\'', "").replace('[', "(").replace(']', ")");
    let mut out = String::from("#compdef vhd-util\n_vhd-util() {\n  if (( CURRENT == 2 )); then\n");
    out.push_str("    local -a commands=(\n");
    for entry in ENTRIES {
        let about = quoted(entry.about).replace(':', ",");
        out.push_str(&format!("      '{}:{about}'\n", entry.name));
    }
    out.push_str("    )\n    _describe command commands\n    return\n  fi\n");
    out.push_str("  local command=$words[2]\n  shift words; (( CURRENT-- ))\n  case $command in\n");
    for entry in ENTRIES {
        let flags = entry.options.iter().map(|(flag, value, text)| {
            let value = match *value {
                "" => String::new(),
                FILE => ":file:_files".into(),
                other => format!(":{other}:"),
            };
            format!("'{flag}[{}]{value}'", quoted(text))
        });
        let flags: Vec<String> = flags.collect();
        out.push_str(&format!("    {}) _arguments {} ;;\n", entry.name, flags.join(" ")));
    }
    out.push_str("  esac\n}\n_vhd-util \"$@\"\n");
    out
}

/// For fish.
pub(super) fn fish() -> String {
    let quoted = |text: &str| text.replace('\'', "");
    let mut out = String::new();
    for entry in ENTRIES {
        let (name, about) = (entry.name, quoted(entry.about));
        let line =
            format!("complete -c vhd-util -n __fish_use_subcommand -f -a {name} -d '{about}'\n");
        out.push_str(&line);
    }
    for entry in ENTRIES {
        for (flag, value, text) in entry.options {
            let spelled = match flag.strip_prefix("--") {
                Some(long) => format!("-l {long}"),
                None => format!("-s {}", flag.trim_start_matches('-')),
            };
            let value = match *value {
                "" => "",
                FILE => " -r",
                _ => " -x",
            };
            let (name, text) = (entry.name, quoted(text));
            out.push_str(&format!(
                "complete -c vhd-util -n '__fish_seen_subcommand_from {name}' {spelled}{value} -d '{text}'\n"
            ));
        }
    }
    out
}
