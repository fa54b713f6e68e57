//! The registry of minors (`tap-ctl.md` §4.2, §4.3): one empty marker file a minor.
//!
//! The directory's lock serialises `allocate` and `free`. A tapdisk that has a minor attached
//! holds a lock on its marker, so `free` cannot take the minor away from under it.

use crate::error::Error;
use crate::paths::{MINORS_MAX, RunDir, make_dir};
use crate::sys::{self, Lock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A minor that was allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The minor, below [`MINORS_MAX`].
    pub minor: u16,
    /// Its marker.
    pub marker: PathBuf,
}

/// Take the lowest minor without a marker and make its marker.
///
/// # Errors
/// [`Error::RegistryFull`], or the errno of a file operation.
pub fn allocate(run: &RunDir) -> Result<Allocated, Error> {
    allocate_below(run, MINORS_MAX)
}

/// Remove the marker of a minor that no tapdisk has attached.
///
/// # Errors
/// ENOENT for a minor that is not allocated, [`Error::MinorInUse`], or the errno of a file
/// operation.
pub fn free(run: &RunDir, minor: u32) -> Result<(), Error> {
    let _lock = lock_dir(&run.marker_dir())?;
    let marker = run.marker(minor);
    let file =
        File::open(&marker).map_err(|error| Error::file("open the marker", &marker, &error))?;
    match sys::flock(&file, Lock::Try) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Error::MinorInUse { path: marker });
        }
        Err(error) => return Err(Error::file("lock", &marker, &error)),
    }
    fs::remove_file(&marker).map_err(|error| Error::file("remove", &marker, &error))
}

fn allocate_below(run: &RunDir, minors_max: u32) -> Result<Allocated, Error> {
    let dir = run.marker_dir();
    run.create(0o700)?;
    make_dir(&dir, 0o700)?;
    let _lock = lock_dir(&dir)?;
    for minor in 0..minors_max {
        let marker = run.marker(minor);
        if make_marker(&marker)? {
            let minor = u16::try_from(minor).expect("MINORS_MAX is below 65536");
            return Ok(Allocated { minor, marker });
        }
    }
    Err(Error::RegistryFull { path: dir })
}

/// Make a marker; false if it is there already.
fn make_marker(marker: &Path) -> Result<bool, Error> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(marker) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::file("make the marker", marker, &error)),
    }
}

fn lock_dir(dir: &Path) -> Result<File, Error> {
    let file = File::open(dir).map_err(|error| Error::file("open the directory", dir, &error))?;
    sys::flock(&file, Lock::Wait)
        .map_err(|error| Error::file("lock the directory", dir, &error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn run() -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = RunDir::at(&dir.path().join("run"));
        (dir, run)
    }

    #[test]
    fn takes_the_lowest_free_minor() {
        let (_dir, run) = run();
        let minors: Vec<u16> = (0..3).map(|_| allocate(&run).expect("free").minor).collect();
        assert_eq!(minors, [0, 1, 2]);
        free(&run, 1).expect("allocated");
        assert_eq!(allocate(&run).expect("free").minor, 1);
    }

    #[test]
    fn markers_are_empty_files_of_mode_0600_in_a_0700_directory() {
        let (_dir, run) = run();
        let marker = fs::metadata(allocate(&run).expect("free").marker).expect("metadata");
        assert_eq!((marker.len(), marker.mode() & 0o777), (0, 0o600));
        assert_eq!(fs::metadata(run.marker_dir()).expect("metadata").mode() & 0o777, 0o700);
    }

    #[test]
    fn a_full_registry_is_an_error() {
        let (_dir, run) = run();
        allocate_below(&run, 2).expect("0");
        allocate_below(&run, 2).expect("1");
        let error = allocate_below(&run, 2).expect_err("full");
        assert_eq!(error, Error::RegistryFull { path: run.marker_dir() });
        assert_eq!(error.errno(), 28);
    }

    #[test]
    fn unknown_minors_cannot_be_freed() {
        let (_dir, run) = run();
        assert_eq!(free(&run, 0).expect_err("no directory").errno(), 2);
        allocate(&run).expect("free");
        assert_eq!(free(&run, 77).expect_err("no marker").errno(), 2);
    }

    #[test]
    fn a_minor_in_use_cannot_be_freed() {
        let (_dir, run) = run();
        let marker = allocate(&run).expect("free").marker;
        let attached = File::open(&marker).expect("open");
        sys::flock(&attached, Lock::Try).expect("nobody else");
        let error = free(&run, 0).expect_err("locked");
        assert_eq!((error.errno(), marker.exists()), (11, true));
        drop(attached);
        free(&run, 0).expect("unlocked");
    }
}
