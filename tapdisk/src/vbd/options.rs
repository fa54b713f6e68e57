//! What OPEN and RESUME ask for, checked: an option that is not there yet is refused with a
//! sentence, never ignored in silence.
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use slog::{Logger, info};
use tap_ctl::messages::{Params, Text, flag};
use tap_ctl::paths::RunDir;
use vhd_rs::secret::Bytes;

use crate::formats::{DiskOptions, Key, OpenError};

/// What may follow the message of OPEN and RESUME.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// The path of the changed-block log.
    pub log_path: Option<Text>,
    /// The key.
    pub key: Option<Arc<Bytes>>,
}

/// The options of OPEN.
///
/// # Errors
/// ENOSYS for what is not supported; ENOENT, EINVAL and EPERM where the original gives them first.
pub fn options(
    params: &Params,
    extra: &Extra,
    run: &RunDir,
    log: &Logger,
) -> Result<DiskOptions, OpenError> {
    let parent = params.parent().map(|minor| parent_socket(run, minor)).transpose()?;
    if params.has(flag::VHD_INDEX) {
        return Err(OpenError::new(libc::ENOSYS, "VHD indexes are not supported"));
    }
    if params.has(flag::ADD_CACHE) {
        info!(
            log,
            "the block cache was asked for and is not there; open -D reads through the page cache"
        );
    }
    Ok(DiskOptions {
        name: params.path,
        key: key(params, extra)?,
        secondary: secondary(params),
        standby: params.has(flag::STANDBY),
        taken_over: false,
        log: extra.log_path,
        read_only: params.has(flag::RDONLY),
        page_cache: params.has(flag::NO_O_DIRECT),
        local_cache: params.has(flag::ADD_LCACHE),
        parent,
    })
}

/// The options of a RESUME: what was open, with what the request changes (spec/control-socket.md
/// §5.6).
pub fn resumed(before: &DiskOptions, params: &Params, extra: &Extra) -> DiskOptions {
    // The parents that the leaf names now: it may be another leaf, or have others by now.
    let mut options = DiskOptions { log: extra.log_path, parent: None, ..before.clone() };
    if !params.path.is_empty() {
        options.name = params.path;
        if options.taken_over {
            // The secondary has become the disk; with another leaf its part is over.
            options.taken_over = false;
            options.secondary = None;
        }
    }
    if params.has(flag::SECONDARY) && !params.secondary.is_empty() {
        options.secondary = secondary(params);
        options.taken_over = false;
    }
    options
}

/// The secondary; "null" is none.
fn secondary(params: &Params) -> Option<Text> {
    let named = params.has(flag::SECONDARY) && !params.secondary.is_empty();
    (named && params.secondary.as_bytes() != b"null").then_some(params.secondary)
}

fn key(params: &Params, extra: &Extra) -> Result<Option<Arc<Key>>, OpenError> {
    if !params.has(flag::OPEN_ENCRYPTED) {
        return Ok(None);
    }
    let bytes = extra.key.clone().unwrap_or_else(|| Arc::new(Bytes::copy_of(&[])));
    Key::new(bytes).map(|key| Some(Arc::new(key)))
}

/// `-e`: the other disk is found by its socket (spec/operations.md §4.3). A tapdisk that was killed
/// leaves its own behind, so that of several only those count behind which somebody listens.
fn parent_socket(run: &RunDir, minor: u32) -> Result<Text, OpenError> {
    let mut found = sockets(run, minor);
    if found.len() > 1 {
        found.retain(|path| is_live(path));
    }
    match &found[..] {
        [] => Err(OpenError::new(
            libc::ENOENT,
            format!("-e {minor}: no tapdisk serves that minor; open the parent first"),
        )),
        [path] => Text::new(path.as_os_str().as_bytes())
            .map_err(|e| OpenError::new(e.errno(), format!("-e {minor}: {e}"))),
        [one, other, ..] => Err(OpenError::new(
            libc::EINVAL,
            format!(
                "-e {minor}: {} and {} both serve it; close one of them",
                show::path(one),
                show::path(other)
            ),
        )),
    }
}

/// `nbd<pid>.<minor>` of any pid.
fn sockets(run: &RunDir, minor: u32) -> Vec<PathBuf> {
    let end = format!(".{minor}");
    let is_it = |name: &str| {
        let pid = name.strip_prefix("nbd").and_then(|rest| rest.strip_suffix(&end));
        pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(run.path()).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_it));
    ours.map(|entry| entry.path()).collect()
}

/// Does not wait: a queue that is full is one that somebody empties.
fn is_live(path: &Path) -> bool {
    match mio::net::UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_of_a_minor_is_found_among_others_and_dead_ones() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::at(dir.path());
        let find = |minor| parent_socket(&run, minor).map(|text| text.as_path().to_owned());
        for name in ["nbd7.33", "nbd-old7.3", "nbdserver7.3", "nbd7x.3", "nbd.3"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(find(3).unwrap_err().errno, libc::ENOENT);
        let path = |pid: u32| dir.path().join(format!("nbd{pid}.3"));
        drop(UnixListener::bind(path(5)).unwrap());
        assert_eq!(find(3), Ok(path(5)), "the only one is taken as it is");
        let live = UnixListener::bind(path(6)).unwrap();
        assert_eq!(find(3), Ok(path(6)));
        let also = UnixListener::bind(path(7)).unwrap();
        assert_eq!(find(3).unwrap_err().errno, libc::EINVAL);
        drop((live, also));
        assert_eq!(find(3).unwrap_err().errno, libc::ENOENT);
    }
}
