//! `check`: the strict list.
use crate::dump;
use crate::options::{self, JSON, Term};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;
use vhd_rs::{CheckOptions, Parents, Report, chain, files};

const USAGE: &str = "options: -n <file> [-i ignore missing primary footers] \
    [-I ignore parent uuids] [-t ignore timestamps] \
    [-B do not check BAT for overlapping (precludes -s, -b)] [-p check parents] \
    [-b check bitmaps] [-s stats] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given(
        "check",
        Spec { letters: "n:iItpbBsh", long: &[JSON] },
        args,
        USAGE,
        term,
    ) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let excluded = o.has('B') && (o.has('b') || o.has('s'));
    let (Some(name), 0, false) = (o.path('n'), o.operands().len(), excluded) else {
        return term.usage(USAGE);
    };
    let options = CheckOptions {
        ignore_footer: o.has('i'),
        ignore_uuids: o.has('I'),
        ignore_times: o.has('t'),
        parents: if o.has('p') { Parents::All } else { Parents::Direct },
        bitmaps: o.has('b'),
        ignore_overlap: o.has('B'),
        stats: o.has('s'),
        now: files::now(),
    };
    if o.has(JSON.key) {
        return print_json(&name, &options, term);
    }
    match image_report(&name, &options, term) {
        Ok(report) => print(&report, o.has('s'), term),
        Err(errno) => errno,
    }
}

/// One object: whether all is well, and for each image that was looked at what is wrong with it.
fn print_json(name: &Path, o: &CheckOptions, term: &mut Term) -> i32 {
    let report = match chain::open_file(name, false).and_then(|f| vhd_rs::check(&f, name, o)) {
        Ok(report) => report,
        Err(e) => return term.failed_as(true, "", name, &e),
    };
    let images: Vec<&Report> = std::iter::once(&report).chain(&report.parents).collect();
    let fault = images.iter().find_map(|image| image.fault.as_ref());
    let image = |image: &&Report| {
        let fault = image.fault.as_ref();
        let mut out = json!({
            "name": image.name.display().to_string(),
            "valid": fault.is_none(),
            "fault": fault.map(|(text, errno)| json!({ "errno": errno, "message": text })),
        });
        if o.stats {
            out["allocated_sectors"] = json!(image.allocated);
            out["written_sectors"] = json!(image.written);
        }
        out
    };
    let all: Vec<_> = images.iter().map(image).collect();
    term.json(&json!({ "valid": fault.is_none(), "images": all }));
    fault.map_or(0, |(_, errno)| *errno)
}

fn image_report(name: &Path, o: &CheckOptions, term: &mut Term) -> Result<Report, i32> {
    use std::os::unix::fs::FileTypeExt;
    let kind = match std::fs::metadata(name) {
        Ok(m) => m.file_type(),
        Err(e) => {
            let errno = e.raw_os_error().unwrap_or(5);
            term.say(&format!("cannot stat {}: {errno}\n", name.display()));
            return Err(errno);
        }
    };
    if !kind.is_file() && !kind.is_block_device() {
        term.say(&format!("{} is not a regular file or block device\n", name.display()));
        return Err(crate::EINVAL);
    }
    let report = chain::open_file(name, false).and_then(|f| vhd_rs::check(&f, name, o));
    report.map_err(|e| term.not_opened(name, &e))
}

/// A line for each image that is valid, or what is wrong with the first that is not.
fn print(report: &Report, stats: bool, term: &mut Term) -> i32 {
    let (mut allocated, mut written) = (0, 0);
    for image in std::iter::once(report).chain(&report.parents) {
        if let Some((text, errno)) = &image.fault {
            let name = image.name.display();
            term.say(&format!("{text}\n{name} appears invalid; dumping metadata\n"));
            dump::any(&image.name, term);
            return *errno;
        }
        allocated += image.allocated;
        written += image.written;
        match (image.fixed, stats) {
            (true, _) => {}
            (false, true) => {
                let name = image.name.display().to_string();
                term.say(&statistics(&name, image.allocated, image.written));
            }
            (false, false) => term.say(&format!("{} is valid\n", image.name.display())),
        }
    }
    if stats && !report.parents.is_empty() {
        term.say(&statistics("total", allocated, written));
    }
    0
}

fn statistics(name: &str, allocated: u64, written: u64) -> String {
    // Sector counts stay far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let percent = 100.0 * written as f64 / (allocated.max(1)) as f64;
    format!("{name}: secs allocated: {allocated:#x} secs written: {written:#x} ({percent:.2}%)\n")
}
