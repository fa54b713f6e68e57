//! The run-time directory and the names in it (`control-socket.md` §1).
//!
//! ```text
//!  /run/blktap-control/            RunDir: found by RunDir::locate
//!    ctl<pid>                      control socket                  ctl()
//!    nbdclient<pid>                descriptors for NBD clients     nbdclient()
//!    nbd<pid>.<minor>              NBD server                      nbd()
//!    nbd-old<pid>.<minor>          NBD server                      nbd_old()
//!    nbdserver<pid>.<minor>        descriptors, oldstyle header    nbdserver()
//!    nbdserver-new<pid>.<minor>    descriptors, newstyle header    nbdserver_new()
//!    device<minor>                 what serves a minor's block device again   device()
//!    tapdisk/tapdisk-<minor>       marker of an allocated minor    marker()
//! ```
//!
//! Which directory, first match:
//! 1. `$TAPDISK_RUN_DIR`, for everyone;
//! 2. root: `/run/blktap-control`;
//! 3. another user: `$XDG_RUNTIME_DIR/blktap-control`;
//! 4. else `/tmp/blktap-control-<uid>`, which must be a directory of that user with mode 0700,
//!    because anybody may make a name in /tmp.
//!
//! Any of them must be root's or the user's own, and nobody else may write in it: whoever makes
//! names there puts his sockets in the place of ours, and his records before `recover`
//! (docs/security.md).
//!
//! tap-ctl and tapdisk both use this module, so they agree as long as the environment does.

use crate::error::Error;
use crate::sys;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many minors there are: 0 … 16383 (`tap-ctl.md` §1).
pub const MINORS_MAX: u32 = 16384;
/// Longest path of a socket, in bytes: `sun_path` less its NUL.
pub const SOCKET_PATH_LEN_MAX: usize = 107;
/// The directory of root.
pub const ROOT_RUN_DIR: &str = "/run/blktap-control";
/// What helps where a directory is refused.
const OTHER_DIR: &str = "set TAPDISK_RUN_DIR or XDG_RUNTIME_DIR";
/// Environment variable that overrides the directory.
pub const RUN_DIR_VARIABLE: &str = "TAPDISK_RUN_DIR";

/// A run-time directory. It need not exist yet; see [`RunDir::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory for this process: its environment and effective user decide.
    ///
    /// # Errors
    /// [`Error::RunDir`] if the directory exists and is not safe to use.
    pub fn locate() -> Result<RunDir, Error> {
        let uid = sys::euid();
        let env = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let (over, xdg) = (env(RUN_DIR_VARIABLE), env("XDG_RUNTIME_DIR"));
        let (path, private) = choose(uid, over.as_deref(), xdg.as_deref());
        if private {
            check_private(&path, uid)?;
        }
        check_safe(&path, uid)?;
        Ok(RunDir { path })
    }

    /// A given directory, made absolute.
    pub fn at(path: &Path) -> RunDir {
        RunDir { path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()) }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Make the directory and its missing parents, if it is not there. The original daemon does so
    /// with mode 0755, `tap-ctl allocate` with 0700; a user's own is always 0700.
    ///
    /// # Errors
    /// The errno of mkdir, or [`Error::RunDir`] as in [`RunDir::locate`].
    pub fn create(&self, mode: u32) -> Result<(), Error> {
        let uid = sys::euid();
        let mode = if uid == 0 { mode } else { 0o700 };
        make_dir(&self.path, mode)?;
        if self.path == tmp_dir(uid) {
            check_private(&self.path, uid)?;
        }
        check_safe(&self.path, uid)
    }

    /// Control socket of a tapdisk.
    pub fn ctl(&self, pid: i32) -> PathBuf {
        self.path.join(format!("ctl{pid}"))
    }

    /// Socket that takes descriptors for the NBD client driver.
    pub fn nbdclient(&self, pid: i32) -> PathBuf {
        self.path.join(format!("nbdclient{pid}"))
    }

    /// NBD server of a VBD.
    pub fn nbd(&self, pid: i32, minor: u16) -> PathBuf {
        self.path.join(format!("nbd{pid}.{minor}"))
    }

    /// The other NBD server of a VBD.
    pub fn nbd_old(&self, pid: i32, minor: u16) -> PathBuf {
        self.path.join(format!("nbd-old{pid}.{minor}"))
    }

    /// Socket that takes descriptors to be served with the oldstyle NBD header.
    pub fn nbdserver(&self, pid: i32, minor: u16) -> PathBuf {
        self.path.join(format!("nbdserver{pid}.{minor}"))
    }

    /// Socket that takes descriptors to be served with newstyle NBD.
    pub fn nbdserver_new(&self, pid: i32, minor: u16) -> PathBuf {
        self.path.join(format!("nbdserver-new{pid}.{minor}"))
    }

    /// What a daemon wrote down about the block device of a minor: the OPEN message that serves it
    /// again (`tap-ctl recover`).
    pub fn device(&self, minor: u16) -> PathBuf {
        self.path.join(format!("device{minor}"))
    }

    /// Directory of the markers; its lock serialises `allocate` and `free`.
    pub fn marker_dir(&self) -> PathBuf {
        self.path.join("tapdisk")
    }

    /// Marker of an allocated minor: an empty file. The tapdisk that has the minor attached
    /// holds an exclusive `flock` on it.
    pub fn marker(&self, minor: u32) -> PathBuf {
        self.marker_dir().join(format!("tapdisk-{minor}"))
    }

    /// The file that a daemon makes when a leaf has no space left and its secondary takes over:
    /// `/run/tapdisk-enospc<minor>`, or in the directory itself if it is not the usual one.
    pub fn enospc(&self, minor: u16) -> PathBuf {
        let usual = self.path == Path::new(ROOT_RUN_DIR);
        let dir = self.path.parent().filter(|_| usual).unwrap_or(&self.path);
        dir.join(format!("tapdisk-enospc{minor}"))
    }

    /// The numbers of all `ctl<pid>` names, in byte order of the names (ctl100 before ctl99).
    ///
    /// # Errors
    /// The errno of reading the directory; a missing directory has no names.
    pub fn ctl_numbers(&self) -> Result<Vec<i32>, Error> {
        numbers(&self.path, "ctl")
    }

    /// All allocated minors, in byte order of their markers' names.
    ///
    /// # Errors
    /// The errno of reading the directory; a missing directory has no names.
    pub fn marker_numbers(&self) -> Result<Vec<i32>, Error> {
        numbers(&self.marker_dir(), "tapdisk-")
    }
}

/// The pid in the path of a control socket.
pub fn pid_of_ctl(path: &Path) -> Option<i32> {
    number_after(path.file_name()?, "ctl")
}

/// Make a directory and its missing parents, all with `mode`.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| Error::file("make the directory", path, &error))
}

/// The directory, and whether it must be checked to be private.
fn choose(uid: u32, over: Option<&OsStr>, xdg: Option<&OsStr>) -> (PathBuf, bool) {
    if let Some(over) = over {
        return (RunDir::at(Path::new(over)).path, false);
    }
    if uid == 0 {
        return (ROOT_RUN_DIR.into(), false);
    }
    // The XDG specification: a relative path is invalid and to be ignored.
    match xdg.map(Path::new).filter(|xdg| xdg.is_absolute()) {
        Some(xdg) => (xdg.join("blktap-control"), false),
        None => (tmp_dir(uid), true),
    }
}

fn tmp_dir(uid: u32) -> PathBuf {
    format!("/tmp/blktap-control-{uid}").into()
}

fn check_private(path: &Path, uid: u32) -> Result<(), Error> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("look at", path, &error)),
    };
    match not_private(&meta, uid) {
        None => Ok(()),
        Some(reason) => Err(Error::RunDir { path: path.to_owned(), reason }),
    }
}

/// A directory in which nobody but root and the user makes names, and no stranger's symbolic link
/// to one.
fn check_safe(path: &Path, uid: u32) -> Result<(), Error> {
    for look in [fs::symlink_metadata, fs::metadata] {
        let meta = match look(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::file("look at", path, &error)),
        };
        if let Some(reason) = not_safe(&meta, uid) {
            return Err(Error::RunDir { path: path.to_owned(), reason });
        }
    }
    Ok(())
}

fn not_safe(meta: &Metadata, uid: u32) -> Option<String> {
    if meta.uid() != 0 && meta.uid() != uid {
        let owner = meta.uid();
        return Some(format!("belongs to user {owner}, neither root nor {uid}; {}", OTHER_DIR));
    }
    // The mode of a symbolic link says nothing, and what is no directory fails by itself.
    let mode = meta.mode() & 0o7777;
    (meta.is_dir() && mode & 0o022 != 0).then(|| {
        format!("can be written by others (mode {mode:04o}): chmod go-w it, or {OTHER_DIR}")
    })
}

fn not_private(meta: &Metadata, uid: u32) -> Option<String> {
    let remedy = format!("remove it, or {OTHER_DIR}");
    if !meta.is_dir() {
        return Some(format!("is not a directory; {remedy}"));
    }
    if meta.uid() != uid {
        return Some(format!("belongs to user {} and not to {uid}; {remedy}", meta.uid()));
    }
    match meta.mode() & 0o777 {
        0o700 => None,
        mode => Some(format!("has mode {mode:04o} and not 0700; {remedy}")),
    }
}

fn numbers(dir: &Path, prefix: &str) -> Result<Vec<i32>, Error> {
    let unreadable = |error: &io::Error| Error::file("read the directory", dir, error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(|error| unreadable(&error))?.file_name());
    }
    names.sort_unstable();
    Ok(names.iter().filter_map(|name| number_after(name, prefix)).collect())
}

/// The number in `<prefix><digits>`, and nothing else.
fn number_after(name: &OsStr, prefix: &str) -> Option<i32> {
    let digits = name.to_str()?.strip_prefix(prefix)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests;
