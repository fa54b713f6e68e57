//! Which protections against memory pressure this build leaves out: none, unless it is the control
//! of the tests (feature `unprotected`, never part of a release), which has to hang where the real
//! program does not.
//!
//! In the control, `UNPROTECTED=lock,reserve` leaves out only those named; without the variable all
//! are out. `tap_ctl::UNPROTECTED` is in its `--version`, its log and its file, where `tap-ctl
//! doctor` finds it.

/// One protection that the control can go without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// mlockall, locked and registered arenas, the stack touched at the start.
    Lock,
    /// PR_SET_IO_FLUSHER.
    Flusher,
    /// oom_score_adj.
    Oom,
    /// A request's buffer keeps its pages; without it every request gets fresh ones.
    Reserve,
    /// nice -20, and real-time while a device is served.
    Priority,
    /// vm.min_free_kbytes raised while a device is served.
    Free,
}

/// Whether this process has a protection.
#[cfg(not(feature = "unprotected"))]
pub const fn has(_protection: Protection) -> bool {
    true
}

#[cfg(feature = "unprotected")]
pub use control::has;

#[cfg(feature = "unprotected")]
mod control {
    use super::Protection;
    use std::sync::OnceLock;

    impl Protection {
        fn name(self) -> &'static str {
            match self {
                Protection::Lock => "lock",
                Protection::Flusher => "flusher",
                Protection::Oom => "oom",
                Protection::Reserve => "reserve",
                Protection::Priority => "priority",
                Protection::Free => "free",
            }
        }
    }

    /// Whether this process has a protection.
    pub fn has(protection: Protection) -> bool {
        static LEFT_OUT: OnceLock<Option<String>> = OnceLock::new();
        match LEFT_OUT.get_or_init(|| std::env::var("UNPROTECTED").ok()) {
            Some(names) => names.split(',').all(|name| name != protection.name()),
            None => false,
        }
    }
}
