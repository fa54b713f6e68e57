//! The man page, made from the table.

use super::help::{COMMON, ENVIRONMENT, names, shown, synopsis};
use crate::command::COMMANDS;
use std::fmt::Write;

/// Exit codes that callers meet (`tap-ctl.md` §2.1).
const EXIT_CODES: [(&str, &str); 12] = [
    ("0", "success, help, or a command that does not exist"),
    ("1", "spawn: the daemon gave no control socket; open -E: wrong length of the key"),
    ("2", "no such tapdisk, minor or image"),
    ("5", "the tapdisk closed the connection without a reply"),
    ("11", "free: a tapdisk has the minor attached"),
    ("19", "the tapdisk has no such minor"),
    ("22", "usage error; attach or detach refused; open: minor not attached; unpause: not paused"),
    ("28", "allocate: all minors are taken"),
    ("36", "a path is longer than 255 bytes"),
    ("110", "the time limit of -t ran out"),
    ("111", "the tapdisk has died and left its socket behind"),
    ("114", "open: the disk is open already"),
];

/// roff for `tap-ctl.8`.
pub fn page() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text =
        format!(".TH TAP\\-CTL 8 \"\" \"tap-ctl {version}\" \"System Administration\"\n");
    text.push_str(".SH NAME\ntap\\-ctl \\- control running tapdisks\n");
    text.push_str(".SH SYNOPSIS\n.B tap\\-ctl\n.I COMMAND\n[OPTIONS]\n");
    text.push_str(".SH DESCRIPTION\nA tapdisk is a process that serves virtual disks. tap\\-ctl starts tapdisks, ");
    text.push_str(
        "attaches disks to them by minor number, opens images, and shows what they do.\n",
    );
    text.push_str("A disk's life is: allocate, spawn, attach, open, then pause and unpause as needed, close, ");
    text.push_str(
        "detach, free. An image is written as \\fItype:path\\fR, such as vhd:/images/disk.vhd.\n",
    );
    text.push_str(".SH COMMANDS\n");
    for command in COMMANDS.iter().filter(shown) {
        let usage = synopsis(command);
        let usage = usage.trim_start_matches("usage: ");
        let _ = writeln!(
            text,
            ".SS {}\n.B {}\n.PP\n{}.",
            command.name,
            roff(usage),
            roff(&capital(command.about))
        );
        if !command.details.is_empty() {
            let _ = writeln!(text, "{}", roff(command.details));
        }
        for opt in command.options {
            item(&mut text, &names(opt), opt.help);
        }
        for (line, what) in command.examples {
            let _ = writeln!(
                text,
                ".PP\nExample ({}):\n.nf\n    tap\\-ctl {}\n.fi",
                roff(what),
                roff(line)
            );
        }
    }
    list(&mut text, "COMMON OPTIONS", &COMMON);
    list(&mut text, "ENVIRONMENT", &ENVIRONMENT);
    list(&mut text, "EXIT STATUS", &EXIT_CODES);
    text.push_str(
        "Other values are the errno of what failed; its text is the last line on stderr.\n",
    );
    text
}

fn list(text: &mut String, title: &str, rows: &[(&str, &str)]) {
    let _ = writeln!(text, ".SH {title}");
    for (name, help) in rows {
        item(text, name, help);
    }
    text.push_str(".PP\n");
}

fn item(text: &mut String, name: &str, help: &str) {
    let _ = writeln!(text, ".TP\n.B {}\n{}", roff(name), roff(help));
}

/// Escape what roff would take as its own; no line may begin with a dot or an apostrophe.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let line = |line: &str| {
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
