//! What may be locked in memory, and what a disk gets accordingly.
//!
//! All of the process is locked where that is allowed (root, CAP_IPC_LOCK, an unlimited
//! RLIMIT_MEMLOCK). Elsewhere only the arenas are, made as small as the limit demands; where not
//! even the smallest fits, a disk works unlocked, and the log and `tap-ctl stats` say so.
use engine::limits::Limits;
use host::protection::{self, Protection};
use host::sys;

/// Bytes left for io_uring's own pages under a small limit.
const SPARE_BYTES: u64 = 64 << 10;
/// The bit of CAP_IPC_LOCK in `CapEff`.
const CAP_IPC_LOCK: u64 = 1 << 14;

/// How the memory of the process is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// All of it, now and later.
    Locked,
    /// The arenas only, as far as this many bytes go.
    Limited {
        /// RLIMIT_MEMLOCK.
        bytes: u64,
        /// A sentence for the log.
        why: String,
    },
}

/// What a disk gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its reserves.
    pub limits: Limits,
    /// A sentence for the log if that is less than it should be.
    pub warning: Option<String>,
}

impl Memory {
    /// Raises the limit as far as it goes and locks what may be locked.
    pub fn lock() -> Memory {
        let all = libc::RLIM_INFINITY;
        let (_, hard) = sys::limit(libc::RLIMIT_MEMLOCK);
        if sys::set_limit(libc::RLIMIT_MEMLOCK, (all, all)).is_err() {
            let _ = sys::set_limit(libc::RLIMIT_MEMLOCK, (hard, hard));
        }
        let (bytes, _) = sys::limit(libc::RLIMIT_MEMLOCK);
        if bytes != all && !may_lock_anything() {
            return Memory::Limited { bytes, why: too_small(bytes, "RLIMIT_MEMLOCK") };
        }
        if !protection::has(Protection::Lock) {
            return Memory::Limited { bytes: u64::MAX, why: "UNPROTECTED: not locked".into() };
        }
        touch_stack();
        match sys::lock_all_memory() {
            Ok(()) => Memory::Locked,
            Err(error) => Memory::Limited { bytes, why: too_small(bytes, &error.to_string()) },
        }
    }

    /// The reserves of a disk that is opened now.
    pub fn grant(&self) -> Grant {
        let Memory::Limited { bytes, .. } = self else {
            return Grant { limits: Limits::NORMAL, warning: None };
        };
        fit(bytes.saturating_sub(locked_bytes()))
    }
}

fn too_small(bytes: u64, why: &str) -> String {
    format!(
        "not all memory is locked ({why}: {} KiB): under memory pressure this process may wait for \
         its own disk; raise it with ulimit -l or LimitMEMLOCK=infinity",
        bytes >> 10
    )
}

/// The largest reserves whose arena fits into `bytes`.
fn fit(bytes: u64) -> Grant {
    let room = bytes.saturating_sub(SPARE_BYTES);
    let sizes = [1, 2, 4, 8, 16].map(reduced).into_iter().chain([Limits::MINIMUM]);
    let fitting = sizes.enumerate().find(|(_, limits)| limits.arena_bytes() as u64 <= room);
    match fitting {
        Some((0, limits)) => Grant { limits, warning: None },
        Some((_, limits)) => {
            let text = format!(
                "only {} KiB may be locked, so {} requests at once instead of {}; raise ulimit -l",
                bytes >> 10,
                limits.slots(),
                Limits::NORMAL.slots()
            );
            Grant { limits, warning: Some(text) }
        }
        None => {
            let text = format!(
                "{} KiB may be locked and not even the least a disk needs ({} KiB) fits: it works \
                 unlocked; raise ulimit -l",
                bytes >> 10,
                Limits::MINIMUM.arena_bytes() >> 10
            );
            Grant { limits: reduced(8), warning: Some(text) }
        }
    }
}

/// The normal reserves divided.
fn reduced(by: u16) -> Limits {
    let n = Limits::NORMAL;
    let limits = Limits {
        small: n.small / by,
        large: n.large / by,
        meta_blocks: n.meta_blocks / by,
        meta_bytes: n.meta_bytes,
        stables: n.stables / by,
        ..n
    };
    limits.check();
    limits
}

/// CAP_IPC_LOCK counts in the first user namespace only.
fn may_lock_anything() -> bool {
    let first = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    let caps = status("CapEff:").and_then(|text| u64::from_str_radix(&text, 16).ok());
    first && caps.is_some_and(|caps| caps & CAP_IPC_LOCK != 0)
}

/// Bytes that this process has locked (VmLck).
pub fn locked_bytes() -> u64 {
    kib("VmLck:")
}

/// Bytes of this process that are in memory (VmRSS).
pub fn resident_bytes() -> u64 {
    kib("VmRSS:")
}

fn kib(field: &str) -> u64 {
    let text = status(field).unwrap_or_default();
    text.parse::<u64>().unwrap_or(0) << 10
}

/// The first word of a line of /proc/self/status.
fn status(field: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.split_whitespace().next()?.to_owned())
}

/// Makes the kernel map as much stack as the program will ever use: twice what it was seen to use.
#[inline(never)]
fn touch_stack() {
    const STACK_BYTES: usize = 96 << 10;
    let mut stack = [0u8; STACK_BYTES];
    stack.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&stack);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_gives_small_reserves() {
        let normal = fit(16 << 20);
        assert_eq!(normal, Grant { limits: Limits::NORMAL, warning: None });
        let mut last = Limits::NORMAL.slots() + 1;
        for kib in [8192, 3000, 1500, 800, 500, 260] {
            let grant = fit(kib << 10);
            let arena = grant.limits.arena_bytes() as u64;
            assert!(arena <= kib << 10, "{kib} KiB hold {arena} bytes");
            assert!(grant.limits.slots() <= last);
            last = grant.limits.slots();
        }
        assert!(fit(64 << 10).warning.unwrap().contains("unlocked"));
    }

    #[test]
    fn the_status_of_this_process_can_be_read() {
        assert!(resident_bytes() > 100 << 10);
        touch_stack();
    }
}
