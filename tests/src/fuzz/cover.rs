//! Which branches were taken, by counters that the compiler puts into the program.
//!
//! LLVM's coverage pass is part of every Rust tool chain: with `-C passes=sancov-module` and its
//! options (see `make fuzz`) each edge of the program adds one to a byte, and each module says at
//! start-up where its bytes are. Without the options there are no counters, and only outcomes guide
//! the search.
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};

const MODULES_MAX: usize = 4096;

/// First byte and end of each module's counters.
static MODULES: [(AtomicPtr<u8>, AtomicPtr<u8>); MODULES_MAX] =
    [const { (AtomicPtr::new(ptr::null_mut()), AtomicPtr::new(ptr::null_mut())) }; MODULES_MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Called by each module before `main`. The name is the compiler's.
// SAFETY: nothing else defines this symbol; it only stores two pointers.
#[unsafe(no_mangle)]
pub extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let at = COUNT.fetch_add(1, Relaxed);
    if let Some((first, end)) = MODULES.get(at) {
        first.store(start, Relaxed);
        end.store(stop, Relaxed);
    }
}

/// The counters of all modules; other threads may be adding to them.
fn modules() -> impl Iterator<Item = &'static [AtomicU8]> {
    let count = COUNT.load(Relaxed).min(MODULES_MAX);
    MODULES[..count].iter().map(|(first, end)| {
        let (first, end) = (first.load(Relaxed), end.load(Relaxed));
        let length = (end as usize).saturating_sub(first as usize);
        // SAFETY: the module said that its counters lie there; they live as long as the program and
        // are written by its threads, which is what atomics are for.
        unsafe { std::slice::from_raw_parts(first.cast::<AtomicU8>(), length) }
    })
}

/// How many branches are counted: 0 in an ordinary build.
pub fn branches() -> usize {
    modules().map(<[AtomicU8]>::len).sum()
}

/// Sets all counters to 0.
pub fn reset() {
    for counters in modules() {
        let (head, words, tail) = in_words(counters);
        head.iter().chain(tail).for_each(|counter| counter.store(0, Relaxed));
        words.iter().for_each(|word| word.store(0, Relaxed));
    }
}

/// Calls `each` with every branch taken since [`reset`] and how often it was. Most are not, so
/// eight are looked at together.
pub fn taken(mut each: impl FnMut(usize, u8)) {
    let mut number = 0;
    let mut tell = |count: u8| {
        if count != 0 {
            each(number, count);
        }
        number += 1;
    };
    for counters in modules() {
        let (head, words, tail) = in_words(counters);
        head.iter().for_each(|counter| tell(counter.load(Relaxed)));
        for word in words {
            word.load(Relaxed).to_ne_bytes().into_iter().for_each(&mut tell);
        }
        tail.iter().for_each(|counter| tell(counter.load(Relaxed)));
    }
}

type InWords<'a> = (&'a [AtomicU8], &'a [AtomicU64], &'a [AtomicU8]);

fn in_words(counters: &[AtomicU8]) -> InWords<'_> {
    // SAFETY: eight counters have the size of a word, any bytes are a valid one, and it is aligned;
    // the compiler's additions, which are not atomic, may get lost as they may anyway.
    unsafe { counters.align_to::<AtomicU64>() }
}
