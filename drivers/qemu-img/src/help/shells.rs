//! Completions for shells.
use super::table::ENTRIES;

/// For bash.
pub(super) fn bash() -> String {
    let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
    let mut out = String::from(
        "# bash completion of qcow2-util\n_qcow2_util() {\n  local cur=${COMP_WORDS[COMP_CWORD]} \
         words\n  if [ \"$COMP_CWORD\" = 1 ]; then\n",
    );
    out.push_str(&format!("    words='{} --help --version'\n  else\n", names.join(" ")));
    out.push_str("    case ${COMP_WORDS[1]} in\n");
    for entry in ENTRIES {
        let flags: Vec<&str> = entry.options.iter().map(|(flag, _, _)| *flag).collect();
        out.push_str(&format!("      {}) words='{} --help' ;;\n", entry.name, flags.join(" ")));
    }
    out.push_str(
        "      *) words= ;;\n    esac\n  fi\n  COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n\
         }\ncomplete -o default -F _qcow2_util qcow2-util\n",
    );
    out
}

/// For zsh.
pub(super) fn zsh() -> String {
    let quoted = |text: &str| text.replace('\'', "").replace('[', "(").replace(']', ")");
    let mut out = String::from(
        "#compdef qcow2-util\n_qcow2-util() {\n  if (( CURRENT == 2 )); then\n    local -a \
         commands=(\n",
    );
    for entry in ENTRIES {
        let about = quoted(entry.about).replace(':', ",");
        out.push_str(&format!("      '{}:{about}'\n", entry.name));
    }
    out.push_str(
        "    )\n    _describe command commands\n    return\n  fi\n  local command=$words[2]\n  \
         shift words; (( CURRENT-- ))\n  case $command in\n",
    );
    for entry in ENTRIES {
        let flags = entry.options.iter().map(|(flag, value, text)| {
            let text = quoted(text).replace(':', ",");
            let value = if value.is_empty() { String::new() } else { format!(":{value}:_files") };
            format!("'{flag}[{text}]{value}'")
        });
        let flags: Vec<String> = flags.collect();
        out.push_str(&format!(
            "    {}) _arguments {} '*:file:_files' ;;\n",
            entry.name,
            flags.join(" ")
        ));
    }
    out.push_str("  esac\n}\n_qcow2-util \"$@\"\n");
    out
}

/// For fish.
pub(super) fn fish() -> String {
    let quoted = |text: &str| text.replace('\'', "");
    let mut out = String::new();
    for entry in ENTRIES {
        out.push_str(&format!(
            "complete -c qcow2-util -n __fish_use_subcommand -f -a {} -d '{}'\n",
            entry.name,
            quoted(entry.about)
        ));
    }
    for entry in ENTRIES {
        for (flag, value, text) in entry.options {
            let flag = match flag.strip_prefix("--") {
                Some(long) => format!("-l {long}"),
                None => format!("-s {}", flag.trim_start_matches('-')),
            };
            let value = if value.is_empty() { "" } else { " -r" };
            out.push_str(&format!(
                "complete -c qcow2-util -n '__fish_seen_subcommand_from {}' {flag}{value} \
                 -d '{}'\n",
                entry.name,
                quoted(text)
            ));
        }
    }
    out
}
