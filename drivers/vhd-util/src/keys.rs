//! The key of an encrypted image: a file (`-k`) or standard input (`-E`).
use crate::options::{Options, Term};
use std::fs::File;
use std::os::fd::AsFd;
use vhd_rs::key::{KEY_BYTES, open_file};
use vhd_rs::secret::Bytes;

/// What the original exits with where it makes up a number of its own.
const OTHER: i32 = 1;

/// The key, if one was given.
///
/// # Errors
/// The exit code when there is none that can be used.
pub(crate) fn given(o: &Options, term: &mut Term) -> Result<Option<Bytes>, i32> {
    if o.has('k') && o.has('E') {
        term.complain("Only supply -E or -k once\n");
        return Err(OTHER);
    }
    // One byte more than the longest: what is too long must not pass as a key.
    let max = KEY_BYTES[1] + 1;
    let read = match o.path('k') {
        None if !o.has('E') => return Ok(None),
        // Not through std's reader, which would keep a copy.
        None => std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .and_then(|fd| Bytes::read(&mut File::from(fd), max)),
        Some(file) => match open_file(&file) {
            Ok(mut opened) => Bytes::read(&mut opened, max),
            Err(e) => {
                let (name, errno) = (show::path(&file), e.errno());
                let line = format!("Failed to open key file {name}: {errno}\n");
                return Err(term.failed(&line, &e));
            }
        },
    };
    let key = read.map_err(|e| {
        term.complain(&format!("could not read the key: {e}\n"));
        e.raw_os_error().unwrap_or(5)
    })?;
    if !KEY_BYTES.contains(&key.len()) {
        term.complain("Unsupported keysize, use either 256 bit or 512 bit key\n");
        return Err(OTHER);
    }
    Ok(Some(key))
}
