//! What a tapdisk gives up once it has started, so that whoever takes it over by a guest's request
//! or an image's bytes has less than root: capabilities, new privileges by exec, and all system
//! calls but those of a list.
//!
//! ```text
//!   start: limits, locked memory, sockets ─► confine ─► serves, with KEPT in force
//!                                                          └─► workers: KEPT and OF_WORKERS
//! ```
//! What needs a capability is taken before: nice, IO_FLUSHER, the OOM score, locked memory; the
//! limits RLIMIT_MEMLOCK and RLIMIT_RTPRIO stand for CAP_IPC_LOCK and CAP_SYS_NICE from then on,
//! and `vm.min_free_kbytes` asks for the user, not for a capability. What is kept, and why, is in
//! docs/security.md. A kernel that lacks something is told of in the log, and the disk goes on.
mod filter;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::thread::{self, CapabilitySet, CapabilitySets};
use slog::{Logger, info, warn};

use host::sys;

/// The environment variable: `off`, `errno`, `kill`.
pub const VARIABLE: &str = "TAPDISK_SANDBOX";

/// Capabilities that stay in force.
///
/// * DAC_OVERRIDE: images, log folders and NBD servers' sockets of other users, which a tapdisk of
///   root has opened so far. A disk that no longer opens is worse.
/// * FOWNER: what a stranger has put in our file's place in `/dev/shm` is replaced
///   (`vbd::host_idle`).
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::FOWNER);
/// Those that only workers have in force, while they open images and see to devices.
///
/// * SYS_ADMIN: to read who has vouched for a parent (`trusted.` attributes; `image::place`); to
///   make, start, stop and remove devices of ublk and of the kernel's NBD client.
/// * SYS_PTRACE: `image::holder` reads `/proc/PID/fdinfo` of tools that have all capabilities. If
///   they were hidden, one who only reads an image would count as one who writes it, and opens
///   would wait.
const OF_WORKERS: CapabilitySet = CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYS_PTRACE);

/// Whether capabilities were given up here at all.
static CONFINED: AtomicBool = AtomicBool::new(false);
/// The filter that this process is under, by its number; 0: none.
static FILTER: AtomicU64 = AtomicU64::new(0);

/// What happens at a system call that is not on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is given up.
    Off,
    /// It fails with EPERM, and the kernel's log has it.
    Errno,
    /// The process is killed (SIGSYS). For tests: nothing that is missing on the list goes unseen.
    Kill,
}

impl Mode {
    /// The one that the environment names, else `Errno`, in debug builds `Kill`.
    ///
    /// # Errors
    /// A sentence, for a name that there is not.
    pub fn of_environment() -> Result<Mode, String> {
        match std::env::var_os(VARIABLE) {
            None if cfg!(debug_assertions) => Ok(Mode::Kill),
            None => Ok(Mode::Errno),
            Some(name) => Mode::named(&name.to_string_lossy()),
        }
    }

    fn named(name: &str) -> Result<Mode, String> {
        match name {
            "off" => Ok(Mode::Off),
            "errno" => Ok(Mode::Errno),
            "kill" => Ok(Mode::Kill),
            other => {
                Err(format!("{VARIABLE} is {other:?}; set it to off, errno or kill, or unset it"))
            }
        }
    }
}

/// Limits that do later what capabilities would have to; while there still are some.
pub fn raise_limits() {
    let (_, hard) = sys::limit(libc::RLIMIT_RTPRIO);
    // Rank 1 is all that `reclaim` asks for.
    let _ = sys::set_limit(libc::RLIMIT_RTPRIO, (hard.max(1), hard.max(1)));
}

/// Gives up what is not needed any more. To be called once, before there is another thread: what a
/// thread has its children get. `under` is the [`filter_id`] of a filter that this process is under
/// already, after an exec: the same one is not put on top of itself.
pub fn confine(log: &Logger, mode: Mode, under: Option<u64>) {
    if mode == Mode::Off {
        warn!(log, "{VARIABLE}=off: this tapdisk keeps all capabilities and system calls");
        return;
    }
    CONFINED.store(true, Ordering::Relaxed);
    match drop_capabilities() {
        Ok(kept) => info!(log, "capabilities that are kept: {}", names(kept)),
        Err(error) => warn!(log, "not all capabilities could be given up: {error}"),
    }
    if let Err(error) = thread::set_no_new_privs(true) {
        warn!(log, "this process is not confined: the kernel has no no_new_privs ({error})");
        return;
    }
    let wanted = filter_id(mode);
    if under == Some(wanted) {
        FILTER.store(wanted, Ordering::Relaxed);
        info!(log, "under the filter of system calls {wanted:016x} as before");
        return;
    }
    let installed = filter::program(mode, std::process::id())
        .ok_or(std::io::ErrorKind::Unsupported.into())
        .and_then(|program| {
            sys::install_filter(&filter::without_clone3(), false)?;
            sys::install_filter(&program, true)
        });
    match installed {
        Ok(()) => {
            FILTER.store(wanted, Ordering::Relaxed);
            info!(log, "under the filter of system calls {wanted:016x} ({mode:?})");
        }
        Err(error) => warn!(
            log,
            "system calls are not filtered, as the kernel takes no filter ({error}; CONFIG_SECCOMP_FILTER)"
        ),
    }
}

/// The number of the filter that this process is under, for the program that takes over.
pub fn under() -> Option<u64> {
    Some(FILTER.load(Ordering::Relaxed)).filter(|filter| *filter != 0)
}

/// A number that changes when the filter does.
pub fn filter_id(mode: Mode) -> u64 {
    filter::id(mode)
}

/// Does a worker's work with all capabilities that were kept.
pub fn with_all<T>(work: impl FnOnce() -> T) -> T {
    let set = |effective| {
        let sets = thread::capabilities(None)?;
        thread::set_capabilities(None, CapabilitySets { effective, ..sets })?;
        rustix::io::Result::Ok(sets)
    };
    let raised = match CONFINED.load(Ordering::Relaxed) {
        true => thread::capabilities(None).and_then(|sets| set(sets.permitted)),
        false => Err(rustix::io::Errno::PERM),
    };
    let done = work();
    if let Ok(before) = raised {
        // It matters only where the work was done in the main thread, for want of another one.
        let _ = set(before.effective);
    }
    done
}

/// In this thread, which is the only one. Gives what is left.
fn drop_capabilities() -> rustix::io::Result<CapabilitySet> {
    let had = thread::capabilities(None)?;
    let mut wanted = KEPT;
    // Where a limit cannot be raised the capability has to stay.
    if sys::limit(libc::RLIMIT_MEMLOCK).0 != libc::RLIM_INFINITY {
        wanted |= CapabilitySet::IPC_LOCK;
    }
    if sys::limit(libc::RLIMIT_RTPRIO).0 == 0 {
        wanted |= CapabilitySet::SYS_NICE;
    }
    let kept = had.permitted & (wanted | OF_WORKERS);
    // Linux 4.3. Nobody has any unless a caller gave them.
    let _ = thread::clear_ambient_capability_set();
    let bounded = empty_bounding_set(kept);
    let effective = had.effective & wanted;
    let sets = CapabilitySets { effective, permitted: kept, inheritable: CapabilitySet::empty() };
    thread::set_capabilities(None, sets)?;
    bounded.map(|()| kept)
}

/// All that the kernel knows and we do not keep. Without CAP_SETPCAP it stays, and matters little:
/// an exec gives nothing new under `no_new_privs`.
fn empty_bounding_set(kept: CapabilitySet) -> rustix::io::Result<()> {
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match thread::capability_is_in_bounding_set(one) {
            Ok(true) if !kept.contains(one) => {
                match thread::remove_capability_from_bounding_set(one) {
                    Err(rustix::io::Errno::PERM) => return Ok(()),
                    removed => removed?,
                }
            }
            Ok(_) => {}
            // The last one that this kernel has was before.
            Err(_) => break,
        }
    }
    Ok(())
}

fn names(set: CapabilitySet) -> String {
    if set.is_empty() {
        return "none".into();
    }
    set.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_has_a_name_and_others_a_sentence() {
        assert_eq!(Mode::named("off"), Ok(Mode::Off));
        assert_eq!(Mode::named("errno"), Ok(Mode::Errno));
        assert_eq!(Mode::named("kill"), Ok(Mode::Kill));
        let text = Mode::named("on").expect_err("there is no such mode");
        assert_eq!(text, "TAPDISK_SANDBOX is \"on\"; set it to off, errno or kill, or unset it");
    }

    #[test]
    fn capabilities_are_named() {
        assert_eq!(names(KEPT), "DAC_OVERRIDE FOWNER");
        assert_eq!(names(CapabilitySet::empty()), "none");
    }
}
