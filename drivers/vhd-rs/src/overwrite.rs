//! What a new image must not overwrite.
//!
//! The original overwrites whatever has the name, and storage managers rely on that: a new volume
//! has the bytes of one that was removed. So contents do not forbid anything by themselves. What
//! forbids is somebody who has the image open, be it only as a parent, and, where that can be seen
//! at once, a child: an image of the same directory that names this one by its id. A volume's
//! directory is all volumes of the host, so volumes are not looked through.
use crate::error::{VhdError, errno::EEXIST, shown};
use crate::{chain, locate, lock, scan};
use image::Storage;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Entries of a directory that are looked at; a repository has some thousands.
const ENTRIES_MAX: usize = 16_384;

/// Makes sure that a file or device may be overwritten, and keeps others off it while it is open.
///
/// # Errors
/// EBUSY while anybody has the image open; EEXIST for the parent of another image.
pub(crate) fn allowed(file: &File, name: &Path) -> Result<(), VhdError> {
    lock::lock_alone(file, name, lock::Others::Refuse)?;
    match child_of(file, name) {
        Some(child) => {
            let why = format!(
                "is the parent of {}, whose disk it holds a part of; choose another name, or \
                 remove the child first",
                shown(&child)
            );
            Err(VhdError::request(name, EEXIST, why))
        }
        None => Ok(()),
    }
}

/// An image of the same directory that stands on this one.
fn child_of(file: &File, name: &Path) -> Option<PathBuf> {
    if Storage::is_device(file) || Storage::len(file).ok()? == 0 {
        return None;
    }
    let uuid = locate::headers(file, name, 0).ok()?.footer.uuid;
    let home = chain::canonical_new(name).ok()?;
    let entries = std::fs::read_dir(home.parent()?).ok()?.take(ENTRIES_MAX).flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut children = files.map(|entry| entry.path()).filter(|path| *path != home);
    children.find(|path| names(path, uuid))
}

fn names(child: &Path, parent: [u8; 16]) -> bool {
    let file = chain::open_file(child, false);
    let parent_of = |file: File| scan::parent_of(&file, child, scan::Look::Fast);
    file.ok().and_then(parent_of).is_some_and(|meant| meant.uuid == Some(parent))
}
