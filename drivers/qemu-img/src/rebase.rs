//! `rebase -u`: another parent in the header, and nothing else.
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use image::Holder;
use qcow2::edit::set_backing;
use qcow2::header::Backing;
use vhd_rs::lock::{self, Others};
use vhd_rs::parents::Bond;

use crate::open::{self, For, Format};
use crate::tool::{FORMAT, Fail, Outcome, PROGRESS, QUIET, Tool, plain};

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("rebase", "f:F:b:upqt:T:U", &[FORMAT, QUIET, PROGRESS], words)?;
    let [name] = o.operands() else {
        return tool.usage("rebase", "Expecting one image file name");
    };
    if !o.has('u') {
        let why = "rebase is done with -u only here, which changes the name and no data";
        return Err(format!("{why}: use QEMU's qemu-img").into());
    }
    let path = Path::new(name);
    let layer = open::layer(path, open::format_of(o.value('f'))?, For::Reading)?;
    if layer.format != Format::Qcow2 {
        let name = show::path(path);
        return Err(format!("Could not change the backing file of '{name}': it is raw").into());
    }
    let parent = o.value('b').filter(|name| !name.is_empty());
    let shown = show::path(parent.unwrap_or_default()).to_string();
    let failed =
        |why: &str| Fail::from(format!("Could not change the backing file to '{shown}': {why}"));
    let backing = match (parent, o.value('F')) {
        (None, _) => None,
        (Some(_), None) => return Err(failed("backing format must be specified")),
        (Some(name), Some(format)) => {
            open::format_of(Some(format))?;
            let bytes = |word: &OsStr| word.as_bytes().to_vec();
            Some(Backing { name: bytes(name), format: Some(bytes(format)) })
        }
    };
    let file = image::Node::find(path).ok().map(|node| node.open(true));
    let file = file.ok_or_else(|| failed("it is gone"))?.map_err(|error| failed(&plain(&error)))?;
    beside(&file, path)?;
    // One that is not there yet nobody can vouch for.
    let parent = parent.map(|name| open::beside(path, name.as_bytes()));
    let parent = parent.filter(|parent| parent.exists());
    let bond = parent.as_deref().map(|parent| Bond::new(path, parent, None)).transpose()?;
    if let (Some(bond), Some(parent)) = (&bond, &parent) {
        bond.vouch(path, &file, parent)?;
    }
    set_backing(&file, path, backing.as_ref()).map_err(|error| failed(&error.to_string()))?;
    bond.map_or(Ok(()), |bond| bond.forget(path, &file))?;
    Ok(0)
}

/// The name of what is below may change while a tapdisk serves the image: it reads the header when
/// it opens the image, and afterwards writes other fields of it only.
fn beside(file: &std::fs::File, path: &Path) -> Outcome<()> {
    let Err(error) = lock::lock(file, path, Others::Refuse) else { return Ok(()) };
    match image::holder(file) {
        Ok(Some(Holder::Writer(pid))) if lock::is_tapdisk(pid) => Ok(()),
        Ok(None | Some(Holder::Elsewhere)) => Ok(()),
        _ => Err(open::in_use(&error)),
    }
}
