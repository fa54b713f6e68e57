//! `query`: one line for each fact asked for, always in the same order.
use crate::options::{Options, Term};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use vhd_rs::locate::{Headers, headers, headers_of_copy};
use vhd_rs::open::{OpenOptions, Opened, open, open_copy};
use vhd_rs::{DiskType, VhdError, chain, edit, open as opening};

const USAGE: &str = "options: <-n name> [-v print virtual size (in MB)] \
    [-s print physical utilization (bytes)] [-p print parent] [-f print fields] \
    [-m print marker] [-d print chain depth] [-S print max virtual size (MB) for fast resize] \
    [-a print allocated block count] [-u don't resolve parent path] [-h help]\n";
const EINVAL: i32 = 22;

/// The image asked about: headers always, the rest as far as it can be read.
struct Subject {
    name: PathBuf,
    file: File,
    found: Headers,
    opened: Result<Opened, VhdError>,
}

/// A line, or the line and errno of a failure.
type Answer = Result<String, (String, i32)>;

/// Answers for an image; the flag says not to resolve the parent's path.
type Question = fn(&Subject, bool) -> Answer;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match Options::given("query", "n:vspfmdSaubh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), 0) = (o.path('n'), o.rest.len()) else { return term.usage(USAGE) };
    let subject = match look(&name, o.has('b')) {
        Ok(subject) => subject,
        Err(e) => return term.not_opened(&name, &e),
    };
    let questions: [(char, Question); 8] = [
        ('v', virtual_size),
        ('s', physical_size),
        ('p', parent),
        ('f', hidden),
        ('m', marker),
        ('d', depth),
        ('a', allocated),
        ('S', max_size),
    ];
    let mut code = 0;
    for (_, question) in questions.iter().filter(|(letter, _)| o.has(*letter)) {
        match question(&subject, o.has('u')) {
            Ok(line) => term.say(&format!("{line}\n")),
            Err((line, errno)) => {
                term.say(&format!("{line}\n"));
                code = if code == 0 { errno } else { code };
            }
        }
    }
    code
}

fn look(name: &Path, copy: bool) -> Result<Subject, VhdError> {
    let file = chain::open_file(name, false)?;
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let (found, opened) = if copy {
        (headers_of_copy(&file, name, 10)?, open_copy(&file, name, &options))
    } else {
        (headers(&file, name, 10)?, open(&file, name, &options))
    };
    Ok(Subject { name: name.into(), file, found, opened })
}

fn virtual_size(s: &Subject, _: bool) -> Answer {
    Ok((s.found.footer.current_bytes >> 20).to_string())
}

fn physical_size(s: &Subject, _: bool) -> Answer {
    match &s.opened {
        Ok(o) => Ok(o.end_of_data.saturating_add(512).to_string()),
        Err(e) => Err((format!("failed to get physical size: -{}", e.errno()), e.errno())),
    }
}

fn parent(s: &Subject, unresolved: bool) -> Answer {
    if s.found.footer.kind != DiskType::Differencing {
        return Ok(format!("{} has no parent", s.name.display()));
    }
    let failed = |errno| Err(("query failed".to_string(), errno));
    let parent = match chain::parent_of(&s.file, &s.name) {
        Ok(Some(parent)) => parent,
        Ok(None) => return failed(EINVAL),
        Err(e) => return failed(e.errno()),
    };
    if unresolved {
        let first = parent.candidates.first();
        return first.map_or_else(|| failed(EINVAL), |p| Ok(p.display().to_string()));
    }
    match opening::resolve_parent(&s.name, &parent) {
        Ok(path) => Ok(path.display().to_string()),
        Err(e) => failed(e.errno()),
    }
}

fn hidden(s: &Subject, _: bool) -> Answer {
    Ok(format!("hidden: {}", i8::from_be_bytes([s.found.footer.hidden])))
}

fn marker(s: &Subject, _: bool) -> Answer {
    let marker = s.opened.as_ref().map_or(0, |o| edit::marker(&s.file, &o.batmap));
    Ok(format!("marker: {}", i8::from_be_bytes([marker])))
}

fn depth(s: &Subject, _: bool) -> Answer {
    match chain::depth(&s.name, false) {
        Ok(depth) => Ok(format!("chain depth: {depth}")),
        Err(e) => Err((format!("error checking chain depth: -{}", e.errno()), e.errno())),
    }
}

fn allocated(s: &Subject, _: bool) -> Answer {
    let failed = |errno| Err((format!("error reading bat: -{errno}"), errno));
    match &s.opened {
        Ok(o) if o.header.is_none() => failed(EINVAL),
        Ok(o) => Ok(o.bat.iter().filter(|e| **e != vhd_rs::bat::UNUSED).count().to_string()),
        Err(e) => failed(e.errno()),
    }
}

fn max_size(s: &Subject, _: bool) -> Answer {
    let header = s.found.header.as_ref();
    let bytes = header.map_or(0, |h| u64::from(h.max_entries) * u64::from(h.block_bytes));
    Ok((bytes >> 20).to_string())
}
