//! `measure`: how large an image would become.
use std::ffi::OsString;
use std::path::Path;

use cli::{JSON, Long, Takes};
use qcow2::map::Kind;

use crate::json::Json;
use crate::open::{self, Format};
use crate::parameters::Parameters;
use crate::size;
use crate::tool::{FORMAT, Fail, OUTPUT, Outcome, SHARE, Tool};
use crate::walk::Walk;

const SIZE: Long = Long { name: "size", key: 's', takes: Takes::Value };
/// `-O`, whose letter `--output` has among the keys.
const TARGET: Long = Long { name: "target-format", key: 'T', takes: Takes::Value };

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let words: Vec<OsString> = words
        .iter()
        .map(|word| if word == "-O" { OsString::from("-T") } else { word.clone() })
        .collect();
    let long = &[FORMAT, OUTPUT, SHARE, SIZE, TARGET, JSON];
    let o = tool.options("measure", "f:o:s:T:U", long, &words)?;
    let json = tool.wants_json("measure", &o)?;
    let target = o.value('T').map_or(Some(Format::Raw), Format::named).ok_or_else(|| {
        let name = show::path(o.value('T').unwrap_or_default()).to_string();
        Fail::from(format!("Block driver '{name}' does not support size measurement"))
    })?;
    let mut given = Parameters::default();
    o.values('o').try_for_each(|text| given.take(text))?;
    let (bytes, data, bitmaps) = match (o.operands(), o.value('s')) {
        ([], Some(text)) => {
            let bytes = text.to_str().and_then(size::parse);
            let bytes = bytes
                .ok_or_else(|| format!("Invalid image size specified: '{}'.", show::path(text)))?;
            (bytes, 0, false)
        }
        ([name], None) => {
            let layers = open::chain(Path::new(name), open::format_of(o.value('f'))?)?;
            let cluster = given.cluster_size.unwrap_or(65_536);
            let source = layers.first().and_then(|layer| layer.opened.as_ref());
            let bitmaps = source.is_some_and(|opened| opened.header.version >= 3);
            let mut walk = Walk::new(&layers);
            (walk.size(), needed(&mut walk, cluster)?, bitmaps)
        }
        _ => return Err("Either --size N or one filename must be specified.".into()),
    };
    let bytes = bytes.checked_next_multiple_of(512).unwrap_or(u64::MAX);
    let (required, full) = match target {
        Format::Raw => (bytes, bytes),
        Format::Qcow2 => {
            let shape = given.options(bytes)?.shape;
            let full = shape.full_bytes(bytes);
            let full = full.ok_or(
                "The image size is too large for file format 'qcow2' (try using a larger cluster \
                 size)",
            )?;
            (full - bytes.next_multiple_of(shape.cluster()) + data, full)
        }
    };
    let bitmaps = bitmaps && target == Format::Qcow2;
    if json {
        let mut all: Vec<(&'static str, Json)> = Vec::new();
        all.extend(bitmaps.then_some(("bitmaps", 0.into())));
        all.extend([("required", required.into()), ("fully-allocated", full.into())]);
        tool.json(&Json::Object(all).pretty());
        return Ok(0);
    }
    tool.say(&format!("required size: {required}\nfully allocated size: {full}\n"));
    if bitmaps {
        tool.say("bitmaps size: 0\n");
    }
    Ok(0)
}

/// Bytes of the clusters that hold data.
fn needed(walk: &mut Walk<'_>, cluster: u64) -> Outcome<u64> {
    let (mut at, mut bytes) = (0, 0);
    while at < walk.size() {
        let found = walk.run(at, walk.size())?;
        let mut end = at + found.bytes;
        if matches!(found.kind, Kind::Data { .. } | Kind::Packed) {
            end = end.next_multiple_of(cluster);
            bytes += end - at / cluster * cluster;
        }
        at = end;
    }
    Ok(bytes)
}
