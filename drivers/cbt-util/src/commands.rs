//! The original's commands.
use crate::{Outcome, dump};
use cbt::{CbtError, Change, LogFile, Uuid};
use cli::{EINVAL, JSON, Options, Term};

/// `create`: the size is in bytes and not 0.
pub(crate) fn create(o: &Options, _: &mut Term) -> Outcome {
    match (o.path('n'), o.number::<u64>('s').flatten()) {
        (Some(name), Some(bytes)) if bytes > 0 => cbt::create(&name, bytes).into(),
        _ => Outcome::Usage,
    }
}

/// `set`: any of the fields, at least one.
pub(crate) fn set(o: &Options, _: &mut Term) -> Outcome {
    let ids = (id(o, 'p'), id(o, 'c'));
    let numbers = (o.number::<i32>('f'), o.number::<u64>('s'));
    let Some(name) = o.path('n') else { return Outcome::Usage };
    let (parent, child) = match ids {
        (Ok(parent), Ok(child)) => (parent, child),
        (Err(text), _) | (_, Err(text)) => return Outcome::Failed(text, EINVAL),
    };
    let (consistent, disk_bytes) = match numbers {
        (Some(None), _) | (_, Some(None | Some(0))) => return Outcome::Usage,
        (consistent, disk_bytes) => (consistent.flatten(), disk_bytes.flatten()),
    };
    let change = Change { parent, child, consistent, disk_bytes };
    if change == Change::default() {
        return Outcome::Usage;
    }
    match LogFile::open(&name, true).and_then(|mut log| log.set(&change)) {
        Err(e @ CbtError::Shrink { now, .. }) => {
            let text = format!("Size smaller than current file size ({now})\n");
            Outcome::Failed(text, e.errno())
        }
        done => done.into(),
    }
}

/// The id that an option gives. (The original ignores a text that is none.)
fn id(o: &Options, letter: char) -> Result<Option<Uuid>, String> {
    let Some(word) = o.value(letter) else { return Ok(None) };
    let text = word.to_string_lossy();
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(why) => Err(format!("-{letter} {} is no UUID: {why}\n", show::path(word))),
    }
}

/// `get`: exactly one of the fields, or with `--json` all that are short.
pub(crate) fn get(o: &Options, term: &mut Term) -> Outcome {
    let fields: Vec<char> = ['p', 'c', 'f', 's', 'b'].into_iter().filter(|f| o.has(*f)).collect();
    let (Some(name), json) = (o.path('n'), o.has(JSON.key)) else { return Outcome::Usage };
    if fields.len() != usize::from(!json) {
        return Outcome::Usage;
    }
    let log = match LogFile::open(&name, false) {
        Ok(log) => log,
        Err(e) => return e.into(),
    };
    let header = log.header();
    let Some(field) = fields.first() else {
        term.say(&format!("{{{}}}\n", dump::fields(header)));
        return Outcome::Done;
    };
    match field {
        'p' => term.say(&format!("{}\n", header.parent)),
        'c' => term.say(&format!("{}\n", header.child)),
        'f' => term.say(&format!("{}\n", header.consistent)),
        's' => term.say(&format!("{}\n", header.disk_bytes)),
        _ => match log.bitmap() {
            Ok(bitmap) => term.bytes(&bitmap),
            Err(e) => return e.into(),
        },
    }
    Outcome::Done
}

/// `coalesce`: paths, not ids.
pub(crate) fn coalesce(o: &Options, _: &mut Term) -> Outcome {
    let (Some(parent), Some(child)) = (o.path('p'), o.path('c')) else { return Outcome::Usage };
    match cbt::coalesce(&parent, &child) {
        Err(e @ CbtError::ParentLarger { .. }) => {
            // Without an end of line, as the original.
            Outcome::Failed("Parent bitmap larger than child bitmap".into(), e.errno())
        }
        done => done.into(),
    }
}
