//! `query vhd`: one line for each fact asked for, always in the same order.
use cli::{EINVAL, JSON, Options, Term};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::Path;
use vhd_rs::locate::{Headers, headers, headers_of_copy};
use vhd_rs::{DiskType, VhdError, chain, resolve_parent};

/// Attempts at headers that a running daemon may be writing.
const RETRIES: u32 = 10;

/// Something that can be asked of an image.
struct Question {
    letter: char,
    /// The name of the answer in JSON.
    name: &'static str,
    ask: fn(&Path, &File, &Headers) -> Result<Value, VhdError>,
    /// The answer as a line.
    line: fn(&Path, &Value) -> String,
    /// The line where there is none.
    failure: fn(i32) -> String,
}

const QUESTIONS: [Question; 4] = [
    Question {
        letter: 'v',
        name: "virtual_bytes",
        ask: |_, _, found| Ok(json!(found.footer.current_bytes)),
        line: |_, v| v.as_u64().map_or(0, |bytes| bytes >> 20).to_string(),
        failure: |_| String::new(),
    },
    Question {
        letter: 'p',
        name: "parent",
        ask: parent,
        line: |name, v| match v.as_str() {
            Some(path) => show::line(path.as_bytes()).into_owned(),
            None => format!("{} has no parent", show::path(name)),
        },
        failure: |_| "query failed".into(),
    },
    Question {
        letter: 'f',
        name: "hidden",
        ask: |_, _, found| Ok(json!(i8::from_be_bytes([found.footer.hidden]))),
        line: |_, v| format!("hidden: {v}"),
        failure: |_| String::new(),
    },
    Question {
        letter: 'd',
        name: "chain_depth",
        ask: |name, _, _| Ok(json!(chain::depth(name, false)?)),
        line: |_, v| format!("chain depth: {v}"),
        failure: |errno| format!("error checking chain depth: -{errno}"),
    },
];

/// `query vhd [-v] [-p] [-f] [-d] [-b] FILE`. A failing question does not suppress later ones; the
/// first errno is the exit code.
pub(crate) fn vhd(o: &Options, term: &mut Term) -> Option<i32> {
    let [name] = o.operands() else { return None };
    let name = Path::new(name);
    let (file, found) = match look(name, o.has('b')) {
        Ok(found) => found,
        Err(e) => {
            if o.has(JSON.key) {
                term.json(&json!({ "name": name.display().to_string(), "error": error(&e) }));
            } else {
                term.say(&format!("failed opening {}: -{}\n", show::path(name), e.errno()));
            }
            term.complain(&format!("{e}\n"));
            return Some(e.errno());
        }
    };
    // JSON tells everything if nothing was asked for.
    let all = o.has(JSON.key) && !QUESTIONS.iter().any(|q| o.has(q.letter));
    let (mut code, mut errors) = (0, Map::new());
    let mut object = Map::new();
    object.insert("name".into(), json!(name.display().to_string()));
    for question in QUESTIONS.iter().filter(|q| all || o.has(q.letter)) {
        let (value, line) = match (question.ask)(name, &file, &found) {
            Ok(value) => {
                let line = (question.line)(name, &value);
                (value, line)
            }
            Err(e) => {
                code = if code == 0 { e.errno() } else { code };
                errors.insert(question.name.into(), error(&e));
                (Value::Null, (question.failure)(e.errno()))
            }
        };
        if !o.has(JSON.key) {
            term.say(&format!("{line}\n"));
        }
        object.insert(question.name.into(), value);
    }
    if o.has(JSON.key) {
        if !errors.is_empty() {
            object.insert("errors".into(), Value::Object(errors));
        }
        term.json(&Value::Object(object));
    }
    Some(code)
}

fn error(e: &VhdError) -> Value {
    json!({ "errno": e.errno(), "message": e.to_string() })
}

fn look(name: &Path, copy: bool) -> Result<(File, Headers), VhdError> {
    let file = chain::open_file(name, false)?;
    let read = if copy { headers_of_copy } else { headers };
    let found = read(&file, name, RETRIES)?;
    Ok((file, found))
}

fn parent(name: &Path, file: &File, found: &Headers) -> Result<Value, VhdError> {
    if found.footer.kind != DiskType::Differencing {
        return Ok(Value::Null);
    }
    let why = "no parent locator can be read; set the parent with vhd-util modify -p";
    let parent = chain::parent_of(file, name)?;
    let parent = parent.ok_or_else(|| VhdError::request(name, EINVAL, why))?;
    let path = resolve_parent(name, &parent)?;
    Ok(json!(path.display().to_string()))
}
