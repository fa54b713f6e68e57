//! `modify`: another parent, another end, no blocks. What is asked for is done in the order z, s, p.
use crate::options::{self, Term};
use crate::points;
use std::ffi::OsString;
use vhd_rs::{lock, modify};

const USAGE: &str = "*** Dangerous operations, use with care ***\n\
    options: <-n name> [-p NEW_PARENT set parent [-m raw]] [-s NEW_SIZE set size] \
    [-z zero (kill data)] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("modify", "n:p:ms:zh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let Some(name) = o.path('n') else { return term.usage(USAGE) };
    let file = match lock::open_to_change(&name, term.others) {
        Ok(file) => file,
        Err(e) => return term.not_opened(&name, &e),
    };
    if let Err(e) = vhd_rs::locate::headers(&file, &name, 0) {
        return term.not_opened(&name, &e);
    }
    if o.has('z')
        && let Err(e) = modify::zero_data(&file, &name)
    {
        return term.failed(&format!("failed to zero VHD: -{}\n", e.errno()), &e);
    }
    // No image ends at byte 0, so what is not a number fails.
    if let Some(bytes) = o.number::<u64>('s').map(Option::unwrap_or_default)
        && let Err(e) = modify::set_physical_size(&file, &name, bytes)
    {
        return term
            .failed(&format!("failed to set physical size to {bytes}: -{}\n", e.errno()), &e);
    }
    let Some(parent) = o.path('p') else { return 0 };
    match modify::set_parent(&file, &name, &parent, o.has('m'), &points::reached) {
        Ok(()) => 0,
        Err(e) => {
            let line = format!("failed to set parent to '{}': -{}\n", parent.display(), e.errno());
            term.failed(&line, &e)
        }
    }
}
