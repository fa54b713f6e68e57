//! What the tests of all crates share, below all of them: it depends on nothing of the workspace,
//! and no program depends on it.
//!
//! ```text
//!   program!, programs ─► the programs under test     run, Folder ─► what one of them did
//!   sys, until ─────────► processes, waiting          nbd ─────────► a disk that is served
//!   files, places ──────► images                      tools ───────► other people's programs
//!   rng ────────────────► chance, from a seed
//! ```
//! The rigs stand on it: `tests::rig` drives the daemon through tap-ctl, the daemon's own tests
//! through its control socket, tapback's through a xenstore. Nothing here sleeps: processes are
//! waited for through their descriptors, everything else through replies. Every wait has a
//! deadline, after which the test fails.
pub mod files;
mod folder;
pub mod nbd;
pub mod places;
mod programs;
pub mod rng;
mod run;
pub mod sys;
mod tools;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub use folder::Folder;
pub use programs::{Programs, program_at, programs};
pub use run::{Outcome, on_terminal, run};
pub use tools::{nbdinfo, qemu_img, qemu_io, qemu_io_fails, tool};

/// What nothing is waited for longer than, unless it says so.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Gives a command the surroundings of a test's daemon: a run directory and a folder for logs of
/// its own, and an end at the first system call that is missing on its list.
pub fn surround(command: &mut Command, run: &Path, logs: &Path) {
    command.env("TAPDISK_RUN_DIR", run).env("TAPDISK_LOG_DIR", logs);
    command.env("TAPDISK_SANDBOX", "kill");
    command.env_remove("TAP_CTL_VERBOSE").env("LC_ALL", "C");
}

/// Says aloud that a test cannot run here.
///
/// # Panics
/// Where nothing may be skipped.
#[track_caller]
pub fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
    assert!(std::env::var_os("TAPDISK_TESTS_SKIP_NOTHING").is_none(), "{why}");
}

/// Asks again and again, without a fixed number of times, until it is so.
///
/// # Panics
/// If it does not become so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}
