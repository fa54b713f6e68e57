//! What a tool sets up first, whoever started it: the umask, a limit for files, and signals that
//! end it.
#![allow(unsafe_code)]
use std::io::Write;
use std::mem::MaybeUninit;
use std::path::PathBuf;

/// Signals that end a tool, with their names.
const ENDING: [(libc::c_int, &str); 4] = [
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
];

/// To be called first. A file that reaches its limit (`ulimit -f`) is an error, EFBIG, and no death
/// in the middle; nothing that is made is for everybody to write, also where a caller has left
/// umask 0 behind.
pub fn begin() {
    const NO_WRITING: libc::mode_t = 0o022;
    // SAFETY: neither way to treat a signal installs code of ours; umask takes a number.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        // Ignored, as a caller may have it, it takes the exit codes of children away.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let inherited = libc::umask(NO_WRITING);
        libc::umask(inherited | NO_WRITING);
    }
}

/// From here on a signal that would end the process does so only after standard error has said in
/// what `state` that leaves things, and `remove` has removed new files that are not whole. It ends
/// it as the signal would have; one that the caller ignores stays ignored. To be called before
/// there is another thread.
pub fn explain_signals(
    tool: &'static str,
    command: &'static str,
    state: &'static str,
    remove: fn() -> Vec<PathBuf>,
) {
    let set = waited_for();
    // SAFETY: `set` is an initialised set that outlives the call. Threads that start later inherit
    // it.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    let started = std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut number = 0;
        // SAFETY: both outlive the call.
        if unsafe { libc::sigwait(&set, &mut number) } != 0 {
            return;
        }
        // Whoever is in a hurry sends a second one.
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
        let name = ENDING.iter().find(|(signal, _)| *signal == number).map_or("", |(_, name)| name);
        let gone = remove();
        let gone = gone.iter().map(|path| format!("; {} was not whole: removed", path.display()));
        let gone: String = gone.collect();
        let text = format!("{tool} {command}: ended by {name}: {state}{gone}\n");
        // Standard error has no buffer; nothing of ours holds its lock and waits.
        let _ = std::io::stderr().write_all(text.as_bytes());
        die_of(number);
    });
    if started.is_err() {
        // No thread: a signal ends the process without a word, as ever.
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    }
}

/// The signals that the caller does not have ignored.
fn waited_for() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set; the numbers are those of real signals; zeros are a
    // valid action, which the kernel fills.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for (number, _) in ENDING {
            let mut now = MaybeUninit::<libc::sigaction>::zeroed();
            libc::sigaction(number, std::ptr::null(), now.as_mut_ptr());
            if now.assume_init().sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
        }
        set.assume_init()
    }
}

/// Ends the process as the signal does where nobody looks after it.
fn die_of(number: libc::c_int) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is initialised before it is used; raise and signal take numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), number);
        libc::signal(number, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(number);
    }
}
