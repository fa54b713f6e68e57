//! QEMU's locks on an image (docs/spec/qcow2.md §3, G11): bytes 100 and on say what is done with
//! it, bytes 200 and on what others may not do, with locks that belong to the open file.
//!
//! Of these only the second kind is taken, for what is written: QEMU's programs refuse to write the
//! image then, and read it as ever, which management does with images that are in use.
use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

/// What QEMU calls the permissions to write and to resize, as bytes of its locks.
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// Where the locks of those who use a permission begin, and of those who share it with nobody.
const USED: i64 = 100;
const UNSHARED: i64 = 200;

/// Keeps QEMU's programs from writing a file as long as it is open. Whether one writes it already.
///
/// # Errors
/// Those of `fcntl(2)`: a file system without such locks.
pub fn keep_out(file: &File) -> io::Result<bool> {
    for permission in [WRITE, RESIZE] {
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, UNSHARED + permission)))?;
    }
    let mut asked = lock(libc::F_WRLCK, USED + WRITE);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

fn lock(kind: libc::c_int, byte: i64) -> libc::flock {
    let narrow = |number: libc::c_int| libc::c_short::try_from(number).expect("a small number");
    libc::flock {
        l_type: narrow(kind),
        l_whence: narrow(libc::SEEK_SET),
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
