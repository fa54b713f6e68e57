//! Threads for what the kernel cannot do asynchronously; mostly one.
//!
//! ```text
//!   engine ── push ─► todo ─► thread: fallocate, discard, fdatasync ─► done ── pop ─► engine
//!                             threads: data of the page cache            │
//!                                          └── eventfd: one count for each result
//! ```
//! Both queues have room for the engine's depth from the start, so nothing is allocated later and a
//! push cannot fail. A thread waits only for the disk; it holds the lock only to move one job. It
//! takes no signals, and its stack is small and touched at start.
#![allow(unsafe_code)]
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::files::File;
use host::protection::{self, Protection};
use host::sys;
use request::disk::{Kind, Op, Tag};

/// Stack of the thread in bytes, all of it locked: system calls and a lock need a few hundred.
const STACK_BYTES: usize = 32 * 1024;
/// How much of the stack is touched at start.
const TOUCH_BYTES: usize = 16 * 1024;
/// linux/prctl.h, since Linux 5.6.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `_IO(0x12, 119)`, linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// An eventfd that never blocks.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, at zero.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was made just above and has no other owner.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds one. At the largest count it is readable anyway, so a refusal does not matter.
    pub fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the eight bytes outlive the call.
        unsafe { libc::write(self.raw(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the count and leaves zero.
    pub fn drain(&self) -> u64 {
        let mut count = [0_u8; 8];
        // SAFETY: the eight bytes outlive the call. A refusal (EAGAIN) leaves the zero.
        unsafe { libc::read(self.raw(), count.as_mut_ptr().cast(), count.len()) };
        u64::from_ne_bytes(count)
    }

    /// The descriptor, to poll.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// fallocate with this mode.
    Fallocate(i32),
    /// BLKDISCARD, on a block device.
    Discard,
    /// fdatasync.
    Sync,
    /// pread to this address.
    Read(usize),
    /// pwrite from this address.
    Write(usize),
}

impl Call {
    /// How everything but data and flush is done, on a block device or a regular file, and on how
    /// many bytes. fallocate reaches block devices since Linux 4.9; it has no discard for them.
    pub fn of(kind: Kind, block: bool) -> Option<(Call, u64)> {
        let keep_size = libc::FALLOC_FL_KEEP_SIZE;
        let punch = Call::Fallocate(libc::FALLOC_FL_PUNCH_HOLE | keep_size);
        match kind {
            Kind::Read | Kind::Write | Kind::Sync => None,
            Kind::Grow { bytes } => Some((Call::Fallocate(keep_size), bytes)),
            Kind::Zero { bytes, punch: true } => Some((punch, bytes)),
            Kind::Zero { bytes, punch: false } => {
                Some((Call::Fallocate(libc::FALLOC_FL_ZERO_RANGE | keep_size), bytes))
            }
            Kind::Discard { bytes } => Some((if block { Call::Discard } else { punch }, bytes)),
        }
    }
}

/// One job.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Comes back with the result.
    pub tag: Tag,
    /// On which file; it stays open until the result is there.
    pub fd: RawFd,
    /// What.
    pub call: Call,
    /// Byte offset.
    pub at: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Job {
    /// What the worker does for an operation; `None` for data and flush.
    pub(super) fn new(tag: Tag, file: File, op: &Op) -> Option<Job> {
        let (call, bytes) = Call::of(op.kind, file.block)?;
        Some(Job { tag, fd: file.fd, call, at: op.at, bytes })
    }
}

/// A finished job, as [`request::disk::Disk::reap`] gives it.
pub type Done = (Tag, Result<u32, i32>);

#[derive(Debug)]
struct Queues {
    todo: VecDeque<Job>,
    done: VecDeque<Done>,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    work: Condvar,
    wake: Arc<EventFd>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().expect("nothing panics under the lock: the program aborts on a panic")
    }
}

/// The threads and their queues.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    depth: usize,
    in_flight: usize,
}

impl Worker {
    /// Starts the thread, with room for `depth` jobs. It adds one to `wake` for each result.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(depth: usize, wake: Arc<EventFd>) -> io::Result<Worker> {
        Worker::of(1, "disk-lane", depth, wake)
    }

    /// Starts so many threads with one queue, whose jobs may be done in any order.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn of(threads: usize, name: &str, depth: usize, wake: Arc<EventFd>) -> io::Result<Worker> {
        let queues = Queues {
            todo: VecDeque::with_capacity(depth),
            done: VecDeque::with_capacity(depth),
            stop: false,
        };
        let shared = Arc::new(Shared { queues: Mutex::new(queues), work: Condvar::new(), wake });
        let mut worker =
            Worker { shared, threads: Vec::with_capacity(threads), depth, in_flight: 0 };
        for _ in 0..threads {
            let theirs = Arc::clone(&worker.shared);
            let thread = without_signals(|| {
                let builder = std::thread::Builder::new().name(name.into());
                builder.stack_size(STACK_BYTES).spawn(move || run(&theirs))
            })?;
            worker.threads.push(thread);
        }
        Ok(worker)
    }

    /// Queues a job. The engine keeps no more than `depth` in flight.
    pub fn push(&mut self, job: Job) {
        assert!(self.in_flight < self.depth, "the worker has room for every operation in flight");
        self.in_flight += 1;
        self.shared.lock().todo.push_back(job);
        self.shared.work.notify_one();
    }

    /// The next result.
    pub fn pop(&mut self) -> Option<Done> {
        if self.in_flight == 0 {
            return None;
        }
        let done = self.shared.lock().done.pop_front()?;
        self.in_flight -= 1;
        Some(done)
    }

    /// Results that are there and were not popped.
    pub fn ready(&self) -> usize {
        if self.in_flight == 0 { 0 } else { self.shared.lock().done.len() }
    }

    /// Jobs pushed and not popped.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Worker {
    /// Waits for the jobs that run; those behind them are forgotten.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has already said so.
            let _ = thread.join();
        }
    }
}

/// A thread: one job after the other.
fn run(shared: &Shared) {
    if protection::has(Protection::Lock) {
        sys::lock_this_stack(STACK_BYTES);
        touch_stack();
    }
    if protection::has(Protection::Flusher) {
        be_flusher();
    }
    while let Some(job) = next(shared) {
        let result = perform(&job);
        shared.lock().done.push_back((job.tag, result));
        shared.wake.signal();
    }
}

/// Sleeps until there is a job; `None` at the end.
fn next(shared: &Shared) -> Option<Job> {
    let mut queues = shared.lock();
    loop {
        if queues.stop {
            return None;
        }
        if let Some(job) = queues.todo.pop_front() {
            return Some(job);
        }
        queues = shared.work.wait(queues).expect("nothing panics under the lock");
    }
}

/// One system call, again after a signal.
fn perform(job: &Job) -> Result<u32, i32> {
    let (Ok(at), Ok(bytes)) = (i64::try_from(job.at), i64::try_from(job.bytes)) else {
        return Err(libc::EFBIG);
    };
    loop {
        let outcome: i64 = match job.call {
            // SAFETY: no memory is passed.
            Call::Fallocate(mode) => unsafe { libc::fallocate(job.fd, mode, at, bytes) }.into(),
            Call::Discard => discard(job).into(),
            // SAFETY: no memory is passed.
            Call::Sync => unsafe { libc::fdatasync(job.fd) }.into(),
            Call::Read(_) | Call::Write(_) => transfer(job),
        };
        if let Ok(bytes) = u32::try_from(outcome) {
            return Ok(bytes);
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => {}
            errno => return Err(errno.unwrap_or(libc::EIO)),
        }
    }
}

/// Data, by one call; the number of bytes may be smaller.
fn transfer(job: &Job) -> i64 {
    let (fd, bytes, at) = (job.fd, job.bytes as usize, job.at as i64);
    let moved = match job.call {
        // SAFETY: a buffer of the arena, which is this operation's alone until its result was
        // popped; who owns the worker drops it before the arena.
        Call::Read(to) => unsafe {
            libc::pread64(fd, std::ptr::with_exposed_provenance_mut(to), bytes, at)
        },
        // SAFETY: as above.
        Call::Write(from) => unsafe {
            libc::pwrite64(fd, std::ptr::with_exposed_provenance(from), bytes, at)
        },
        Call::Fallocate(_) | Call::Discard | Call::Sync => unreachable!("no data"),
    };
    moved as i64
}

fn discard(job: &Job) -> libc::c_int {
    let range = [job.at, job.bytes];
    // SAFETY: BLKDISCARD reads two u64, start and length in bytes, which outlive the call.
    unsafe { libc::ioctl(job.fd, BLKDISCARD as _, range.as_ptr()) }
}

/// Puts the pages of the stack in memory, so that no fault comes later.
#[inline(never)]
fn touch_stack() {
    let mut pages = [0_u8; TOUCH_BYTES];
    std::hint::black_box(&mut pages);
}

/// Reclaim inside this thread's calls must not wait on this process (docs/memory-pressure.md). The
/// flag is inherited, but the caller may set its own later; a refusal is reported by the caller's
/// check.
fn be_flusher() {
    // SAFETY: sets a flag of this thread; no memory is passed.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// Runs `start` with all signals blocked, so that the thread it makes never takes one.
fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets outlive the calls; sigfillset fills the first, pthread_sigmask the second.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let made = start();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    made
}
