//! What the tests need to drive the real programs: built once, run in a folder of their own, killed
//! at the end whatever happens.
//!
//! ```text
//!   Rig ── tap-ctl ──► tapdisk ◄── nbd::Client      (ours, so that no test needs another program)
//!    │                    ▲  ◄── qemu-io, nbdinfo   (the second party; missing ones fail loudly)
//!    └─ vhdgen, vhd-util ─┴──► images ◄── qemu-img
//! ```
//! What other crates' tests need as well is in `test-support`, and has its names here, too.
pub mod blktap;
mod daemon;
pub mod golden;
pub mod vhdgen;
pub mod xen_front;
pub mod xen_keys;
pub mod xen_load;

pub use daemon::{Engine, Rig, Served};
pub use test_support::{
    Outcome, Programs, files, nbd, nbdinfo, on_terminal, places, programs, qemu_img, qemu_io,
    qemu_io_fails, run, tool,
};

/// MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// A sector in bytes.
pub const SECTOR: u64 = 512;

/// Whether slow tests run: not when TAPDISK_TESTS is `fast`. Says aloud what is left out.
pub fn slow(what: &str) -> bool {
    let fast = std::env::var_os("TAPDISK_TESTS").is_some_and(|value| value == "fast");
    if fast {
        eprintln!("LEFT OUT (TAPDISK_TESTS=fast): {what}");
    }
    !fast
}

/// Makes a test of each function for both disk engines, as `name::uring` and `name::aio`.
#[macro_export]
macro_rules! both_engines {
    ($($(#[$meta:meta])* fn $name:ident($rig:ident) $body:block)+) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn check($rig: &$crate::rig::Rig) $body

            #[test]
            fn uring() {
                check(&$crate::rig::Rig::new($crate::rig::Engine::Uring));
            }

            #[test]
            fn aio() {
                check(&$crate::rig::Rig::new($crate::rig::Engine::Aio));
            }
        }
    )+};
}
