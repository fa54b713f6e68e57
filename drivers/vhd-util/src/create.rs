//! `create`: a new dynamic or fixed image.
use crate::EINVAL;
use crate::options::{self, Term};
use std::ffi::OsString;
use vhd_rs::{VhdError, files};

const USAGE: &str = "options: <-n name> <-s size (MB)> [-r reserve] [-h help] \
    [<-S size (MB) for metadata preallocation (see vhd-util resize)>]\n";
const MIB: u64 = 1 << 20;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("create", "n:s:S:rh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(size)) = (o.path('n'), o.number::<u64>('s')) else {
        return term.usage(USAGE);
    };
    let room = o.number::<u64>('S');
    let (Some(size), Some(room)) = (size, room.unwrap_or(size)) else {
        term.complain("sizes are decimal numbers of MiB\n");
        return EINVAL;
    };
    if room < size {
        term.say("Error: <-S size> must be greater than <-s size>\n");
        return EINVAL;
    }
    let (Some(bytes), Some(room)) = (size.checked_mul(MIB), room.checked_mul(MIB)) else {
        return EINVAL;
    };
    match files::create(&name, bytes, Some(room), o.has('r')) {
        Ok(()) => 0,
        Err(e @ VhdError::Io { offset: 0, .. }) => {
            term.complain(&format!("{}: failed to create: -{}\n", show::path(&name), e.errno()));
            e.errno()
        }
        Err(e) => {
            term.complain(&format!("{e}\n"));
            e.errno()
        }
    }
}
