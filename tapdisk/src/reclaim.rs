//! What a tapdisk takes care of when it serves a block device of this host, so that the host's own
//! memory becomes free only through it.
//!
//! Our memory is locked, but the kernel needs some in our calls: requests of the file system below,
//! bios, kernel stacks of io_uring's workers. An ordinary task gets none while less than
//! `vm.min_free_kbytes` is free, and what is free stays below that while everybody waits for our
//! device. So there are two reserves: `vm.min_free_kbytes` is raised to [`FREE_KIB`], and the
//! threads become real-time tasks, which may go down to half of it (mm/page_alloc.c,
//! `gfp_to_alloc_flags`). Measured in docs/memory-pressure.md.
use slog::{Logger, info, warn};
use std::sync::atomic::{AtomicBool, Ordering};

use host::protection::{self, Protection};
use host::sys;

/// KiB of memory that stay free for those who make more of it free.
pub const FREE_KIB: u64 = 8 << 10;
/// Its place.
const FREE_PATH: &str = "/proc/sys/vm/min_free_kbytes";

/// Whether it has been said that there is no real-time priority.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Gets both reserves, or says what is missing. Does nothing where they are there already.
pub fn hold_reserves(log: &Logger) {
    // Said once: where the kernel schedules groups of real-time tasks (XCP-ng's does) it is so for
    // every disk and for ever.
    let has = protection::has(Protection::Priority) && sys::be_real_time();
    if !has && !REFUSED.swap(true, Ordering::Relaxed) {
        warn!(
            log,
            "this process gets no real-time priority (CAP_SYS_NICE, and a control group whose \
             cpu.rt_runtime_us is not 0): under memory pressure the kernel may find no memory for \
             its requests"
        );
    }
    if !protection::has(Protection::Free) {
        return;
    }
    let text = std::fs::read_to_string(FREE_PATH).unwrap_or_default();
    let free: u64 = text.trim().parse().unwrap_or(0);
    if free >= FREE_KIB {
        return;
    }
    match std::fs::write(FREE_PATH, FREE_KIB.to_string()) {
        Ok(()) => info!(log, "vm.min_free_kbytes raised from {free} to {FREE_KIB}"),
        Err(error) => warn!(
            log,
            "vm.min_free_kbytes is {free} and cannot be raised to {FREE_KIB} ({error}): under memory pressure \
             the kernel may find no memory for this disk's requests; raise it with sysctl"
        ),
    }
}
