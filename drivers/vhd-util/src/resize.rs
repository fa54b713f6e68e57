//! `resize`: a larger disk, within the metadata's room (`-f`) or with a journal (`-j`).
use crate::EINVAL;
use crate::options::{self, Term};
use crate::points;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use vhd_rs::resize::{Growth, fast};
use vhd_rs::{DiskType, VhdError, journal, locate, lock};

const USAGE: &str = "options: <-n name> <-s size (in MB)> (<-j journal>|<-f fast>) [-h help]\n\n\
    The resize operation can only be performed offline and must be journaled because resizing \
    the metadata might require moving data blocks. However, if a VHD was created with -S <msize> \
    option (during vhd-util create/snapshot), which preallocates the metadata for growing the VHD \
    up to size <msize>, then resizing such a VHD up to <msize> can be performed online without \
    journaling (-f option).\n";
/// Sizes of disks are multiples of this.
const STEP: u64 = 2 << 20;
const ENOSYS: i32 = 38;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("resize", "n:s:j:fh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let (Some(name), Some(size)) = (o.path('n'), o.number::<u64>('s')) else {
        return term.usage(USAGE);
    };
    let log = o.path('j');
    if log.is_some() == o.has('f') {
        return term.usage(USAGE);
    }
    // With a journal blocks move, which a disk above that has the table in memory does not see.
    let opened = match log {
        Some(_) => lock::open_alone(&name, term.others),
        None => lock::open_to_change(&name, term.others),
    };
    let file = match opened {
        Ok(file) => file,
        Err(e) => return term.not_opened(&name, &e),
    };
    let kind = match locate::headers(&file, &name, 0) {
        Ok(found) if !found.footer.by_tap() => {
            term.say(&format!("{} not created by xen; resize not supported\n", show::path(&name)));
            return EINVAL;
        }
        Ok(found) => found.footer.kind,
        Err(e) => return term.not_opened(&name, &e),
    };
    let bytes = size.and_then(|mib| mib.checked_mul(1 << 20));
    let Some(bytes) = bytes.and_then(|bytes| bytes.checked_next_multiple_of(STEP)) else {
        term.complain("sizes are decimal numbers of MiB\n");
        return EINVAL;
    };
    match log {
        None => by_footer(&file, &name, bytes, term),
        Some(log) if kind == DiskType::Fixed => {
            let why = "a fixed image cannot be resized; copy it";
            no_journal(&VhdError::request(&log, EINVAL, why), term)
        }
        Some(log) => with_journal(&file, &name, bytes, &log, term),
    }
}

fn by_footer(file: &File, name: &Path, bytes: u64, term: &mut Term) -> i32 {
    match fast(file, name, bytes) {
        Ok(()) => 0,
        Err(e) => {
            let text = e.to_string();
            let line =
                if text.contains("< curr size") { format!("{text}\n") } else { String::new() };
            term.failed(&line, &e)
        }
    }
}

fn no_journal(e: &VhdError, term: &mut Term) -> i32 {
    term.failed(&format!("creating journal failed: -{}\n", e.errno()), e)
}

fn with_journal(file: &File, name: &Path, bytes: u64, log: &Path, term: &mut Term) -> i32 {
    let growth = Growth::plan(file, name, bytes);
    if growth.is_ok()
        && let Ok(meta) = std::fs::metadata(log)
        && meta.is_file()
    {
        let why = "this file exists; name a new one, or revert with it first";
        return no_journal(&VhdError::request(log, 17, why), term);
    }
    let growth = match growth {
        Ok(Some(growth)) => growth,
        Ok(None) => return 0,
        Err(e) => return failed(&e, term),
    };
    let log_file = match journal::create_file(log) {
        Ok(file) => file,
        Err(e) => return no_journal(&e, term),
    };
    let done = growth.run(file, &log_file, log, &points::reached);
    // The journal of an image that could not be brought back is worth more than anything.
    let over = vhd_rs::journal::Journal::open(&log_file, log).is_ok_and(|j| j.is_empty());
    if done.is_ok() || over {
        let removed = journal::remove_file(log);
        return match done.and(removed) {
            Ok(()) => 0,
            Err(e) => failed(&e, term),
        };
    }
    done.err().map_or(0, |e| failed(&e, term))
}

fn failed(e: &VhdError, term: &mut Term) -> i32 {
    let shrink = if e.errno() == ENOSYS { "dynamic shrink not fully implemented\n" } else { "" };
    term.failed(&format!("{shrink}resize failed: -{}\n", e.errno()), e)
}
