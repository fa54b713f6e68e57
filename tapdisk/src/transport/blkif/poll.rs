//! Adaptive polling (spec/operations.md §6): after a batch of requests the ring is looked at in every
//! turn, without sleeping and without the guest having to notify, until nothing has come for a while;
//! if the host has CPU to spare.
//!
//! cpumond writes how idle the host is to a file in shared memory each second. The file is read once a
//! second while there are rings that may poll; it is not mapped, since a file that is cut short under a
//! mapping would kill the process.
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Where cpumond writes: two f32, busy and idle, in percent.
const CPUMOND: &str = "/dev/shm/cpu_util_monitor";

/// How a ring may be polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollPolicy {
    /// How long without a request, in µs; 0: never poll.
    pub duration_us: u32,
    /// Poll only while the host is idle for more than this, in percent.
    pub idle_threshold: u32,
}

/// Whether a ring is being polled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Polling {
    pub policy: PollPolicy,
    /// Until then, in µs of the clock.
    until: Option<u64>,
}

impl Polling {
    pub(super) fn new(policy: PollPolicy) -> Polling {
        Polling { policy, until: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// Requests were found, or somebody asks for polling. True if it begins now.
    pub(super) fn extend(&mut self, now: u64, idle: f32) -> bool {
        let may = self.policy.duration_us > 0 && idle > self.policy.idle_threshold as f32;
        if !may {
            return false;
        }
        self.until.replace(now + u64::from(self.policy.duration_us)).is_none()
    }

    /// Nothing was found: true if polling ends now.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }

    pub(super) fn stop(&mut self) {
        self.until = None;
    }
}

/// How idle the host is, in percent; 0 where nobody says.
pub(super) fn host_idle() -> f32 {
    idle_in(Path::new(CPUMOND)).unwrap_or(0.0)
}

/// Anybody may make that name before cpumond does: a pipe must not hold us up, and a stranger not
/// have us poll.
fn idle_in(path: &Path) -> Option<f32> {
    let mut raw = [0; 8];
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let meta = file.metadata().ok()?;
    let ours = meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
    if !(meta.is_file() && ours && meta.mode() & 0o022 == 0) {
        return None;
    }
    file.read_exact(&mut raw).ok()?;
    let idle = f32::from_ne_bytes(raw[4..].try_into().expect("four bytes"));
    idle.is_finite().then_some(idle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polling(duration_us: u32, idle_threshold: u32) -> Polling {
        Polling::new(PollPolicy { duration_us, idle_threshold })
    }

    #[test]
    fn polling_needs_a_duration_and_an_idle_host() {
        assert!(!polling(0, 0).extend(5, 100.0));
        assert!(!polling(1000, 50).extend(5, 50.0));
        assert!(!polling(1000, 0).extend(5, 0.0), "without cpumond idle counts as 0");
        assert!(polling(1000, 50).extend(5, 50.5));
    }

    #[test]
    fn each_request_extends_it() {
        let mut p = polling(1000, 50);
        assert!(p.extend(100, 90.0) && p.is_on());
        assert!(!p.extend(900, 90.0), "it is on already");
        assert!(!p.expire(1899) && p.is_on());
        assert!(p.expire(1900) && !p.is_on());
        assert!(!p.expire(2000));
    }

    #[test]
    fn cpumond_is_read_and_its_absence_is_no_error() {
        // The tests' caller may have left umask 0.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu");
        assert_eq!(idle_in(&path), None);
        std::fs::write(&path, [0; 4]).unwrap();
        assert_eq!(idle_in(&path), None);
        let raw = [25f32.to_ne_bytes(), 75f32.to_ne_bytes()].concat();
        std::fs::write(&path, raw).unwrap();
        assert_eq!(idle_in(&path), Some(75.0));
        std::fs::write(&path, [0xff; 8]).unwrap();
        assert_eq!(idle_in(&path), None);
    }

    #[test]
    fn a_strangers_file_in_the_place_of_cpumonds_is_not_read() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        std::fs::write(path("cpu"), [25f32.to_ne_bytes(), 75f32.to_ne_bytes()].concat()).unwrap();
        assert_eq!(idle_in(&path("cpu")), Some(75.0));
        symlink("cpu", path("link")).unwrap();
        assert_eq!(idle_in(&path("link")), None);
        let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
        assert!(made.success());
        assert_eq!(idle_in(&path("pipe")), None, "and nobody waits for its writer");
        std::fs::set_permissions(path("cpu"), PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(idle_in(&path("cpu")), None);
        std::fs::set_permissions(path("cpu"), PermissionsExt::from_mode(0o444)).unwrap();
        assert_eq!(idle_in(&path("cpu")), Some(75.0), "as cpumond makes it");
        if chown(path("cpu"), Some(65534), None).is_ok() {
            assert_eq!(idle_in(&path("cpu")), None);
        }
    }
}
