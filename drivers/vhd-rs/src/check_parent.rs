//! The part of the strict list about parents: locators, the file they lead to, its ancestors.
use crate::chain::{self, Identity};
use crate::check::{CheckOptions, Fault, Parents, Report, Subject, check, invalid};
use crate::error::{VhdError, errno::ELOOP, shown};
use crate::locator::{LocatorFault, NONE};
use crate::open::Parent;
use crate::parents::{self, Found};
use crate::{DiskType, locate, open};
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
    let uuid = Some(s.header.parent_uuid).filter(|uuid| *uuid != [0; 16]);
    let parent = Parent { uuid, candidates: paths.to_vec() };
    let found = match found(s.name, &parent) {
        Ok(found) => found,
        Err(e @ (VhdError::Elsewhere { .. } | VhdError::NoStorage { .. })) => {
            return Err((e.to_string(), e.errno()));
        }
        Err(e) => return Err(not_found(s, &parent, &e)),
    };
    if s.header.parent_uuid == [0; 16] {
        return Ok(());
    }
    let opened = found.open(false).and_then(|f| locate::headers(&f, &found.path, 0));
    match opened {
        Err(e) => {
            let text = format!("error opening parent {}: -{}", shown(&found.path), e.errno());
            Err((text, e.errno()))
        }
        Ok(h) if h.footer.uuid != s.header.parent_uuid && !s.o.ignore_uuids => {
            Err(invalid(format!("invalid parent {}: invalid parent uuid", shown(&found.path))))
        }
        Ok(_) => Ok(()),
    }
}

/// Each path that led nowhere once, whatever locators have it, and then the parent.
fn not_found(s: &Subject<'_>, parent: &Parent, e: &VhdError) -> Fault {
    let mut text = String::new();
    for path in parents::distinct(&parent.candidates) {
        let alone = Parent { candidates: vec![path.into()], ..*parent };
        let errno = found(s.name, &alone).err().map_or(e.errno(), |why| why.errno());
        text += &format!("error resolving {}: -{errno}\n", shown(path));
    }
    (text + "could not find parent " + &s.header.parent_name_text(), e.errno())
}

fn found(child: &Path, parent: &Parent) -> Result<Found, VhdError> {
    parents::find(child, &chain::open_file(child, false)?, parent)
}

/// Checks parent after parent; raw ones have nothing to check.
pub(crate) fn ancestors(storage: &dyn Storage, o: &CheckOptions, report: &mut Report) {
    let mut seen: Vec<Identity> = Vec::new();
    seen.extend(chain::open_file(&report.name, false).ok().and_then(|f| chain::identity(&f).ok()));
    let mut next = step(storage, &report.name);
    let direct = CheckOptions { parents: Parents::Direct, ..*o };
    while let Some(found) = next {
        let one = file_report(&found, &direct, &mut seen);
        let valid = one.0.fault.is_none();
        report.parents.push(one.0);
        next = one.1.filter(|_| valid);
    }
}

fn step(storage: &dyn Storage, path: &Path) -> Option<Found> {
    let parent = chain::parent_of(storage, path).ok()??;
    parent.uuid.and_then(|_| found(path, &parent).ok())
}

fn file_report(
    found: &Found,
    o: &CheckOptions,
    seen: &mut Vec<Identity>,
) -> (Report, Option<Found>) {
    let path = found.path.as_path();
    let failed = |text: String, errno: i32| {
        (Report { name: path.into(), fault: Some((text, errno)), ..Report::default() }, None)
    };
    let error = |e: &VhdError| failed(format!("error opening {}", shown(path)), e.errno());
    let file = match found.open(false) {
        Ok(file) => file,
        Err(e) => return error(&e),
    };
    if let Ok(id) = chain::identity(&file) {
        if seen.contains(&id) {
            let text = format!("{} is its own ancestor", shown(path));
            return failed(text, ELOOP);
        }
        seen.push(id);
    }
    match check(&file, path, o) {
        Ok(report) => (report, step(&file, path)),
        Err(e) => error(&e),
    }
}
