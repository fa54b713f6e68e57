//! Taking an interrupted resize back (§13).
//!
//! The old contents go back to their places while the footers stay poisoned; then the journal is
//! emptied; then the footers become good. So a journal that can still undo something never belongs
//! to an image that may be in use, and each step can be repeated.
use crate::edit::put;
use crate::error::{VhdError, errno::EINVAL};
use crate::footer::{COOKIE, FOOTER_BYTES, Footer, POISON};
use crate::journal::{Entry, Journal, Kind};
use image::Storage;
use std::path::Path;

/// Takes a resize back, or does nothing if it was complete or had not begun.
///
/// ```
/// use vhd_rs::{files, journal, lock, modify::Point, open, resize::Growth, revert::revert};
///
/// let dir = tempfile::tempdir()?;
/// let (name, log) = (dir.path().join("disk.vhd"), dir.path().join("resize.journal"));
/// files::create(&name, 16 << 20, None, false)?;
/// let before = std::fs::read(&name)?;
///
/// let file = lock::open_to_change(&name, lock::Others::Refuse)?;
/// let growth = Growth::plan(&file, &name, 8 << 30)?.expect("a larger disk");
/// let log_file = journal::create_file(&log)?;
/// let stop = std::panic::AssertUnwindSafe(|| {
///     growth.run(&file, &log_file, &log, &|p| assert!(p != Point::ResizeDataMoved))
/// });
/// std::panic::catch_unwind(stop).unwrap_err(); // a crash in the middle
///
/// revert(&file, &name, &log_file, &log)?;
/// assert!(std::fs::read(&name)? == before);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EINVAL for a damaged journal or one of another image; nothing is changed then. Those of the
/// files.
pub fn revert(
    storage: &dyn Storage,
    name: &Path,
    journal: &dyn Storage,
    journal_name: &Path,
) -> Result<(), VhdError> {
    let mut log = Journal::open(journal, journal_name)?;
    let sync = || storage.sync().map_err(|e| VhdError::io(name, "flush the image", 0, &e));
    let bytes = storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e))?;
    let own = footer_in(storage, 0).or_else(|| footer_in(storage, bytes.checked_sub(512)?));
    let Some(own) = own else {
        let why = "has no footer, neither at its end nor at byte 0; restore it from a backup";
        return Err(VhdError::request(name, EINVAL, why));
    };
    if own.uuid != log.uuid {
        let why = format!("this journal belongs to another image than {}", show::path(name));
        return Err(VhdError::request(journal_name, EINVAL, why));
    }
    if !log.is_empty() {
        // All of it is read once, so that a damaged journal changes nothing.
        log.entries(|_| Ok(()))?;
        restore(storage, name, &log)?;
        sync()?;
        log.commit()?;
    }
    let bytes = storage.len().map_err(|e| VhdError::io(name, "learn the size", 0, &e))?;
    for at in [bytes.saturating_sub(512), 0] {
        if let Some(footer) = footer_in(storage, at).filter(Footer::poisoned) {
            put(storage, name, at, &Footer { cookie: COOKIE, ..footer }.encode())?;
        }
    }
    sync()
}

fn footer_in(storage: &dyn Storage, at: u64) -> Option<Footer> {
    let mut bytes = [0; FOOTER_BYTES];
    storage.read_exact_at(at, &mut bytes).ok()?;
    Footer::parse(&bytes).ok()
}

fn restore(storage: &dyn Storage, name: &Path, log: &Journal<'_>) -> Result<(), VhdError> {
    let mut footers = Vec::new();
    log.entries(|entry| {
        if matches!(entry.kind, Kind::TrailingFooter | Kind::LeadingFooter) {
            footers.push(entry);
            return Ok(());
        }
        put(storage, name, entry.at, &entry.bytes)
    })?;
    for Entry { at, bytes, .. } in footers {
        // As it was, so that not even a byte nobody interprets changes; poisoned until the journal
        // is empty.
        let footer = Footer::decode(&bytes);
        put(storage, name, at, &Footer { cookie: POISON, ..footer }.encode())?;
    }
    let cut = |e| VhdError::io(name, "cut the file", log.footer_at, &e);
    image::cut(storage, log.footer_at.saturating_add(512)).map_err(cut)?;
    Ok(())
}
