//! Help, man page and completions, all from one table.
mod shells;
mod table;

use std::ffi::OsString;

use table::{ENTRIES, Entry, Flag};

/// The help of a command.
pub(crate) fn of_command(name: &str, tool: &str) -> String {
    let entry = ENTRIES.iter().find(|entry| entry.name == name);
    entry.map_or(String::new(), |entry| help(entry, tool))
}

/// What commands about the tool itself print: `--help`, `--version`, `man`, `completions SHELL`.
pub(crate) fn of_tool(name: &str, words: &[OsString], tool: &str) -> Option<String> {
    Some(match (name, words.first().and_then(|word| word.to_str())) {
        ("--help" | "-h" | "help", _) => overview(tool),
        ("--version" | "-V", _) => {
            format!("{tool} version {} (tapdisk-rs)\n", env!("CARGO_PKG_VERSION"))
        }
        ("man", _) => man(),
        ("completions", Some("bash")) => shells::bash(),
        ("completions", Some("zsh")) => shells::zsh(),
        ("completions", Some("fish")) => shells::fish(),
        _ => return None,
    })
}

fn overview(tool: &str) -> String {
    let mut out = format!(
        "{tool}: offline work on qcow2 images\n\n\
         usage: {tool} COMMAND [OPTIONS] IMAGE...      ({tool} COMMAND --help tells more)\n\n"
    );
    for Entry { name, about, .. } in ENTRIES {
        out.push_str(&format!("  {name:<10} {about}\n"));
    }
    out.push_str(
        "\nTexts and exit codes are those of QEMU's qemu-img, which has more commands and \
         formats.\n",
    );
    out
}

/// An option with what follows it.
fn spelled((flag, value, _): &Flag) -> String {
    if value.is_empty() { (*flag).to_string() } else { format!("{flag} {value}") }
}

fn help(entry: &Entry, tool: &str) -> String {
    let Entry { name, operands, about, options } = entry;
    let mut out = format!("{tool} {name} [OPTIONS] {operands}: {about}\n\n");
    for flag in *options {
        out.push_str(&format!("  {:<22} {}\n", spelled(flag), flag.2));
    }
    out
}

const HEAD: &str = r#".TH QCOW2\-UTIL 8 "" "tapdisk\-rs" "System administration"
.SH NAME
qcow2\-util \- offline work on qcow2 images
.SH SYNOPSIS
.B qcow2\-util
.I COMMAND
[OPTIONS]
.I IMAGE...
.SH DESCRIPTION
Makes, examines, repairs, resizes and merges qcow2 images, in files and on block devices.
Its commands, options, texts and exit codes are the part of QEMU's
.BR qemu\-img (1)
that storage managers call; what it does not do it refuses with a sentence. Started under the name
.B qemu\-img
it says how far a commit is, as the one of XCP\-ng does.
.PP
Sizes are bytes, or have a unit of 1024: k, M, G, T, P, E.
.SH LOCKS
An image that another process has open is not changed; but for its parent's name
.RB ( rebase ),
which a
.BR tapdisk (8)
reads when it opens the image. Images that are written may be read.
.B check
refuses them without
.BR \-U ,
since tables that are being written look wrong.
.SH COMMANDS
"#;

const TAIL: &str = r#".SH EXIT STATUS
0, or 1 with a sentence on standard error.
.B check
ends with 2 for corrupt images, 3 for leaks, 63 for formats without a check;
.B compare
with 1 for disks that differ, and more than that for errors.
.SH ENVIRONMENT
.TP
.B TAPDISK_PARENTS
Places where parents of images may lie, with colons between; see PARENTS in
.BR tapdisk (8).
.SH EXAMPLES
.nf
qcow2\-util create \-f qcow2 disk.qcow2 4T
qcow2\-util create \-f qcow2 \-b disk.qcow2 \-F qcow2 leaf.qcow2
qcow2\-util info \-\-backing\-chain leaf.qcow2
qcow2\-util check \-r all leaf.qcow2
qcow2\-util commit \-d \-p leaf.qcow2
.SH SEE ALSO
.BR tap\-ctl (8),
.BR tapdisk (8),
.BR vhd\-util (8),
.BR qemu\-img (1)
"#;

fn man() -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let mut out = String::from(HEAD);
    for Entry { name, about, options, .. } in ENTRIES {
        out.push_str(&format!(".SS {name}\n{}.\n", escaped(about)));
        for (flag, value, text) in *options {
            let value = if value.is_empty() { String::new() } else { format!(" \\fI{value}\\fR") };
            out.push_str(&format!(".TP\n\\fB{}\\fR{value}\n{}\n", escaped(flag), escaped(text)));
        }
    }
    out.push_str(TAIL);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_command_and_no_other() {
        let ours: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        let all: Vec<&str> = crate::COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(ours, all);
    }

    #[test]
    fn everything_is_in_everything() {
        for text in [man().replace("\\-", "-"), shells::bash(), shells::zsh(), shells::fish()] {
            for entry in ENTRIES {
                assert!(text.contains(entry.name), "{}", entry.name);
            }
            assert!(text.contains("backing-chain") && text.contains("max-length"));
        }
    }
}
