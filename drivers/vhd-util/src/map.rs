//! `map`: which layer of a chain holds which range of the disk.
use crate::options::{self, JSON, Term};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use vhd_rs::coalesce::map::{Range, map};

const USAGE: &str = "options: <-n name> [-f vhd|raw] [--json] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: "n:f:h", long: &[JSON] };
    let o = match options::given("map", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let as_json = o.has(JSON.key);
    let (Some(name), true) = (o.path('n'), o.operands().is_empty()) else {
        return term.usage(USAGE);
    };
    let raw = match options::is_raw(&o, term) {
        Ok(raw) => raw,
        Err(code) => return code,
    };
    let mut ranges: Vec<Range> = Vec::new();
    let layers = match map(&name, raw, &mut |range| ranges.push(*range)) {
        Ok(layers) => layers,
        Err(e) => {
            let line = format!("error opening {}: -{}\n", show::path(&name), e.errno());
            return term.failed_as(as_json, &line, &name, &e);
        }
    };
    if as_json {
        let layers: Vec<_> = layers.iter().map(|path| path.to_string_lossy()).collect();
        let ranges: Vec<_> = ranges
            .iter()
            .map(|r| {
                json!({
                    "start": r.start * 512, "length": r.sectors * 512,
                    "layer": r.layer, "offset": r.byte,
                })
            })
            .collect();
        term.json(&json!({ "layers": layers, "ranges": ranges }));
        return 0;
    }
    term.say(&format!("{:>16} {:>16} {:>16}  layer\n", "start", "length", "file offset"));
    for r in &ranges {
        let byte = r.byte.map_or("-".to_string(), |byte| byte.to_string());
        let layer = r.layer.and_then(|i| layers.get(i));
        let layer = layer.map_or("zeros".to_string(), |path| show::path(path).to_string());
        let (start, length) = (r.start * 512, r.sectors * 512);
        term.say(&format!("{start:>16} {length:>16} {byte:>16}  {layer}\n"));
    }
    0
}
