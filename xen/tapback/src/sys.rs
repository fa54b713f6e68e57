//! Signals as a descriptor, and a session of one's own. The only module of the crate with unsafe
//! code.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: end; disks stay connected.
    Stop,
    /// SIGUSR1: the state of all disks into the log.
    Report,
}

const HANDLED: [(libc::c_int, Option<Signal>); 4] = [
    (libc::SIGTERM, Some(Signal::Stop)),
    (libc::SIGINT, Some(Signal::Stop)),
    (libc::SIGUSR1, Some(Signal::Report)),
    // Nothing to do, and no reason to end either.
    (libc::SIGHUP, None),
];

/// The descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Hold the handled signals back from now on, and have them reported here.
    ///
    /// # Errors
    /// Those of `signalfd(2)`, such as EMFILE.
    pub fn open() -> io::Result<Signals> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: sigemptyset initialises the set, the numbers are those of real signals, and the
        // set outlives the calls.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for (number, _) in HANDLED {
                libc::sigaddset(set.as_mut_ptr(), number);
            }
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
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

    /// The next signal that has come and means something.
    pub fn take(&self) -> Option<Signal> {
        loop {
            let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            // SAFETY: the buffer has the size given and outlives the call.
            let got = unsafe { libc::read(self.raw(), info.as_mut_ptr().cast(), size) };
            if usize::try_from(got) != Ok(size) {
                return None;
            }
            // SAFETY: plain numbers, zero before and filled by the kernel.
            let number = unsafe { info.assume_init() }.ssi_signo;
            let known = HANDLED.iter().find(|(n, _)| u32::try_from(*n) == Ok(number));
            if let Some((_, Some(signal))) = known {
                return Some(*signal);
            }
        }
    }
}

/// Leave the caller's session.
pub fn own_session() {
    // SAFETY: takes nothing and touches no memory; it fails only for the leader of a group, which
    // then already is apart from its caller.
    unsafe { libc::setsid() };
}
