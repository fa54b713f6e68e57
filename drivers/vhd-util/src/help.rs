//! Help, man page and completions, all from one table.
mod shells;
mod table;

use crate::options::Term;
use std::ffi::OsString;
use table::{ENTRIES, Entry, Flag};

/// The help of a command, if `--help` is what was asked for.
pub(crate) fn of_command(name: &str, args: &[OsString]) -> Option<String> {
    let entry = ENTRIES.iter().find(|e| e.name == name)?;
    args.iter().any(|a| a == "--help").then(|| help(entry))
}

/// What commands about the tool itself print: `--help`, `--version`, `man`, `completions SHELL`.
pub(crate) fn of_tool(name: &str, args: &[OsString], term: &mut Term) -> bool {
    let text = match (name, args.first().and_then(|a| a.to_str())) {
        ("--help", _) => overview(),
        ("--version", _) => concat!("vhd-util ", env!("CARGO_PKG_VERSION"), "\n").into(),
        ("man", _) => man(),
        ("completions", Some("bash")) => shells::bash(),
        ("completions", Some("zsh")) => shells::zsh(),
        ("completions", Some("fish")) => shells::fish(),
        _ => return false,
    };
    term.say(&text);
    true
}

fn overview() -> String {
    let mut out = String::from("vhd-util: offline work on VHD images\n\n");
    out.push_str("usage: vhd-util COMMAND [OPTIONS]      (vhd-util COMMAND --help tells more)\n\n");
    for Entry { name, about, .. } in ENTRIES {
        out.push_str(&format!("  {name:<10} {about}\n"));
    }
    out.push_str(
        "\nEvery command takes --debug (no effect) and --ignore-lock (change an image that another \
         process is writing).\nExit codes are errno numbers.\n",
    );
    out
}

/// An option with what follows it.
fn spelled((flag, value, _): &Flag) -> String {
    if value.is_empty() { (*flag).to_string() } else { format!("{flag} {value}") }
}

fn help(entry: &Entry) -> String {
    let mut out = format!("vhd-util {}: {}\n\n", entry.name, entry.about);
    for flag in entry.options {
        out.push_str(&format!("  {:<16} {}\n", spelled(flag), flag.2));
    }
    out
}

const HEAD: &str = r#".TH VHD\-UTIL 8 "" "tapdisk\-rs" "System administration"
.SH NAME
vhd\-util \- offline work on VHD images
.SH SYNOPSIS
.B vhd\-util
.I COMMAND
[OPTIONS]
.SH DESCRIPTION
Makes, examines, resizes, merges and repairs VHD images, alone or in chains, in files and on block devices.
Standard output and exit codes are those of blktap's tool of the same name, which storage managers parse; what
went wrong, and what to do about it, is said on standard error.
.PP
.B \-\-debug
may stand anywhere and has no effect.
.SH LOCKS
A command that changes an image is refused with EBUSY (16) while another process writes it: a
.BR tapdisk (8)
that serves it as a leaf, or another
.BR vhd\-util .
Images that are only read, as the parents of a running disk, may be changed, and images that are written may be
read.
.B \-\-ignore\-lock
changes an image all the same.
This holds for files and for block devices.
.SH COMMANDS
"#;

const TAIL: &str = r#".SH JSON
.B \-\-json
prints one object on a line, for
.B scan
one for each image. Sizes are in bytes and their names end with _bytes. A failure is a member
.I error
with errno, message and, for
.BR scan ,
step;
.B query
has the failures of single facts in
.I errors
and null in their place. Exit codes are the same as without it. Names that are not UTF\-8 have
U+FFFD in place of what is not.
.SH KEYS
.B fill, read
(\-r and \-R),
.B convert
and
.B copy
take the key of an encrypted image from a file (\-k) or from standard input (\-E): 32 or 64 bytes, one key for
all images of a chain. What
.B convert
makes is not encrypted. Without the key, or with a wrong one (126), data of an encrypted image is refused.
.SH EXIT STATUS
0, or an errno: 2 no such file, 5 I/O error, 13 a parent that lies where none may, 16 in use, 17 exists, 22 wrong usage or damaged image, 28 no space or
chain too long, 34 beyond the end, 38 cannot be done, 40 a chain that goes round in circles, 126 a key that does not fit. Output that could not be
written (28 for a full disk, 32 for a reader that has gone) is a failure too; what was changed by then stays changed.
No command, or one that does not exist, prints the usage and exits with 0, as callers expect.
.SH ENVIRONMENT
.TP
.B TAPDISK_PARENTS
Places where parents of images may lie, with colons between; see PARENTS in
.BR tapdisk (8).
.TP
.B VHD_UTIL_TEST_FAIL_REPARENT_BEGIN, _LOCATOR, _END
.TQ
.B VHD_UTIL_TEST_FAIL_RESIZE_BEGIN, _DATA_MOVED, _METADATA_MOVED, _END
End the command at that point, as a crash would, for tests.
.SH EXAMPLES
.nf
vhd\-util create \-n disk.vhd \-s 10240
vhd\-util snapshot \-n leaf.vhd \-p disk.vhd
vhd\-util query \-n leaf.vhd \-vsap
vhd\-util coalesce \-n leaf.vhd \-\-progress
vhd\-util resize \-n disk.vhd \-s 20480 \-j disk.journal
vhd\-util scan \-f \-l VG_XenStorage \-m 'VHD\-*'
.fi
.SH SEE ALSO
.BR tap\-ctl (8),
.BR tapdisk (8),
.BR td\-util (8)
"#;

fn man() -> String {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let mut out = String::from(HEAD);
    for Entry { name, about, options } in ENTRIES {
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
        let mut ours: Vec<&str> = ENTRIES.iter().map(|e| e.name).collect();
        let mut all: Vec<&str> = crate::COMMANDS.iter().map(|(name, _)| *name).collect();
        ours.sort_unstable();
        all.sort_unstable();
        assert_eq!(ours, all);
    }

    #[test]
    fn everything_is_in_everything() {
        for text in [man().replace("\\-", "-"), shells::bash(), shells::zsh(), shells::fish()] {
            for entry in ENTRIES {
                assert!(text.contains(entry.name), "{}", entry.name);
            }
            assert!(text.contains("into") && text.contains("rate"), "long options too");
        }
    }
}
