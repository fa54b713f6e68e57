//! `revert`: takes an interrupted resize back.
use crate::options::{self, Term};
use std::ffi::OsString;
use vhd_rs::journal::{self, Journal};
use vhd_rs::{lock, revert::revert};

const USAGE: &str = "options: <-n name> <-j journal> [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("revert", "n:j:h", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(log)) = (o.path('n'), o.path('j')) else { return term.usage(USAGE) };
    let opened = journal::open_file(&log)
        .and_then(|log_file| Journal::open(&log_file, &log).map(drop).map(|()| log_file))
        .and_then(|log_file| Ok((lock::open_alone(&name, term.others)?, log_file)));
    let (file, log_file) = match opened {
        Ok(files) => files,
        Err(e) => return term.failed(&format!("opening journal failed: -{}\n", e.errno()), &e),
    };
    match revert(&file, &name, &log_file, &log).and_then(|()| journal::remove_file(&log)) {
        Ok(()) => 0,
        Err(e) => term.failed(&format!("reverting journal failed: -{}\n", e.errno()), &e),
    }
}
