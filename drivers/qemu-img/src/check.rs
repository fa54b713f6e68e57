//! `check`: whether an image holds together, and repairs of it.
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use cli::{JSON, Long, Takes};
use qcow2::{Report, Said, What, check, repair};
use vhd_rs::lock::{self, Others};

use crate::json::Json;
use crate::open::{self, For, Format};
use crate::tool::{FORMAT, Fail, OUTPUT, Outcome, QUIET, SHARE, Tool};

const REPAIR: Long = Long { name: "repair", key: 'r', takes: Takes::Value };
/// The format has no check.
const NONE: i32 = 63;

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let long = &[FORMAT, OUTPUT, QUIET, REPAIR, SHARE, JSON];
    let o = tool.options("check", "f:r:qUT:", long, words)?;
    let [name] = o.operands() else {
        return tool.usage("check", "Expecting one image file name");
    };
    let what = match o.value('r').and_then(|value| value.to_str()) {
        None => None,
        Some("leaks") => Some(What::Leaks),
        Some("all") => Some(What::All),
        Some(other) => {
            let other = show::bytes(other.as_bytes()).to_string();
            let text = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
            return tool.usage("check", &text);
        }
    };
    let (json, quiet) = (tool.wants_json("check", &o)?, o.has('q'));
    let how = if what.is_some() { For::Changing } else { For::Reading };
    let path = Path::new(name);
    let layer = open::layer(path, open::format_of(o.value('f'))?, how)?;
    if layer.format == Format::Raw {
        return Err(Fail { code: NONE, text: "This image format does not support checks".into() });
    }
    let file = &layer.file.0;
    if what.is_none() && !o.has('U') {
        // Tables that somebody is writing look wrong.
        if let Some(pid) =
            lock::settled(file, path, Others::Refuse).map_err(|error| open::in_use(&error))?
        {
            let (name, who) = (show::path(path), lock::named(pid));
            let why = "and is not checked meanwhile (-U: look all the same)";
            return Err(format!("Could not open '{name}': {who} is writing it, {why}").into());
        }
    }
    let report = examined(file, path, what, json || quiet, tool)?;
    match (quiet, json) {
        (true, _) => {}
        (false, true) => tool.json(&members(path, &report).pretty()),
        (false, false) => tool.say(&text(&report)),
    }
    Ok(match () {
        () if report.corruptions > 0 => 2,
        () if report.leaks > 0 => 3,
        () => 0,
    })
}

/// Repairs what is to be repaired, and looks at what there is then.
fn examined(
    file: &File,
    path: &Path,
    what: Option<What>,
    silent: bool,
    tool: &mut Tool,
) -> Outcome<Report> {
    let found = |said: Said<'_>, tool: &mut Tool| {
        if let Said::Line(line) = said {
            tool.note(line);
        }
    };
    let Some(what) = what else {
        return Ok(check(file, path, &mut |said| found(said, tool))?);
    };
    let fixed = repair(file, path, what, &mut |said| found(said, tool))?;
    if fixed.corruptions_fixed + fixed.leaks_fixed == 0 {
        return Ok(fixed);
    }
    if !silent {
        tool.say(&format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
             {} corruptions\n\nDouble checking the fixed image now...\n",
            fixed.leaks_fixed, fixed.corruptions_fixed
        ));
    }
    let now = check(file, path, &mut |said| found(said, tool))?;
    let (corruptions_fixed, leaks_fixed) = (fixed.corruptions_fixed, fixed.leaks_fixed);
    Ok(Report { corruptions_fixed, leaks_fixed, ..now })
}

/// A share in percent with two digits behind the point.
fn percent(part: u64, whole: u64) -> String {
    // As a float, for the same digits as QEMU's; counts stay far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let share = part as f64 * 100.0 / whole as f64;
    format!("{share:.2}%")
}

fn text(report: &Report) -> String {
    let Report { corruptions, leaks, allocated, total, .. } = report;
    let mut out = String::new();
    if report.is_clean() {
        out.push_str("No errors were found on the image.\n");
    }
    if *corruptions > 0 {
        out.push_str(&format!(
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further \
             writes to the image may corrupt it.\n"
        ));
    }
    if *leaks > 0 {
        out.push_str(&format!(
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, \
             but no harm to data.\n"
        ));
    }
    if *total > 0 && *allocated > 0 {
        let shares = [
            percent(*allocated, *total),
            percent(report.fragmented, *allocated),
            percent(report.compressed, *allocated),
        ];
        let [all, fragmented, compressed] = shares;
        out.push_str(&format!(
            "{allocated}/{total} = {all} allocated, {fragmented} fragmented, {compressed} \
             compressed clusters\n"
        ));
    }
    if report.end > 0 {
        out.push_str(&format!("Image end offset: {}\n", report.end));
    }
    out
}

fn members(path: &Path, report: &Report) -> Json {
    let all: [(&'static str, Option<Json>); 13] = [
        ("image-end-offset", some(report.end)),
        ("compressed-clusters", some(report.compressed)),
        ("total-clusters", some(report.total)),
        ("corruptions", some(report.corruptions)),
        ("corruptions-fixed", some(report.corruptions_fixed)),
        ("check-errors", Some(0.into())),
        ("leaks", some(report.leaks)),
        ("leaks-fixed", some(report.leaks_fixed)),
        ("allocated-clusters", some(report.allocated)),
        ("filename", Some(path.to_string_lossy().into_owned().into())),
        ("format", Some("qcow2".into())),
        ("fragmented-clusters", some(report.fragmented)),
        ("", None),
    ];
    Json::Object(all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// QEMU leaves out what is zero.
fn some(number: u64) -> Option<Json> {
    (number > 0).then_some(Json::Number(number))
}
