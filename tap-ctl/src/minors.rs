//! Minors, whoever hands them out: the kernel module blktap2 where there is one, marker files
//! elsewhere.

use crate::error::Error;
use crate::module::Module;
use crate::paths::RunDir;
use crate::registry;
use std::path::{Path, PathBuf};

/// A minor that was allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Minor {
    /// The minor.
    pub minor: u16,
    /// What `tap-ctl allocate` prints: the block device of the module, else the marker.
    pub path: PathBuf,
}

/// Takes a minor. `device` is the name of its block device, where there will be one.
///
/// # Errors
/// As of [`Module::allocate`] and [`registry::allocate`].
pub fn allocate(run: &RunDir, device: Option<&Path>) -> Result<Minor, Error> {
    match Module::find(run) {
        Some(module) => {
            let given = module.allocate(run, device)?;
            Ok(Minor { minor: given.minor, path: given.device })
        }
        None => {
            let allocated = registry::allocate(run)?;
            Ok(Minor { minor: allocated.minor, path: allocated.marker })
        }
    }
}

/// Gives a minor back.
///
/// # Errors
/// As of [`Module::free`] and [`registry::free`].
pub fn free(run: &RunDir, minor: u16) -> Result<(), Error> {
    let marked = run.marker(minor.into()).exists();
    match Module::find(run) {
        Some(module) if module.has(minor) || !marked => module.free(minor),
        _ => registry::free(run, minor.into()),
    }
}

/// All minors that are allocated: the module's, then the markers, each in byte order of the names.
///
/// # Errors
/// As of [`RunDir::marker_numbers`].
pub fn all(run: &RunDir) -> Result<Vec<i32>, Error> {
    let mut minors = Module::find(run).map(|module| module.minors()).unwrap_or_default();
    let marked = run.marker_numbers()?;
    minors.extend(marked.into_iter().filter(|minor| !minors.contains(minor)).collect::<Vec<_>>());
    Ok(minors)
}
