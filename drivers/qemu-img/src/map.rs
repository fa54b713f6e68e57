//! `map`: which image of a chain has which part of the disk.
use std::ffi::OsString;
use std::path::Path;

use cli::{JSON, Long, Takes};
use qcow2::map::Kind;

use crate::open::{self, Layer};
use crate::size;
use crate::tool::{FORMAT, OUTPUT, Outcome, SHARE, Tool};
use crate::walk::{Found, Walk};

const START: Long = Long { name: "start-offset", key: 's', takes: Takes::Value };
const LENGTH: Long = Long { name: "max-length", key: 'l', takes: Takes::Value };

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let long = &[FORMAT, OUTPUT, SHARE, START, LENGTH, JSON];
    let o = tool.options("map", "f:s:l:U", long, words)?;
    let [name] = o.operands() else {
        return tool.usage("map", "Expecting one image file name");
    };
    let json = tool.wants_json("map", &o)?;
    let number =
        |key: char| match o.value(key) {
            None => Ok(None),
            Some(text) => text.to_str().and_then(size::parse).map(Some).ok_or_else(|| {
                format!("Invalid offset or length specified: '{}'", show::path(text))
            }),
        };
    let (start, length) = (number('s')?.unwrap_or(0), number('l')?);
    let layers = open::chain(Path::new(name), open::format_of(o.value('f'))?)?;
    let mut walk = Walk::new(&layers);
    let end = walk.size().min(start.saturating_add(length.unwrap_or(u64::MAX)));
    if !json {
        tool.say(&format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to"));
    }
    let mut at = start;
    while at < end {
        let found = walk.run(at, end)?;
        match json {
            true => tool.json(&line(&found, at == start, at + found.bytes >= end)),
            false => row(&found, &layers, tool)?,
        }
        at += found.bytes;
    }
    if json && start >= end {
        tool.json(
            "[{ \"start\": 0, \"length\": 0, \"depth\": 0, \"present\": false, \"zero\": false, \
             \"data\": false, \"compressed\": false}]\n",
        );
    }
    Ok(0)
}

fn line(found: &Found, first: bool, last: bool) -> String {
    let Found { start, bytes, depth, kind } = found;
    let (present, zero, packed, offset) = match kind {
        Kind::Data { at } => (true, false, false, Some(*at)),
        Kind::Zero { at } => (true, true, false, *at),
        Kind::Packed => (true, false, true, None),
        Kind::Below { at } => (false, true, false, *at),
    };
    let offset = offset.map_or(String::new(), |at| format!(", \"offset\": {at}"));
    format!(
        "{}{{ \"start\": {start}, \"length\": {bytes}, \"depth\": {depth}, \"present\": {present}, \
         \"zero\": {zero}, \"data\": {}, \"compressed\": {packed}{offset}}}{}\n",
        if first { "[" } else { "" },
        !zero,
        if last { "]" } else { "," }
    )
}

/// A line for people, of data only.
fn row(found: &Found, layers: &[Layer], tool: &mut Tool) -> Outcome<()> {
    let hex = |number: u64| if number == 0 { "0".into() } else { format!("{number:#x}") };
    match found.kind {
        Kind::Packed => Err("File contains external, encrypted or compressed clusters.".into()),
        Kind::Data { at } => {
            let name = show::path(&layers[found.depth].path);
            let (start, bytes) = (hex(found.start), hex(found.bytes));
            tool.say(&format!("{start:<16}{bytes:<16}{:<16}{name}\n", hex(at)));
            Ok(())
        }
        Kind::Zero { .. } | Kind::Below { .. } => Ok(()),
    }
}
