//! `convert`: an image with all its parents into a new one that stands alone.
use crate::options::{self, JSON, Term};
use crate::progress::{PROGRESS, Pace, RATE};
use crate::{EINVAL, keys};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use vhd_rs::coalesce::convert::{self, Converted, Format};
use vhd_rs::error::errno::EIO;

const USAGE: &str = "options: <-n name> <-N new name> [-O vhd|fixed|raw] [-f vhd|raw] \
    [-k keyfile | -E key on stdin] \
    [--progress[=bar|json]] [--rate BYTES] [--json] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: "n:N:O:f:k:Eh", long: &[PROGRESS, RATE, JSON] };
    let o = match options::given("convert", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let mut pace = match Pace::of(&o, USAGE, term) {
        Ok(pace) => pace,
        Err(code) => return code,
    };
    let (Some(name), Some(new), true) = (o.path('n'), o.path('N'), o.operands().is_empty()) else {
        return term.usage(USAGE);
    };
    let format = match o.value('O').map(|v| v.to_string_lossy().into_owned()).as_deref() {
        None | Some("vhd") => Format::Dynamic,
        Some("fixed") => Format::Fixed,
        Some("raw") => Format::Raw,
        Some(other) => {
            let other = show::bytes(other.as_bytes());
            term.complain(&format!("'{other}' is no format; vhd, fixed and raw are\n"));
            return EINVAL;
        }
    };
    let raw = match options::is_raw(&o, term) {
        Ok(raw) => raw,
        Err(code) => return code,
    };
    let key = match keys::given(&o, term) {
        Ok(key) => key,
        Err(code) => return code,
    };
    let as_json = o.has(JSON.key);
    let options = convert::Options { format, raw, key, rate: pace.rate, others: term.others };
    let done = convert::convert(&name, &new, &options, &mut |p| pace.bar.tell(p));
    pace.bar.end();
    match done {
        Ok(Converted { done, missing }) => {
            let lost: Vec<String> = missing
                .iter()
                .map(|(name, lost)| format!("{}: {lost}", show::path(name)))
                .collect();
            if as_json {
                let (sectors, bytes) = (done.sectors, done.bytes);
                let mut report = json!({ "sectors": sectors, "bytes_written": bytes });
                if !lost.is_empty() {
                    report["missing"] = json!(lost);
                }
                term.json(&report);
            }
            for line in &lost {
                term.complain(&format!("{line}; they are zeros in {}\n", show::path(&new)));
            }
            // All that there is has been written, but it is not all of the disk.
            if lost.is_empty() { 0 } else { EIO }
        }
        Err(e) => {
            let line = format!("error converting {}: -{}\n", show::path(&name), e.errno());
            term.failed_as(as_json, &line, &name, &e)
        }
    }
}
