//! How idle the host is, for adaptive polling: read from a file that all tapdisks of the host
//! share, which whoever finds it old renews. No daemon is needed for it.
//!
//! ```text
//!   /dev/shm/cpu_util_monitor ─► fresh ─────────────────────► its percent
//!                             ├► of cpumond, and it changes ─► its percent
//!                             └► old, of nobody, foreign ───► /proc/stat, written there
//! ```
//! The file is the one that the original's cpumond keeps for its tapdisks (spec/operations.md §6):
//! two f32, busy and idle, in percent of the last second. Ours is longer by what the next one who
//! measures needs, so that an original tapdisk beside ours polls as well. `/proc/uptime` would be
//! cheaper to read, but before Linux 5.15 it does not know of CPUs that sleep without ticks;
//! `/proc/stat` costs some 0.1 ms on hosts with many event channels, once a second and host.
//!
//! Files are read, not mapped: one that is cut short under a mapping would kill the process.
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The original's shared memory object `/cpu_util_monitor`.
const SHARED: &str = "/dev/shm/cpu_util_monitor";
const STAT: &str = "/proc/stat";
const MAGIC: [u8; 8] = *b"tdidle01";
/// Bytes of cpumond's file, and of ours.
const THEIRS: usize = 8;
const OURS: usize = 40;
/// What is this old is measured anew, in µs. Tapdisks look once a second.
const FRESH_US: u64 = 950_000;
/// A cpumond whose numbers have not changed for so long is dead, in µs.
const CPUMOND_US: u64 = 10_000_000;

/// One process's view.
#[derive(Debug)]
pub struct HostIdle {
    shared: PathBuf,
    stat: PathBuf,
    /// What cpumond's file said, and since when.
    cpumond: Option<([u8; THEIRS], u64)>,
    /// What was measured before, where no file can be had.
    before: Option<Sample>,
}

/// The counters of `/proc/stat` at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    /// CLOCK_MONOTONIC, in µs: the same for all processes.
    at: u64,
    total: u64,
    idle: u64,
}

impl Default for HostIdle {
    fn default() -> HostIdle {
        HostIdle::of(SHARED.into(), STAT.into())
    }
}

impl HostIdle {
    fn of(shared: PathBuf, stat: PathBuf) -> HostIdle {
        HostIdle { shared, stat, cpumond: None, before: None }
    }

    /// In percent of the last second or so; 0 as long as nobody knows. Allocates nothing.
    pub(super) fn percent(&mut self) -> f32 {
        self.percent_at(monotonic())
    }

    fn percent_at(&mut self, now: u64) -> f32 {
        let file = shared(&self.shared);
        match file.as_ref().and_then(contents) {
            Some(Contents::Cpumond(raw)) => match self.cpumond {
                Some((before, since)) if before == raw => {
                    if now.saturating_sub(since) < CPUMOND_US {
                        return idle_of(raw);
                    }
                    self.measure(now, None)
                }
                _ => {
                    self.cpumond = Some((raw, now));
                    idle_of(raw)
                }
            },
            Some(Contents::Ours(last, raw)) if now >= last.at => {
                if now - last.at < FRESH_US {
                    return idle_of(raw);
                }
                self.measure(now, Some((last, idle_of(raw))))
            }
            _ => self.measure(now, None),
        }
    }

    /// Looks at the counters, and leaves them for everybody. `last` is what the file has.
    fn measure(&mut self, now: u64, last: Option<(Sample, f32)>) -> f32 {
        let known = last.map_or(0.0, |(_, percent)| percent);
        let Some(sample) = sample(&self.stat, now) else { return known };
        let before = last.map(|(sample, _)| sample).or(self.before);
        let percent = before.and_then(|before| sample.since(before)).unwrap_or(known);
        self.before = Some(sample);
        let raw = sample.to_bytes(percent);
        let there = last.and_then(|_| File::options().write(true).open(&self.shared).ok());
        // What failed fails again in a second, and costs nothing but the polling of others.
        match there.filter(is_ours) {
            Some(file) => drop(file.write_all_at(&raw, 0)),
            None => drop(self.replace(&raw)),
        }
        percent
    }

    /// Makes the file, in the place of whatever has its name.
    fn replace(&self, raw: &[u8]) -> io::Result<()> {
        let new = self.shared.with_extension(std::process::id().to_string());
        let _ = std::fs::remove_file(&new);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
        let made = options.open(&new).and_then(|file| file.write_all_at(raw, 0));
        let done = made.and_then(|()| std::fs::rename(&new, &self.shared));
        if done.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        done
    }
}

impl Sample {
    /// How idle it was between two moments, in percent.
    fn since(self, before: Sample) -> Option<f32> {
        let total = self.total.checked_sub(before.total).filter(|total| *total > 0)?;
        // Idle time may go back a little (proc(5)).
        let idle = self.idle.saturating_sub(before.idle).min(total);
        Some((idle as f64 / total as f64 * 100.0) as f32)
    }

    fn to_bytes(self, idle: f32) -> [u8; OURS] {
        let mut raw = [0; OURS];
        raw[..4].copy_from_slice(&(100.0 - idle).to_ne_bytes());
        raw[4..8].copy_from_slice(&idle.to_ne_bytes());
        raw[8..16].copy_from_slice(&MAGIC);
        for (at, word) in [(16, self.at), (24, self.total), (32, self.idle)] {
            raw[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        raw
    }
}

enum Contents {
    Cpumond([u8; THEIRS]),
    Ours(Sample, [u8; THEIRS]),
}

fn contents(file: &File) -> Option<Contents> {
    let mut raw = [0; OURS];
    let mut file = file;
    let mut have = 0;
    while have < OURS {
        match file.read(&mut raw[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let percent = *raw.first_chunk::<THEIRS>()?;
    let word = |at: usize| u64::from_ne_bytes(*raw[at..].first_chunk().expect("eight bytes"));
    match have {
        THEIRS => Some(Contents::Cpumond(percent)),
        OURS if raw[8..16] == MAGIC => {
            let sample = Sample { at: word(16), total: word(24), idle: word(32) };
            Some(Contents::Ours(sample, percent))
        }
        _ => None,
    }
}

fn idle_of(raw: [u8; THEIRS]) -> f32 {
    let [.., a, b, c, d] = raw;
    let idle = f32::from_ne_bytes([a, b, c, d]);
    if idle.is_finite() { idle } else { 0.0 }
}

/// Anybody may make that name first: a pipe must not hold us up, and a stranger not have us poll.
fn shared(path: &Path) -> Option<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    is_ours(&file).then_some(file)
}

fn is_ours(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| {
        let ours = meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
        meta.is_file() && ours && meta.mode() & 0o022 == 0
    })
}

/// The first line: `cpu` and ten numbers, of which the fourth is idle (proc(5)).
fn sample(stat: &Path, at: u64) -> Option<Sample> {
    let mut raw = [0; 256];
    let have = File::open(stat).ok()?.read(&mut raw).ok()?;
    let text = raw[..have].split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    if words.next() != Some("cpu") {
        return None;
    }
    let mut counters = [0_u64; 10];
    // Older kernels have fewer.
    for (counter, word) in counters.iter_mut().zip(words) {
        *counter = word.parse().ok()?;
    }
    let total = counters.iter().fold(0, |sum: u64, counter| sum.saturating_add(*counter));
    Some(Sample { at, total, idle: counters[3] })
}

fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const SECOND: u64 = 1_000_000;

    struct Host {
        dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Host {
            // The tests' caller may have left umask 0.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            let host = Host { dir: tempfile::tempdir().unwrap() };
            host.stat(0, 0);
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn process(&self) -> HostIdle {
            HostIdle::of(self.path("cpu_util_monitor"), self.path("stat"))
        }

        /// Ticks that the CPUs were busy and idle since boot.
        fn stat(&self, busy: u64, idle: u64) {
            let text = format!("cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\nintr 5 6 7\n");
            std::fs::write(self.path("stat"), text).unwrap();
        }

        fn cpumond(&self, idle: f32) {
            let raw = [(100.0 - idle).to_ne_bytes(), idle.to_ne_bytes()].concat();
            std::fs::write(self.path("cpu_util_monitor"), raw).unwrap();
        }
    }

    /// Two processes share what one of them measures; an original one can read it.
    #[test]
    fn who_finds_it_old_measures_for_all() {
        let host = Host::new();
        let (mut one, mut other) = (host.process(), host.process());
        assert_eq!(one.percent_at(10 * SECOND), 0.0, "nothing to compare with yet");
        host.stat(50, 150);
        assert_eq!(other.percent_at(10 * SECOND + 500_000), 0.0, "not a second later");
        assert_eq!(other.percent_at(11 * SECOND), 75.0);
        host.stat(1000, 150);
        assert_eq!(one.percent_at(11 * SECOND + 900_000), 75.0, "the other one's");
        let raw = std::fs::read(host.path("cpu_util_monitor")).unwrap();
        assert_eq!(raw[..8], [25_f32.to_ne_bytes(), 75_f32.to_ne_bytes()].concat());
        assert_eq!(one.percent_at(12 * SECOND), 0.0, "busy all the time");
        host.stat(1000, 1150);
        assert_eq!(one.percent_at(13 * SECOND), 100.0);
        let mut late = host.process();
        assert_eq!(late.percent_at(13 * SECOND + 1), 100.0, "who starts knows at once");
        assert_eq!(late.percent_at(15 * SECOND), 100.0, "no tick since: the last known");
        host.stat(900, 900);
        assert_eq!(late.percent_at(17 * SECOND), 100.0, "counters that go back say nothing");
        // A stamp of the future: another boot's, say.
        host.stat(1000, 1000);
        assert_eq!(late.percent_at(3 * SECOND), 50.0);
        assert_eq!(std::fs::read_dir(host.dir.path()).unwrap().count(), 2, "nothing is left");
    }

    #[test]
    fn a_living_cpumond_is_believed_and_a_dead_one_replaced() {
        let host = Host::new();
        let mut one = host.process();
        host.cpumond(75.0);
        assert_eq!(one.percent_at(SECOND), 75.0);
        assert_eq!(one.percent_at(9 * SECOND), 75.0);
        host.cpumond(80.0);
        assert_eq!(one.percent_at(10 * SECOND), 80.0);
        assert_eq!(one.percent_at(19 * SECOND), 80.0);
        host.stat(0, 0);
        assert_eq!(one.percent_at(20 * SECOND), 0.0, "dead: measured from now on");
        host.stat(30, 70);
        assert_eq!(one.percent_at(21 * SECOND), 70.0);
        host.cpumond(f32::NAN);
        assert_eq!(one.percent_at(22 * SECOND), 0.0);
        std::fs::write(host.path("cpu_util_monitor"), [0; 4]).unwrap();
        host.stat(60, 140);
        assert_eq!(one.percent_at(23 * SECOND), 70.0, "no file of anybody: by its own numbers");
    }

    #[test]
    fn a_strangers_file_is_not_read_and_makes_room() {
        let host = Host::new();
        let name = host.path("cpu_util_monitor");
        let is_replaced = |what: &str| {
            assert!(shared(&name).is_none(), "{what}");
            assert_eq!(host.process().percent_at(SECOND), 0.0, "{what}");
            assert!(shared(&name).and_then(|file| contents(&file)).is_some(), "{what}");
            std::fs::remove_file(&name).unwrap();
        };
        host.cpumond(75.0);
        std::fs::rename(&name, host.path("else")).unwrap();
        symlink("else", &name).unwrap();
        is_replaced("a link");
        let made = std::process::Command::new("mkfifo").arg(&name).status().unwrap();
        assert!(made.success());
        is_replaced("a pipe, whose writer nobody waits for");
        host.cpumond(75.0);
        std::fs::set_permissions(&name, PermissionsExt::from_mode(0o666)).unwrap();
        is_replaced("a file for everybody");
        host.cpumond(75.0);
        std::fs::set_permissions(&name, PermissionsExt::from_mode(0o444)).unwrap();
        assert_eq!(host.process().percent_at(SECOND), 75.0, "as cpumond makes it");
        if chown(&name, Some(65534), None).is_ok() {
            is_replaced("somebody else's");
        }
    }

    #[test]
    fn the_kernels_own_file_is_understood() {
        let one = sample(Path::new(STAT), 1).unwrap();
        assert!(one.total > 0 && one.idle <= one.total, "{one:?}");
        assert!(monotonic() > 0);
    }
}
