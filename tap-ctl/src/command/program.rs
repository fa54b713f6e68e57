//! Which program a tapdisk runs: after an update of the package the disks go on with the old one.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The program of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Where it was started from.
    pub path: PathBuf,
    /// Another file is there now, or none.
    pub replaced: bool,
}

impl Program {
    /// That of `pid`; `None` if the process is gone or another user's.
    pub fn of(pid: i32) -> Option<Program> {
        let exe = PathBuf::from(format!("/proc/{pid}/exe"));
        let running = fs::metadata(&exe).ok()?;
        let path = without_suffix(fs::read_link(&exe).ok()?);
        let there = fs::metadata(&path).ok();
        let same = |now: fs::Metadata| (now.dev(), now.ino()) == (running.dev(), running.ino());
        Some(Program { path, replaced: !there.is_some_and(same) })
    }
}

/// The kernel marks a file without a name.
fn without_suffix(path: PathBuf) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    let kept = bytes.strip_suffix(b" (deleted)").map(<[u8]>::to_vec);
    kept.map_or(path, |bytes| std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_replaced_program_is_told_from_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap().join("a program");
        // By a process of its own: a file that this one had open for writing might be open in a
        // child of another test, and could not be run.
        let copy = |to: &PathBuf| {
            let sleep = fs::canonicalize("/bin/sleep").unwrap();
            assert!(Command::new("cp").arg(sleep).arg(to).status().unwrap().success());
        };
        copy(&path);
        let sleeper = Sleeper(Command::new(&path).arg("60").spawn().unwrap());
        let pid = sleeper.0.id().cast_signed();
        let of = |replaced| Some(Program { path: path.clone(), replaced });
        assert_eq!(Program::of(pid), of(false));
        let new = dir.path().join("new");
        copy(&new);
        fs::rename(new, &path).unwrap();
        assert_eq!(Program::of(pid), of(true));
        fs::remove_file(&path).unwrap();
        assert_eq!(Program::of(pid), of(true));
        drop(sleeper);
        assert_eq!(Program::of(pid), None);
    }
}
