//! `copy`: a copy of an image, encrypted on the way if a key is given.
use crate::options::{self, Term};
use crate::{EINVAL, keys};
use std::ffi::OsString;
use std::path::Path;
use vhd_rs::{chain, copy};

const USAGE: &str = "options: -n <name> -N <new VHD name> [-k <keyfile> | -E (pass encryption key \
    on stdin)] [-h help] \n";
const EEXIST: i32 = 17;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("copy", "n:N:k:Eh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    if o.has('k') && o.has('E') {
        return keys::given(&o, term).err().unwrap_or(EINVAL);
    }
    let (Some(name), Some(new)) = (o.path('n'), o.path('N')) else {
        term.complain("Must supply both existing and new VHD names\n");
        return term.usage(USAGE);
    };
    let key = match keys::given(&o, term) {
        Ok(key) => key,
        Err(code) => return code,
    };
    if let Err(e) = chain::open_file(&name, false) {
        return term.not_opened(&name, &e);
    }
    match copy::copy(&name, &new, key.as_deref(), term.others) {
        Ok(()) => 0,
        Err(e) if e.errno() == EEXIST => {
            let line = format!("VHD file {} already exists, name a new one\n", show::path(&new));
            term.say(&line);
            EINVAL
        }
        Err(e) if of(&e, &name) => term.not_opened(&name, &e),
        Err(e) => {
            term.failed(&format!("error creating {}: -{}\n", show::path(&new), e.errno()), &e)
        }
    }
}

/// Whether an error is about this file.
fn of(e: &vhd_rs::VhdError, name: &Path) -> bool {
    e.to_string().starts_with(&show::path(name).to_string())
}
