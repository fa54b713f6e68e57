//! Linux native AIO, for kernels without io_uring.
//!
//! ```text
//!   push ─► iocbs ── submit (one io_submit) ─► kernel ─┐ completion ring, mapped
//!     ├───► worker (grow, zero, discard) ──────────────┤ + one count in the eventfd each
//!     └───► page cache: at once, or cache workers ─────┤
//!   reap ◄─ done ◄───────────── collect ◄──────────────┘
//! ```
//! Results are read from the completion ring in our own memory, without a system call, as fio does;
//! a kernel with an unknown ring is asked with io_getevents. AIO is asynchronous only for O_DIRECT.
//! What goes through the page cache (`-D`: read-only parents) is read at once if it is there
//! (RWF_NOWAIT, Linux 4.14), and by one of a few threads if not: in `submit` a cold read would hold
//! up the whole disk. Nothing here allocates after `open` and `set_files`.
#![allow(unsafe_code)]
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::files::{File, Files};
use super::flight::Flight;
use super::worker::{Call, Done, EventFd, Job, Worker};
use host::arena::Arena;
use request::disk::{Disk, Kind, Op, Tag};

/// linux/aio_abi.h, `IOCB_CMD_*`.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FDSYNC: u16 = 3;
/// linux/aio_abi.h, `IOCB_FLAG_RESFD`: signal the eventfd in `aio_resfd`.
const RESFD: u32 = 1;
/// fs/aio.c, `AIO_RING_MAGIC`, and the incompatible features we know: none.
const RING_MAGIC: u32 = 0xa10a_10a1;
/// RWF_NOWAIT of linux/fs.h: only what needs no waiting.
const RWF_NOWAIT: libc::c_int = 8;
/// Threads for what is not in the page cache: the original read one after the other.
const CACHE_THREADS: usize = 4;
/// Results taken by one io_getevents.
const EVENTS_MAX: usize = 16;

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    // Key and rw_flags, in an order that depends on the byte order; both are zero here.
    key_and_rw_flags: u64,
    opcode: u16,
    priority: i16,
    file: i32,
    buf: u64,
    bytes: u64,
    // Signed in the kernel, which refuses what is negative.
    offset: u64,
    reserved: u64,
    flags: u32,
    result_fd: i32,
}
const _: () = assert!(size_of::<Iocb>() == 64);
const _: () = assert!(offset_of!(Iocb, opcode) == 16 && offset_of!(Iocb, buf) == 24);
const _: () = assert!(offset_of!(Iocb, flags) == 56);

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}
const _: () = assert!(size_of::<Event>() == 32);

/// `struct aio_ring` of fs/aio.c; the events follow.
#[repr(C)]
struct Ring {
    id: u32,
    /// How many events there is room for.
    count: u32,
    /// Next to read; ours to write.
    head: AtomicU32,
    /// Next to be written; the kernel's.
    tail: AtomicU32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    header_bytes: u32,
}
const _: () = assert!(size_of::<Ring>() == 32);

/// The engine.
pub struct Aio {
    // Dropped first: it waits for what is in flight, and then nobody touches the arena.
    context: Context,
    worker: Worker,
    /// For data of the page cache, while there are such files.
    cache_workers: Option<Worker>,
    /// The kernel, or a file system, does not know RWF_NOWAIT.
    always_waits: bool,
    arena: Arena,
    wake: Arc<EventFd>,
    files: Files,
    flight: Flight,
    /// Of what is in flight, those that the kernel has.
    in_kernel: usize,
    /// The first `queued` wait for io_submit.
    iocbs: Box<[Iocb]>,
    /// `&iocbs[i]` at `i`.
    pointers: Box<[*mut Iocb]>,
    queued: usize,
    /// The kernel refused FDSYNC (before 4.18): the worker does it.
    sync_in_lane: bool,
    /// Results taken minus counts drained from the eventfd: what it will still be signalled for.
    owed: i64,
    /// How many of these the caller's poll has told, or will tell without being asked again.
    told: i64,
}

// SAFETY: the pointers are to the engine's own boxed memory, the context is the process's.
unsafe impl Send for Aio {}

impl Aio {
    /// Makes a context for `depth` operations in flight over `files_max` files, and starts the
    /// worker. The process must not fork into the one that uses it afterwards: a context is not
    /// inherited.
    ///
    /// # Errors
    /// When the kernel has no AIO, or fs.aio-max-nr is used up.
    pub fn open(arena: Arena, depth: u32, files_max: u8) -> io::Result<Aio> {
        let wake = Arc::new(EventFd::new()?);
        let context = Context::new(depth)?;
        let worker = Worker::start(depth as usize, Arc::clone(&wake))?;
        let mut iocbs = vec![Iocb::default(); depth as usize].into_boxed_slice();
        let pointers = iocbs.iter_mut().map(|iocb| &raw mut *iocb).collect();
        Ok(Aio {
            context,
            worker,
            cache_workers: None,
            always_waits: false,
            arena,
            wake,
            files: Files::new(files_max),
            flight: Flight::of(depth),
            in_kernel: 0,
            iocbs,
            pointers,
            queued: 0,
            sync_in_lane: false,
            owed: 0,
            told: 0,
        })
    }

    /// What the worker does: all that AIO has no command for.
    fn job(&self, tag: Tag, file: File, op: &Op) -> Option<Job> {
        match op.kind {
            Kind::Sync if self.sync_in_lane => Some(sync_job(tag, file.fd)),
            Kind::Read | Kind::Write | Kind::Sync => None,
            Kind::Grow { .. } | Kind::Zero { .. } | Kind::Discard { .. } => Job::new(tag, file, op),
        }
    }

    /// Data of the page cache. False if it is not for us.
    fn cached(&mut self, tag: Tag, file: File, op: &Op) -> bool {
        let Some(worker) = self.cache_workers.as_mut().filter(|_| file.cached) else {
            return false;
        };
        let address = self.arena.address(op.buf) as usize;
        let call = match op.kind {
            Kind::Read => Call::Read(address),
            Kind::Write => Call::Write(address),
            _ => return false,
        };
        if op.kind == Kind::Read && !self.always_waits {
            match read_now(file.fd, address, op) {
                Ok(bytes) if bytes == op.buf.bytes => {
                    self.flight.finish(tag, Ok(bytes));
                    return true;
                }
                Err(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => self.always_waits = true,
                // Not there, or not all of it.
                Ok(_) | Err(_) => {}
            }
        }
        let bytes = u64::from(op.buf.bytes);
        worker.push(Job { tag, fd: file.fd, call, at: op.at, bytes });
        true
    }

    fn iocb(&self, tag: Tag, fd: RawFd, op: &Op) -> Iocb {
        let opcode = match op.kind {
            Kind::Read => PREAD,
            Kind::Write => PWRITE,
            Kind::Sync => FDSYNC,
            Kind::Grow { .. } | Kind::Zero { .. } | Kind::Discard { .. } => {
                unreachable!("the worker's")
            }
        };
        let mut iocb = Iocb {
            data: u64::from(tag),
            opcode,
            file: fd,
            flags: RESFD,
            result_fd: self.wake.raw(),
            ..Iocb::default()
        };
        // FDSYNC is refused unless the rest is zero.
        if opcode != FDSYNC {
            iocb.buf = self.arena.address(op.buf) as u64;
            iocb.bytes = u64::from(op.buf.bytes);
            iocb.offset = op.at;
        }
        iocb
    }

    /// Forgets the first `count` queued ones.
    fn shift(&mut self, count: usize) {
        self.iocbs.copy_within(count..self.queued, 0);
        self.queued -= count;
    }

    /// The kernel refused the first queued one: that is its result, except that an unknown FDSYNC
    /// goes to the worker.
    fn refused(&mut self, errno: i32) {
        let iocb = self.iocbs[0];
        let tag = tag_of(iocb.data);
        self.shift(1);
        if iocb.opcode == FDSYNC && errno == libc::EINVAL {
            self.sync_in_lane = true;
            self.worker.push(sync_job(tag, iocb.file));
        } else {
            self.flight.finish(tag, Err(errno));
        }
    }

    /// Gives the kernel what is queued. Each round takes or refuses one at least.
    fn hand_over(&mut self) -> io::Result<()> {
        while self.queued > 0 {
            match self.context.submit(&mut self.pointers[..self.queued]) {
                Ok(count) => {
                    self.in_kernel += count;
                    self.shift(count);
                }
                Err(libc::EAGAIN | libc::EINTR) => return Ok(()),
                Err(errno @ (libc::ENOSYS | libc::EPERM)) => {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                Err(errno) => self.refused(errno),
            }
        }
        Ok(())
    }

    /// Moves what finished to `flight`. The eventfd is emptied before the ring is read: the kernel
    /// writes the result first and then signals, so a result that is not seen has its signal to
    /// come.
    fn collect(&mut self) {
        if self.signalled() {
            self.owed -= i64::try_from(self.wake.drain()).expect("a count of results");
            self.told = 0;
        }
        self.take_results(self.owed < 0);
    }

    /// The caller's edge-triggered poll told of `wake_fd`: takes what is there, so that it need not
    /// wait for the next `submit`. The count stays in the eventfd: each edge is told once, and to
    /// empty it would be one more call a wake-up.
    pub fn woken(&mut self) {
        self.take_results(true);
        self.told = self.owed;
    }

    fn take_results(&mut self, may_ask: bool) {
        while let Some(event) = self.context.next(may_ask) {
            self.in_kernel -= 1;
            self.owed += 1;
            self.flight.finish(tag_of(event.data), outcome(event.result));
        }
        for worker in [Some(&mut self.worker), self.cache_workers.as_mut()].into_iter().flatten() {
            while let Some((tag, result)) = worker.pop() {
                self.owed += 1;
                self.flight.finish(tag, result);
            }
        }
    }

    /// What the kernel has not taken waits for the next completion, which brings the caller back.
    /// If there is none to come, we bring it back ourselves.
    fn wake_if_stuck(&mut self) {
        if self.queued > 0 && self.in_kernel == 0 {
            self.wake.signal();
            self.owed += 1;
        }
    }

    /// Whether the eventfd has a count, or will have in a moment, that the caller does not know of.
    fn signalled(&self) -> bool {
        let workers = self.worker.ready() + self.cache_workers.as_ref().map_or(0, Worker::ready);
        let ready = workers + self.context.ready().unwrap_or(self.in_kernel);
        self.owed + i64::try_from(ready).expect("a queue is small") > self.told
    }
}

impl Disk for Aio {
    fn push(&mut self, tag: Tag, op: Op) {
        let file = self.files.get(op.file);
        self.flight.begin();
        if let Some(job) = self.job(tag, file, &op) {
            self.worker.push(job);
        } else if !self.cached(tag, file, &op) {
            self.iocbs[self.queued] = self.iocb(tag, file.fd, &op);
            self.queued += 1;
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        let handed = self.hand_over();
        self.collect();
        self.wake_if_stuck();
        handed
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
        self.always_waits = false;
        if self.files.any_cached() != self.cache_workers.is_some() {
            self.cache_workers = match self.files.any_cached() {
                true => {
                    let (depth, wake) = (self.flight.depth() as usize, Arc::clone(&self.wake));
                    Some(Worker::of(CACHE_THREADS, "disk-cache", depth, wake)?)
                }
                false => None,
            };
        }
        Ok(())
    }

    fn wake_fd(&self) -> RawFd {
        self.wake.raw()
    }

    fn name(&self) -> &'static str {
        "linux-aio"
    }
}

/// The kernel's context and its completion ring.
struct Context {
    id: libc::c_ulong,
    /// The ring has the layout we know.
    mapped: bool,
    events: Box<[Event]>,
    events_read: usize,
    events_count: usize,
}

impl Context {
    fn new(depth: u32) -> io::Result<Context> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes the id, which outlives the call.
        if unsafe { libc::syscall(libc::SYS_io_setup, libc::c_ulong::from(depth), &raw mut id) }
            != 0
        {
            return Err(setup_error(depth));
        }
        let events = vec![Event::default(); EVENTS_MAX].into_boxed_slice();
        let mut context = Context { id, mapped: false, events, events_read: 0, events_count: 0 };
        let ring = context.ring();
        context.mapped = ring.magic == RING_MAGIC
            && ring.incompatible == 0
            && ring.header_bytes as usize == size_of::<Ring>();
        Ok(context)
    }

    fn ring(&self) -> &Ring {
        // SAFETY: the id is the address of the ring (fs/aio.c, ioctx_alloc), page-aligned, readable
        // and writable, mapped until io_destroy in `drop`. Its header is never smaller than this.
        // What the kernel changes meanwhile are the atomics.
        unsafe { &*std::ptr::with_exposed_provenance::<Ring>(self.id as usize) }
    }

    /// How many the kernel took, or why it refused the first.
    fn submit(&self, iocbs: &mut [*mut Iocb]) -> Result<usize, i32> {
        let (count, at) = (iocbs.len() as libc::c_long, iocbs.as_mut_ptr());
        // SAFETY: pointers to iocbs of the engine, which the kernel copies before it returns. Their
        // memory is a piece of the arena, which outlives the context.
        let took = unsafe { libc::syscall(libc::SYS_io_submit, self.id, count, at) };
        usize::try_from(took)
            .map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// How many results can be read; `None` if only the kernel knows.
    fn ready(&self) -> Option<usize> {
        let ring = self.ring();
        self.mapped.then(|| {
            let head = ring.head.load(Ordering::Relaxed);
            let tail = ring.tail.load(Ordering::Acquire);
            let behind = if tail >= head { tail - head } else { ring.count - head + tail };
            behind as usize
        })
    }

    /// The next result. A kernel whose ring we cannot read is asked if `may_ask`.
    fn next(&mut self, may_ask: bool) -> Option<Event> {
        if self.mapped { self.next_mapped() } else { self.next_asked(may_ask) }
    }

    fn next_mapped(&self) -> Option<Event> {
        let ring = self.ring();
        let head = ring.head.load(Ordering::Relaxed);
        if head == ring.tail.load(Ordering::Acquire) {
            return None;
        }
        assert!(head < ring.count, "the ring's head lies inside");
        let first =
            std::ptr::with_exposed_provenance::<Event>(self.id as usize + size_of::<Ring>());
        // SAFETY: the mapping holds `count` events behind the header, and the kernel finished this
        // one before it moved the tail past it (loaded with Acquire).
        let event = unsafe { first.add(head as usize).read() };
        ring.head.store((head + 1) % ring.count, Ordering::Release);
        Some(event)
    }

    fn next_asked(&mut self, may_ask: bool) -> Option<Event> {
        if self.events_read == self.events_count && may_ask {
            (self.events_read, self.events_count) = (0, self.ask());
        }
        let event = *self.events[..self.events_count].get(self.events_read)?;
        self.events_read += 1;
        Some(event)
    }

    /// io_getevents without waiting; how many came.
    fn ask(&mut self) -> usize {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (room, none) = (EVENTS_MAX as libc::c_long, 0 as libc::c_long);
        let events = self.events.as_mut_ptr();
        // SAFETY: room for that many events, and the time; both outlive the call.
        let came = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.id, none, room, events, &raw const now)
        };
        // A refusal is a signal: they are there the next time.
        usize::try_from(came).unwrap_or(0)
    }
}

impl Drop for Context {
    /// Waits for everything in flight.
    fn drop(&mut self) {
        // SAFETY: the id of `new`, destroyed once.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

fn setup_error(depth: u32) -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EAGAIN) {
        return error;
    }
    let text = format!(
        "Linux AIO has no room for {depth} more operations: raise the sysctl fs.aio-max-nr above what \
         fs.aio-nr shows"
    );
    io::Error::new(error.kind(), text)
}

/// Reads what needs no waiting. The system call itself: dom0's C library is older.
fn read_now(fd: RawFd, address: usize, op: &Op) -> Result<u32, i32> {
    let bytes = op.buf.bytes as usize;
    let to =
        libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address), iov_len: bytes };
    // The offset in halves, of which 64-bit kernels read the first, whole.
    let (low, high) = (op.at as libc::c_long, (op.at >> 32) as libc::c_long);
    // SAFETY: a buffer of the arena, which is this operation's alone.
    let read =
        unsafe { libc::syscall(libc::SYS_preadv2, fd, &raw const to, 1, low, high, RWF_NOWAIT) };
    u32::try_from(read).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn sync_job(tag: Tag, fd: RawFd) -> Job {
    Job { tag, fd, call: Call::Sync, at: 0, bytes: 0 }
}

fn tag_of(data: u64) -> Tag {
    Tag::try_from(data).expect("the kernel gives back what it was given")
}

/// The kernel's result: a number of bytes or a negative errno.
fn outcome(result: i64) -> Result<u32, i32> {
    u32::try_from(result).map_err(|_| i32::try_from(-result).unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests;
