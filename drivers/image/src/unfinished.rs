//! New files that are not whole yet. They go when the work on them fails, and when a signal ends
//! the tool ([`remove_all`]): half an image looks like one.
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those that are being made now, by absolute paths.
static BEGUN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new file. Dropped, it is removed; [`Unfinished::whole`] keeps it.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    /// The work on a new file begins. Not for devices, and nothing that was there before and is to
    /// stay.
    pub fn begin(path: &Path) -> Unfinished {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        begun().push(path.clone());
        Unfinished { path }
    }

    /// It is whole.
    pub fn whole(self) {
        self.forget();
        std::mem::forget(self);
    }

    fn forget(&self) -> bool {
        let mut begun = begun();
        let at = begun.iter().position(|path| *path == self.path);
        at.map(|at| begun.swap_remove(at)).is_some()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // The first error is the one to report; a leftover is only untidy.
        if self.forget() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the new files that are not whole, and gives their names. For whoever ends the process.
pub fn remove_all() -> Vec<PathBuf> {
    let begun = std::mem::take(&mut *begun());
    begun.into_iter().filter(|path| std::fs::remove_file(path).is_ok()).collect()
}

/// Nothing that panics is done under the lock.
fn begun() -> MutexGuard<'static, Vec<PathBuf>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, since what is begun is the process's.
    #[test]
    fn what_is_not_whole_goes() {
        let dir = tempfile::tempdir().unwrap();
        let new = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "half").unwrap();
            (Unfinished::begin(&path), path)
        };
        let (failed, gone) = new("failed");
        let (done, kept) = new("done");
        drop(failed);
        done.whole();
        assert!(!gone.exists() && kept.exists());
        let (stopped, path) = new("stopped");
        assert_eq!(remove_all(), std::slice::from_ref(&path));
        // Somebody else's by now.
        std::fs::write(&path, "another").unwrap();
        drop(stopped);
        assert!(path.exists() && kept.exists());
    }
}
