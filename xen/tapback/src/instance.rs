//! One tapback for a type of backends: two would fight over every disk.

use libc::O_NOFOLLOW;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use tap_ctl::paths::RunDir;
use tap_ctl::sys::{Lock, flock};

/// The right to serve, for as long as this lives.
#[derive(Debug)]
pub struct Instance {
    _lock: File,
    pidfile: Option<PathBuf>,
}

impl Instance {
    /// Take it. `only`: for one domain.
    ///
    /// # Errors
    /// A sentence: another one has it, or a file cannot be made.
    pub fn take(run: &RunDir, name: &str, only: Option<u32>) -> Result<Instance, String> {
        run.create(0o755).map_err(|error| error.to_string())?;
        let suffix = only.map_or(String::new(), |domid| format!("-{domid}"));
        let path = run.path().join(format!("tapback-{name}{suffix}.lock"));
        let failed = |what: &str, error| format!("cannot {what} {}: {error}", show::path(&path));
        let mut options = File::options();
        let options = options.create(true).truncate(false).write(true);
        let lock = options.open(&path).map_err(|error| failed("make", error))?;
        match flock(&lock, Lock::Try) {
            Ok(()) => Ok(Instance { _lock: lock, pidfile: None }),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(format!(
                "another tapback serves {name} already: it holds {}",
                show::path(&path)
            )),
            Err(error) => Err(failed("lock", error)),
        }
    }

    /// Say who has it, until it is given up.
    ///
    /// # Errors
    /// A sentence: the file cannot be written.
    pub fn write_pid(&mut self, path: &Path) -> Result<(), String> {
        let failed = |error| format!("cannot write the pid to {}: {error}", show::path(path));
        let mut how = File::options();
        // Not through somebody's symbolic link.
        how.write(true).create(true).truncate(true).mode(0o644).custom_flags(O_NOFOLLOW);
        let mut file = how.open(path).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        self.pidfile = Some(path.to_owned());
        Ok(())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(path) = &self.pidfile {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_for_a_name_and_domain() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = RunDir::at(dir.path());
        let first = Instance::take(&run, "vbd3", None).expect("free");
        let error = Instance::take(&run, "vbd3", None).expect_err("taken");
        assert!(error.starts_with("another tapback serves vbd3 already"), "{error}");
        Instance::take(&run, "vbd9", None).expect("another name");
        Instance::take(&run, "vbd3", Some(5)).expect("one domain");
        drop(first);
        Instance::take(&run, "vbd3", None).expect("free again");
    }

    #[test]
    fn the_pid_file_goes_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tapback.pid");
        let mut one = Instance::take(&RunDir::at(dir.path()), "vbd3", None).expect("free");
        one.write_pid(&path).expect("written");
        let text = std::fs::read_to_string(&path).expect("there");
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(one);
        assert!(!path.exists());
    }
}
