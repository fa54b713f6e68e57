//! A directory to work in, and the command run there.
#![allow(dead_code, unreachable_pub)]
use std::process::Command;

pub struct Dir(pub tempfile::TempDir);

/// The program under test: of the folder that `TAPDISK_TESTS_BIN` names, where that is set.
fn program() -> std::path::PathBuf {
    match std::env::var_os("TAPDISK_TESTS_BIN") {
        Some(folder) => std::path::Path::new(&folder).join("vhd-util"),
        None => env!("CARGO_BIN_EXE_vhd-util").into(),
    }
}

impl Dir {
    pub fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    /// The command, in the directory.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(program());
        command.args(line.split(' ').filter(|w| !w.is_empty())).current_dir(self.0.path());
        command
    }

    /// Exit code, standard output as bytes, standard error.
    pub fn bytes(&self, line: &str) -> (i32, Vec<u8>, String) {
        let out = self.command(line).output().unwrap();
        (out.status.code().unwrap(), out.stdout, String::from_utf8(out.stderr).unwrap())
    }

    pub fn run(&self, line: &str) -> (i32, String, String) {
        let (code, out, err) = self.bytes(line);
        (code, String::from_utf8_lossy(&out).into_owned(), err)
    }

    /// Standard output of a command that must succeed and say nothing else.
    pub fn ok(&self, line: &str) -> String {
        let (code, out, err) = self.run(line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
        out
    }

    pub fn poke(&self, name: &str, at: u64, new: &[u8]) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(self.0.path().join(name)).unwrap();
        file.write_all_at(new, at).unwrap();
    }

    /// Exit code and the one JSON object on standard output.
    pub fn json(&self, line: &str) -> (i32, serde_json::Value) {
        let (code, out, err) = self.run(line);
        let object =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{line}: {e}: {out}{err}"));
        (code, object)
    }

    /// Writes the contents of a file.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
    }

    /// The contents of a file.
    pub fn get(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(name)).unwrap()
    }
}
