//! `set`: the hidden flag and the marker.
use crate::EINVAL;
use crate::options::{Options, Term};
use std::ffi::OsString;
use vhd_rs::{chain, edit};

const USAGE: &str = "options: <-n name> <-f field> <-v value> [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match Options::parse("set", "n:f:v:h", args) {
        Ok(o) => o,
        Err(text) => {
            term.complain(&text);
            return term.usage(USAGE);
        }
    };
    let (Some(name), Some(field), Some(text)) = (o.path('n'), o.value('f'), o.value('v')) else {
        return term.usage(USAGE);
    };
    if o.has('h') || o.rest > 0 {
        return term.usage(USAGE);
    }
    let Some(value) = o.number('v').flatten().and_then(|v| u8::try_from(v).ok()) else {
        term.say(&format!("invalid value {}\n", text.to_string_lossy()));
        return term.usage(USAGE);
    };
    let failed = |term: &mut Term, errno: i32| {
        term.say(&format!("error opening {}: -{errno}\n", name.display()));
        errno
    };
    let change = match field.to_str() {
        Some("hidden") => edit::set_hidden,
        Some("marker") => edit::set_marker,
        // The original cannot even print a longer one.
        _ if field.len() >= 25 => {
            term.say("invalid field\n");
            return term.usage(USAGE);
        }
        _ => {
            term.say(&format!("invalid field {}\n", field.to_string_lossy()));
            return term.usage(USAGE);
        }
    };
    let file = match chain::open_file(&name, true) {
        Ok(file) => file,
        Err(e) => return failed(term, e.errno()),
    };
    match change(&file, &name, value) {
        Ok(()) => 0,
        Err(e) if e.errno() == EINVAL => failed(term, EINVAL),
        Err(e) => {
            term.say(&format!("{e}\n"));
            e.errno()
        }
    }
}
