//! `copy`: a copy of an image, encrypted on the way if a key is given.
use crate::EINVAL;
use crate::options::{Options, Term};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use vhd_rs::{chain, copy, key};

const USAGE: &str = "options: -n <name> -N <new VHD name> [-k <keyfile> | -E (pass encryption key \
    on stdin)] [-h help] \n";
const EEXIST: i32 = 17;
/// What the original exits with where it makes up a number of its own.
const OTHER: i32 = 1;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match Options::given_no_help("copy", "n:N:k:Eh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    if o.has('k') && o.has('E') {
        term.complain("Only supply -E or -k once\n");
        return OTHER;
    }
    let (Some(name), Some(new)) = (o.path('n'), o.path('N')) else {
        term.complain("Must supply both existing and new VHD names\n");
        return term.usage(USAGE);
    };
    let key = match key_of(&o, term) {
        Ok(key) => key,
        Err(code) => return code,
    };
    if let Err(e) = chain::open_file(&name, false) {
        return term.not_opened(&name, &e);
    }
    match copy::copy(&name, &new, key.as_deref()) {
        Ok(()) => 0,
        Err(e) if e.errno() == EEXIST => {
            let line = format!("VHD file {} already exists, name a new one\n", new.display());
            term.say(&line);
            EINVAL
        }
        Err(e) if of(&e, &name) => term.not_opened(&name, &e),
        Err(e) => term.failed(&format!("error creating {}: -{}\n", new.display(), e.errno()), &e),
    }
}

/// Whether an error is about this file.
fn of(e: &vhd_rs::VhdError, name: &Path) -> bool {
    e.to_string().starts_with(&name.display().to_string())
}

fn key_of(o: &Options, term: &mut Term) -> Result<Option<Vec<u8>>, i32> {
    let mut key = Vec::new();
    // One byte more than the longest: what is too long must not pass as a key.
    let max = key::KEY_BYTES[1] as u64 + 1;
    let read = match o.path('k') {
        None if !o.has('E') => return Ok(None),
        None => std::io::stdin().take(max).read_to_end(&mut key),
        Some(file) => match File::open(&file) {
            Ok(opened) => opened.take(max).read_to_end(&mut key),
            Err(e) => {
                let errno = e.raw_os_error().unwrap_or(5);
                term.say(&format!("Failed to open key file {}: {errno}\n", file.display()));
                return Err(errno);
            }
        },
    };
    if let Err(e) = read {
        term.complain(&format!("could not read the key: {e}\n"));
        return Err(e.raw_os_error().unwrap_or(5));
    }
    if !key::KEY_BYTES.contains(&key.len()) {
        term.complain("Unsupported keysize, use either 256 bit or 512 bit key\n");
        return Err(OTHER);
    }
    Ok(Some(key))
}
