//! `create`, `snapshot` and `set` for VHDs: `vhd-util`'s work under other names.
use cli::{EINVAL, Options, Term, number};
use std::path::Path;
use vhd_rs::lock::{self, Others};
use vhd_rs::{VhdError, edit, files};

const MIB: u64 = 1 << 20;

/// `create vhd [-r] MB FILE`.
pub(crate) fn create(o: &Options, term: &mut Term) -> Option<i32> {
    let [size, name] = o.operands() else { return None };
    let bytes = number::<u64>(size)?.checked_mul(MIB)?;
    if o.has('b') {
        // The original knows the letter and then fails; what it was for is forgotten.
        term.complain("-b is of no use for a VHD; leave it out\n");
        return Some(EINVAL);
    }
    let name = Path::new(name);
    match files::create(name, bytes, None, o.has('r')) {
        Ok(()) => Some(0),
        Err(e @ VhdError::Io { offset: 0, .. }) => {
            term.complain(&format!("{}: failed to create: -{}\n", show::path(name), e.errno()));
            Some(e.errno())
        }
        Err(e) => Some(failed(&e, term)),
    }
}

/// `snapshot vhd [-m] [-l N] FILE PARENT`: the child comes first.
pub(crate) fn snapshot(o: &Options, term: &mut Term) -> Option<i32> {
    let [name, parent] = o.operands() else { return None };
    let limit = o.number::<u32>('l').unwrap_or(Some(0))?;
    let depth_max = Some(limit).filter(|limit| *limit > 0);
    let options = files::SnapshotOptions { raw: o.has('m'), depth_max, ..Default::default() };
    match files::snapshot(Path::new(name), Path::new(parent), &options) {
        Ok(()) => Some(0),
        Err(VhdError::Request { why, errno: 28, .. }) => {
            term.say(&format!("{why}\n"));
            Some(28)
        }
        Err(e) => Some(failed(&e, term)),
    }
}

/// `set vhd FILE hidden VALUE`.
pub(crate) fn set(o: &Options, term: &mut Term) -> Option<i32> {
    let [name, field, text] = o.operands() else { return None };
    if field != "hidden" {
        term.say(&format!("invalid field {}\n", show::path(field)));
        return None;
    }
    let Some(value) = number::<u8>(text) else {
        term.say(&format!("invalid value {}\n", show::path(text)));
        return None;
    };
    let name = Path::new(name);
    let done = lock::open_beside(name, Others::Refuse)
        .and_then(|image| edit::set_hidden_beside(&image, name, value));
    match done {
        Ok(()) => Some(0),
        Err(e) => {
            term.say(&format!("failed opening {}: -{}\n", show::path(name), e.errno()));
            Some(failed(&e, term))
        }
    }
}

fn failed(e: &VhdError, term: &mut Term) -> i32 {
    term.complain(&format!("{e}\n"));
    e.errno()
}
