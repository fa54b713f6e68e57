//! Opening what may hold an image: a file or a block device.
//!
//! Opening anything else may wait for ever (a pipe), have effects (a tape, a watchdog) or look like
//! an empty image. So a name is looked up once, what it leads to is looked at, and only that is
//! opened.
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a path leads to that holds no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Odd {
    /// A directory.
    Directory,
    /// A named pipe, or what a shell makes of `<(command)`.
    Pipe,
    /// A socket.
    Socket,
    /// A character device.
    Character,
}

impl Odd {
    fn of(meta: &Metadata) -> Option<Odd> {
        let kind = meta.file_type();
        match (kind.is_dir(), kind.is_fifo(), kind.is_socket()) {
            _ if kind.is_file() || kind.is_block_device() => None,
            (true, ..) => Some(Odd::Directory),
            (_, true, _) => Some(Odd::Pipe),
            (.., true) => Some(Odd::Socket),
            _ => Some(Odd::Character),
        }
    }

    /// The positive errno that callers see. A directory and `/dev/null` have what they had with the
    /// original, which opened them: no such file can be read, and no byte is in it.
    pub fn errno(self) -> i32 {
        match self {
            Odd::Directory => libc::EISDIR,
            Odd::Pipe => libc::EINVAL,
            Odd::Socket => libc::ENXIO,
            Odd::Character => libc::EPIPE,
        }
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Odd::Directory => "a directory",
            Odd::Pipe => "a pipe",
            Odd::Socket => "a socket",
            Odd::Character => "a character device",
        })
    }
}

/// Why there is nothing to read.
#[derive(Debug)]
pub enum NodeError {
    /// The file system said no.
    Io(io::Error),
    /// It is no file and no block device.
    Odd(Odd),
}

impl NodeError {
    /// The positive errno.
    pub fn errno(&self) -> i32 {
        match self {
            NodeError::Io(e) => e.raw_os_error().unwrap_or(libc::EIO),
            NodeError::Odd(odd) => odd.errno(),
        }
    }
}

impl From<io::Error> for NodeError {
    fn from(e: io::Error) -> NodeError {
        NodeError::Io(e)
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeError::Io(e) => e.fmt(f),
            NodeError::Odd(odd) => write!(f, "it is {odd}, not a file or a block device"),
        }
    }
}

impl std::error::Error for NodeError {}

/// A file or block device that was found and is not open yet.
#[derive(Debug)]
pub struct Node {
    found: File,
    meta: Metadata,
}

impl Node {
    /// Looks a name up.
    ///
    /// ```
    /// use image::{Node, NodeError, Odd};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let name = dir.path().join("disk");
    /// std::fs::write(&name, "x")?;
    /// let file = Node::find(&name)?.open(true)?;
    /// assert_eq!(file.metadata()?.len(), 1);
    /// let odd = Node::find(dir.path()).unwrap_err();
    /// assert!(matches!(odd, NodeError::Odd(Odd::Directory)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of the file system, and what is no file and no block device.
    pub fn find(path: &Path) -> Result<Node, NodeError> {
        let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        let meta = found.metadata()?;
        match Odd::of(&meta) {
            Some(odd) => Err(NodeError::Odd(odd)),
            None => Ok(Node { found, meta }),
        }
    }

    /// The file, which can be looked at and not read.
    pub(crate) fn found(&self) -> &File {
        &self.found
    }

    /// What is known of it.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.meta.file_type().is_block_device()
    }

    /// Whether this process may read it. It is not opened.
    ///
    /// # Errors
    /// EACCES if not.
    pub fn readable(&self) -> io::Result<()> {
        Ok(rustix::fs::access(self.itself(), rustix::fs::Access::READ_OK)?)
    }

    /// Opens it to read, and to write if asked to.
    ///
    /// # Errors
    /// Those of the file system; EROFS for a write-protected device that is to be written, which
    /// the kernel lets everybody open and fails each write of.
    pub fn open(&self, write: bool) -> io::Result<File> {
        if write && is_write_protected(&self.meta) {
            return Err(io::Error::from_raw_os_error(libc::EROFS));
        }
        self.open_with(OpenOptions::new().read(true).write(write))
    }

    /// Opens it in a way of one's own.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_with(&self, how: &OpenOptions) -> io::Result<File> {
        how.open(self.itself())
    }

    fn itself(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.found.as_raw_fd()).into()
    }
}

/// Whether this is a block device that takes no writes, as the kernel tells it in sysfs. Where that
/// is not mounted nobody knows, and a write will tell.
pub fn is_write_protected(meta: &Metadata) -> bool {
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let told = || std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    meta.file_type().is_block_device() && told().is_ok_and(|ro| ro.trim_end() == "1")
}

/// Opens a file or block device to read and write; makes a file of this mode where nothing is.
///
/// # Errors
/// Those of the file system, and what is no file and no block device.
pub fn open_or_make(path: &Path, mode: u32) -> Result<File, NodeError> {
    match Node::find(path) {
        Err(NodeError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
            let mut make = OpenOptions::new();
            make.read(true).write(true).create(true).truncate(false).mode(mode);
            Ok(make.custom_flags(libc::O_NONBLOCK).open(path)?)
        }
        found => Ok(found?.open(true)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn what_holds_no_image_is_named_and_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        let all = [
            (dir.path(), Odd::Directory, 21),
            (&pipe, Odd::Pipe, 22),
            (&link, Odd::Pipe, 22),
            (&socket, Odd::Socket, 6),
            (Path::new("/dev/null"), Odd::Character, 32),
        ];
        for (path, odd, errno) in all {
            let found = Node::find(path).unwrap_err();
            assert!(matches!(&found, NodeError::Odd(o) if *o == odd), "{path:?}: {found:?}");
            assert_eq!(found.errno(), errno, "{path:?}");
            // Nothing waits, and nothing is made in its place.
            assert_eq!(open_or_make(path, 0o600).unwrap_err().errno(), errno, "{path:?}");
        }
    }

    #[test]
    fn a_file_is_made_only_where_nothing_is() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("new");
        assert_eq!(Node::find(&name).unwrap_err().errno(), libc::ENOENT);
        open_or_make(&name, 0o600).unwrap();
        std::fs::write(&name, "kept").unwrap();
        open_or_make(&name, 0o600).unwrap();
        assert_eq!(std::fs::read(&name).unwrap(), b"kept");
        assert!(!Node::find(&name).unwrap().is_device());
    }
}
