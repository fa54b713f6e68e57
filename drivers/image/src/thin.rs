//! Thin volumes: what they discard goes back to their pool, and reads as zeros from then on.
use std::fs::{File, read_dir, read_to_string};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};

/// How the id of the device ends that a pool of LVM is made of; its thin volumes stand on it.
const POOL: &str = "-tpool";

/// Whether a file is a thin volume of LVM.
///
/// Of other devices nobody can tell what they show after a discard; the kernel stopped to say it
/// (Linux 4.12, `discard_zeroes_data`).
#[must_use]
pub fn is_thin(file: &File) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let device = meta.file_type().is_block_device();
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    device && stands_on_pool(&Path::new("/sys/dev/block").join(format!("{major}:{minor}")))
}

fn stands_on_pool(device: &Path) -> bool {
    let below: Vec<_> = read_dir(device.join("slaves")).into_iter().flatten().flatten().collect();
    let pool = |path: &Path| {
        let id = read_to_string(path.join("dm/uuid")).unwrap_or_default();
        id.starts_with("LVM-") && id.trim_end().ends_with(POOL)
    };
    !below.is_empty() && below.iter().all(|entry| pool(&entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    #[test]
    fn a_thin_volume_stands_on_a_pool_alone() {
        let dir = tempfile::tempdir().unwrap();
        let device = |name: &str, below: &[&str]| {
            let device = dir.path().join(name);
            for (i, id) in below.iter().enumerate() {
                let entry = device.join(format!("slaves/dm-{i}/dm"));
                create_dir_all(&entry).unwrap();
                write(entry.join("uuid"), format!("{id}\n")).unwrap();
            }
            device
        };
        assert!(stands_on_pool(&device("thin", &["LVM-abc-tpool"])));
        assert!(!stands_on_pool(&device("mixed", &["LVM-abc-tpool", "LVM-abc"])));
        assert!(!stands_on_pool(&device("linear", &["LVM-abc"])));
        assert!(!stands_on_pool(&device("other", &["CRYPT-tpool"])));
        assert!(!stands_on_pool(&device("none", &[])));
        assert!(!is_thin(&tempfile::tempfile().unwrap()));
    }
}
