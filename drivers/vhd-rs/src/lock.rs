//! Keeping two writers off one image.
//!
//! The daemon holds an advisory lock ([`image::try_lock`]) on the files and devices of a chain while it serves them: exclusive
//! on the leaf, which it writes, shared on the parents. Whoever changes an image offline asks for the same lock. Shared
//! locks of others do not keep a change off: a parent below a running disk is changed by every coalesce, in ways
//! that the disk does not see. An exclusive lock does: a second writer would destroy the image.
//!
//! A process that was killed with io_uring requests in flight keeps its locks a moment longer than itself, while
//! the kernel takes its rings down; so a lock that is held is asked for again for a second before it counts.
use crate::chain;
use crate::error::{VhdError, errno::EBUSY};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// What is done when somebody else is writing the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Others {
    /// Refuse with EBUSY.
    #[default]
    Refuse,
    /// Go on; the caller knows better.
    Ignore,
}

/// Opens an image to change it. The lock goes with the file.
///
/// ```
/// use vhd_rs::lock::{Others, open_to_change};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// vhd_rs::files::create(&name, 16 << 20, None, false)?;
///
/// let mine = open_to_change(&name, Others::Refuse)?;
/// let other = open_to_change(&name, Others::Refuse).unwrap_err();
/// assert_eq!(other.errno(), 16); // EBUSY
/// drop(mine);
/// open_to_change(&name, Others::Refuse)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of the file system; EBUSY while another process writes the image.
pub fn open_to_change(path: &Path, others: Others) -> Result<File, VhdError> {
    let file = chain::open_file(path, true)?;
    lock(&file, path, others)?;
    Ok(file)
}

/// Locks an open image against other writers.
///
/// # Errors
/// EBUSY while another process writes the image. A file system without locks is no error.
pub fn lock(file: &File, path: &Path, others: Others) -> Result<(), VhdError> {
    if others == Others::Ignore || soon(|| taken(file)) {
        return Ok(());
    }
    let why = "another process is writing this image; close the disk there first \
        (or --ignore-lock, if that process is known to be gone)";
    Err(VhdError::request(path, EBUSY, why))
}

/// Locks an open image against readers too: its blocks are about to change their places, which a daemon
/// that has the table in memory would not see.
///
/// # Errors
/// EBUSY while another process has the image open. A file system without locks is no error.
pub fn lock_alone(file: &File, path: &Path, others: Others) -> Result<(), VhdError> {
    if others == Others::Ignore || soon(|| got(file, true)) {
        return Ok(());
    }
    let why = "another process has this image open; close all disks above it first \
        (or --ignore-lock, if that process is known to be gone)";
    Err(VhdError::request(path, EBUSY, why))
}

/// Whether it comes true within a second.
fn soon(mut what: impl FnMut() -> bool) -> bool {
    const PAUSE: Duration = Duration::from_millis(10);
    const TRIES: u32 = 100;
    (0..TRIES).any(|i| {
        if i > 0 {
            std::thread::sleep(PAUSE);
        }
        what()
    })
}

/// Alone, or with readers only.
fn taken(file: &File) -> bool {
    got(file, true) || got(file, false)
}

/// A file system without locks has nobody who holds one.
fn got(file: &File, exclusive: bool) -> bool {
    image::try_lock(file, exclusive).unwrap_or(true)
}
