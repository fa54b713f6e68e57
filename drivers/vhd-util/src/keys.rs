//! The key of an encrypted image: a file (`-k`) or standard input (`-E`).
use crate::options::{Options, Term};
use std::io::Read;
use vhd_rs::key::{KEY_BYTES, open_file};

/// What the original exits with where it makes up a number of its own.
const OTHER: i32 = 1;

/// The key, if one was given.
///
/// # Errors
/// The exit code when there is none that can be used.
pub(crate) fn given(o: &Options, term: &mut Term) -> Result<Option<Vec<u8>>, i32> {
    if o.has('k') && o.has('E') {
        term.complain("Only supply -E or -k once\n");
        return Err(OTHER);
    }
    let mut key = Vec::new();
    // One byte more than the longest: what is too long must not pass as a key.
    let max = KEY_BYTES[1] as u64 + 1;
    let read = match o.path('k') {
        None if !o.has('E') => return Ok(None),
        None => std::io::stdin().take(max).read_to_end(&mut key),
        Some(file) => match open_file(&file) {
            Ok(opened) => opened.take(max).read_to_end(&mut key),
            Err(e) => {
                let (name, errno) = (file.display(), e.errno());
                let line = format!("Failed to open key file {name}: {errno}\n");
                return Err(term.failed(&line, &e));
            }
        },
    };
    if let Err(e) = read {
        term.complain(&format!("could not read the key: {e}\n"));
        return Err(e.raw_os_error().unwrap_or(5));
    }
    if !KEY_BYTES.contains(&key.len()) {
        term.complain("Unsupported keysize, use either 256 bit or 512 bit key\n");
        return Err(OTHER);
    }
    Ok(Some(key))
}
