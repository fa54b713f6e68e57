//! Why an image is not opened: the file, the field, what to do.
use std::fmt;
use std::path::{Path, PathBuf};

/// An image is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    name: PathBuf,
    errno: i32,
    why: String,
}

/// Errnos, as on Linux.
pub(crate) mod errno {
    pub const EIO: i32 = 5;
    pub const EACCES: i32 = 13;
    pub const EINVAL: i32 = 22;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENOTSUP: i32 = 95;
}

impl Error {
    /// An error of an image; `why` goes on from its name.
    pub fn new(name: &Path, errno: i32, why: impl Into<String>) -> Error {
        Error { name: name.into(), errno, why: why.into() }
    }

    /// Of its file.
    pub fn io(name: &Path, what: &str, error: &std::io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(errno::EIO);
        Error::new(name, errno, format!("cannot be read: {what}: {error}"))
    }

    /// Of a write to its file; `what` was to be written.
    pub fn not_written(name: &Path, what: &str, error: &std::io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(errno::EIO);
        Error::new(name, errno, format!("cannot be written: {what}: {error}"))
    }

    /// Positive.
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", show::path(&self.name), self.why)
    }
}

impl std::error::Error for Error {}
