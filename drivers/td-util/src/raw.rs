//! Raw images, type `aio`.
use cli::{EINVAL, JSON, Options, Term, number};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// `create aio -r MB FILE`: zeros, written. (The original fails at that.) A file that could not be
/// completed is removed.
pub(crate) fn create(o: &Options, term: &mut Term) -> Option<i32> {
    let [size, name] = o.operands() else { return None };
    let size = number::<u64>(size).filter(|size| *size > 0 && *size <= u64::MAX / MIB)?;
    if !o.has('r') {
        term.complain("Cannot create sparse aio image\n");
        return Some(EINVAL);
    }
    let name = Path::new(name);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o644);
    let done = options.open(name).and_then(|file| {
        let filled = fill(&file, size);
        if filled.is_err() && file.metadata().is_ok_and(|m| m.is_file()) {
            // The first error is the one to report; a leftover is only untidy.
            let _ = std::fs::remove_file(name);
        }
        filled
    });
    Some(done.map_or_else(|e| failed(name, &e, term), |()| 0))
}

fn fill(mut file: &File, mib: u64) -> io::Result<()> {
    let zeros = vec![0; MIB as usize];
    (0..mib).try_for_each(|_| file.write_all(&zeros))?;
    file.sync_all()
}

/// `query aio [-v] FILE`: the size in MiB, of a file or a block device. (The original prints 0.)
pub(crate) fn query(o: &Options, term: &mut Term) -> Option<i32> {
    let [name] = o.operands() else { return None };
    let name = Path::new(name);
    if ['p', 'f', 'd', 'b'].iter().any(|letter| o.has(*letter)) {
        return None;
    }
    // A FIFO must not be waited for.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(name);
    let size = opened.and_then(|mut file| {
        if file.metadata()?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        file.seek(SeekFrom::End(0))
    });
    match size {
        Ok(size) if o.has(JSON.key) => {
            let name = name.display().to_string();
            term.json(&serde_json::json!({ "name": name, "virtual_bytes": size }));
        }
        Ok(size) if o.has('v') => term.say(&format!("{}\n", size / MIB)),
        Ok(_) => {}
        Err(e) => {
            let errno = e.raw_os_error().unwrap_or(5);
            term.say(&format!("failed opening {}: -{errno}\n", name.display()));
            return Some(errno);
        }
    }
    Some(0)
}

fn failed(name: &Path, e: &io::Error, term: &mut Term) -> i32 {
    term.complain(&format!("{}: could not make the image: {e}\n", name.display()));
    e.raw_os_error().unwrap_or(5)
}
