//! What a dead tapdisk leaves: its files in shared memory, which statistics go on reading as those
//! of a disk, and its sockets. They go with the next `create`, `destroy` or `free`
//! (docs/security.md).
//!
//! ```text
//!   /dev/shm/td3-<pid>/ …               with the folders vbd3-<domid>-<devid> of the devices in it
//!   /dev/shm/metrics/tap-<pid>-<minor>
//!   <run dir>/ctl<pid>, nbdclient<pid>, nbd<pid>.<minor> …
//! ```
//! What stays: markers and records of block devices, which `free` and `recover` are for. A number
//! may be another process's by now, or a live tapdisk's in another pid namespace. So two things
//! must hold: no process of that number is a tapdisk, and nobody holds what is to go: a tapdisk
//! locks its folder, and somebody listens at a live socket.

use crate::own_dir::{OwnDir, SHM};
use crate::paths::RunDir;
use crate::sys::{self, Lock};
use std::cell::{LazyCell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Name of the folder of a process in shared memory.
pub const FOLDER: &str = "td3-";
/// Name of the folder of a guest's device there.
pub const DEVICE: &str = "vbd3-";
/// The folder with a page a disk.
pub const METRICS: &str = "metrics";
/// Stems of sockets: `<stem><pid>` or `<stem><pid>.<minor>`; one that is another's beginning comes
/// after it.
const SOCKETS: [&str; 6] = ["ctl", "nbdclient", "nbdserver-new", "nbdserver", "nbd-old", "nbd"];

/// Takes away what dead tapdisks of this user have left. What cannot be taken away stays: the
/// command that asks has something else to do.
pub fn sweep(run: &RunDir) {
    let lives = asked_once(is_tapdisk);
    sweep_sockets(run, &lives);
    if let Ok(shm) = OwnDir::of_host(Path::new(SHM)) {
        sweep_shm(&shm, &lives);
    }
}

/// The same, remembered: a tapdisk has six sockets, a folder and a page, and asking the kernel for
/// each of them took most of the time of a `create` beside a hundred disks.
fn asked_once(lives: impl Fn(i32) -> bool) -> impl Fn(i32) -> bool {
    let known = RefCell::new(BTreeMap::new());
    move |pid| *known.borrow_mut().entry(pid).or_insert_with(|| lives(pid))
}

/// Whether a process of that number runs that is a tapdisk. One that has ended and that nobody has
/// waited for is still to be seen.
fn is_tapdisk(pid: i32) -> bool {
    // The beginning is enough, and one read of a file whose length nobody knows.
    let mut state = [0; 64];
    let read = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut state));
    read.is_ok_and(|bytes| runs_tapdisk(&String::from_utf8_lossy(&state[..bytes])))
}

/// `4711 (tapdisk) S …`
fn runs_tapdisk(state: &str) -> bool {
    let state = state.split_once(" (tapdisk) ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

fn sweep_shm(shm: &OwnDir, lives: impl Fn(i32) -> bool) {
    let names = shm.names().unwrap_or_default();
    let pids = names.iter().filter_map(|name| name.strip_prefix(FOLDER)?.parse().ok());
    let (alive, dead): (Vec<i32>, Vec<i32>) = pids.partition(|pid| lives(*pid));
    for pid in dead {
        let _ = remove_folder(shm, pid, &alive);
    }
    let Ok(metrics) = shm.enter(METRICS) else { return };
    for name in metrics.names().unwrap_or_default() {
        // Of one whose folder is still there somebody holds it.
        let of = pid_of_page(&name).filter(|pid| !lives(*pid));
        if of.is_some_and(|pid| !shm.has(&format!("{FOLDER}{pid}"))) {
            let _ = metrics.remove(&name);
        }
    }
}

fn remove_folder(shm: &OwnDir, pid: i32, alive: &[i32]) -> io::Result<()> {
    let name = format!("{FOLDER}{pid}");
    let folder = shm.enter(&name)?;
    sys::flock(folder.file(), Lock::Try)?;
    for device in folder.names()?.iter().filter_map(|name| name.strip_prefix("vbd-")) {
        // Another tapdisk may have the device by now, and its folder with it.
        let entry = format!("vbd-{device}");
        let taken = alive
            .iter()
            .any(|pid| shm.enter(&format!("{FOLDER}{pid}")).is_ok_and(|theirs| theirs.has(&entry)));
        let device = format!("{DEVICE}{device}");
        if let (false, Ok(place)) = (taken, shm.enter(&device)) {
            place.empty();
            let _ = shm.remove_folder(&device);
        }
    }
    folder.empty();
    shm.remove_folder(&name)
}

/// The process in `tap-<pid>-<minor>`.
fn pid_of_page(name: &str) -> Option<i32> {
    let (pid, minor) = name.strip_prefix("tap-")?.split_once('-')?;
    minor.parse::<u16>().ok()?;
    pid.parse().ok()
}

fn sweep_sockets(run: &RunDir, lives: impl Fn(i32) -> bool) {
    // Looked at only where a tapdisk is dead.
    let bound = LazyCell::new(|| std::fs::read("/proc/net/unix").unwrap_or_default());
    for entry in std::fs::read_dir(run.path()).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(pid_of_socket) else { continue };
        if !lives(pid) && is_dead_socket(&entry.path(), &bound) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn pid_of_socket(name: &str) -> Option<i32> {
    let rest = SOCKETS.iter().find_map(|stem| name.strip_prefix(stem))?;
    let (pid, minor) = rest.split_once('.').unwrap_or((rest, "0"));
    minor.parse::<u16>().ok()?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

/// A socket of ours that nobody listens at. Those that are bound in this network namespace are in a
/// list of the kernel's; the others are asked, which somebody who listens elsewhere may notice.
fn is_dead_socket(path: &Path, bound: &[u8]) -> bool {
    let ours = |meta: std::fs::Metadata| meta.file_type().is_socket() && meta.uid() == sys::euid();
    let name = path.as_os_str().as_bytes();
    let is_bound = bound.split(|byte| *byte == b'\n').any(|line| line.ends_with(name));
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    std::fs::symlink_metadata(path).is_ok_and(ours)
        && !is_bound
        && UnixStream::connect(path).is_err_and(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    const DEAD: i32 = 11;
    const ALIVE: i32 = 12;

    #[test]
    fn whether_a_process_is_a_tapdisk_is_asked_once() {
        let asked = RefCell::new(Vec::new());
        let known = asked_once(|pid| {
            asked.borrow_mut().push(pid);
            lives(pid)
        });
        let answers = [DEAD, ALIVE, ALIVE, DEAD, ALIVE].map(&known);
        assert_eq!(answers, [false, true, true, false, true]);
        drop(known);
        assert_eq!(asked.into_inner(), [DEAD, ALIVE]);
    }

    fn lives(pid: i32) -> bool {
        pid == ALIVE
    }

    fn file(dir: &Path, name: &str) {
        sys::settle_umask();
        fs::create_dir_all(dir.join(name).parent().expect("a folder")).expect("made");
        fs::write(dir.join(name), "x").expect("written");
    }

    fn tree(dir: &Path) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).expect("read").flatten() {
            let name = entry.file_name().into_string().expect("text");
            if entry.file_type().expect("type").is_dir() {
                names.extend(tree(&entry.path()).iter().map(|inner| format!("{name}/{inner}")));
            }
            names.push(name);
        }
        names.sort();
        names
    }

    #[test]
    fn a_dead_ones_files_go_and_a_live_ones_stay() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["td3-11/vdi-0", "td3-11/vbd-1-2", "td3-11/vbd-3-4", "vbd3-1-2/io_ring"] {
            file(dir.path(), name);
        }
        let kept = ["metrics/tap-12-1", "td3-12/vbd-3-4", "td3-x/y", "vbd3-3-4/io_ring"];
        kept.iter().for_each(|name| file(dir.path(), name));
        file(dir.path(), "metrics/tap-11-0");
        sweep_shm(&OwnDir::of_host(dir.path()).expect("opens"), lives);
        let files = |name: &String| name.contains('/');
        assert_eq!(tree(dir.path()).into_iter().filter(files).collect::<Vec<_>>(), kept);
        assert!(!dir.path().join("td3-11").exists() && !dir.path().join("vbd3-1-2").exists());
    }

    #[test]
    fn what_somebody_holds_stays_though_its_number_is_nobodys() {
        let dir = tempfile::tempdir().expect("temporary directory");
        file(dir.path(), "td3-11/vdi-0");
        file(dir.path(), "metrics/tap-11-0");
        let shm = OwnDir::of_host(dir.path()).expect("opens");
        let held = shm.enter("td3-11").expect("ours");
        sys::flock(held.file(), Lock::Try).expect("free");
        let before = tree(dir.path());
        sweep_shm(&shm, lives);
        assert_eq!(tree(dir.path()), before);
        drop(held);
        sweep_shm(&shm, lives);
        assert_eq!(tree(dir.path()), ["metrics"]);
    }

    #[test]
    fn a_strangers_name_leads_nowhere() {
        let dir = tempfile::tempdir().expect("temporary directory");
        file(dir.path(), "theirs/precious");
        symlink("theirs", dir.path().join(format!("td3-{DEAD}"))).expect("symlink");
        symlink("theirs", dir.path().join("metrics")).expect("symlink");
        let before = tree(dir.path());
        sweep_shm(&OwnDir::of_host(dir.path()).expect("opens"), lives);
        assert_eq!(tree(dir.path()), before);
    }

    #[test]
    fn dead_sockets_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = |name: &str| UnixListener::bind(dir.path().join(name)).expect("bind");
        // No process has a number above the kernel's limit of 4194304.
        for stem in SOCKETS {
            drop(socket(&format!("{stem}9999999")));
            drop(socket(&format!("{stem}9999999.3")));
        }
        let _live = socket("nbd9999998.0");
        drop(socket("other9999999"));
        for name in ["device3", "tapdisk/tapdisk-3", "ctl9999997"] {
            file(dir.path(), name);
        }
        sweep_sockets(&RunDir::at(dir.path()), is_tapdisk);
        let kept = [
            "ctl9999997",
            "device3",
            "nbd9999998.0",
            "other9999999",
            "tapdisk",
            "tapdisk/tapdisk-3",
        ];
        assert_eq!(tree(dir.path()), kept);
    }

    #[test]
    fn a_running_process_of_another_name_is_no_tapdisk() {
        assert!(!is_tapdisk(i32::try_from(std::process::id()).expect("a pid")));
        assert!(!is_tapdisk(9_999_999));
        assert!(runs_tapdisk("4711 (tapdisk) S 1 4711") && runs_tapdisk("4711 (tapdisk) D 1"));
        assert!(!runs_tapdisk("4711 (tapdisk) Z 1") && !runs_tapdisk("4711 (tap) S 1"));
    }
}
