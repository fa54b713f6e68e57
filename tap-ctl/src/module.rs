//! The kernel module blktap2, where there is one (`history.md` §2, §3): it hands out minors, a ring
//! device and a block device for each.
//!
//! ```text
//!   /proc/misc                        has "blktap/control"           Module::find
//!   /dev/xen/blktap-2/control         ALLOC_TAP, FREE_TAP            allocate, free
//!   /dev/xen/blktap-2/blktap<minor>   the ring, for tapdisk          ring
//!   /dev/xen/blktap-2/tapdev<minor>   the block device               tapdev
//!   /sys/class/blktap2/blktap!blktap<minor>/task    who has the ring pid
//! ```
//! The module is root's: minors of another run-time directory than root's are markers, as where
//! there is no module, and so are those that were allocated before it was loaded.

use crate::error::{Error, strerror};
use crate::paths::{ROOT_RUN_DIR, RunDir, make_dir};
use crate::sys::{self, Lock, Node};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Word of `/proc/misc` and name of the misc device.
const CONTROL: &str = "blktap/control";
/// Major number of misc devices.
const MISC_MAJOR: u32 = 10;
const ALLOC_TAP: u32 = 200;
const FREE_TAP: u32 = 201;
/// Minors that are skipped at most because they are in use as markers.
const SKIPPED_MAX: usize = 64;

/// The module and its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    class: PathBuf,
    dev: PathBuf,
    /// Minor of the control device.
    control: u32,
}

/// A minor that the module has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The minor.
    pub minor: u16,
    /// Its block device.
    pub device: PathBuf,
}

/// The minor of the control device in `/proc/misc`.
pub fn control_minor(misc: &str) -> Option<u32> {
    misc.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let minor = words.next()?;
        (words.next() == Some(CONTROL)).then(|| minor.parse().ok())?
    })
}

impl Module {
    /// The module, if the running kernel has it and the directory is root's.
    pub fn find(run: &RunDir) -> Option<Module> {
        let misc = fs::read_to_string("/proc/misc").ok()?;
        let ours = run.path() == Path::new(ROOT_RUN_DIR);
        Module::of(&misc, "/sys/class/blktap2".into(), "/dev/xen/blktap-2".into()).filter(|_| ours)
    }

    fn of(misc: &str, class: PathBuf, dev: PathBuf) -> Option<Module> {
        Some(Module { class, dev, control: control_minor(misc)? })
    }

    /// All minors that are allocated, in byte order of their names.
    pub fn minors(&self) -> Vec<i32> {
        let entries = fs::read_dir(&self.class).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names.iter().filter_map(|name| minor_of(name)).collect()
    }

    /// Whether a minor is allocated by the module.
    pub fn has(&self, minor: u16) -> bool {
        self.minors().contains(&minor.into())
    }

    /// The process that has the ring of a minor.
    pub fn pid(&self, minor: u16) -> Option<i32> {
        let names = [format!("blktap!blktap{minor}"), format!("blktap{minor}")];
        let task = |name| fs::read_to_string(self.class.join(name).join("task")).ok();
        names.into_iter().find_map(task)?.trim().parse().ok()
    }

    /// The ring device of a minor.
    pub fn ring(&self, minor: u16) -> PathBuf {
        self.dev.join(format!("blktap{minor}"))
    }

    /// The block device of a minor.
    pub fn tapdev(&self, minor: u16) -> PathBuf {
        self.dev.join(format!("tapdev{minor}"))
    }

    /// Takes a minor and makes its nodes; the block device's is `name`, if given.
    ///
    /// # Errors
    /// No privilege, no minor free, a node that cannot be made; then no minor is taken.
    pub fn allocate(&self, run: &RunDir, name: Option<&Path>) -> Result<Given, Error> {
        let control = self.open_control()?;
        let mut skipped = Vec::new();
        let taken = loop {
            match self.take(&control) {
                // It was allocated as a marker before the module was loaded, and may be attached
                // so.
                Ok(words) if run.marker(words[2]).exists() && skipped.len() < SKIPPED_MAX => {
                    skipped.push(words[2]);
                }
                other => break other,
            }
        };
        for minor in skipped {
            let _ = sys::ioctl_number(&control, FREE_TAP, minor);
        }
        let words = taken?;
        let made = self.make_nodes(words, name);
        if made.is_err() {
            let _ = sys::ioctl_number(&control, FREE_TAP, words[2]);
        }
        made
    }

    /// Gives a minor back, and removes its nodes.
    ///
    /// # Errors
    /// EBUSY while a tapdisk has its ring; ENODEV for one that is not allocated.
    pub fn free(&self, minor: u16) -> Result<(), Error> {
        let control = self.open_control()?;
        match sys::ioctl_number(&control, FREE_TAP, minor.into()) {
            Ok(()) => {
                // Not of use to anybody any more; a name given by `-d` is its giver's to remove.
                let _ = fs::remove_file(self.ring(minor));
                let _ = fs::remove_file(self.tapdev(minor));
                Ok(())
            }
            Err(error) => Err(self.not_freed(minor, &error)),
        }
    }

    fn not_freed(&self, minor: u16, error: &io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let reason = match (errno, self.pid(minor)) {
            (libc::EBUSY, Some(pid)) => {
                format!("tapdisk {pid} has the ring of minor {minor}: close and detach it first")
            }
            (libc::EBUSY, None) => format!("the ring of minor {minor} is in use"),
            _ => format!("the blktap module does not free minor {minor}: {}", strerror(errno)),
        };
        Error::Module { errno, reason }
    }

    fn take(&self, control: &File) -> Result<[u32; 3], Error> {
        sys::ioctl_words(control, ALLOC_TAP).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let reason = match errno {
                libc::ENOMEM => "the blktap module has no minor free, or no memory for one".into(),
                libc::ENOTTY => {
                    "the blktap module does not know ALLOC_TAP: it is of another version".into()
                }
                _ => format!("the blktap module gives no minor: {}", strerror(errno)),
            };
            Error::Module { errno, reason }
        })
    }

    /// Opens the control device, and locks it until it is closed: so nobody removes the nodes of a
    /// minor that another has just got.
    fn open_control(&self) -> Result<File, Error> {
        let path = self.dev.join("control");
        let open = || File::options().read(true).write(true).open(&path);
        let control = open().or_else(|error| match error.raw_os_error() {
            // Not there, or a node that a module left behind that had another number.
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
                make_dir(&self.dev, 0o755).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
                make_node(&path, Node::Char, (MISC_MAJOR, self.control))?;
                open()
            }
            _ => Err(error),
        });
        let control = control.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let why = match errno {
                libc::EACCES | libc::EPERM => {
                    "; minors of the blktap module are root's to allocate"
                }
                _ => "",
            };
            let reason = format!("cannot open {}: {}{why}", show::path(&path), strerror(errno));
            Error::Module { errno, reason }
        })?;
        sys::flock(&control, Lock::Wait).map_err(|error| Error::file("lock", &path, &error))?;
        Ok(control)
    }

    fn make_nodes(&self, words: [u32; 3], name: Option<&Path>) -> Result<Given, Error> {
        let [ring_major, block_major, number] = words;
        let minor = u16::try_from(number).map_err(|_| Error::Module {
            errno: libc::EOVERFLOW,
            reason: format!("the blktap module gave minor {number}, which no message can name"),
        })?;
        let device = name.map_or_else(|| self.tapdev(minor), Path::to_owned);
        let nodes = [
            (self.ring(minor), Node::Char, ring_major),
            (device.clone(), Node::Block, block_major),
        ];
        for (path, node, major) in nodes {
            make_node(&path, node, (major, number))
                .map_err(|error| Error::file("make the node", &path, &error))?;
        }
        Ok(Given { minor, device })
    }
}

/// A node that was there goes first.
fn make_node(path: &Path, node: Node, numbers: (u32, u32)) -> io::Result<()> {
    let _ = fs::remove_file(path);
    sys::mknod(path, node, numbers)
}

/// The minor in a name of the module's class; other modules leave the first word out.
fn minor_of(name: &str) -> Option<i32> {
    let digits = name.strip_prefix("blktap!blktap").or_else(|| name.strip_prefix("blktap"))?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISC: &str = " 58 other\n 57 blktap/control\n";

    #[test]
    fn the_module_is_known_by_its_control_device() {
        assert_eq!(control_minor(MISC), Some(57));
        assert_eq!(control_minor(" 57 blktap/controls\n"), None);
        // The one of the old packages, which nobody's tools find.
        assert_eq!(control_minor(" 57 blktap-control\n"), None);
    }

    #[test]
    fn a_private_directory_has_no_module() {
        assert_eq!(Module::find(&RunDir::at(Path::new("/nowhere"))), None);
    }

    #[test]
    fn minors_are_read_from_the_class() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let module = Module::of(MISC, dir.path().into(), "/dev/nowhere".into()).expect("there");
        for name in ["blktap!blktap10", "blktap!blktap2", "blktap3", "devices", "verbosity"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        assert_eq!(module.minors(), [10, 2, 3]);
        assert!(module.has(3) && !module.has(1));
        fs::write(dir.path().join("blktap!blktap2/task"), "4711\n").expect("written");
        fs::write(dir.path().join("blktap3/task"), "").expect("written");
        assert_eq!((module.pid(2), module.pid(3), module.pid(10)), (Some(4711), None, None));
        assert_eq!(module.tapdev(7), Path::new("/dev/nowhere/tapdev7"));
    }

    #[test]
    fn what_cannot_be_opened_is_said() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        // Below a file there is no directory to be made.
        let module = Module::of(MISC, file.clone(), file.join("dev")).expect("there");
        let run = RunDir::at(dir.path());
        let error = module.allocate(&run, None).expect_err("no directory");
        assert!(error.to_string().contains("cannot open"), "{error}");
        assert_eq!(error.errno(), libc::ENOTDIR);
    }
}
