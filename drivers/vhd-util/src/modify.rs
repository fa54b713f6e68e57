//! `modify`: another parent, another end, no blocks. What is asked for is done in the order z, s,
//! p.
use crate::options::{self, Term};
use crate::points;
use std::ffi::OsString;
use vhd_rs::beside::Beside;
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
    // Blocks are taken from nobody who reads them, the end is moved under nobody who writes, and a
    // parent is named also beside a disk that runs.
    let opened = match (o.has('z'), o.has('s')) {
        (true, _) => lock::open_alone(&name, term.others).map(Beside::alone),
        (_, true) => lock::open_to_change(&name, term.others).map(Beside::alone),
        _ => lock::open_beside(&name, term.others),
    };
    let image = match opened {
        Ok(image) => image,
        Err(e) => return term.not_opened(&name, &e),
    };
    if let Err(e) = vhd_rs::locate::headers(&image, &name, 0) {
        return term.not_opened(&name, &e);
    }
    if o.has('z')
        && let Err(e) = modify::zero_data(&image, &name)
    {
        return term.failed(&format!("failed to zero VHD: -{}\n", e.errno()), &e);
    }
    // No image ends at byte 0, so what is not a number fails.
    if let Some(bytes) = o.number::<u64>('s').map(Option::unwrap_or_default)
        && let Err(e) = modify::set_physical_size(&image, &name, bytes)
    {
        return term
            .failed(&format!("failed to set physical size to {bytes}: -{}\n", e.errno()), &e);
    }
    let Some(parent) = o.path('p') else { return 0 };
    match modify::set_parent_beside(&image, &name, &parent, o.has('m'), &points::reached) {
        Ok(()) => 0,
        Err(e) => {
            let line =
                format!("failed to set parent to '{}': -{}\n", show::path(&parent), e.errno());
            term.failed(&line, &e)
        }
    }
}
