//! `fill`: makes all blocks present, with their contents or (`-b`) as they lie on the medium.
use crate::keys;
use crate::options::{self, Term};
use std::ffi::OsString;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;
use vhd_rs::{OpenOptions, VhdError, fill, lock, open};

const USAGE: &str = "options: <-n name> [-h help] [-b initialise the BAT and bitmaps, don't write to \
    the data blocks (much faster)] [-f start intialisation from this sector, only usable with -b] \
    [-t intialise up to this sector (inclusive), only usable with -b] [-B ignore the 2 TB limit, \
    only usable with -b]\n";
const EOVERFLOW: i32 = 75;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    // -B is accepted: a table entry cannot name what lies beyond, whoever asks.
    let o = match options::given_no_help("fill", "n:bf:t:Bk:Eh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let Some(name) = o.path('n') else { return term.usage(USAGE) };
    let wrong = |term: &mut Term, text: &str| {
        term.say(text);
        term.usage(USAGE)
    };
    if !o.has('b') && (o.has('f') || o.has('t')) {
        return wrong(term, "-f/-t can only be used with -b\n");
    }
    if !o.has('b') && o.has('B') {
        return wrong(term, "-B can only be used with -b\n");
    }
    let (Some(from), Some(to)) =
        (o.number::<u64>('f').unwrap_or(Some(0)), o.number::<u64>('t').unwrap_or(Some(u64::MAX)))
    else {
        return wrong(term, "sectors are decimal numbers\n");
    };
    if to < from {
        return wrong(term, &format!("invalid sector range {from}-{to}\n"));
    }
    let key = match keys::given(&o, term) {
        Ok(key) => key,
        Err(code) => return code,
    };
    let file = match lock::open_to_change(&name, term.others) {
        Ok(file) => file,
        Err(e) => return term.not_opened(&name, &e),
    };
    let done = match o.has('b') {
        true => range(&file, &name, from, o.number::<u64>('t').flatten())
            .and_then(|range| fill::mark(&file, &name, Some(range))),
        false => fill::fill(&file, &name, key.as_deref()),
    };
    match done {
        Ok(()) => 0,
        Err(VhdError::Request { why, errno: EOVERFLOW, .. }) => {
            term.say(&format!("{why}\n"));
            EOVERFLOW
        }
        Err(e) => term.failed("", &e),
    }
}

/// To the end of the disk unless `-t` says otherwise.
fn range(
    file: &File,
    name: &Path,
    from: u64,
    to: Option<u64>,
) -> Result<RangeInclusive<u64>, VhdError> {
    let sectors = open(file, name, &OpenOptions::default())?.sectors;
    Ok(from..=to.unwrap_or(sectors.saturating_sub(1)))
}
