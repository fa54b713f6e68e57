//! `check`: the strict list.
use crate::dump;
use crate::options::{self, JSON, Term};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;
use vhd_rs::{CheckOptions, FooterAt, OpenOptions, Parents, Present, Report, chain, files};

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
        Ok(report) => print(&report, &options, term),
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
            out["allocated_sectors"] = json!(image.present.allocated);
            out["written_sectors"] = json!(image.present.written);
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
            term.say(&format!("cannot stat {}: {errno}\n", show::path(name)));
            return Err(errno);
        }
    };
    if !kind.is_file() && !kind.is_block_device() {
        term.say(&format!("{} is not a regular file or block device\n", show::path(name)));
        return Err(crate::EINVAL);
    }
    let report = chain::open_file(name, false).and_then(|f| vhd_rs::check(&f, name, o));
    report.map_err(|e| term.not_opened(name, &e))
}

/// A line for each image that is valid, or what is wrong with the first that is not. Of a fixed
/// image there is nothing to say.
fn print(report: &Report, o: &CheckOptions, term: &mut Term) -> i32 {
    let images: Vec<&Report> = std::iter::once(report).chain(&report.parents).collect();
    for image in &images {
        if image.fault.is_some() {
            return invalid(image, o, term);
        }
        if !image.fixed && !o.stats {
            term.say(&format!("{} is valid\n", show::path(&image.name)));
        }
    }
    if o.stats {
        statistics(&images, term);
    }
    0
}

fn invalid(image: &Report, o: &CheckOptions, term: &mut Term) -> i32 {
    let Some((text, errno)) = &image.fault else { return 0 };
    let name = show::path(&image.name);
    term.say(&format!("{text}\n{name} appears invalid; dumping metadata\n"));
    dump::any(&image.name, term);
    if let Some(remedy) = remedy(image, text, o) {
        term.complain(&format!("{remedy}\n"));
    }
    *errno
}

/// What to do, where that is known: why the image does not open at all, or what `repair` is for.
fn remedy(image: &Report, fault: &str, o: &CheckOptions) -> Option<String> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let opened = chain::open_file(&image.name, false)
        .and_then(|file| vhd_rs::open(&file, &image.name, &options));
    let name = show::path(&image.name);
    match opened {
        Err(e) => Some(e.to_string()),
        Ok(_) if fault.starts_with("batmap") => Some(format!(
            "{name}: the batmap, a hint which blocks are full, is damaged; no data is lost by that, \
             and vhd-util repair makes it anew"
        )),
        Ok(opened) if opened.footer_found != FooterAt::Trailing && !o.ignore_footer => {
            Some(format!(
                "{name}: the footer at the end is missing, which a running disk or a crash explains; \
             check -i passes it over, vhd-util repair writes it"
            ))
        }
        Ok(_) => None,
    }
}

/// A line an image from the base up: what is in it, and what of that no image below has.
fn statistics(images: &[&Report], term: &mut Term) {
    let mut below: Vec<&Present> = Vec::new();
    for image in images.iter().rev().filter(|image| !image.fixed) {
        let Present { allocated, written, .. } = image.present;
        let mut line = format!(
            "{}: secs allocated: {allocated:#x} secs written: {written:#x} ({})",
            show::path(&image.name),
            percent(written, allocated)
        );
        if let Some(parent) = below.last() {
            for (whom, others) in [("parent", &[*parent][..]), ("ancestors", &below)] {
                let count = image.present.not_in(others);
                let share = percent(count, written);
                line += &format!(" secs not in {whom}: {count:#x} ({share})");
            }
        }
        term.say(&(line + "\n"));
        below.push(&image.present);
    }
}

fn percent(part: u64, whole: u64) -> String {
    // Sector counts stay far below 2^53.
    #[allow(clippy::cast_precision_loss)]
    let percent = 100.0 * part as f64 / (whole.max(1)) as f64;
    format!("{percent:.2}%")
}
