//! From what an image says of its parent to the file that is meant.
//!
//! ```text
//! locators ─► a file or device that is there ─► in a place for parents ─► with the id that is
//! meant
//! ```
//! Locators are tried in their order. One that leads to an image with another id is passed over for
//! one that fits, and is told of only if none does. Nothing that lies in no place for parents
//! ([`image::place`]) is opened.
use crate::chain;
use crate::error::{
    VhdError,
    errno::{EINVAL, ENOENT},
};
use crate::locate;
use crate::open::Parent;
use crate::path::canonical;
use image::place::{self, Home, Known, Refusal};
use image::{Node, NodeError, Storage};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A parent that was found and may be opened.
#[derive(Debug)]
pub struct Found {
    /// Its canonical path (§5.3).
    pub path: PathBuf,
    node: Node,
}

impl Found {
    /// Opens the very file that was found.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(&self, write: bool) -> Result<File, VhdError> {
        let failed = |e| VhdError::io(&self.path, "open the file", 0, &e);
        self.node.open(write).map_err(failed)
    }

    /// The very file that was found, not open yet.
    pub fn node(&self) -> &Node {
        &self.node
    }

    fn fits(&self, uuid: Option<[u8; 16]>) -> bool {
        let Some(uuid) = uuid else { return true };
        let headers = self.open(false).and_then(|file| locate::headers(&file, &self.path, 0));
        headers.is_ok_and(|found| found.footer.uuid == uuid)
    }
}

/// The parent of an open image, to be opened: the first that fits, else the first that is there.
///
/// # Errors
/// EACCES if it lies in no place for parents; ENOENT or what the last locator gave; EINVAL if none
/// decodes.
pub fn find(child: &Path, file: &File, parent: &Parent) -> Result<Found, VhdError> {
    let failed = |e: io::Error| VhdError::io(child, "learn where the image is", 0, &e);
    let home = Home::of(file).map_err(failed)?;
    let directory = directory_of(child)?;
    let (mut other, mut refused, mut errno) = (None, None, EINVAL);
    for candidate in distinct(&parent.candidates) {
        let found = match found(&directory, candidate) {
            Ok(found) => found,
            Err(e) => {
                errno = e.raw_os_error().unwrap_or(EINVAL);
                continue;
            }
        };
        if let Err(why) = place::permit(&home, &found.node, known(parent.uuid)) {
            refused.get_or_insert_with(|| refusal(child, &found.path, parent.uuid, why));
        } else if found.fits(parent.uuid) {
            return Ok(found);
        } else {
            other.get_or_insert(found);
        }
    }
    let tried = || VhdError::Parent { name: child.into(), tried: parent.candidates.clone(), errno };
    other.ok_or_else(|| refused.unwrap_or_else(tried))
}

/// A parent that is named by its path alone, whatever its format: relative to the child's
/// directory.
///
/// # Errors
/// EACCES if it lies in no place for parents; ENOENT or what its path gave.
pub fn find_named(child: &Path, file: &File, name: &Path) -> Result<Found, VhdError> {
    let parent = Parent { candidates: vec![name.into()], uuid: None };
    find(child, file, &parent)
}

/// The path of the parent, for who tells of it without opening it.
///
/// # Errors
/// As for [`find`], but none for a place that is not for parents.
pub fn name(child: &Path, parent: &Parent) -> Result<PathBuf, VhdError> {
    let directory = directory_of(child)?;
    let mut candidates = distinct(&parent.candidates);
    if candidates.len() > 1
        && let Ok(file) = chain::open_file(child, false)
        && let Ok(found) = find(child, &file, parent)
    {
        return Ok(found.path);
    }
    let mut errno = EINVAL;
    let there = candidates.drain(..).find_map(|candidate| match found(&directory, candidate) {
        Ok(found) => Some(found.path),
        Err(e) => {
            errno = e.raw_os_error().unwrap_or(EINVAL);
            None
        }
    });
    let tried = || VhdError::Parent { name: child.into(), tried: parent.candidates.clone(), errno };
    there.ok_or_else(tried)
}

/// A new or changed child and its parent: whether that may be, and whether its maker has to vouch
/// for it.
#[derive(Debug)]
pub struct Bond {
    parent: Node,
    uuid: Option<[u8; 16]>,
    voucher: bool,
}

impl Bond {
    /// Looks at both before anything is written.
    ///
    /// # Errors
    /// EACCES if the parent lies in no place for parents and nobody can vouch for it here: the
    /// child is a device, or whoever asks is not root; or if it is no storage at all.
    pub fn new(child: &Path, parent: &Path, uuid: Option<[u8; 16]>) -> Result<Bond, VhdError> {
        let failed = |e| VhdError::node(parent, "find the file", &e);
        let node = Node::find(parent).map_err(failed)?;
        let home = Home::at(child).map_err(|e| VhdError::io(child, "find the directory", 0, &e))?;
        let voucher = place::needs_voucher(&home, &node, known(uuid))
            .map_err(|why| refusal(child, parent, uuid, why))?;
        if voucher && matches!(home, Home::Device(_)) {
            return Err(refusal(child, parent, uuid, Refusal::Elsewhere(None)));
        }
        Ok(Bond { parent: node, uuid, voucher })
    }

    /// Vouches for the parent if that is needed, before the child names it.
    ///
    /// # Errors
    /// EACCES if the word cannot be kept.
    pub fn vouch(&self, name: &Path, child: &File, parent: &Path) -> Result<(), VhdError> {
        if !self.voucher {
            return Ok(());
        }
        let refused = |_| refusal(name, parent, self.uuid, Refusal::Elsewhere(None));
        place::vouch(child, &self.parent).map_err(refused)
    }

    /// Takes an older word back that this parent does not need, once the child names it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget(&self, name: &Path, child: &File) -> Result<(), VhdError> {
        if self.voucher || Storage::is_device(child) {
            return Ok(());
        }
        place::forget(child).map_err(|e| VhdError::io(name, "forget an older parent", 0, &e))
    }
}

fn known(uuid: Option<[u8; 16]>) -> Known {
    if uuid.is_some() { Known::ById } else { Known::ByPath }
}

fn refusal(child: &Path, parent: &Path, uuid: Option<[u8; 16]>, why: Refusal) -> VhdError {
    let (name, parent) = (child.into(), parent.into());
    match why {
        Refusal::NoStorage => VhdError::NoStorage { name, parent },
        Refusal::Elsewhere(fault) => {
            VhdError::Elsewhere { name, parent, raw: uuid.is_none(), fault }
        }
    }
}

/// Where relative locators begin.
fn directory_of(child: &Path) -> Result<PathBuf, VhdError> {
    let home = canonical(child).map_err(|e| VhdError::io(child, "resolve the path", 0, &e))?;
    Ok(home.parent().unwrap_or(Path::new("/")).to_path_buf())
}

pub(crate) fn distinct(candidates: &[PathBuf]) -> Vec<&Path> {
    let mut out: Vec<&Path> = Vec::new();
    for candidate in candidates.iter().map(PathBuf::as_path) {
        if !out.contains(&candidate) {
            out.push(candidate);
        }
    }
    out
}

/// What a locator leads to: an absolute path, or one seen from the directory of the canonical
/// child.
fn found(home: &Path, candidate: &Path) -> io::Result<Found> {
    if candidate.is_absolute()
        && let Ok(node) = readable(candidate)
    {
        return Ok(Found { path: canonical(candidate)?, node });
    }
    // An absolute path that is not readable is tried below the child's directory, as the original.
    let tail = candidate.strip_prefix("/").unwrap_or(candidate);
    let path = canonical(&home.join(tail))?;
    Ok(Found { node: readable(&path)?, path })
}

/// Anything but a file or a block device is as good as nothing.
fn readable(path: &Path) -> io::Result<Node> {
    let node = Node::find(path).map_err(|e| match e {
        NodeError::Io(e) => e,
        NodeError::Odd(_) => io::Error::from_raw_os_error(ENOENT),
    })?;
    node.readable().map(|()| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(candidates: &[&str]) -> Parent {
        Parent { uuid: None, candidates: candidates.iter().map(PathBuf::from).collect() }
    }

    #[test]
    fn the_first_candidate_that_exists_wins() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let child = home.join("c.vhd");
        std::fs::write(&child, b"").unwrap();
        std::fs::write(home.join("p.vhd"), b"").unwrap();
        let file = File::open(&child).unwrap();
        let p = parent(&["./q.vhd", "./p.vhd"]);
        assert_eq!(find(&child, &file, &p).unwrap().path, home.join("p.vhd"));
        assert_eq!(name(&child, &p).unwrap(), home.join("p.vhd"));
        for (candidates, errno) in [(&["./q.vhd"][..], 2), (&[], 22)] {
            let p = parent(candidates);
            assert_eq!(find(&child, &file, &p).unwrap_err().errno(), errno);
            assert_eq!(name(&child, &p).unwrap_err().errno(), errno);
        }
    }

    #[test]
    fn what_lies_elsewhere_is_named_and_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let child = dir.path().join("c.vhd");
        std::fs::write(&child, b"").unwrap();
        let file = File::open(&child).unwrap();
        let p = parent(&["/etc/passwd"]);
        let e = find(&child, &file, &p).unwrap_err();
        assert_eq!(e.errno(), 13);
        let text = e.to_string();
        for part in ["c.vhd", "/etc/passwd", "directory", "volume group", place::LIST] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(name(&child, &p).unwrap(), Path::new("/etc/passwd"));
        let p = parent(&["/proc/self/environ"]);
        assert_eq!(find(&child, &file, &p).unwrap_err().errno(), 13);
    }
}
