//! `dump`: everything that is in a log, for people and, with `--json`, for programs.
use crate::Outcome;
use cbt::bitmap::{self, BLOCK_BYTES};
use cbt::{Header, LogFile, Uuid};
use cli::{JSON, Options, Term};

pub(crate) fn run(o: &Options, term: &mut Term) -> Outcome {
    let Some(name) = o.path('n') else { return Outcome::Usage };
    let log = match LogFile::open(&name, false) {
        Ok(log) => log,
        Err(e) => return e.into(),
    };
    let map = match log.bitmap() {
        Ok(map) => map,
        Err(e) => return e.into(),
    };
    let contents = Contents { header: log.header(), map: &map };
    if o.has(JSON.key) {
        contents.json(term)
    } else {
        contents.text(term)
    }
    Outcome::Done
}

/// A log, read.
struct Contents<'a> {
    header: &'a Header,
    map: &'a [u8],
}

impl Contents<'_> {
    /// Changed areas of the disk as (first byte, bytes).
    fn areas(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let disk = self.header.disk_bytes;
        bitmap::runs(self.map, disk).map(move |(first, blocks)| {
            let start = first * BLOCK_BYTES;
            (start, blocks.saturating_mul(BLOCK_BYTES).min(disk - start))
        })
    }

    fn changed_blocks(&self) -> u64 {
        bitmap::runs(self.map, self.header.disk_bytes).map(|(_, blocks)| blocks).sum()
    }

    fn changed_bytes(&self) -> u64 {
        self.areas().map(|(_, bytes)| bytes).sum()
    }

    fn text(&self, term: &mut Term) {
        let h = self.header;
        let id = |id: Uuid| if id == Uuid::NONE { "none".into() } else { id.to_string() };
        let (blocks, changed) = (bitmap::blocks(h.disk_bytes), self.changed_blocks());
        term.say(&format!("Parent log   : {}\nChild log    : {}\n", id(h.parent), id(h.child)));
        term.say(&format!("Consistent   : {}\n", h.consistent));
        term.say(&format!("Disk size    : {} bytes\n", h.disk_bytes));
        term.say(&format!("Blocks       : {blocks} of {BLOCK_BYTES} bytes\n"));
        term.say(&format!("Changed      : {changed} blocks, {} bytes\n", self.changed_bytes()));
        for (start, bytes) in self.areas() {
            term.say(&format!("  {bytes} bytes at {start}\n"));
        }
    }

    /// Numbers and ids only, so nothing needs escaping.
    fn json(&self, term: &mut Term) {
        let h = self.header;
        term.say(&format!("{{{}, ", fields(h)));
        term.say(&format!(
            "\"block_bytes\": {BLOCK_BYTES}, \"blocks\": {}, \"changed_blocks\": {}, \
             \"changed_bytes\": {}, \"changed\": [",
            bitmap::blocks(h.disk_bytes),
            self.changed_blocks(),
            self.changed_bytes()
        ));
        for (i, (start, bytes)) in self.areas().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            term.say(&format!("{comma}{{\"offset\": {start}, \"length\": {bytes}}}"));
        }
        term.say("]}\n");
    }
}

/// The fields of a header as members of a JSON object.
pub(crate) fn fields(h: &Header) -> String {
    let id = |id: Uuid| if id == Uuid::NONE { "null".into() } else { format!("\"{id}\"") };
    format!(
        "\"parent\": {}, \"child\": {}, \"consistent\": {}, \"disk_bytes\": {}",
        id(h.parent),
        id(h.child),
        h.consistent,
        h.disk_bytes
    )
}
