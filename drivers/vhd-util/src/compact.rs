//! `compact`: gives the space of zeros and of empty blocks back.
use crate::options::{Options, Term};
use crate::progress::Way;
use std::ffi::OsString;
use vhd_rs::coalesce::compact::compact;

const USAGE: &str = "options: <-n name> [--progress[=bar|json]] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let mut args = args.to_vec();
    let mut way = match Way::given("compact", &mut args, USAGE, term) {
        Ok(way) => way,
        Err(code) => return code,
    };
    let o = match Options::given("compact", "n:h", &args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), true, None) = (o.path('n'), o.rest.is_empty(), way.rate) else {
        return term.usage(USAGE);
    };
    let done = compact(&name, term.others, &mut |p| way.bar.tell(p));
    way.bar.end();
    match done {
        Ok(done) => {
            let (before, after) = done.physical;
            term.say(&format!(
                "Freed {} blocks, moved {}; {before} bytes became {after}\n",
                done.freed, done.moved
            ));
            0
        }
        Err(e) => {
            term.failed(&format!("error compacting {}: -{}\n", name.display(), e.errno()), &e)
        }
    }
}
