//! `info`: what can be said of an image at a glance, for people or as JSON.
use crate::options::{self, JSON, Term};
use cli::Spec;
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use vhd_rs::open::{OpenOptions, Opened, batmap_header, open};
use vhd_rs::{BatmapState, DiskType, FooterAt, VhdError, bat, chain, open as opening};

const USAGE: &str = "options: <-n name> [--json] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: "n:h", long: &[JSON] };
    let o = match options::given("info", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let as_json = o.has(JSON.key);
    let (Some(name), true) = (o.path('n'), o.operands().is_empty()) else {
        return term.usage(USAGE);
    };
    let facts = match facts(&name) {
        Ok(facts) => facts,
        Err(e) => {
            let line = format!("error opening {}: -{}\n", show::path(&name), e.errno());
            return term.failed_as(as_json, &line, &name, &e);
        }
    };
    if as_json {
        term.json(&Value::Object(facts));
        return 0;
    }
    for (label, value) in &facts {
        let text = match value {
            Value::String(text) => show::line(text.as_bytes()).into_owned(),
            Value::Null => "none".to_string(),
            other => show::json(&other.to_string()).into_owned(),
        };
        term.say(&format!("{:<22}: {text}\n", label.replace('_', " ")));
    }
    0
}

fn facts(name: &Path) -> Result<Map<String, Value>, VhdError> {
    let file = chain::open_file(name, false)?;
    let o = open(&file, name, &OpenOptions { read_only: true, ..OpenOptions::default() })?;
    let space = file.metadata().map_or(0, |m| m.blocks() * 512);
    let mut out = Map::new();
    let mut put = |label: &str, value: Value| drop(out.insert(label.to_string(), value));
    put("name", json!(name.display().to_string()));
    put("type", json!(kind(o.kind)));
    put("virtual_bytes", json!(o.footer.current_bytes));
    put("physical_bytes", json!(o.end_of_data.saturating_add(512)));
    put("file_bytes", json!(o.file_bytes));
    put("space_bytes", json!(if o.device { o.file_bytes } else { space }));
    put("uuid", json!(uuid(&o.footer.uuid)));
    put("hidden", json!(o.footer.hidden != 0));
    put("creator", json!(creator(&o)));
    put("clean", json!(o.footer_found != FooterAt::Copy && !o.footer.poisoned()));
    if let Some(header) = &o.header {
        let used = o.bat.iter().filter(|entry| **entry != bat::UNUSED).count();
        put("block_bytes", json!(header.block_bytes));
        put("blocks", json!(o.bat.len()));
        put("allocated_blocks", json!(used));
        put("resize_max_bytes", json!(u64::from(header.max_entries) * o.block_bytes()));
        put("batmap", json!(batmap(&o.batmap)));
        put("marker", json!(batmap_header(&o.batmap).map(|h| h.marker)));
        put("encrypted", json!(o.key_hash.is_some()));
    }
    put("parent", parent(name, &o));
    let depth = chain::depth(name, false).ok();
    put("chain_depth", json!(depth));
    Ok(out)
}

fn parent(name: &Path, o: &Opened) -> Value {
    let Some(parent) = &o.parent else { return Value::Null };
    let stored = parent.candidates.first().map(|path| path.display().to_string());
    let path = opening::resolve_parent(name, parent).ok().map(|path| path.display().to_string());
    json!({
        "path": path, "stored": stored,
        "raw": parent.uuid.is_none(), "uuid": parent.uuid.as_ref().map(uuid),
    })
}

fn kind(kind: DiskType) -> &'static str {
    match kind {
        DiskType::Fixed => "fixed",
        DiskType::Dynamic => "dynamic",
        DiskType::Differencing => "differencing",
        DiskType::None | DiskType::Other(_) => "unknown",
    }
}

fn batmap(state: &BatmapState) -> &'static str {
    match state {
        BatmapState::Absent => "absent",
        BatmapState::Valid { .. } => "valid",
        BatmapState::Damaged { .. } => "damaged",
    }
}

fn creator(o: &Opened) -> String {
    let name = String::from_utf8_lossy(&o.footer.creator);
    let version = o.footer.creator_version;
    format!("{} {}.{}", name.trim_end_matches(['\0', ' ']), version >> 16, version & 0xffff)
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let parts: Vec<&str> =
        [0..8, 8..12, 12..16, 16..20, 20..32].into_iter().filter_map(|r| hex.get(r)).collect();
    parts.join("-")
}
