//! `set`: the hidden flag and the marker.
use crate::EINVAL;
use crate::options::{self, Term};
use std::ffi::OsString;
use vhd_rs::{edit, lock};

const USAGE: &str = "options: <-n name> <-f field> <-v value> [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("set", "n:f:v:h", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(field), Some(text)) = (o.path('n'), o.value('f'), o.value('v')) else {
        return term.usage(USAGE);
    };
    let Some(value) = o.number::<u64>('v').flatten().and_then(|v| u8::try_from(v).ok()) else {
        term.say(&format!("invalid value {}\n", show::path(text)));
        return term.usage(USAGE);
    };
    let changed = match field.to_str() {
        Some("hidden") => lock::open_beside(&name, term.others)
            .map(|image| edit::set_hidden_beside(&image, &name, value)),
        // A running disk writes its sector.
        Some("marker") => lock::open_to_change(&name, term.others)
            .map(|file| edit::set_marker(&file, &name, value)),
        // The original cannot even print a longer one.
        _ if field.len() >= 25 => {
            term.say("invalid field\n");
            return term.usage(USAGE);
        }
        _ => {
            term.say(&format!("invalid field {}\n", show::path(field)));
            return term.usage(USAGE);
        }
    };
    match changed {
        Ok(Ok(())) => 0,
        Ok(Err(e)) if e.errno() != EINVAL => {
            term.say(&format!("{e}\n"));
            e.errno()
        }
        Ok(Err(e)) | Err(e) => term.not_opened(&name, &e),
    }
}
