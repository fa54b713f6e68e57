//! A chain must be made of images that belong together, and must end.
use std::path::{Path, PathBuf};

use super::{Found, OpenError};

/// What a chain has passed on its way down.
#[derive(Debug, Default)]
pub struct Passed {
    files: Vec<((u64, u64), PathBuf)>,
    uuids: Vec<([u8; 16], PathBuf)>,
}

impl Passed {
    /// Notes a file by (device, inode).
    ///
    /// # Errors
    /// ELOOP if it was passed before.
    pub fn file(&mut self, path: &Path, identity: (u64, u64)) -> Result<(), OpenError> {
        if self.files.iter().any(|(seen, _)| *seen == identity) {
            return Err(cycle(path, path));
        }
        self.files.push((identity, path.into()));
        Ok(())
    }

    /// Whether a file was passed.
    pub fn has_file(&self, identity: (u64, u64)) -> bool {
        self.files.iter().any(|(seen, _)| *seen == identity)
    }

    /// Notes a VHD by its id.
    ///
    /// # Errors
    /// ELOOP if a VHD with this id was passed before.
    pub fn uuid(&mut self, path: &Path, uuid: [u8; 16]) -> Result<(), OpenError> {
        if let Some((_, other)) = self.uuids.iter().find(|(seen, _)| *seen == uuid) {
            return Err(cycle(path, other));
        }
        self.uuids.push((uuid, path.into()));
        Ok(())
    }
}

fn cycle(path: &Path, other: &Path) -> OpenError {
    let (path, other) = (path.display(), other.display());
    let text = format!(
        "{path} is its own ancestor (it, or {other} with the same id, is above it in the chain); \
         set the right parent with vhd-util modify -p"
    );
    OpenError::new(libc::ELOOP, text)
}

/// Whether a parent is the one its child means (spec/drivers.md §5.1). Time stamps, names and sizes do
/// not count.
///
/// # Errors
/// EINVAL if it is not.
pub fn check(child: &Path, above: &Found, path: &Path, below: &Found) -> Result<(), OpenError> {
    let refuse = |why: String| Err(OpenError::new(libc::EINVAL, why));
    let (child, path) = (child.display(), path.display());
    let Found::Vhd(above) = above else {
        return refuse(format!(
            "{child} is a raw image and has no parent, but {path} is listed below it"
        ));
    };
    let Some(parent) = &above.parent else {
        return refuse(format!("{child} is a whole disk, but {path} is listed below it"));
    };
    match (parent.uuid, below) {
        (Some(want), Found::Vhd(found)) if want != found.footer.uuid => refuse(format!(
            "{path} has the id {}, but its child {child} means {}: it is not the parent that was \
             snapshotted; find that one and set it with vhd-util modify -p",
            id(found.footer.uuid),
            id(want),
        )),
        (None, Found::Vhd(_)) => refuse(format!("{child} wants a raw parent, and {path} is a VHD")),
        (Some(_), Found::Vhd(_)) | (_, Found::Raw { .. }) => Ok(()),
    }
}

/// An id as text.
fn id(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_an_id_that_comes_again_is_a_cycle() {
        let mut passed = Passed::default();
        passed.file(Path::new("/a"), (1, 2)).unwrap();
        passed.file(Path::new("/b"), (1, 3)).unwrap();
        assert_eq!(passed.file(Path::new("/c"), (1, 2)).unwrap_err().errno, libc::ELOOP);
        passed.uuid(Path::new("/a"), [1; 16]).unwrap();
        let error = passed.uuid(Path::new("/c"), [1; 16]).unwrap_err();
        assert!(error.errno == libc::ELOOP && error.text.contains("/a"), "{error}");
    }

    #[test]
    fn ids_read_as_people_write_them() {
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(id(uuid), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }
}
