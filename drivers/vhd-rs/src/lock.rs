//! Keeping two writers off one image.
//!
//! The daemon holds an advisory lock ([`image::try_lock`]) on the files and devices of a chain
//! while it serves them: exclusive on the leaf, which it writes, shared on the parents. Whoever
//! changes an image offline asks for the same lock. Shared locks of others do not keep a change
//! off: a parent below a running disk is changed by every coalesce, in ways that the disk does not
//! see. An exclusive lock does: a second writer would destroy the image. Who may do what beside
//! whom is a table in docs/locks.md.
//!
//! A process that was killed with io_uring requests in flight keeps its locks until the last of
//! them is over, for what it had begun still lands in the image. So a dead holder is waited for, a
//! living one only a moment: another tool may just be finishing.
use crate::beside::Beside;
use crate::chain;
use crate::error::{VhdError, errno::EBUSY};
use image::Holder;
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// How long the requests of a dead process are waited for: as long as a request may take before it
/// counts as stuck.
pub const DEAD_MAX: Duration = Duration::from_secs(120);
/// How long somebody who lives is waited for.
const LIVING_MAX: Duration = Duration::from_secs(1);

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

/// Opens an image to move its blocks or to take them away: nobody else has it open, see
/// [`lock_alone`].
///
/// # Errors
/// Those of the file system; EBUSY while another process has the image open.
pub fn open_alone(path: &Path, others: Others) -> Result<File, VhdError> {
    let file = chain::open_file(path, true)?;
    lock_alone(&file, path, others)?;
    Ok(file)
}

/// Opens an image to change what a running tapdisk never writes, also beside one that writes the
/// image now, on this machine or another. See [`Beside`] for how.
///
/// # Errors
/// Those of the file system; EBUSY while a process that is no tapdisk changes the image, and where
/// such a change cannot be kept apart from the tapdisk's writes.
pub fn open_beside(path: &Path, others: Others) -> Result<Beside, VhdError> {
    let file = chain::open_file(path, true)?;
    if others == Others::Ignore {
        // It may be a tapdisk all the same.
        let alone = got(&file, true) || got(&file, false);
        return if alone { Ok(Beside::alone(file)) } else { Beside::running(file, path) };
    }
    let refused = refused(&file, path, Want::Beside);
    match refused {
        None => Ok(Beside::alone(file)),
        Some(Holder::Writer(pid)) if is_tapdisk(pid) => Beside::running(file, path),
        Some(Holder::Elsewhere) => Beside::running(file, path),
        Some(who) => Err(busy(path, who, "is writing this image; wait until it has ended")),
    }
}

/// Locks an open image against other writers.
///
/// # Errors
/// EBUSY while another process writes the image. A file system without locks is no error.
pub fn lock(file: &File, path: &Path, others: Others) -> Result<(), VhdError> {
    if others == Others::Ignore {
        return Ok(());
    }
    refused(file, path, Want::Change).map_or(Ok(()), |who| {
        Err(busy(path, who, "is writing this image; close the disk there first"))
    })
}

/// Locks an open image against readers too: its blocks are about to change their places, which a
/// daemon that has the table in memory would not see.
///
/// # Errors
/// EBUSY while another process has the image open. A file system without locks is no error.
pub fn lock_alone(file: &File, path: &Path, others: Others) -> Result<(), VhdError> {
    if others == Others::Ignore {
        return Ok(());
    }
    refused(file, path, Want::Alone).map_or(Ok(()), |who| {
        Err(busy(path, who, "has this image open; close all disks above it first"))
    })
}

/// Waits until an image that is about to be read holds still: until the requests of a process that
/// is dead are over. Who writes it for certain, if a process of this machine does.
///
/// # Errors
/// EBUSY for requests that do not end.
pub fn settled(file: &File, path: &Path, others: Others) -> Result<Option<i32>, VhdError> {
    if others == Others::Ignore {
        return Ok(None);
    }
    match refused(file, path, Want::Change) {
        Some(Holder::Writer(pid)) => Ok(Some(pid)),
        Some(who @ Holder::Dead) => Err(busy(path, who, "")),
        None | Some(Holder::Reader(_) | Holder::Elsewhere) => Ok(None),
    }
}

/// What a lock is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Readers may stay.
    Change,
    /// A disk that runs may stay as well.
    Beside,
    /// Nobody may.
    Alone,
}

/// Takes the lock; who it was not had for.
fn refused(file: &File, path: &Path, want: Want) -> Option<Holder> {
    let mut said = false;
    let mut goes_on = |who: Holder, since: Duration| match who {
        Holder::Dead => {
            if since > LIVING_MAX && !std::mem::replace(&mut said, true) {
                let limit = DEAD_MAX.as_secs();
                let what = "waiting for the last requests of a process that has ended";
                say(path, &format!("{what}, at most {limit} s"));
            }
            since < DEAD_MAX
        }
        Holder::Reader(_) if want != Want::Alone => false,
        Holder::Writer(pid) if want == Want::Beside && is_tapdisk(pid) => false,
        Holder::Reader(_) | Holder::Writer(_) | Holder::Elsewhere => since < LIVING_MAX,
    };
    // A file system without locks has nobody who holds one.
    let who = image::acquire(file, true, &mut goes_on).unwrap_or(None)?;
    // Beside readers. Elsewhere it may be readers as well.
    let shared = want != Want::Alone && matches!(who, Holder::Reader(_) | Holder::Elsewhere);
    match shared && got(file, false) {
        true => None,
        false => Some(who),
    }
}

/// A file system without locks has nobody who holds one.
fn got(file: &File, exclusive: bool) -> bool {
    image::try_lock(file, exclusive).unwrap_or(true)
}

/// What this library says by itself, on standard error: a tool that stands still for two minutes
/// would be taken for hung.
#[allow(clippy::print_stderr)]
pub(crate) fn say(path: &Path, text: &str) {
    eprintln!("{}: {text}", show::path(path));
}

fn busy(path: &Path, who: Holder, what: &str) -> VhdError {
    let why = match who {
        Holder::Dead => format!(
            "requests of a process that has ended are still not over after {} s; see to its \
             storage, and try again (--ignore-lock: they may land over what is written now)",
            DEAD_MAX.as_secs()
        ),
        Holder::Elsewhere => format!(
            "a process of another machine {what} (or --ignore-lock, if that process is known to \
             be gone)"
        ),
        Holder::Writer(pid) | Holder::Reader(pid) => {
            format!("{} {what} (--ignore-lock goes on all the same)", named(pid))
        }
    };
    VhdError::request(path, EBUSY, why)
}

/// `tapdisk 4711`.
pub fn named(pid: i32) -> String {
    format!("{} {pid}", name_of(pid).unwrap_or_else(|| "process".into()))
}

/// Whether a process is a tapdisk, which never changes what [`Beside`] changes.
pub fn is_tapdisk(pid: i32) -> bool {
    name_of(pid).is_some_and(|name| name == "tapdisk")
}

fn name_of(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let name: String = name.trim_end().chars().filter(|c| !c.is_control()).collect();
    Some(name).filter(|name| !name.is_empty())
}
