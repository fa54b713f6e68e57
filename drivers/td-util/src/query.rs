//! `query vhd`: one line for each fact asked for, always in the same order.
use cli::{EINVAL, Options, Term};
use std::fs::File;
use std::path::Path;
use vhd_rs::locate::{Headers, headers, headers_of_copy};
use vhd_rs::{DiskType, VhdError, chain, resolve_parent};

/// Attempts at headers that a running daemon may be writing.
const RETRIES: u32 = 10;

/// A line, or the line and errno of a failure.
type Answer = Result<String, (String, i32)>;

/// Answers for an image.
type Question = fn(&Path, &File, &Headers) -> Answer;

/// `query vhd [-v] [-p] [-f] [-d] [-b] FILE`. A failing question does not suppress later ones; the
/// first errno is the exit code.
pub(crate) fn vhd(o: &Options, term: &mut Term) -> Option<i32> {
    let [name] = o.operands() else { return None };
    let name = Path::new(name);
    let (file, found) = match look(name, o.has('b')) {
        Ok(found) => found,
        Err(e) => {
            term.say(&format!("failed opening {}: -{}\n", name.display(), e.errno()));
            term.complain(&format!("{e}\n"));
            return Some(e.errno());
        }
    };
    let questions: [(char, Question); 4] =
        [('v', size), ('p', parent), ('f', hidden), ('d', depth)];
    let mut code = 0;
    for (_, question) in questions.iter().filter(|(letter, _)| o.has(*letter)) {
        let line = match question(name, &file, &found) {
            Ok(line) => line,
            Err((line, errno)) => {
                code = if code == 0 { errno } else { code };
                line
            }
        };
        term.say(&format!("{line}\n"));
    }
    Some(code)
}

fn look(name: &Path, copy: bool) -> Result<(File, Headers), VhdError> {
    let file = chain::open_file(name, false)?;
    let read = if copy { headers_of_copy } else { headers };
    let found = read(&file, name, RETRIES)?;
    Ok((file, found))
}

fn size(_: &Path, _: &File, found: &Headers) -> Answer {
    Ok((found.footer.current_bytes >> 20).to_string())
}

fn parent(name: &Path, file: &File, found: &Headers) -> Answer {
    if found.footer.kind != DiskType::Differencing {
        return Ok(format!("{} has no parent", name.display()));
    }
    let failed = |errno| ("query failed".to_string(), errno);
    let parent = chain::parent_of(file, name).map_err(|e| failed(e.errno()))?;
    let parent = parent.ok_or_else(|| failed(EINVAL))?;
    let path = resolve_parent(name, &parent).map_err(|e| failed(e.errno()))?;
    Ok(path.display().to_string())
}

fn hidden(_: &Path, _: &File, found: &Headers) -> Answer {
    Ok(format!("hidden: {}", i8::from_be_bytes([found.footer.hidden])))
}

fn depth(name: &Path, _: &File, _: &Headers) -> Answer {
    match chain::depth(name, false) {
        Ok(depth) => Ok(format!("chain depth: {depth}")),
        Err(e) => Err((format!("error checking chain depth: -{}", e.errno()), e.errno())),
    }
}
