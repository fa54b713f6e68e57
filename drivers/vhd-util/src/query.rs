//! `query`: one line for each fact asked for, always in the same order.
use crate::EINVAL;
use crate::options::{self, JSON, Options, Term};
use cli::Spec;
use serde_json::{Map, Value, json};
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

/// The image asked about: headers always, tables only when a question needs them.
struct Subject {
    name: PathBuf,
    file: File,
    copy: bool,
    found: Headers,
    opened: OnceCell<Result<Opened, VhdError>>,
}

/// Something that can be asked of an image.
struct Question {
    letter: char,
    /// The name of the answer in JSON.
    name: &'static str,
    /// The answer; the flag says not to resolve the parent's path.
    ask: fn(&Subject, bool) -> Result<Value, VhdError>,
    /// The answer as a line.
    line: fn(&Subject, &Value) -> String,
    /// The line where there is none; the number of the error follows unless it ends with a letter.
    failure: &'static str,
}

const QUESTIONS: [Question; 8] = [
    Question {
        letter: 'v',
        name: "virtual_bytes",
        ask: |s, _| Ok(json!(s.found.footer.current_bytes)),
        line: |_, v| mebibytes(v),
        failure: "",
    },
    Question {
        letter: 's',
        name: "physical_bytes",
        ask: |s, _| Ok(json!(s.opened()?.end_of_data.saturating_add(512))),
        line: |_, v| v.to_string(),
        failure: "failed to get physical size: -",
    },
    Question {
        letter: 'p',
        name: "parent",
        ask: parent,
        line: |s, v| match v.as_str() {
            Some(path) => show::line(path.as_bytes()).into_owned(),
            None => format!("{} has no parent", show::path(&s.name)),
        },
        failure: "query failed",
    },
    Question {
        letter: 'f',
        name: "hidden",
        ask: |s, _| Ok(json!(i8::from_be_bytes([s.found.footer.hidden]))),
        line: |_, v| format!("hidden: {v}"),
        failure: "",
    },
    Question {
        letter: 'm',
        name: "marker",
        ask: |s, _| {
            let marker = s.opened().map_or(0, |o| edit::marker(&s.file, &o.batmap));
            Ok(json!(i8::from_be_bytes([marker])))
        },
        line: |_, v| format!("marker: {v}"),
        failure: "",
    },
    Question {
        letter: 'd',
        name: "chain_depth",
        ask: |s, _| Ok(json!(chain::depth(&s.name, false)?)),
        line: |_, v| format!("chain depth: {v}"),
        failure: "error checking chain depth: -",
    },
    Question {
        letter: 'a',
        name: "allocated_blocks",
        ask: allocated,
        line: |_, v| v.to_string(),
        failure: "error reading bat: -",
    },
    Question {
        letter: 'S',
        name: "resize_max_bytes",
        ask: |s, _| {
            let header = s.found.header.as_ref();
            let bytes = header.map_or(0, |h| u64::from(h.max_entries) * u64::from(h.block_bytes));
            Ok(json!(bytes))
        },
        line: |_, v| mebibytes(v),
        failure: "",
    },
];

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let spec = Spec { letters: "n:vspfmdSaubh", long: &[JSON] };
    let o = match options::given("query", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), 0) = (o.path('n'), o.operands().len()) else { return term.usage(USAGE) };
    let as_json = o.has(JSON.key);
    let subject = match look(&name, o.has('b')) {
        Ok(subject) => subject,
        Err(e) => {
            let line = format!("error opening {}: -{}\n", show::path(&name), e.errno());
            return term.failed_as(as_json, &line, &name, &e);
        }
    };
    if as_json {
        return answer_json(&subject, &o, term);
    }
    let mut code = 0;
    for question in QUESTIONS.iter().filter(|q| o.has(q.letter)) {
        match (question.ask)(&subject, o.has('u')) {
            Ok(value) => term.say(&format!("{}\n", (question.line)(&subject, &value))),
            Err(e) => {
                let number = if question.failure.ends_with('-') {
                    e.errno().to_string()
                } else {
                    String::new()
                };
                let errno = term.failed(&format!("{}{number}\n", question.failure), &e);
                code = if code == 0 { errno } else { code };
            }
        }
    }
    code
}

/// One object, with what was asked for or, if nothing was, with everything. What could not be
/// learned is null there, and has its error in the member `errors`.
fn answer_json(s: &Subject, o: &Options, term: &mut Term) -> i32 {
    let all = !QUESTIONS.iter().any(|q| o.has(q.letter));
    let (mut code, mut errors) = (0, Map::new());
    let mut out = Map::new();
    out.insert("name".into(), json!(s.name.display().to_string()));
    for question in QUESTIONS.iter().filter(|q| all || o.has(q.letter)) {
        let value = (question.ask)(s, o.has('u')).unwrap_or_else(|e| {
            // A fixed image has no table; nobody asked for that.
            if !(all && question.letter == 'a') {
                errors.insert(question.name.into(), options::error(&e));
                term.complain(&format!("{e}\n"));
                code = if code == 0 { e.errno() } else { code };
            }
            Value::Null
        });
        out.insert(question.name.into(), value);
    }
    if !errors.is_empty() {
        out.insert("errors".into(), Value::Object(errors));
    }
    term.json(&Value::Object(out));
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

fn mebibytes(bytes: &Value) -> String {
    bytes.as_u64().map_or(0, |bytes| bytes >> 20).to_string()
}

fn parent(s: &Subject, unresolved: bool) -> Result<Value, VhdError> {
    let Some(header) = s.found.header.as_ref().filter(|_| s.found.footer.kind == Differencing)
    else {
        return Ok(Value::Null);
    };
    let parent = opening::parent_of(&s.file, header);
    if unresolved {
        let first = parent.candidates.first().map(|p| json!(p.display().to_string()));
        let why = "no parent locator can be read; set the parent with vhd-util modify -p";
        return first.ok_or_else(|| VhdError::request(&s.name, EINVAL, why));
    }
    let path = opening::resolve_parent(&s.name, &parent)?;
    Ok(json!(path.display().to_string()))
}

fn allocated(s: &Subject, _: bool) -> Result<Value, VhdError> {
    let o = s.opened()?;
    if o.header.is_none() {
        return Err(VhdError::request(&s.name, EINVAL, "a fixed image has no table of blocks"));
    }
    Ok(json!(o.bat.iter().filter(|e| **e != vhd_rs::bat::UNUSED).count()))
}
