//! Where the parent of an image may lie.
//!
//! What an image says of its parent was written by whoever made the image, perhaps a stranger: it
//! may name any file of this machine, and a raw parent is shown to the guest byte for byte. So a
//! parent counts only in a place that the owner of this machine has given to images:
//!
//! ```text
//!   child ─► Home ┐
//!                 ├─► permit ─► in the child's directory, its volume group, vouched for, listed
//! parent's fd ──┘              or, known by its id: beside the directory, among SM's repositories
//! ```
//! The parent is judged by what was opened, not by its name; links are followed before.
//! docs/parents.md has the rules with their reasons. Every format asks here.
mod device;
mod list;
mod voucher;

use crate::Node;
use rustix::fs::fstatfs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use device::Group;
pub use list::{LIST, VARIABLE};
pub use voucher::{forget, vouch};

/// Storage repositories of SM: a local cache stands above an image of another repository.
const REPOSITORIES: &str = "/run/sr-mount";

/// File systems whose files are no storage (linux/magic.h): proc, sysfs, cgroup, cgroup2, debugfs,
/// tracefs, securityfs, selinuxfs, configfs, pstore, efivarfs, bpf, binfmt_misc, devpts, nsfs,
/// fusectl, mqueue.
const PSEUDO: [u32; 17] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xf97c_ff8c,
    0x6265_6570,
    0x6165_676c,
    0xde5e_81e4,
    0xcafe_4a11,
    0x4249_4e4d,
    0x1cd1,
    0x6e73_6673,
    0x6573_5543,
    0x1980_0202,
];

/// How a child tells its parent from any other file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// By an id that the parent carries and that fits; whoever asks has compared it, or will.
    ById,
    /// By its path alone: a raw image.
    ByPath,
}

/// Where a child is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// A file in this directory, and the parent that somebody has vouched for.
    Directory(PathBuf, Option<PathBuf>),
    /// A block device of this number.
    Device(u64),
}

/// Why a parent does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no file of a file system for data and no block device.
    NoStorage,
    /// It lies elsewhere. The owner's list has lines that count for nothing, if there are any.
    Elsewhere(Option<String>),
}

impl Home {
    /// Of an open file or device, by where it really is.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn of(child: &File) -> io::Result<Home> {
        let meta = child.metadata()?;
        if meta.file_type().is_block_device() {
            return Ok(Home::Device(meta.rdev()));
        }
        let real = real(child)?;
        let directory = real.parent().unwrap_or(Path::new("/")).to_path_buf();
        Ok(Home::Directory(directory, voucher::of(child)))
    }

    /// Of a file or device that may not be there yet.
    ///
    /// # Errors
    /// Those of the directory.
    pub fn at(child: &Path) -> io::Result<Home> {
        if let Ok(node) = Node::find(child) {
            return Home::of(node.found());
        }
        let dir = child.parent().filter(|dir| !dir.as_os_str().is_empty());
        Ok(Home::Directory(dir.unwrap_or(Path::new(".")).canonicalize()?, None))
    }
}

/// A path that leads to an open file itself.
fn itself(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// The one path of an open file, without links.
fn real(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(itself(file))
}

/// Whether a parent may be where it is.
///
/// ```
/// use image::Node;
/// use image::place::{Home, Known, permit};
///
/// let dir = tempfile::tempdir()?;
/// let child = dir.path().join("leaf.vhd");
/// std::fs::write(&child, "")?;
/// std::fs::write(dir.path().join("base.raw"), "")?;
/// let home = Home::at(&child)?;
/// assert!(permit(&home, &Node::find(&dir.path().join("base.raw"))?, Known::ByPath).is_ok());
/// for elsewhere in ["/etc/passwd", "/proc/self/environ"] {
///     assert!(permit(&home, &Node::find(elsewhere.as_ref())?, Known::ByPath).is_err());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Why it may not.
pub fn permit(home: &Home, parent: &Node, known: Known) -> Result<(), Refusal> {
    let parent = parent.found();
    let real = storage(parent).ok_or(Refusal::NoStorage)?;
    let own = match home {
        Home::Directory(dir, vouched) => {
            inside(dir, &real, parent) || vouched.as_ref() == Some(&real)
        }
        Home::Device(number) => Group::of(*number).is_some_and(|group| group.has(parent)),
    };
    if own || (known == Known::ById && neighbour(home, &real, parent)) {
        return Ok(());
    }
    let list = list::read();
    let names = device::names(parent, &real);
    match names.iter().any(|name| list.has(name)) {
        true => Ok(()),
        false => Err(Refusal::Elsewhere(list.fault)),
    }
}

/// Whether a child that stood here would have to be vouched for, to be opened with this parent.
///
/// # Errors
/// [`Refusal::NoStorage`]: nobody's word makes it a parent.
pub fn needs_voucher(home: &Home, parent: &Node, known: Known) -> Result<bool, Refusal> {
    let unsigned = match home {
        Home::Directory(dir, _) => Home::Directory(dir.clone(), None),
        device @ Home::Device(_) => device.clone(),
    };
    match permit(&unsigned, parent, known) {
        Err(Refusal::NoStorage) => Err(Refusal::NoStorage),
        other => Ok(other.is_err()),
    }
}

/// The real path of a file of a file system for data, or of a block device.
fn storage(file: &File) -> Option<PathBuf> {
    let meta = file.metadata().ok()?;
    let kind = meta.file_type();
    let data = kind.is_file() && !pseudo(file) && !in_devtmpfs(meta.dev());
    (data || kind.is_block_device()).then(|| real(file).ok())?
}

fn pseudo(file: &File) -> bool {
    // The magic numbers have 32 bits; the type that holds them differs between machines.
    fstatfs(file).map_or(true, |s| PSEUDO.contains(&(s.f_type as u32)))
}

/// Whether a file system is the one of the device nodes.
fn in_devtmpfs(device: u64) -> bool {
    std::fs::metadata("/dev").is_ok_and(|dev| dev.dev() == device)
        && std::fs::metadata("/").is_ok_and(|root| root.dev() != device)
}

/// Whether a file lies in a directory or below. The root directory stands for itself alone.
fn inside(dir: &Path, real: &Path, parent: &File) -> bool {
    let device = parent.metadata().is_ok_and(|m| m.file_type().is_block_device());
    let below =
        if dir == Path::new("/") { real.parent() == Some(dir) } else { real.starts_with(dir) };
    below && !device
}

/// Where a parent may be besides if its id is the one that the child means: in the directory that
/// has the child's, in another of SM's repositories, on another device of DRBD or the loop driver.
fn neighbour(home: &Home, real: &Path, parent: &File) -> bool {
    match home {
        Home::Directory(dir, _) => {
            let device = parent.metadata().is_ok_and(|m| m.file_type().is_block_device());
            let above = dir.parent().is_some_and(|above| real.parent() == Some(above));
            let both = dir.starts_with(REPOSITORIES) && real.starts_with(REPOSITORIES);
            !device && (above || both)
        }
        Home::Device(number) => device::same_driver(*number, parent),
    }
}

#[cfg(test)]
mod tests;
