//! The changed-block log of a disk (`-C`, spec/operations.md §4.5).
use std::path::Path;
use std::sync::Arc;

use image::Span;

use super::OpenError;
use image::Changes;

/// A log that is being kept.
pub struct ChangeLog(cbt::Log);

impl ChangeLog {
    /// Opens the log of a disk of this many sectors.
    ///
    /// # Errors
    /// EINVAL for a log that does not cover the disk; EPERM, as the original, for one that cannot
    /// be had.
    pub fn open(path: &Path, sectors: u64) -> Result<ChangeLog, OpenError> {
        cbt::Log::open(path, sectors).map(ChangeLog).map_err(|error| {
            let errno = match error.errno() {
                libc::EINVAL => libc::EINVAL,
                _ => libc::EPERM,
            };
            OpenError::new(errno, format!("-C: {error}"))
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.name()
    }

    /// Puts every mark on the disk.
    pub(super) fn sync(&self) -> Result<(), OpenError> {
        self.0.sync().map_err(|error| OpenError::new(error.errno(), error.to_string()))
    }
}

/// The engine's hold on a log.
pub struct Marks(pub Arc<ChangeLog>);

impl Changes for Marks {
    fn mark(&mut self, span: Span) {
        self.0.0.mark(span.start, u64::from(span.count));
    }
}
