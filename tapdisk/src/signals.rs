//! Signals as a descriptor: they are handled between turns, at once, by ordinary code.
#![allow(unsafe_code)]
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What a signal asks for (spec/operations.md §1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: open the log file and the syslog socket again.
    Reopen,
    /// SIGUSR1: write the state of all disks to the log file and keep it.
    Report,
    /// SIGUSR2: poll all rings; harmless without rings.
    PollRings,
    /// SIGINT, SIGBUS: close every disk when it is idle, then end.
    Stop,
    /// SIGTERM: the same, but within a time.
    Terminate,
}

const HANDLED: [(libc::c_int, Signal); 6] = [
    (libc::SIGHUP, Signal::Reopen),
    (libc::SIGUSR1, Signal::Report),
    (libc::SIGUSR2, Signal::PollRings),
    (libc::SIGINT, Signal::Stop),
    (libc::SIGBUS, Signal::Stop),
    (libc::SIGTERM, Signal::Terminate),
];

/// The descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

/// Holds back the handled signals, so that none ends a process that is still starting, and ignores
/// SIGPIPE and SIGXFSZ, which become EPIPE and EFBIG. Threads and forks inherit it. What the caller
/// had blocked or ignored counts no more: a script's background job ignores SIGINT, and we are to
/// be ended by it all the same.
pub fn hold_back() {
    let set = handled();
    // SAFETY: `set` is an initialised set that outlives the call; no signal gets code of ours.
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        for (number, _) in HANDLED {
            libc::signal(number, libc::SIG_DFL);
        }
        // Ignored, it takes the exit codes of children away.
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

impl Signals {
    /// A descriptor that is readable when a signal that was held back has come.
    ///
    /// # Errors
    /// Those of `signalfd(2)`, such as EMFILE.
    pub fn open() -> io::Result<Signals> {
        let set = handled();
        // SAFETY: `set` is an initialised set that outlives the call.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd gave a new descriptor that nobody else owns.
        Ok(Signals { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// For polling.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The next signal that has come.
    pub fn take(&self) -> Option<Signal> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has the size given and outlives the call.
        let got = unsafe { libc::read(self.raw(), info.as_mut_ptr().cast(), size) };
        if usize::try_from(got) != Ok(size) {
            return None;
        }
        // SAFETY: plain numbers, zero before and filled by the kernel.
        let number = unsafe { info.assume_init() }.ssi_signo;
        let signal = HANDLED.iter().find(|(n, _)| u32::try_from(*n) == Ok(number));
        signal.map(|(_, signal)| *signal)
    }
}

/// Ends the process as SIGTERM does where nobody handles it.
pub fn end_by_sigterm() -> ! {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the default action installs no code; the set is initialised by sigemptyset and
    // outlives the calls; abort is the end that comes if the signal does not.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut());
        libc::raise(libc::SIGTERM);
        libc::abort()
    }
}

fn handled() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set, the numbers are those of real signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for (number, _) in HANDLED {
            libc::sigaddset(set.as_mut_ptr(), number);
        }
        set.assume_init()
    }
}
