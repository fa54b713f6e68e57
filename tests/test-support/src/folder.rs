//! A folder to work in, and a command line tool that is run there.
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A new folder, gone with this, and the tool.
pub struct Folder {
    folder: TempDir,
    program: PathBuf,
}

impl Folder {
    /// An empty one, for `program`.
    ///
    /// # Panics
    /// If none can be made.
    pub fn of(program: PathBuf) -> Folder {
        Folder { folder: tempfile::tempdir().expect("a folder in TMPDIR"), program }
    }

    /// Its path, without links.
    ///
    /// # Panics
    /// If it is gone.
    pub fn path(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("the folder is there")
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The tool.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The tool with the words of a line, in the folder.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(line.split_whitespace()).current_dir(self.folder.path());
        command
    }

    /// Exit code, standard output as bytes, standard error.
    ///
    /// # Panics
    /// If a signal ends it, or it does not speak UTF-8.
    #[track_caller]
    pub fn bytes(&self, line: &str) -> (i32, Vec<u8>, String) {
        let out = self.command(line).output().expect("the tool starts");
        let code = out.status.code().unwrap_or_else(|| panic!("{line}: {}", out.status));
        (code, out.stdout, String::from_utf8(out.stderr).expect("UTF-8"))
    }

    /// Exit code, standard output and standard error.
    #[track_caller]
    pub fn run(&self, line: &str) -> (i32, String, String) {
        let (code, out, err) = self.bytes(line);
        (code, String::from_utf8_lossy(&out).into_owned(), err)
    }

    /// Standard output of a command that must succeed and say nothing else.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let (code, out, err) = self.run(line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    }

    /// Standard error of a command that must fail with this code and print no result.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn fails(&self, code: i32, line: &str) -> String {
        let (found, out, err) = self.run(line);
        assert_eq!((found, out.as_str()), (code, ""), "{line}: {err}");
        err
    }

    /// Exit code and the one JSON object on standard output.
    ///
    /// # Panics
    /// If there is another output.
    #[track_caller]
    pub fn json(&self, line: &str) -> (i32, serde_json::Value) {
        let (code, out, err) = self.run(line);
        let object =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{line}: {e}: {out}{err}"));
        (code, object)
    }

    /// Overwrites a part of a file.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn poke(&self, name: &str, at: u64, bytes: &[u8]) {
        crate::files::poke(&self.file(name), at, bytes);
    }

    /// Writes the contents of a file.
    ///
    /// # Panics
    /// If it cannot be written.
    #[track_caller]
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).expect("a file to write");
    }

    /// The contents of a file.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}
