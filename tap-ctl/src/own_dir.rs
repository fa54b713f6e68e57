//! Folders of ours in places where anybody may make names, above all `/dev/shm` (docs/security.md).
//!
//! A folder is opened once, without following a symbolic link, and is ours or refused; from then on
//! its files are named through its descriptor alone. So nobody leads us elsewhere, whatever he does
//! to the names on the way.

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, renameat, statat, unlinkat};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sys;

/// Where shared memory has names.
pub const SHM: &str = "/dev/shm";

/// What every folder is opened with.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// A folder.
#[derive(Debug)]
pub struct OwnDir {
    file: File,
    path: PathBuf,
}

impl OwnDir {
    /// A folder that the host has, such as `/dev/shm`: its owner is not looked at.
    ///
    /// # Errors
    /// Those of open.
    pub fn of_host(path: &Path) -> io::Result<OwnDir> {
        // It may be a symbolic link, as /dev/shm was once.
        let fd = open(path, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty())?;
        Ok(OwnDir { file: File::from(fd), path: path.to_owned() })
    }

    /// A folder in this one, which is made if it is not there.
    ///
    /// # Errors
    /// Those of mkdir and open; EEXIST, with a sentence, for something that is not ours.
    pub fn make(&self, name: &str, mode: u32) -> io::Result<OwnDir> {
        match mkdirat(self, name, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        self.enter(name)
    }

    /// A folder in this one that is there.
    ///
    /// # Errors
    /// As of [`OwnDir::make`].
    pub fn enter(&self, name: &str) -> io::Result<OwnDir> {
        let path = self.path.join(name);
        let fd = match openat(self, name, FOLDER, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
                return Err(refused(&path, "is no folder"));
            }
            Err(error) => return Err(error.into()),
        };
        let dir = OwnDir { file: File::from(fd), path };
        let meta = dir.file.metadata()?;
        if meta.uid() != sys::euid() {
            return Err(refused(&dir.path, &format!("belongs to user {}", meta.uid())));
        }
        match meta.mode() & 0o7777 {
            mode if mode & 0o022 != 0 => {
                Err(refused(&dir.path, &format!("can be written by others (mode {mode:04o})")))
            }
            _ => Ok(dir),
        }
    }

    /// A new file for us alone; what had that name goes.
    ///
    /// # Errors
    /// Those of open and unlink.
    pub fn fresh(&self, name: &str) -> io::Result<File> {
        let how = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(self, name, how, Mode::RUSR | Mode::WUSR).map(File::from);
        match create() {
            Err(rustix::io::Errno::EXIST) => {
                unlinkat(self, name, AtFlags::empty())?;
                Ok(create()?)
            }
            made => Ok(made?),
        }
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// Those of unlink.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(self, name, AtFlags::empty())?)
    }

    /// Takes an empty folder away.
    ///
    /// # Errors
    /// Those of rmdir.
    pub fn remove_folder(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(self, name, AtFlags::REMOVEDIR)?)
    }

    /// Takes all files away. What cannot be taken away stays.
    pub fn empty(&self) {
        for name in self.names().unwrap_or_default() {
            let _ = self.remove(&name);
        }
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// Those of rename.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(self, from, self, to)?)
    }

    /// Whether it has something of that name; a symbolic link counts as one.
    pub fn has(&self, name: &str) -> bool {
        statat(self, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// What it has; names that are no text are nothing of ours.
    ///
    /// # Errors
    /// Those of reading a folder.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self)? {
            let name = entry?.file_name().to_owned();
            names.extend(name.into_string().ok().filter(|name| name != "." && name != ".."));
        }
        Ok(names)
    }

    /// Where it was found; for sentences.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor, for a lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The same folder once more.
    ///
    /// # Errors
    /// EMFILE.
    pub fn again(&self) -> io::Result<OwnDir> {
        Ok(OwnDir {
            file: File::from(OwnedFd::from(self.file.try_clone()?)),
            path: self.path.clone(),
        })
    }
}

impl AsFd for OwnDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn refused(path: &Path, why: &str) -> io::Error {
    let text = format!("{} is not ours: it {why}; remove it", show::path(path));
    io::Error::new(io::ErrorKind::AlreadyExists, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn place() -> (tempfile::TempDir, OwnDir) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let shm = OwnDir::of_host(dir.path()).expect("opens");
        (dir, shm)
    }

    #[test]
    fn files_stay_in_the_folder_that_was_opened() {
        let (dir, shm) = place();
        let ours = shm.make("td3-1", 0o700).expect("made");
        let meta = fs::metadata(dir.path().join("td3-1")).expect("there");
        assert_eq!(meta.mode() & 0o7777, 0o700);
        drop(ours.fresh("vdi-0").expect("made"));
        // Somebody moves the name away and puts his own there, which only a folder without sticky
        // bit allows.
        fs::rename(dir.path().join("td3-1"), dir.path().join("moved")).expect("moved");
        fs::create_dir(dir.path().join("theirs")).expect("made");
        fs::write(dir.path().join("theirs/vdi-0"), "theirs").expect("written");
        symlink("theirs", dir.path().join("td3-1")).expect("symlink");
        drop(ours.fresh("vdi-0").expect("made anew"));
        drop(ours.fresh("vdi-1").expect("made"));
        ours.rename("vdi-1", "vdi-2").expect("renamed");
        ours.remove("vdi-0").expect("removed");
        assert_eq!((ours.names().expect("read"), ours.has("vdi-2")), (vec!["vdi-2".into()], true));
        ours.empty();
        assert_eq!(fs::read(dir.path().join("theirs/vdi-0")).expect("there"), b"theirs");
        assert_eq!(fs::read_dir(dir.path().join("theirs")).expect("read").count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("moved")).expect("read").count(), 0);
    }

    #[test]
    fn what_is_not_ours_is_refused_with_a_sentence() {
        let (dir, shm) = place();
        let says = |name: &str| {
            let error = shm.make(name, 0o700).expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            error.to_string()
        };
        fs::create_dir(dir.path().join("place")).expect("made");
        symlink("place", dir.path().join("link")).expect("symlink");
        symlink("nowhere", dir.path().join("dangling")).expect("symlink");
        fs::write(dir.path().join("file"), "").expect("written");
        for name in ["link", "dangling", "file"] {
            assert!(
                says(name).ends_with(&format!("{name} is not ours: it is no folder; remove it"))
            );
        }
        let path = dir.path().join("place");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o1777)).expect("chmod");
        assert!(says("place").contains("can be written by others (mode 1777)"));
        if sys::euid() != 0 {
            return sys::skip("only root can make things of another user");
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).expect("chmod");
        chown(&path, Some(65534), None).expect("chown");
        assert!(says("place").contains("belongs to user 65534"));
    }

    #[test]
    fn a_link_in_the_place_of_a_file_goes_and_leads_nowhere() {
        let (dir, shm) = place();
        fs::write(dir.path().join("trap"), "trap").expect("written");
        symlink("trap", dir.path().join("vdi-0")).expect("symlink");
        let mode = shm.fresh("vdi-0").expect("made").metadata().expect("metadata").mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read(dir.path().join("trap")).expect("there"), b"trap");
    }
}
