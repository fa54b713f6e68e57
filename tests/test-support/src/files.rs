//! Bytes of files, read and changed behind everybody's back.
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::tools::tool;

/// A part of a file.
///
/// # Panics
/// If it is not there.
#[track_caller]
pub fn bytes_at(path: &Path, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.read_exact_at(&mut bytes, at).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes
}

/// Overwrites a part of a file.
///
/// # Panics
/// If it cannot be written.
#[track_caller]
pub fn poke(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("a file to change");
    file.write_all_at(bytes, at).expect("a file to change");
}

/// The size of a file in bytes.
#[track_caller]
pub fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).len()
}

/// The bytes that a file takes on its disk.
#[track_caller]
pub fn disk_usage(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).blocks() * 512
}

/// A file of `size` bytes without data.
///
/// # Panics
/// If it cannot be made.
pub fn sparse(path: &Path, size: u64) {
    File::create(path).and_then(|file| file.set_len(size)).expect("a sparse file");
}

/// Unpacks a file of `tests/tests/data` into `to`, with holes where there are zeros.
///
/// # Panics
/// If gzip does not like it.
pub fn unpack(name: &str, to: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name);
    let packed = File::open(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let mut gzip = Command::new(tool("gzip"));
    let child = gzip.arg("-dc").stdin(packed).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("gzip starts");
    let mut bytes = Vec::new();
    child.stdout.take().expect("a pipe").read_to_end(&mut bytes).expect("gzip writes");
    assert!(child.wait().expect("our own child").success(), "{}", from.display());
    let file = File::create(to).expect("a file for the image");
    file.set_len(bytes.len() as u64).expect("a file for the image");
    for (i, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, i as u64 * 4096).expect("a file for the image");
        }
    }
}
