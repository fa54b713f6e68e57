//! `snapshot`: a differencing image over a parent.
use crate::EINVAL;
use crate::options::{self, Term};
use std::ffi::OsString;
use vhd_rs::{VhdError, files};

const USAGE: &str = "options: <-n name> <-p parent name> [-l snapshot depth limit] \
    [-m parent_is_raw] [-S size (MB) for metadata preallocation (see vhd-util resize)] \
    [-e link to supplied parent name even if it's empty] [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given("snapshot", "n:p:S:l:meh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(parent), 0) = (o.path('n'), o.path('p'), o.operands().len()) else {
        return term.usage(USAGE);
    };
    let (Some(limit), Some(room)) =
        (o.number::<u64>('l').unwrap_or(Some(0)), o.number::<u64>('S').unwrap_or(Some(0)))
    else {
        term.complain("limits and sizes are decimal numbers\n");
        return EINVAL;
    };
    let options = files::SnapshotOptions {
        raw: o.has('m'),
        exact: o.has('e'),
        depth_max: u32::try_from(limit).ok().filter(|l| *l > 0),
        room_bytes: Some(room.saturating_mul(1 << 20)).filter(|r| *r > 0),
        others: term.others,
    };
    match files::snapshot(&name, &parent, &options) {
        Ok(()) => 0,
        Err(VhdError::Request { why, errno: 28, .. }) => {
            term.say(&format!("{why}\n"));
            28
        }
        Err(e) => {
            term.complain(&format!("{e}\n"));
            e.errno()
        }
    }
}
