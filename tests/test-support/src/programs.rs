//! The programs under test, built once for every test of the workspace.
//!
//! `cargo test` of one package does not build the programs of others, so [`programs`] does it; with
//! everything built already that takes a fraction of a second. A crate's own tests need not ask:
//! cargo has built its programs and says where ([`program!`](crate::program)).
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Environment variable: a folder with finished programs; nothing is built then.
const VARIABLE: &str = "TAPDISK_TESTS_BIN";

/// The path of a program of the crate whose test this is: of the folder that `TAPDISK_TESTS_BIN`
/// names, where that is set.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        $crate::program_at($name, env!(concat!("CARGO_BIN_EXE_", $name)))
    };
}

/// A program in the folder that the environment names, or where cargo has built it.
pub fn program_at(name: &str, built: &str) -> PathBuf {
    match std::env::var_os(VARIABLE) {
        Some(folder) => Path::new(&folder).join(name),
        None => built.into(),
    }
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The control program.
    pub tap_ctl: PathBuf,
    /// The daemon.
    pub tapdisk: PathBuf,
    /// The image tool.
    pub vhd_util: PathBuf,
}

/// The programs, built if need be.
///
/// # Panics
/// If they cannot be built.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let folder = match std::env::var_os(VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => build(),
        };
        let program = |name: &str| {
            let path = folder.join(name);
            assert!(path.is_file(), "{} is not there; {VARIABLE} names a folder", path.display());
            path
        };
        Programs {
            tap_ctl: program("tap-ctl"),
            tapdisk: program("tapdisk"),
            vhd_util: program("vhd-util"),
        }
    })
}

/// Builds all programs in the profile of this test; gives their folder.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    // target/<profile>/deps/<test>
    let folder = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned();
    let _lock = lock(&folder);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // The same targets and features as `make check` builds, so that nothing is built twice.
    command.args(["build", "--quiet", "--workspace", "--bins"]);
    command.args(match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => ["--profile", "dev"],
        Some(profile) => ["--profile", profile],
        None => panic!("{} is not a folder of a profile", folder.display()),
    });
    command.arg("--target-dir").arg(folder.parent().expect("a profile lies in a target folder"));
    command.current_dir(workspace());
    let status = command.status().expect("cargo starts");
    assert!(status.success(), "cannot build the programs under test: {command:?}");
    folder
}

/// The root of the workspace: this crate lies two folders below.
fn workspace() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the workspace")
}

/// One build at a time, also over processes.
fn lock(folder: &Path) -> File {
    let file = File::create(folder.join(".rig-lock")).expect("a lock file in the target folder");
    // SAFETY: takes a descriptor, which `file` owns.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
    assert_eq!(locked, 0, "the lock of the target folder");
    file
}
