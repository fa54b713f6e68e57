//! io_uring: one system call a turn, registered memory and files.
//!
//! ```text
//!   push ─► SQ ── submit / submit_and_wait (one io_uring_enter) ─► kernel
//!                                                   │ CQ
//!   reap ◄─ done ◄───────────── collect ◄───────────┘
//!                                  ▲ worker: discard of block devices, which the ring cannot do
//! ```
//! A ring belongs to the thread that opened it (SINGLE_ISSUER), and what finished becomes visible
//! only in that thread's calls (DEFER_TASKRUN), so nothing interrupts a turn. Kernels before 6.1
//! are asked for less. Nothing here allocates after `open` and `set_files`.
#![allow(unsafe_code)]
mod events;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::{self, Flags};
use io_uring::{Builder, EnterFlags, IoUring, Probe, opcode, types};

use self::events::EventReader;
pub use self::events::NUMBERS_MAX;
use super::files::{File, Files};
use super::flight::Flight;
use super::worker::{Call, Done, EventFd, Job, Worker};
use host::arena::Arena;
use host::protection::{self, Protection};
use host::uring_bounds::{Bounds, restrict};
use request::disk::{Disk, Kind, Op, Tag};

/// User data of the poll on the caller's epoll descriptor. Tags are below.
const WATCH: u64 = 1 << 32;
/// User data of the poll on the worker's eventfd.
const WORKER: u64 = 2 << 32;
/// Entries beside the operations: the two polls, and the event reader's.
const POLLS_MAX: u32 = 2 + events::ENTRIES;
/// The kernel's limit (io_uring/io_uring.c, IORING_MAX_ENTRIES).
const ENTRIES_MAX: u32 = 32768;
/// The longest sleep; the kernel's time must not overflow.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What the ring is made for. Once it is enabled only the table of files is registered anew.
const BOUNDS: Bounds<'_> = Bounds {
    operations: &[
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
    ],
    flags: Flags::FIXED_FILE.union(Flags::IO_LINK).union(Flags::SKIP_SUCCESS),
    registers: &[FILES_UPDATE],
};
/// IORING_REGISTER_FILES_UPDATE of linux/io_uring.h.
const FILES_UPDATE: u8 = 6;

/// A poll of ours in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Poll {
    Idle,
    Armed,
}

/// Who waits for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The caller polls `wake_fd`, which every completion signals.
    Outside,
    /// The caller sleeps in `submit_and_wait`.
    Inside,
}

/// The engine.
pub struct Uring {
    // Dropped before the arena: the kernel lets go of the memory first.
    ring: IoUring,
    events: Option<EventReader>,
    worker: Option<Worker>,
    arena: Arena,
    wake: Arc<EventFd>,
    files: Files,
    files_registered: bool,
    memory_registered: bool,
    flight: Flight,
    /// Of what is in flight, those that are in the ring.
    in_ring: u32,
    waiting: Waiting,
    /// The epoll descriptor: the same one for life, since a poll on it may be armed.
    watched: Option<RawFd>,
    watch: Poll,
    watch_ready: bool,
    worker_poll: Poll,
    enters: u64,
}

impl Uring {
    /// Makes a ring for `depth` operations in flight over `files_max` files, with `arena`
    /// registered. The calling thread is the one that uses it.
    ///
    /// # Errors
    /// When the kernel has no io_uring, forbids it, or lacks an operation.
    pub fn open(arena: Arena, depth: u32, files_max: u8) -> io::Result<Uring> {
        let ring = build_ring(depth)?;
        Uring::on_ring(ring, EventFd::new()?, arena, depth, files_max)
    }

    /// The rest of [`Uring::open`]: gives up only if the eventfd cannot be registered.
    pub(super) fn on_ring(
        ring: IoUring,
        wake: EventFd,
        arena: Arena,
        depth: u32,
        files_max: u8,
    ) -> io::Result<Uring> {
        ring.submitter().register_eventfd(wake.raw())?;
        let memory_registered = register_memory(&ring, &arena);
        let files_registered = register_table(&ring, files_max);
        restrict(&ring, &BOUNDS)?;
        Ok(Uring {
            ring,
            events: None,
            worker: None,
            arena,
            wake: Arc::new(wake),
            files: Files::new(files_max),
            files_registered,
            memory_registered,
            flight: Flight::of(depth),
            in_ring: 0,
            waiting: Waiting::Outside,
            watched: None,
            watch: Poll::Idle,
            watch_ready: false,
            worker_poll: Poll::Idle,
            enters: 0,
        })
    }

    /// Whether the arena is registered; if not (RLIMIT_MEMLOCK), every operation pins its pages
    /// anew.
    pub fn registered(&self) -> bool {
        self.memory_registered
    }

    /// Whether the watched epoll descriptor was readable since the last call. The caller then
    /// empties it (`epoll_wait` with no time until it gives nothing); what it leaves is reported
    /// again.
    pub fn take_watch_ready(&mut self) -> bool {
        std::mem::take(&mut self.watch_ready)
    }

    /// Reads events, u32s, from a descriptor that is non-blocking, and acknowledges them, until the
    /// engine ends; in `submit_and_wait` alone. False if this kernel is too old (5.17) or there is
    /// one already: the caller polls, reads and writes for itself.
    pub fn read_events(&mut self, fd: RawFd) -> bool {
        let params = self.ring.params();
        let able = params.is_feature_skip_cqe_on_success() && params.is_feature_ext_arg();
        if !able || self.events.is_some() {
            return false;
        }
        self.events = Some(EventReader::new(fd));
        true
    }

    /// What was read from it, once.
    pub fn take_events(&mut self) -> &[u32] {
        self.events.as_mut().map_or(&[], EventReader::take_events)
    }

    /// Writes a number to it with the next sleep. False if there is no room for it.
    pub fn acknowledge(&mut self, number: u32) -> bool {
        self.events.as_mut().is_some_and(|reader| reader.acknowledge(number))
    }

    /// Calls of io_uring_enter so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// The operation as the kernel wants it; `None` is the worker's.
    fn entry(&self, file: File, op: &Op) -> Option<squeue::Entry> {
        let fd = types::Fd(if self.files_registered { op.file.0.into() } else { file.fd });
        let entry = match op.kind {
            Kind::Read => self.read(fd, op),
            Kind::Write => self.write(fd, op),
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Grow { .. } | Kind::Zero { .. } | Kind::Discard { .. } => space(fd, file, op)?,
        };
        let flags = if self.files_registered { Flags::FIXED_FILE } else { Flags::empty() };
        Some(entry.flags(flags))
    }

    fn read(&self, fd: types::Fd, op: &Op) -> squeue::Entry {
        let (address, bytes) = (self.arena.address(op.buf), op.buf.bytes);
        if self.memory_registered {
            opcode::ReadFixed::new(fd, address, bytes, 0).offset(op.at).build()
        } else {
            opcode::Read::new(fd, address, bytes).offset(op.at).build()
        }
    }

    fn write(&self, fd: types::Fd, op: &Op) -> squeue::Entry {
        let (address, bytes) = (self.arena.address(op.buf), op.buf.bytes);
        if self.memory_registered {
            opcode::WriteFixed::new(fd, address, bytes, 0).offset(op.at).build()
        } else {
            opcode::Write::new(fd, address, bytes).offset(op.at).build()
        }
    }

    fn queue(&mut self, entry: &squeue::Entry) {
        // SAFETY: an operation's memory is a piece of the arena (checked by `Arena::address`), or
        // the reader's own, lent meanwhile; both outlive the ring. Polls and the others name no
        // memory.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the submission queue has room for the depth and the polls");
    }

    fn queued(&mut self) -> u32 {
        u32::try_from(self.ring.submission().len()).expect("a queue has at most 32768 entries")
    }

    /// Hands everything queued to the kernel and runs its deferred work, without waiting. More than
    /// one call only when the kernel stopped half-way (an entry it refused, before 5.18).
    fn enter(&mut self) -> io::Result<()> {
        loop {
            let queued = self.queued();
            self.enters += 1;
            let flags = EnterFlags::GETEVENTS.bits();
            // SAFETY: no argument is passed, and every queued entry fulfils `queue`'s promise.
            let took =
                unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, flags, None) };
            match took {
                Ok(count) if count > 0 && self.queued() > 0 => {}
                Ok(_) => return Ok(()),
                Err(error) if passing(&error) => {
                    // Nobody else might call again.
                    self.wake.signal();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same, and sleeps until something is there.
    fn enter_and_sleep(&mut self, timeout: Duration) -> io::Result<()> {
        let time = types::Timespec::from(timeout.min(SLEEP_MAX));
        let args = types::SubmitArgs::new().timespec(&time);
        self.enters += 1;
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) if !passing(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Moves what finished to `flight`.
    fn collect(&mut self) {
        if self.events.is_some() && self.queued() == 0 {
            self.events.iter_mut().for_each(EventReader::submitted);
        }
        for entry in self.ring.completion() {
            match entry.user_data() {
                WATCH => (self.watch, self.watch_ready) = (Poll::Idle, true),
                events::READ => {
                    self.events.iter_mut().for_each(|reader| reader.read(entry.result()))
                }
                events::WRITE => self.events.iter_mut().for_each(EventReader::not_written),
                // Its read comes back as well.
                events::POLL => {}
                WORKER => {
                    self.worker_poll = Poll::Idle;
                    self.wake.drain();
                }
                tag => {
                    let tag = Tag::try_from(tag).expect("the ring gives back what it was given");
                    self.in_ring -= 1;
                    self.flight.finish(tag, outcome(entry.result()));
                }
            }
        }
        while let Some((tag, result)) = self.worker.as_mut().and_then(Worker::pop) {
            self.flight.finish(tag, result);
        }
    }

    /// Polls are armed once and again after they fired. Arming looks at the level, so what was left
    /// unread is reported again.
    fn arm(&mut self, watch: RawFd) {
        assert!(
            *self.watched.get_or_insert(watch) == watch,
            "an engine has one watched descriptor"
        );
        if self.watch == Poll::Idle {
            self.watch = Poll::Armed;
            self.queue(&poll(watch, WATCH));
        }
        if let Some(mut reader) = self.events.take() {
            reader.entries(|entry| self.queue(entry));
            self.events = Some(reader);
        }
        let worker_busy = self.worker.as_ref().is_some_and(|worker| worker.in_flight() > 0);
        if worker_busy && self.worker_poll == Poll::Idle {
            self.worker_poll = Poll::Armed;
            self.queue(&poll(self.wake.raw(), WORKER));
        }
    }

    /// From now on completions signal no eventfd.
    fn wait_inside(&mut self) {
        if self.waiting == Waiting::Outside {
            self.waiting = Waiting::Inside;
            self.ring.completion().disable_eventfd();
        }
    }
}

impl Disk for Uring {
    fn push(&mut self, tag: Tag, op: Op) {
        let file = self.files.get(op.file);
        self.flight.begin();
        if let Some(entry) = self.entry(file, &op) {
            self.in_ring += 1;
            self.queue(&entry.user_data(u64::from(tag)));
        } else {
            let job = Job::new(tag, file, &op).expect("what the ring does not do is the worker's");
            let worker = self.worker.as_mut();
            worker.expect("set_files starts one for a block device").push(job);
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.waiting == Waiting::Outside {
            // Before the look at what is there, so that a signal after it is not lost.
            self.wake.drain();
        }
        if self.queued() > 0 || self.in_ring > 0 {
            self.enter()?;
        }
        self.collect();
        Ok(())
    }

    fn reap(&mut self) -> Option<Done> {
        self.flight.reap()
    }

    fn has_finished(&self) -> bool {
        self.flight.has_finished()
    }

    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    fn arena_ref(&self) -> &Arena {
        &self.arena
    }

    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        assert!(self.flight.is_empty(), "files change only while nothing is in flight");
        self.files.set(fds)?;
        if self.worker.is_none() && self.files.any_block() {
            self.worker =
                Some(Worker::start(self.flight.depth() as usize, Arc::clone(&self.wake))?);
        }
        if self.files_registered {
            self.ring.submitter().register_files_update(0, &self.files.table())?;
        }
        Ok(())
    }

    fn wake_fd(&self) -> RawFd {
        self.wake.raw()
    }

    fn submit_and_wait(&mut self, watch: RawFd, timeout: Duration) -> Option<io::Result<()>> {
        // Time limits came with Linux 5.11.
        if !self.ring.params().is_feature_ext_arg() {
            return None;
        }
        self.wait_inside();
        self.collect();
        if self.flight.has_finished() || self.events.as_ref().is_some_and(EventReader::has_events) {
            return Some(if self.queued() > 0 { self.submit() } else { Ok(()) });
        }
        self.arm(watch);
        let slept = self.enter_and_sleep(timeout);
        self.collect();
        Some(slept)
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }
}

/// A ring with room for `depth` operations and our polls, as modern as the kernel allows. It is
/// disabled until [`restrict`], where the kernel has that.
pub(super) fn build_ring(depth: u32) -> io::Result<IoUring> {
    let [newest, rest @ ..] = builders();
    let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    let mut ring = build(&newest, depth);
    for older in rest {
        if ring.as_ref().is_err_and(unknown) {
            ring = build(&older, depth);
        }
    }
    ring
}

/// What is asked for, newest first: Linux 6.1, 5.19, 5.10, and the first.
fn builders() -> [Builder; 4] {
    let mut oldest = IoUring::builder();
    oldest.setup_clamp().dontfork();
    let mut disabled = oldest.clone();
    disabled.setup_r_disabled();
    let mut middle = disabled.clone();
    middle.setup_coop_taskrun().setup_submit_all();
    let mut newest = disabled.clone();
    newest.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
    [newest, middle, disabled, oldest]
}

fn build(builder: &Builder, depth: u32) -> io::Result<IoUring> {
    let entries = depth.saturating_add(POLLS_MAX).min(ENTRIES_MAX).next_power_of_two();
    checked(builder.build(entries).map_err(explained)?, depth)
}

/// Without CAP_IPC_LOCK the ring itself counts as locked memory of the user, over all processes.
fn explained(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(libc::ENOMEM) {
        return error;
    }
    let text = "io_uring gets no memory: raise RLIMIT_MEMLOCK (ulimit -l) or give CAP_IPC_LOCK";
    io::Error::new(error.kind(), text)
}

/// Refuses a ring that is too small or lacks an operation.
fn checked(ring: IoUring, depth: u32) -> io::Result<IoUring> {
    if ring.params().sq_entries() < depth.saturating_add(POLLS_MAX) {
        let text = format!("io_uring has no room for {depth} operations in flight; ask for less");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("read_fixed", opcode::ReadFixed::CODE),
        ("write_fixed", opcode::WriteFixed::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("fallocate", opcode::Fallocate::CODE),
        ("poll_add", opcode::PollAdd::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        None => Ok(ring),
        Some((name, _)) => {
            let text = format!("this kernel's io_uring lacks {name} (Linux 5.6 has it)");
            Err(io::Error::new(io::ErrorKind::Unsupported, text))
        }
    }
}

/// The arena as registered buffer 0, if the kernel agrees.
fn register_memory(ring: &IoUring, arena: &Arena) -> bool {
    // Registered pages stay where they are.
    if !protection::has(Protection::Lock) || !protection::has(Protection::Reserve) {
        return false;
    }
    let all = libc::iovec { iov_base: arena.base().cast(), iov_len: arena.bytes() };
    // SAFETY: the arena's mapping lives as long as the engine, which drops the ring first.
    unsafe { ring.submitter().register_buffers(&[all]) }.is_ok()
}

/// An empty table of registered files, if the kernel agrees. Before 5.19 it is given as -1s.
fn register_table(ring: &IoUring, files_max: u8) -> bool {
    let submitter = ring.submitter();
    submitter.register_files_sparse(u32::from(files_max)).is_ok()
        || submitter.register_files(&vec![-1; usize::from(files_max)]).is_ok()
}

fn space(fd: types::Fd, file: File, op: &Op) -> Option<squeue::Entry> {
    match Call::of(op.kind, file.block)? {
        (Call::Fallocate(mode), bytes) => {
            Some(opcode::Fallocate::new(fd, bytes).offset(op.at).mode(mode).build())
        }
        (Call::Discard | Call::Sync | Call::Read(_) | Call::Write(_), _) => None,
    }
}

fn poll(fd: RawFd, user_data: u64) -> squeue::Entry {
    let readable = u32::from(libc::POLLIN.unsigned_abs());
    opcode::PollAdd::new(types::Fd(fd), readable).build().user_data(user_data)
}

fn outcome(result: i32) -> Result<u32, i32> {
    u32::try_from(result).map_err(|_| -result)
}

/// Errors after which everything stays queued and the next call tries again: a signal, the time is
/// over, no memory just now, results not yet collected.
fn passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests;
