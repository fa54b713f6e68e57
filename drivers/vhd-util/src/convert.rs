//! `convert`: an image with all its parents into a new one that stands alone.
use crate::EINVAL;
use crate::options::{Options, Term};
use crate::progress::Way;
use std::ffi::OsString;
use vhd_rs::coalesce::convert::{self, Format};

const USAGE: &str = "options: <-n name> <-N new name> [-O vhd|fixed|raw] [-f vhd|raw] \
    [--progress[=bar|json]] [--rate BYTES] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let mut args = args.to_vec();
    let mut way = match Way::given("convert", &mut args, USAGE, term) {
        Ok(way) => way,
        Err(code) => return code,
    };
    let o = match Options::given("convert", "n:N:O:f:h", &args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(new), true) = (o.path('n'), o.path('N'), o.rest.is_empty()) else {
        return term.usage(USAGE);
    };
    let format = match o.value('O').map(|v| v.to_string_lossy().into_owned()).as_deref() {
        None | Some("vhd") => Format::Dynamic,
        Some("fixed") => Format::Fixed,
        Some("raw") => Format::Raw,
        Some(other) => {
            term.complain(&format!("'{other}' is no format; vhd, fixed and raw are\n"));
            return EINVAL;
        }
    };
    let raw = match o.value('f').map(|v| v.to_string_lossy().into_owned()).as_deref() {
        None | Some("vhd") => false,
        Some("raw") => true,
        Some(other) => {
            term.complain(&format!("'{other}' is no format; vhd and raw are\n"));
            return EINVAL;
        }
    };
    let options = convert::Options { format, raw, rate: way.rate, others: term.others };
    let done = convert::convert(&name, &new, &options, &mut |p| way.bar.tell(p));
    way.bar.end();
    match done {
        Ok(_) => 0,
        Err(e) => {
            term.failed(&format!("error converting {}: -{}\n", name.display(), e.errno()), &e)
        }
    }
}
