//! `repair`: both footers written anew at their places.
use crate::options::{Options, Term};
use std::ffi::OsString;
use vhd_rs::{chain, edit, files};

const USAGE: &str = "options: <-n name> <-b use the back-up footer> [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match Options::parse("repair", "n:bh", args) {
        Ok(o) => o,
        Err(text) => {
            term.complain(&text);
            return term.usage(USAGE);
        }
    };
    let (Some(name), false, 0) = (o.path('n'), o.has('h'), o.rest) else {
        return term.usage(USAGE);
    };
    let done = chain::open_file(&name, true).and_then(|file| {
        let uuid = files::new_uuid(&name)?;
        edit::repair(&file, &name, o.has('b'), uuid)
    });
    match done {
        Ok(()) => 0,
        Err(e) => {
            term.say(&format!("error opening {}: -{}\n", name.display(), e.errno()));
            e.errno()
        }
    }
}
