//! `query`: one line for each fact asked for, always in the same order.
use crate::options::{Options, Term};
use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use vhd_rs::DiskType::Differencing;
use vhd_rs::locate::{Headers, headers, headers_of_copy};
use vhd_rs::open::{OpenOptions, Opened, open, open_copy};
use vhd_rs::{VhdError, chain, edit, open as opening};

const USAGE: &str = "options: <-n name> [-v print virtual size (in MB)] \
    [-s print physical utilization (bytes)] [-p print parent] [-f print fields] \
    [-m print marker] [-d print chain depth] [-S print max virtual size (MB) for fast resize] \
    [-a print allocated block count] [-u don't resolve parent path] [-h help]\n";
const EINVAL: i32 = 22;

/// The image asked about: headers always, tables only when a question needs them.
struct Subject {
    name: PathBuf,
    file: File,
    copy: bool,
    found: Headers,
    opened: OnceCell<Result<Opened, VhdError>>,
}

/// A line, or the line of a failure and the story behind it.
type Answer = Result<String, (String, VhdError)>;

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
            Err((line, e)) => {
                let errno = term.failed(&format!("{line}\n"), &e);
                code = if code == 0 { errno } else { code };
            }
        }
    }
    code
}

fn look(name: &Path, copy: bool) -> Result<Subject, VhdError> {
    let file = chain::open_file(name, false)?;
    let found = if copy { headers_of_copy(&file, name, 10)? } else { headers(&file, name, 10)? };
    Ok(Subject { name: name.into(), file, copy, found, opened: OnceCell::new() })
}

impl Subject {
    fn opened(&self) -> Result<&Opened, VhdError> {
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let how = if self.copy { open_copy } else { open };
        let opened = self.opened.get_or_init(|| how(&self.file, &self.name, &options));
        opened.as_ref().map_err(Clone::clone)
    }
}

fn virtual_size(s: &Subject, _: bool) -> Answer {
    Ok((s.found.footer.current_bytes >> 20).to_string())
}

fn physical_size(s: &Subject, _: bool) -> Answer {
    match s.opened() {
        Ok(o) => Ok(o.end_of_data.saturating_add(512).to_string()),
        Err(e) => Err((format!("failed to get physical size: -{}", e.errno()), e)),
    }
}

fn parent(s: &Subject, unresolved: bool) -> Answer {
    let failed = |e| ("query failed".to_string(), e);
    let Some(header) = s.found.header.as_ref().filter(|_| s.found.footer.kind == Differencing)
    else {
        return Ok(format!("{} has no parent", s.name.display()));
    };
    let parent = opening::parent_of(&s.file, header);
    if unresolved {
        let first = parent.candidates.first().map(|p| p.display().to_string());
        let why = "no parent locator can be read; set the parent with vhd-util modify -p";
        return first.ok_or_else(|| failed(VhdError::request(&s.name, EINVAL, why)));
    }
    let path = opening::resolve_parent(&s.name, &parent).map_err(failed)?;
    Ok(path.display().to_string())
}

fn hidden(s: &Subject, _: bool) -> Answer {
    Ok(format!("hidden: {}", i8::from_be_bytes([s.found.footer.hidden])))
}

fn marker(s: &Subject, _: bool) -> Answer {
    let marker = s.opened().map_or(0, |o| edit::marker(&s.file, &o.batmap));
    Ok(format!("marker: {}", i8::from_be_bytes([marker])))
}

fn depth(s: &Subject, _: bool) -> Answer {
    match chain::depth(&s.name, false) {
        Ok(depth) => Ok(format!("chain depth: {depth}")),
        Err(e) => Err((format!("error checking chain depth: -{}", e.errno()), e)),
    }
}

fn allocated(s: &Subject, _: bool) -> Answer {
    let opened = s.opened().and_then(|o| match o.header {
        Some(_) => Ok(o),
        None => Err(VhdError::request(&s.name, EINVAL, "a fixed image has no table of blocks")),
    });
    match opened {
        Ok(o) => Ok(o.bat.iter().filter(|e| **e != vhd_rs::bat::UNUSED).count().to_string()),
        Err(e) => Err((format!("error reading bat: -{}", e.errno()), e)),
    }
}

fn max_size(s: &Subject, _: bool) -> Answer {
    let header = s.found.header.as_ref();
    let bytes = header.map_or(0, |h| u64::from(h.max_entries) * u64::from(h.block_bytes));
    Ok((bytes >> 20).to_string())
}
