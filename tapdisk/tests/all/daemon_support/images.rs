//! Images to serve.
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vhd_rs::create::{NewImage, ParentRef, dynamic};

/// 16 MiB: eight blocks of a VHD.
pub const BYTES: u64 = 16 << 20;

/// A raw image: byte n/512 of a sector's number in each sector.
pub fn raw(path: &Path, bytes: u64) -> String {
    File::create(path).unwrap().set_len(bytes).unwrap();
    format!("aio:{}", path.display())
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
}

fn new(uuid: u8) -> NewImage {
    NewImage { bytes: BYTES, room_bytes: BYTES, uuid: [uuid; 16], timestamp: 1 }
}

/// An empty dynamic VHD whose id is made of one byte.
pub fn vhd(path: &Path, uuid: u8) -> String {
    dynamic(&create(path), path, &new(uuid), None).unwrap();
    format!("vhd:{}", path.display())
}

/// An empty child of an image in the same folder; `parent` is its id, or `None` for a raw one.
pub fn child(path: &Path, uuid: u8, of: &str, parent: Option<u8>) -> String {
    let parent = ParentRef {
        uuid: parent.map(|byte| [byte; 16]),
        timestamp: 1,
        relative: PathBuf::from(format!("./{of}")),
        key_hash: None,
    };
    dynamic(&create(path), path, &new(uuid), Some(&parent)).unwrap();
    format!("vhd:{}", path.display())
}

/// The last sector of a file.
pub fn last_sector(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap();
    let mut sector = vec![0; 512];
    file.read_exact_at(&mut sector, file.metadata().unwrap().len() - 512).unwrap();
    sector
}
