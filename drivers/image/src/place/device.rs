//! Block devices: their volume groups, and the names that they have.
use rustix::fs::{major, minor};
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Drivers whose devices hold images that belong together, and nothing of the host's own: loop (7)
/// and DRBD (147; LINSTOR's repositories).
const DRIVERS: [u32; 2] = [7, 147];
/// How device mapper's ids of logical volumes begin; the id of the group has 32 characters, as has
/// the volume's.
const LVM: &str = "LVM-";
const GROUP_CHARS: usize = 32;

/// A volume group of LVM, by its id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group(String);

impl Group {
    /// Of the logical volume that a block device is.
    pub(super) fn of(number: u64) -> Option<Group> {
        Group::in_id(&mapper(number, "uuid")?)
    }

    fn in_id(id: &str) -> Option<Group> {
        Some(Group(id.strip_prefix(LVM)?.get(..GROUP_CHARS)?.to_string()))
    }

    /// Whether a file is a volume of this group.
    pub(super) fn has(&self, file: &File) -> bool {
        number(file).and_then(Group::of).is_some_and(|other| other == *self)
    }
}

/// What device mapper says of a device.
fn mapper(number: u64, what: &str) -> Option<String> {
    let path = format!("/sys/dev/block/{}:{}/dm/{what}", major(number), minor(number));
    Some(std::fs::read_to_string(path).ok()?.trim_end().to_string())
}

fn number(file: &File) -> Option<u64> {
    let meta = file.metadata().ok()?;
    meta.file_type().is_block_device().then(|| meta.rdev())
}

/// Whether a file is a device of the same driver, and the driver one of those whose devices belong
/// together.
pub(super) fn same_driver(child: u64, file: &File) -> bool {
    number(file)
        .is_some_and(|parent| major(parent) == major(child) && DRIVERS.contains(&major(parent)))
}

/// All names of a file or device that the owner's list may mean.
pub(super) fn names(file: &File, real: &Path) -> Vec<PathBuf> {
    let mut out = vec![real.to_path_buf()];
    let Some(name) = number(file).and_then(|number| mapper(number, "name")) else { return out };
    out.push(Path::new("/dev/mapper").join(&name));
    out.extend(volume(&name).map(|(group, volume)| Path::new("/dev").join(group).join(volume)));
    out
}

/// Group and volume of a name of device mapper, where each `-` of theirs is doubled.
fn volume(name: &str) -> Option<(String, String)> {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let here = bytes.get(at) == Some(&b'-');
        match (here, bytes.get(at + 1)) {
            (true, Some(b'-')) => at += 2,
            (true, _) => {
                let (group, volume) = (name.get(..at)?, name.get(at + 1..)?);
                return Some((group.replace("--", "-"), volume.replace("--", "-")));
            }
            (false, _) => at += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_belongs_to_the_group_of_its_id() {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let group = |id: &str| Group::in_id(id);
        assert_eq!(group(&format!("LVM-{a}{b}")), group(&format!("LVM-{a}{a}")));
        assert_ne!(group(&format!("LVM-{a}{b}")), group(&format!("LVM-{b}{b}")));
        for other in ["", "LVM-", "CRYPT-LUKS2-x", "mpath-3600", &format!("LVM-{}", &a[1..])] {
            assert_eq!(group(other), None, "{other}");
        }
        assert_eq!(Group::of(rustix::fs::makedev(0, 0)), None, "no device at all");
    }

    #[test]
    fn mapper_names_split_into_group_and_volume() {
        let of = |name: &str| volume(name);
        let pair = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
        assert_eq!(of("VG_XenStorage--1-VHD--2"), pair("VG_XenStorage-1", "VHD-2"));
        assert_eq!(of("vg-lv"), pair("vg", "lv"));
        assert_eq!(of("mpatha"), None);
        assert_eq!(of("a--b"), None);
    }
}
