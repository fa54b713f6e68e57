//! `info`: what an image is.
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cli::{JSON, Long, Takes};
use image::Storage;
use qcow2::head::Head;
use qcow2::snapshots::{Snapshot, snapshots};

use crate::json::Json;
use crate::open::{self, For, Format, Layer};
use crate::size::human;
use crate::snapshot;
use crate::tool::{FORMAT, OUTPUT, Outcome, SHARE, Tool};

const CHAIN: Long = Long { name: "backing-chain", key: 'C', takes: Takes::Nothing };

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let long = &[CHAIN, FORMAT, OUTPUT, SHARE, JSON];
    let o = tool.options("info", "f:U", long, words)?;
    let [name] = o.operands() else {
        return tool.usage("info", "Expecting one image file name");
    };
    let format = open::format_of(o.value('f'))?;
    let (json, whole) = (tool.wants_json("info", &o)?, o.has(CHAIN.key));
    let layers = match whole {
        true => open::chain(Path::new(name), format)?,
        false => vec![open::layer(Path::new(name), format, For::Reading)?],
    };
    let all: Vec<Facts> = layers.iter().map(Facts::of).collect::<Outcome<_>>()?;
    match (json, whole) {
        (true, true) => tool.json(&Json::List(all.iter().map(Facts::json).collect()).pretty()),
        (true, false) => all.iter().for_each(|facts| tool.json(&facts.json().pretty())),
        (false, _) => {
            let all: Vec<String> = all.iter().map(Facts::text).collect();
            tool.say(&all.join("\n"));
        }
    }
    Ok(0)
}

/// What is told of one image.
struct Facts<'a> {
    layer: &'a Layer,
    /// Of a qcow2.
    head: Option<Head>,
    snapshots: Vec<Snapshot>,
    device: bool,
    /// Bytes of its file.
    len: u64,
    /// Bytes that they take.
    actual: u64,
}

impl<'a> Facts<'a> {
    fn of(layer: &'a Layer) -> Outcome<Facts<'a>> {
        let file = &layer.file.0;
        let meta = file.metadata()?;
        let (head, snapshots) = match layer.format {
            Format::Raw => (None, Vec::new()),
            Format::Qcow2 => {
                let head = Head::read(file, &layer.path)?;
                let all = snapshots(file, &layer.path, &head)?.0;
                (Some(head), all)
            }
        };
        let (len, actual) = (layer.file.len()?, meta.blocks() * 512);
        Ok(Facts { layer, head, snapshots, device: file.is_device(), len, actual })
    }

    fn name(&self) -> String {
        self.layer.path.to_string_lossy().into_owned()
    }

    fn protocol(&self) -> &'static str {
        if self.device { "host_device" } else { "file" }
    }

    fn child(&self) -> Json {
        let mut all: Vec<(&'static str, Json)> = vec![
            ("children", Json::List(Vec::new())),
            ("virtual-size", self.len.into()),
            ("filename", self.name().into()),
            ("format", self.protocol().into()),
            ("actual-size", self.actual.into()),
        ];
        if !self.device {
            let data = Json::Object(Vec::new());
            let specific = vec![("type", "file".into()), ("data", data)];
            all.push(("format-specific", Json::Object(specific)));
        }
        all.push(("dirty-flag", false.into()));
        let child = vec![("name", "file".into()), ("info", Json::Object(all))];
        Json::List(vec![Json::Object(child)])
    }

    fn json(&self) -> Json {
        let lossy = |bytes: &[u8]| Json::Text(String::from_utf8_lossy(bytes).into_owned());
        let header = self.head.as_ref().map(|head| &head.header);
        let backing = header.and_then(|header| header.backing.as_ref());
        let mut all = vec![("children", self.child())];
        if !self.snapshots.is_empty() {
            all.push((
                "snapshots",
                Json::List(self.snapshots.iter().map(snapshot::json).collect()),
            ));
        }
        if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
            all.push(("backing-filename-format", lossy(format)));
        }
        all.push(("virtual-size", self.layer.size.next_multiple_of(512).into()));
        all.push(("filename", self.name().into()));
        all.extend(header.map(|header| ("cluster-size", header.cluster().into())));
        all.push(("format", self.layer.format.name().into()));
        all.push(("actual-size", self.actual.into()));
        if let Some(head) = &self.head {
            let data = Json::Object(specific(head));
            let specific = vec![("type", "qcow2".into()), ("data", data)];
            all.push(("format-specific", Json::Object(specific)));
        }
        if let Some((name, full)) = self.layer.parent_name() {
            all.push(("full-backing-filename", full.to_string_lossy().into_owned().into()));
            all.push(("backing-filename", lossy(name)));
        }
        all.push(("dirty-flag", header.is_some_and(|header| header.dirty).into()));
        Json::Object(all)
    }

    fn text(&self) -> String {
        let name = show::path(&self.layer.path);
        let size = self.layer.size.next_multiple_of(512);
        let (long, actual) = (human(size), human(self.actual));
        let format = self.layer.format.name();
        let mut out = format!(
            "image: {name}\nfile format: {format}\nvirtual size: {long} ({size} bytes)\n\
             disk size: {actual}\n"
        );
        if let Some(head) = &self.head {
            out.push_str(&self.qcow2_text(head));
        }
        let (protocol, len) = (self.protocol(), self.len);
        out.push_str(&format!(
            "Child node '/file':\n    filename: {name}\n    protocol type: {protocol}\n    \
             file length: {} ({len} bytes)\n    disk size: {actual}\n",
            human(len)
        ));
        out
    }

    fn qcow2_text(&self, head: &Head) -> String {
        let mut out = String::new();
        if head.header.dirty {
            out.push_str("cleanly shut down: no\n");
        }
        out.push_str(&format!("cluster_size: {}\n", head.header.cluster()));
        if let Some((name, full)) = self.layer.parent_name() {
            let (shown, path) = (show::bytes(name), show::path(&full));
            let elsewhere = full.as_os_str().as_encoded_bytes() != name;
            let actual = elsewhere.then(|| format!(" (actual path: {path})"));
            out.push_str(&format!("backing file: {shown}{}\n", actual.unwrap_or_default()));
        }
        let backing = head.header.backing.as_ref().and_then(|backing| backing.format.as_ref());
        if let Some(format) = backing {
            out.push_str(&format!("backing file format: {}\n", show::bytes(format)));
        }
        if !self.snapshots.is_empty() {
            out.push_str(&snapshot::list(&self.snapshots));
        }
        out.push_str("Format specific information:\n");
        for (name, value) in specific(head) {
            let value = match value {
                Json::Text(text) => text,
                Json::Number(number) => number.to_string(),
                Json::Bool(bit) => bit.to_string(),
                Json::List(_) | Json::Object(_) => continue,
            };
            out.push_str(&format!("    {}: {value}\n", name.replace('-', " ")));
        }
        out
    }
}

/// What only qcow2 has.
fn specific(head: &Head) -> Vec<(&'static str, Json)> {
    let header = &head.header;
    let bits = ("refcount-bits", Json::Number(1 << header.refcount_order));
    let kind = ("compression-type", "zlib".into());
    if header.version == 2 {
        return vec![("compat", "0.10".into()), kind, bits];
    }
    vec![
        ("compat", "1.1".into()),
        kind,
        ("lazy-refcounts", head.is_lazy().into()),
        bits,
        ("corrupt", header.corrupt.into()),
        ("extended-l2", header.extended.into()),
    ]
}
