//! Places to put images that only root can make: small file systems, block devices.
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::run;
use crate::sys;
use crate::tools::tool;

/// Whether this is root; if not, says aloud what is left out.
pub fn root(what: &str) -> bool {
    let root = sys::is_root();
    if !root {
        eprintln!("SKIPPED: needs root: {what}");
    }
    root
}

/// A file system in memory of a few MiB, unmounted when dropped.
pub struct SmallFileSystem {
    path: PathBuf,
}

impl SmallFileSystem {
    /// Mounts one of `bytes` bytes on a new folder. As root.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[track_caller]
    pub fn mount(folder: &Path, bytes: u64) -> SmallFileSystem {
        std::fs::create_dir(folder).expect("a mount point");
        let size = format!("size={bytes},mode=755");
        let mut mount = Command::new(tool("mount"));
        run(mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(folder), b"").ok();
        SmallFileSystem { path: folder.to_owned() }
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        // A daemon that a failed test left may still be there.
        let _ = run(Command::new(tool("umount")).arg("-l").arg(&self.path), b"");
    }
}

/// A block device over a file, given back when dropped.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// One over `file` with sectors of `sector` bytes. As root.
    ///
    /// # Panics
    /// If there is none to be had.
    #[track_caller]
    pub fn over(file: &Path, sector: u32) -> LoopDevice {
        let mut losetup = Command::new(tool("losetup"));
        losetup.args(["-f", "--show", "-b", &sector.to_string()]).arg(file);
        let made = run(&mut losetup, b"").ok();
        LoopDevice { path: made.out.trim_end().into() }
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its device node as text.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = run(Command::new(tool("losetup")).arg("-d").arg(&self.path), b"");
    }
}
