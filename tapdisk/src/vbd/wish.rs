//! What OPEN and RESUME ask for, checked: an option that is not there yet is refused with a sentence,
//! never ignored in silence.
use slog::{Logger, info};
use tap_ctl::messages::{Params, Text, flag};
use tap_ctl::paths::RunDir;

use crate::formats::{OpenError, Wish};

/// What may follow the message of OPEN and RESUME.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// The path of the changed-block log.
    pub log_path: Option<Text>,
    /// The key, wiped when dropped.
    pub key: Option<Vec<u8>>,
}

impl Drop for Extra {
    fn drop(&mut self) {
        if let Some(key) = &mut self.key {
            key.fill(0);
            std::hint::black_box(key);
        }
    }
}

/// The wish of OPEN.
///
/// # Errors
/// ENOSYS for what is not supported; ENOENT and EPERM where the original gives them first.
pub fn wish(params: &Params, extra: &Extra, run: &RunDir, log: &Logger) -> Result<Wish, OpenError> {
    check_layers(params, extra)?;
    if let Some(parent) = params.parent() {
        return Err(parent_minor(run, parent));
    }
    if params.has(flag::VHD_INDEX) {
        return Err(OpenError::new(libc::ENOSYS, "VHD indexes are not supported"));
    }
    if params.has(flag::ADD_LCACHE) {
        info!(log, "open -r: what is read from the parents is not copied into the leaf, only read");
    }
    if params.has(flag::ADD_CACHE) {
        info!(
            log,
            "the block cache was asked for and is not there; open -D reads through the page cache"
        );
    }
    Ok(Wish {
        name: params.path,
        key: params.has(flag::OPEN_ENCRYPTED),
        read_only: params.has(flag::RDONLY),
        page_cache: params.has(flag::NO_O_DIRECT),
        local_cache: params.has(flag::ADD_LCACHE),
        strict: false,
    })
}

/// What RESUME may bring beside a path.
///
/// # Errors
/// As for [`wish`].
pub fn check_resume(params: &Params, extra: &Extra, log: &Logger) -> Result<(), OpenError> {
    if params.has(flag::SECONDARY) && params.secondary.as_bytes() == b"null" {
        info!(log, "unpause -2 null: there is no secondary to remove");
    }
    check_layers(params, extra)
}

/// The secondary and the changed-block log.
fn check_layers(params: &Params, extra: &Extra) -> Result<(), OpenError> {
    let secondary = params.has(flag::SECONDARY) && !params.secondary.is_empty();
    if secondary && params.secondary.as_bytes() != b"null" {
        let text = format!("-2 {}: secondary images are not supported yet", params.secondary);
        return Err(OpenError::new(libc::ENOSYS, text));
    }
    match extra.log_path {
        None => Ok(()),
        // What the original gives for any failure with the log.
        Some(path) if !path.as_path().is_file() => Err(OpenError::new(
            libc::EPERM,
            format!("-C {path}: the log is missing; make it with cbt-util create"),
        )),
        Some(path) => Err(OpenError::new(
            libc::ENOSYS,
            format!("-C {path}: changed-block logs are not supported yet"),
        )),
    }
}

/// `-e`: the other disk is found by its socket (spec/operations.md §4.3).
fn parent_minor(run: &RunDir, minor: u32) -> OpenError {
    let end = format!(".{minor}");
    let is_it = |name: &str| {
        let pid = name.strip_prefix("nbd").and_then(|rest| rest.strip_suffix(&end));
        pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()))
    };
    let entries = std::fs::read_dir(run.path()).into_iter().flatten().flatten();
    match entries.filter(|entry| entry.file_name().to_str().is_some_and(is_it)).count() {
        0 => OpenError::new(libc::ENOENT, format!("-e {minor}: no tapdisk serves that minor")),
        _ => OpenError::new(
            libc::ENOSYS,
            format!("-e {minor}: a disk as parent is not supported yet"),
        ),
    }
}
