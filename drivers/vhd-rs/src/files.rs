//! New images on the file system: create and snapshot as the tools do them.
use crate::chain::{self, Identity};
use crate::create::{self, NewImage, ParentRef};
use crate::error::{
    VhdError,
    errno::{EBUSY, EINVAL, ELOOP, ENOSPC},
};
use crate::footer::EPOCH_2000;
use crate::header::BLOCK_BYTES;
use crate::parents::Bond;
use crate::{bat, descent, lock, overwrite, path};
use image::Storage;
use image::unfinished::Unfinished;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How to take a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// The parent is a raw image.
    pub raw: bool,
    /// Link to exactly this parent, even if it is an empty differencing image.
    pub exact: bool,
    /// Refuse if the parent's chain has this many images already.
    pub depth_max: Option<u32>,
    /// Disk size up to which the metadata shall have room.
    pub room_bytes: Option<u64>,
    /// What to do while somebody writes the parent: what he writes from then on, the snapshot would
    /// show as well.
    pub others: lock::Others,
}

/// Makes a dynamic or a fixed image; an existing file is overwritten, as by the original. The size
/// is rounded up to 2 MiB.
///
/// ```
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// vhd_rs::files::create(&name, 10 << 20, None, false)?;
/// assert_eq!(std::fs::metadata(&name)?.len(), 3584);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of the file system; a file that could not be completed is removed.
pub fn create(
    name: &Path,
    bytes: u64,
    room_bytes: Option<u64>,
    fixed: bool,
) -> Result<(), VhdError> {
    not_empty(name, bytes)?;
    let bytes = rounded(name, bytes)?;
    let room_bytes = rounded(name, room_bytes.unwrap_or(bytes))?;
    let new = NewImage { bytes, room_bytes, uuid: new_uuid(name)?, timestamp: now() };
    if room_bytes < bytes {
        return Err(VhdError::request(name, EINVAL, "less room for metadata than the disk needs"));
    }
    if bytes > crate::footer::DISK_BYTES_MAX {
        let why = format!("a disk of {bytes} bytes is larger than the 2040 GiB a VHD can hold");
        return Err(VhdError::request(name, EINVAL, why));
    }
    in_new_file(
        name,
        |_| Ok(()),
        |file| match fixed {
            true => create::fixed(file, name, &new),
            false => create::dynamic(file, name, &new, None),
        },
    )
}

/// Makes a differencing image over a parent.
///
/// ```
/// use vhd_rs::{chain, files};
///
/// let dir = tempfile::tempdir()?;
/// let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
/// files::create(&base, 10 << 20, None, false)?;
/// files::snapshot(&leaf, &base, &files::SnapshotOptions::default())?;
/// assert_eq!(chain::depth(&leaf, false)?, 2);
/// assert!(files::snapshot(&base, &base, &Default::default()).is_err(), "not onto itself");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL if the name is the parent or one of its ancestors; ENOSPC beyond the depth; those of
/// the file system.
pub fn snapshot(name: &Path, parent: &Path, o: &SnapshotOptions) -> Result<(), VhdError> {
    not_an_ancestor(name, parent, o.raw)?;
    let _still = holds_still(parent, o)?;
    let target = target_of(parent, o)?;
    not_too_deep(name, &target, o.depth_max)?;
    not_empty(name, target.bytes)?;
    let bond = Bond::new(name, &target.path, target.uuid)?;
    let bytes = if target.raw { target.bytes } else { rounded(name, target.bytes)? };
    let room_bytes = rounded(name, o.room_bytes.unwrap_or(bytes))?;
    let home = chain::canonical_new(name)?;
    let to = path::canonical(&target.path)
        .map_err(|e| VhdError::io(&target.path, "resolve the path", 0, &e))?;
    let parent = ParentRef {
        uuid: target.uuid,
        timestamp: modified(&target.path)?,
        relative: path::relative(&home, &to),
        key_hash: target.key_hash,
    };
    let new = NewImage { bytes, room_bytes, uuid: new_uuid(name)?, timestamp: now() };
    if room_bytes < bytes {
        let why = "less room for metadata than the parent's size needs";
        return Err(VhdError::request(name, EINVAL, why));
    }
    let ready = |file: &File| bond.vouch(name, file, &target.path);
    in_new_file(name, ready, |file| {
        create::dynamic(file, name, &new, Some(&parent))?;
        bond.forget(name, file)
    })
}

/// A chain that grows must still be one that a daemon opens; what stands below need not be there
/// just now.
fn not_too_deep(name: &Path, target: &Target, limit: Option<u32>) -> Result<(), VhdError> {
    let depth = match (chain::depth(&target.path, target.raw), limit) {
        (Ok(depth), _) => depth,
        (Err(e), Some(_)) => return Err(e),
        (Err(e), None) if e.errno() == ELOOP => return Err(e),
        (Err(_), None) => return Ok(()),
    };
    if let Some(limit) = limit.filter(|limit| depth >= *limit) {
        let why = format!("snapshot depth exceeded: current depth: {depth}, limit: {limit}");
        return Err(VhdError::request(name, ENOSPC, why));
    }
    descent::room_above(name, depth)
}

/// The parent, locked while the snapshot is made: nobody begins to write it meanwhile. With `exact`
/// a writer may stay, since a storage manager's cache of a parent's data is filled while leaves are
/// put over it, and does not change what it shows.
fn holds_still(parent: &Path, o: &SnapshotOptions) -> Result<File, VhdError> {
    let file = chain::open_file(parent, false)?;
    let Some(pid) = lock::settled(&file, parent, o.others)? else { return Ok(file) };
    let who = lock::named(pid);
    let why = format!("{who} is writing the parent, and the snapshot would show what it writes");
    if o.exact {
        lock::say(parent, &format!("{why}, unless that fills a cache"));
        return Ok(file);
    }
    let remedy = "pause that disk first (tap-ctl pause), and unpause it with the new leaf";
    Err(VhdError::request(parent, EBUSY, format!("{why}: {remedy}")))
}

/// The image a snapshot is linked to.
struct Target {
    path: PathBuf,
    raw: bool,
    /// Size of the disk that the caller named.
    bytes: u64,
    uuid: Option<[u8; 16]>,
    key_hash: Option<crate::batmap::KeyHash>,
}

/// The named parent, or below it the first that is not an empty differencing image (§8.3).
fn target_of(parent: &Path, o: &SnapshotOptions) -> Result<Target, VhdError> {
    let mut target: Option<Target> = None;
    let mut key = None;
    chain::walk(parent, o.raw, |stop, descent| {
        let named = target.as_ref().map(|t| t.bytes);
        let opened = stop.open(&stop.file, descent)?;
        let (path, raw) = (stop.path, stop.raw);
        let Some(opened) = opened else {
            let bytes = named.map_or_else(|| whole_sectors(&stop.file, &path), Ok)?;
            target = Some(Target { path, raw, bytes, uuid: None, key_hash: key });
            return Ok(None);
        };
        let uuid = Some(descent::nameable(&path, opened.footer.uuid)?);
        key = key.or(opened.key_hash);
        let empty = opened.bat.iter().all(|e| *e == bat::UNUSED);
        let bytes = named.unwrap_or(opened.footer.current_bytes);
        target = Some(Target { path, raw, bytes, uuid, key_hash: key });
        Ok(opened.parent.filter(|_| empty && !o.exact))
    })?;
    target.ok_or_else(|| VhdError::request(parent, EINVAL, "the chain has no image"))
}

/// What a raw image shows: bytes behind its last whole sector are nobody's.
pub(crate) fn whole_sectors(file: &File, path: &Path) -> Result<u64, VhdError> {
    let failed = |e| VhdError::io(path, "learn the size", 0, &e);
    match Storage::len(file).map_err(failed)? / 512 * 512 {
        0 => Err(VhdError::request(path, EINVAL, "the image has not even one sector of 512 bytes")),
        bytes => Ok(bytes),
    }
}

/// F14: a snapshot onto its own parent, or onto anything below, would destroy it.
fn not_an_ancestor(name: &Path, parent: &Path, raw: bool) -> Result<(), VhdError> {
    let new: Option<Identity> =
        chain::open_file(name, false).ok().and_then(|f| chain::identity(&f).ok());
    let Some(new) = new else { return Ok(()) };
    chain::walk(parent, raw, |stop, _| {
        if chain::identity(&stop.file).is_ok_and(|id| id == new) {
            let why = "the new image would overwrite its own parent; choose another name";
            return Err(VhdError::request(name, EINVAL, why));
        }
        stop.parent()
    })
}

/// Runs `fill` on a new or emptied file, which `ready` has found fit; removes what is not whole.
fn in_new_file(
    name: &Path,
    ready: impl FnOnce(&File) -> Result<(), VhdError>,
    fill: impl FnOnce(&File) -> Result<(), VhdError>,
) -> Result<(), VhdError> {
    let failed = |e: std::io::Error| VhdError::io(name, "create the file", 0, &e);
    let file = image::open_or_make(name, 0o644)
        .map_err(|e| VhdError::node(name, "create the file", &e))?;
    let empty = Storage::len(&file).is_ok_and(|bytes| bytes == 0);
    let device = file.metadata().is_ok_and(|m| m.file_type().is_block_device());
    // What has contents is emptied only when nothing stands in the way any more.
    overwrite::allowed(&file, name)?;
    let new = (empty && !device).then(|| Unfinished::begin(name));
    ready(&file)?;
    Storage::set_len(&file, 0).map_err(failed)?;
    let unfinished = new.or_else(|| (!device).then(|| Unfinished::begin(name)));
    fill(&file)?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(())
}

/// A disk without sectors is nothing that anybody can serve.
pub(crate) fn not_empty(name: &Path, bytes: u64) -> Result<(), VhdError> {
    match bytes {
        0 => {
            Err(VhdError::request(name, EINVAL, "a disk of 0 bytes cannot be used; give it a size"))
        }
        _ => Ok(()),
    }
}

fn rounded(name: &Path, bytes: u64) -> Result<u64, VhdError> {
    let up = bytes.checked_next_multiple_of(u64::from(BLOCK_BYTES));
    up.ok_or_else(|| VhdError::request(name, EINVAL, "the size is beyond all numbers"))
}

/// Seconds since 2000.
pub fn now() -> u32 {
    since_2000(SystemTime::now())
}

fn since_2000(time: SystemTime) -> u32 {
    let unix = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    u32::try_from(unix.saturating_sub(EPOCH_2000)).unwrap_or(u32::MAX)
}

/// Modification time of a file, seconds since 2000.
///
/// # Errors
/// Those of the file system.
pub fn modified(name: &Path) -> Result<u32, VhdError> {
    let time = std::fs::metadata(name).and_then(|m| m.modified());
    time.map(since_2000).map_err(|e| VhdError::io(name, "look at the file", 0, &e))
}

/// A random unique id (version 4).
///
/// # Errors
/// Without `/dev/urandom`.
pub fn new_uuid(name: &Path) -> Result<[u8; 16], VhdError> {
    let mut id = [0; 16];
    let failed = |e| VhdError::io(name, "draw a unique id", 0, &e);
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut id)).map_err(failed)?;
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    Ok(id)
}
