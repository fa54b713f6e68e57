//! `compact`: gives the space of zeros and of empty blocks back.
use crate::options::{self, JSON, Term};
use crate::progress::{PROGRESS, Pace};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use vhd_rs::coalesce::compact::compact;

const USAGE: &str = "options: <-n name> [--progress[=bar|json]] [--json] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: "n:h", long: &[PROGRESS, JSON] };
    let o = match options::given("compact", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let mut pace = match Pace::of(&o, USAGE, term) {
        Ok(pace) => pace,
        Err(code) => return code,
    };
    let as_json = o.has(JSON.key);
    let (Some(name), true) = (o.path('n'), o.operands().is_empty()) else {
        return term.usage(USAGE);
    };
    let done = compact(&name, term.others, &mut |p| pace.bar.tell(p));
    pace.bar.end();
    match done {
        Ok(done) => {
            let (before, after) = done.physical;
            if as_json {
                term.json(&json!({
                    "freed_blocks": done.freed, "moved_blocks": done.moved,
                    "physical_bytes_before": before, "physical_bytes": after,
                }));
                return 0;
            }
            term.say(&format!(
                "Freed {} blocks, moved {}; {before} bytes became {after}\n",
                done.freed, done.moved
            ));
            0
        }
        Err(e) => {
            let line = format!("error compacting {}: -{}\n", show::path(&name), e.errno());
            term.failed_as(as_json, &line, &name, &e)
        }
    }
}
