//! The part of the strict list about parents: locators, the file they lead to, its ancestors.
use crate::chain::{self, Identity};
use crate::check::{CheckOptions, Fault, Parents, Report, Subject, check, invalid};
use crate::error::{VhdError, errno::ELOOP};
use crate::locator::{LocatorFault, NONE};
use crate::{DiskType, locate, open, path};
use image::Storage;
use std::path::{Path, PathBuf};

/// Locators must be readable; with parents asked for, one must lead to the right image.
pub(crate) fn locators(s: &Subject<'_>) -> Result<(), Fault> {
    if s.footer.kind != DiskType::Differencing {
        return Ok(());
    }
    let mut paths = Vec::new();
    let mut seen = Vec::new();
    for (n, locator) in s.header.locators.iter().enumerate().filter(|(_, l)| l.code != NONE) {
        if seen.contains(&locator.code) {
            return Err(invalid(format!("duplicate platform code for locator {n}")));
        }
        seen.push(locator.code);
        let why = match locator.text_bytes() {
            Err(LocatorFault::Space) => "invalid data space",
            Err(_) => "invalid data length",
            Ok(_) if locator.end() > s.file_bytes => "invalid data offset",
            Ok(_) => {
                paths.extend(open::locator_path(s.storage, locator));
                continue;
            }
        };
        return Err(invalid(format!("invalid parent locator {n}: {why}")));
    }
    if s.o.parents == Parents::Ignore { Ok(()) } else { parent(s, &paths) }
}

fn parent(s: &Subject<'_>, paths: &[PathBuf]) -> Result<(), Fault> {
    let found = match path::resolve(s.name, paths) {
        Ok(found) => found,
        Err(e) => return Err(not_found(s, paths, &e)),
    };
    if s.header.parent_uuid == [0; 16] {
        return Ok(());
    }
    let opened = chain::open_file(&found, false).and_then(|f| locate::headers(&f, &found, 0));
    match opened {
        Err(e) => {
            Err((format!("error opening parent {}: -{}", found.display(), e.errno()), e.errno()))
        }
        Ok(h) if h.footer.uuid != s.header.parent_uuid && !s.o.ignore_uuids => {
            Err(invalid(format!("invalid parent {}: invalid parent uuid", found.display())))
        }
        Ok(_) => Ok(()),
    }
}

/// Each path that led nowhere once, whatever locators have it, and then the parent.
fn not_found(s: &Subject<'_>, paths: &[PathBuf], e: &VhdError) -> Fault {
    let mut text = String::new();
    let once = |(n, path): &(usize, &PathBuf)| !paths.iter().take(*n).any(|before| before == *path);
    for (_, path) in paths.iter().enumerate().filter(once) {
        let why = path::resolve(s.name, std::slice::from_ref(path)).err();
        let errno = why.map_or(e.errno(), |why| why.errno());
        text += &format!("error resolving {}: -{errno}\n", path.display());
    }
    (text + "could not find parent " + &s.header.parent_name_text(), e.errno())
}

/// Checks parent after parent; raw ones have nothing to check.
pub(crate) fn ancestors(storage: &dyn Storage, o: &CheckOptions, report: &mut Report) {
    let mut seen: Vec<Identity> = Vec::new();
    seen.extend(chain::open_file(&report.name, false).ok().and_then(|f| chain::identity(&f).ok()));
    let mut next = step(storage, report.name.clone());
    let direct = CheckOptions { parents: Parents::Direct, ..*o };
    while let Some(path) = next {
        let one = file_report(&path, &direct, &mut seen);
        let valid = one.0.fault.is_none();
        report.parents.push(one.0);
        next = one.1.filter(|_| valid);
    }
}

fn step(storage: &dyn Storage, path: PathBuf) -> Option<PathBuf> {
    let parent = chain::parent_of(storage, &path).ok()??;
    let (below, raw) = chain::below(&path, &parent).ok()?;
    (!raw).then_some(below)
}

fn file_report(
    path: &Path,
    o: &CheckOptions,
    seen: &mut Vec<Identity>,
) -> (Report, Option<PathBuf>) {
    let failed = |text: String, errno: i32| {
        (Report { name: path.into(), fault: Some((text, errno)), ..Report::default() }, None)
    };
    let error = |e: &VhdError| failed(format!("error opening {}", path.display()), e.errno());
    let file = match chain::open_file(path, false) {
        Ok(file) => file,
        Err(e) => return error(&e),
    };
    if let Ok(id) = chain::identity(&file) {
        if seen.contains(&id) {
            let text = format!("{} is its own ancestor", path.display());
            return failed(text, ELOOP);
        }
        seen.push(id);
    }
    match check(&file, path, o) {
        Ok(report) => (report, step(&file, path.into())),
        Err(e) => error(&e),
    }
}
