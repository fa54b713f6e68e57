//! The way down a chain: every image that is passed, and whether it belongs there.
//!
//! Daemon and tools open images by means of their own, and all of them ask here: for loops, for the
//! length of the chain, for what the child says of its parent. Time stamps, names and sizes do not
//! count (§9).
use crate::chain::Identity;
use crate::error::{
    VhdError,
    errno::{EINVAL, ELOOP, ENOSPC},
};
use crate::locate;
use crate::open::{Opened, Parent};
use image::Storage;
use std::path::{Path, PathBuf};

/// Images of one chain at most; SM's own limit is 30.
pub const LAYERS_MAX: usize = 128;

/// What has been passed on the way down from the leaf.
#[derive(Debug, Default)]
pub struct Descent {
    files: Vec<(Identity, PathBuf)>,
    uuids: Vec<([u8; 16], PathBuf)>,
    layers: usize,
    above: Option<Above>,
}

/// The image above the next one.
#[derive(Debug)]
struct Above {
    name: PathBuf,
    parent: Says,
}

/// What an image says of a parent.
#[derive(Clone, Copy, Debug)]
enum Says {
    /// It is raw, and says nothing.
    Raw,
    /// It has none.
    None,
    /// A raw image.
    RawParent,
    /// A VHD with this id.
    Vhd([u8; 16]),
    /// A file of a name and a format.
    Named,
}

impl From<Option<&Parent>> for Says {
    fn from(parent: Option<&Parent>) -> Says {
        match parent.map(|parent| parent.uuid) {
            None => Says::None,
            Some(None) => Says::RawParent,
            Some(Some(uuid)) => Says::Vhd(uuid),
        }
    }
}

impl Descent {
    /// Passes a file.
    ///
    /// # Errors
    /// ELOOP if it was passed before.
    pub fn file(&mut self, name: &Path, identity: Identity) -> Result<(), VhdError> {
        if self.has_file(identity) {
            return Err(VhdError::Cycle { name: name.into(), other: name.into() });
        }
        self.files.push((identity, name.into()));
        Ok(())
    }

    /// Whether a file was passed.
    pub fn has_file(&self, identity: Identity) -> bool {
        self.files.iter().any(|(seen, _)| *seen == identity)
    }

    /// Passes a raw image, whose bytes are at hand if it is a file.
    ///
    /// # Errors
    /// ELOOP beyond the limit; EINVAL below an image that has no parent, and for the container of a
    /// disk, which an id of zeros made pass for the disk.
    pub fn raw(&mut self, name: &Path, storage: Option<&dyn Storage>) -> Result<(), VhdError> {
        self.one_more(name)?;
        let container = || storage.is_some_and(|storage| nameless(storage, name));
        if let Some(Above { name: child, parent: Says::RawParent }) = &self.above
            && container()
        {
            let why = format!(
                "is a VHD whose id is all zeros, which made its child {} take it for a raw image; \
                 give it an id with vhd-util repair, and then to the child with vhd-util modify -p",
                crate::error::shown(child)
            );
            return Err(VhdError::request(name, EINVAL, why));
        }
        self.below_something(name)?;
        self.above = Some(Above { name: name.into(), parent: Says::Raw });
        Ok(())
    }

    /// Passes a VHD.
    ///
    /// # Errors
    /// ELOOP beyond the limit and for an id that was passed before; EINVAL if it is not what its
    /// child means.
    pub fn vhd(&mut self, name: &Path, opened: &Opened) -> Result<(), VhdError> {
        self.one_more(name)?;
        let uuid = opened.footer.uuid;
        if let Some((_, other)) = self.uuids.iter().find(|(seen, _)| *seen == uuid) {
            return Err(VhdError::Cycle { name: name.into(), other: other.clone() });
        }
        self.below_something(name)?;
        let refuse = |why| Err(VhdError::request(name, EINVAL, why));
        if let Some(above) = &self.above {
            let child = crate::error::shown(&above.name);
            match above.parent {
                Says::Vhd(want) if want != uuid => {
                    return refuse(format!(
                        "has the id {}, but its child {child} means {}: it is not the parent \
                         that was snapshotted; find that one and set it with vhd-util modify -p",
                        id(uuid),
                        id(want)
                    ));
                }
                Says::RawParent => {
                    return refuse(format!("is a VHD, and {child} wants a raw parent"));
                }
                Says::Vhd(_) | Says::Raw | Says::None | Says::Named => {}
            }
        }
        self.uuids.push((uuid, name.into()));
        let parent = Says::from(opened.parent.as_ref());
        self.above = Some(Above { name: name.into(), parent });
        Ok(())
    }

    /// Passes an image that names its parent, if it has one, by path and format alone.
    ///
    /// # Errors
    /// ELOOP beyond the limit; EINVAL if it is not what its child means.
    pub fn named(&mut self, name: &Path, has_parent: bool) -> Result<(), VhdError> {
        self.one_more(name)?;
        self.below_something(name)?;
        if let Some(Above { name: child, parent: Says::Vhd(_) | Says::RawParent }) = &self.above {
            let why = format!("is no VHD, and {} wants one below", crate::error::shown(child));
            return Err(VhdError::request(name, EINVAL, why));
        }
        let parent = if has_parent { Says::Named } else { Says::None };
        self.above = Some(Above { name: name.into(), parent });
        Ok(())
    }

    fn one_more(&mut self, name: &Path) -> Result<(), VhdError> {
        if self.layers == LAYERS_MAX {
            let why = format!(
                "would be image {} of a chain; at most {LAYERS_MAX} are opened: coalesce it",
                LAYERS_MAX + 1
            );
            return Err(VhdError::request(name, ELOOP, why));
        }
        self.layers += 1;
        Ok(())
    }

    /// A list may put anything below anything.
    fn below_something(&self, name: &Path) -> Result<(), VhdError> {
        let Some(above) = &self.above else { return Ok(()) };
        let what = match above.parent {
            Says::Raw => "a raw image and has no parent",
            Says::None => "a whole disk",
            Says::RawParent | Says::Vhd(_) | Says::Named => return Ok(()),
        };
        let why = format!("is listed below {}, which is {what}", crate::error::shown(&above.name));
        Err(VhdError::request(name, EINVAL, why))
    }
}

/// Whether a raw parent is a VHD that no child can name.
fn nameless(storage: &dyn Storage, name: &Path) -> bool {
    locate::headers(storage, name, 0).is_ok_and(|found| found.footer.uuid == [0; 16])
}

/// Refuses to make an image the parent of another if no child could name it.
///
/// # Errors
/// EINVAL for an id of zeros.
pub(crate) fn nameable(name: &Path, uuid: [u8; 16]) -> Result<[u8; 16], VhdError> {
    if uuid == [0; 16] {
        let why = "its id is all zeros, which in a child means a raw parent; \
                   give it one with vhd-util repair";
        return Err(VhdError::request(name, EINVAL, why));
    }
    Ok(uuid)
}

/// Refuses to make a chain longer than what is opened.
///
/// # Errors
/// ENOSPC, as for a limit of the caller's own.
pub(crate) fn room_above(name: &Path, depth: u32) -> Result<(), VhdError> {
    if depth as usize >= LAYERS_MAX {
        let why = format!(
            "the chain below has {depth} images, and at most {LAYERS_MAX} are opened: \
             coalesce it first"
        );
        return Err(VhdError::request(name, ENOSPC, why));
    }
    Ok(())
}

/// An id as text.
pub fn id(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| hex.get(part).unwrap_or_default());
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_again_is_a_cycle() {
        let mut descent = Descent::default();
        descent.file(Path::new("/a"), (false, 1, 2)).unwrap();
        descent.file(Path::new("/b"), (false, 1, 3)).unwrap();
        assert_eq!(descent.file(Path::new("/c"), (false, 1, 2)).unwrap_err().errno(), ELOOP);
    }

    #[test]
    fn a_chain_has_an_end() {
        let mut descent = Descent { layers: LAYERS_MAX, ..Descent::default() };
        let e = descent.raw(Path::new("/x"), None).unwrap_err();
        assert!(e.errno() == ELOOP && e.to_string().contains("image 129"), "{e}");
    }

    #[test]
    fn ids_read_as_people_write_them() {
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert_eq!(id(uuid), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert!(
            nameable(Path::new("x"), uuid).is_ok() && nameable(Path::new("x"), [0; 16]).is_err()
        );
    }
}
