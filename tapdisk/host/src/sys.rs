//! The system calls that std does not offer, behind safe functions. Control path only.
#![allow(unsafe_code)]
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `_IOR(0x12, 114, size_t)` of linux/fs.h: size of a block device in bytes.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// `_IO(0x12, 104)` of linux/fs.h: logical sector size of a block device in bytes.
const BLKSSZGET: libc::c_ulong = 0x1268;
/// prctl of Linux 5.6: memory that the kernel allocates for this task does no I/O.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Writes out what the page cache has of a file or device, and waits for it. No flush: what the
/// writes go to need not have them on the medium.
///
/// # Errors
/// Those of the writes.
pub fn write_out(file: &File) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes numbers only.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, how) }).map(drop)
}

/// Whether a descriptor is still open after an exec.
///
/// # Errors
/// EBADF.
pub fn survive_exec(fd: RawFd, survives: bool) -> io::Result<()> {
    let flags = if survives { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: takes numbers only, and closes nothing.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// Another descriptor of what a number stands for that the program before us left open.
///
/// # Errors
/// EBADF, EMFILE.
pub fn copy_of_number(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers, and gives a descriptor that nobody else owns.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// Closes a descriptor that the program before us left open, and that nobody here owns.
pub fn close_number(fd: RawFd) {
    // SAFETY: the number was inherited, so nothing in this program owns it.
    unsafe { libc::close(fd) };
}

/// Goes on with another program, which is named by a descriptor. Comes back only with an error.
///
/// A thread of its own makes the call and becomes the process: for the kernel the thread that has
/// served a ublk device ends then, as when its process dies. It takes it for a fault if it does not
/// (a warning in `ublk_queue_reinit`, Linux 6.12).
pub fn execute(program: &OwnedFd, args: &[CString]) -> io::Error {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| execute_here(program, args));
        thread.join().unwrap_or_else(|_| io::ErrorKind::Other.into())
    })
}

fn execute_here(program: &OwnedFd, args: &[CString]) -> io::Error {
    let mut list: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    list.push(std::ptr::null());
    // A script needs a path, and the program's own name is for people.
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd())) else {
        unreachable!("a number has no NUL")
    };
    // SAFETY: strings that end with NUL, in a list that ends with NULL; all outlive the call.
    unsafe { libc::execv(path.as_ptr(), list.as_ptr()) };
    io::Error::last_os_error()
}

/// Size of a block device in bytes.
///
/// # Errors
/// ENOTTY for what is no block device.
pub fn device_bytes(device: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the kernel writes eight bytes to `bytes`; the descriptor is borrowed for the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &mut bytes) })?;
    Ok(bytes)
}

/// Logical sector size of a block device in bytes.
///
/// # Errors
/// ENOTTY for what is no block device.
pub fn device_sector(device: &File) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes an int to `bytes`; the descriptor is borrowed for the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), BLKSSZGET, &mut bytes) })?;
    u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Bytes that an ordinary process may still take on the file system of a file.
///
/// # Errors
/// Those of `fstatvfs(3)`, such as EIO.
pub fn free_bytes(file: &File) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the kernel fills the structure, which is plain numbers; the descriptor is borrowed.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: zeroed numbers are valid, and the call succeeded.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Minor and major page faults of the calling thread since it began.
pub fn faults() -> (u64, u64) {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure, which is plain numbers and zero before.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    (usage.ru_minflt.unsigned_abs(), usage.ru_majflt.unsigned_abs())
}

/// A moment as people near this machine write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// 0 … 11.
    pub month: usize,
    /// 1 … 31.
    pub day: u8,
    /// Hour, minute, second.
    pub clock: [u8; 3],
    /// Milliseconds of the second.
    pub millis: u16,
}

/// The present moment.
pub fn local_time() -> LocalTime {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(0);
    let mut tm = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both point to live memory of the right types; zeros are a valid `tm` if it fails.
    let tm = unsafe {
        libc::localtime_r(&seconds, tm.as_mut_ptr());
        tm.assume_init()
    };
    let small = |n: libc::c_int| u8::try_from(n).unwrap_or(0);
    LocalTime {
        month: usize::from(small(tm.tm_mon)) % 12,
        day: small(tm.tm_mday),
        clock: [small(tm.tm_hour), small(tm.tm_min), small(tm.tm_sec)],
        millis: u16::try_from(now.subsec_millis()).unwrap_or(0),
    }
}

/// A limit of setrlimit: (soft, hard).
pub fn limit(which: u32) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure, which outlives the call.
    unsafe { libc::getrlimit(which, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Sets a limit.
///
/// # Errors
/// EPERM above the hard limit without CAP_SYS_RESOURCE.
pub fn set_limit(which: u32, (soft, hard): (u64, u64)) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure is read by the kernel and outlives the call.
    check(unsafe { libc::setrlimit(which, &limit) }).map(drop)
}

/// Puts a filter onto the system calls of all threads of this process, for good; it outlives an
/// exec. With `logs`, what it refuses is in the kernel's log (Linux 4.14).
///
/// # Errors
/// ENOSYS and EINVAL of a kernel without filters; EACCES before `no_new_privs`.
pub fn install_filter(steps: &[seccompiler::sock_filter], logs: bool) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        // Never written through: the kernel copies the filter.
        filter: steps.as_ptr().cast_mut().cast(),
    };
    let set = |flags: libc::c_ulong| {
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: the kernel reads as many steps as `program` says, which are there until the call
        // returns and have the layout of `sock_filter` of linux/filter.h.
        match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) } {
            0 => Ok(()),
            // A thread that cannot be put under it, as it has one that we do not have.
            1.. => Err(io::ErrorKind::ResourceBusy.into()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
    let log = if logs { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 };
    match set(all | log) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(all),
        other => other,
    }
}

/// Locks all memory that is mapped and all that will be.
///
/// # Errors
/// EPERM or ENOMEM where the limit forbids it.
pub fn lock_all_memory() -> io::Result<()> {
    // SAFETY: mlockall takes numbers and changes no contents of memory.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) }).map(drop)
}

/// Tells the kernel that its own allocations in our calls must not wait for us. Whether it took, or
/// did before an exec: without CAP_SYS_RESOURCE it can be neither asked for nor asked after.
pub fn set_io_flusher() -> bool {
    // SAFETY: both take numbers only.
    let set = unsafe {
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
        libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1
    };
    set || std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_io_flusher(&stat))
}

/// `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE` of linux/sched.h, in the ninth field of a status. The
/// second one, the name, may hold anything.
fn is_io_flusher(stat: &str) -> bool {
    const FLAGS: u64 = 0x0008_0000 | 0x0010_0000;
    let flags = stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(6);
    flags.and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & FLAGS == FLAGS)
}

/// Puts this process before others when processors are given out. Whether the kernel let it.
pub fn raise_priority() -> bool {
    // SAFETY: takes numbers only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) == 0 }
}

/// Makes all threads of this process real-time tasks of the lowest rank, and those that they start.
/// Whether the kernel let it.
pub fn be_real_time() -> bool {
    let lowest = libc::sched_param { sched_priority: 1 };
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
    let numbers = threads.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    // SAFETY: the kernel reads the structure, which outlives the calls.
    let set = |id| unsafe { libc::sched_setscheduler(id, libc::SCHED_RR, &raw const lowest) == 0 };
    // All of them, also after a refusal; a thread that has ended meanwhile does not count.
    let refused: Vec<i32> = numbers.filter(|id| !set(*id)).collect();
    let there = |id: &i32| std::path::Path::new(&format!("/proc/self/task/{id}")).exists();
    !refused.iter().any(there)
}

/// A page of a file in shared memory that stays in memory, so that writing the file never waits for
/// a swap device. It is only locked, never looked at: whoever cuts the file short takes the page
/// away and harms nobody.
#[derive(Debug)]
pub struct HeldPage(std::ptr::NonNull<libc::c_void>);

// SAFETY: the mapping is owned by this value alone and has no thread affinity.
unsafe impl Send for HeldPage {}

const HELD_BYTES: usize = 4096;

/// Holds the first page of a file; `None` where it may not be locked.
pub fn hold_page(file: &File) -> Option<HeldPage> {
    let (read, shared, fd) = (libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd());
    // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is borrowed
    // for the call.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), HELD_BYTES, read, shared, fd, 0) };
    let page = (at != libc::MAP_FAILED).then(|| std::ptr::NonNull::new(at).map(HeldPage))??;
    // SAFETY: the mapping made just above; mlock changes no contents.
    (unsafe { libc::mlock(at, HELD_BYTES) } == 0).then_some(page)
}

impl Drop for HeldPage {
    fn drop(&mut self) {
        // SAFETY: the mapping of `hold_page`, unmapped once; nobody has its address.
        unsafe { libc::munmap(self.0.as_ptr(), HELD_BYTES) };
    }
}

/// One malloc arena for all threads, none of 64 MiB for each; freed memory stays until trimmed, so
/// that what the control path asks for later is there.
pub fn one_malloc_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers; called before there is another thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free memory at the heap's end back, so that it does not stay locked.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and is safe at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Locks the stack of this thread, which ends soon, and gives it back when dropped: the C library
/// keeps the stacks of threads that are over, and `mlockall` has them locked.
#[derive(Debug)]
pub struct LentStack {
    /// Its lowest byte; `None` where it is not known.
    low: Option<usize>,
}

/// What the thread still needs to end, in bytes.
const LAST_STACK_BYTES: usize = 8 << 10;

impl LentStack {
    /// The stack of the calling thread, all of it there if memory may be locked.
    pub fn of_this_thread() -> LentStack {
        let low = stack().map(|(low, _)| low);
        if let Some((at, bytes)) = low.and_then(stack_below) {
            // SAFETY: mlock changes no contents of memory, and refuses what is not mapped.
            unsafe { libc::mlock(at, bytes) };
        }
        LentStack { low }
    }
}

impl Drop for LentStack {
    fn drop(&mut self) {
        let Some((at, bytes)) = self.low.and_then(stack_below) else { return };
        // SAFETY: whole pages of this thread's own stack, further below everything in use than the
        // rest of its life reaches with live data; what is read there later was written later.
        unsafe {
            if libc::munlock(at, bytes) == 0 {
                libc::madvise(at, bytes, libc::MADV_DONTNEED);
            }
        }
    }
}

/// Locks the last `bytes` of this thread's stack, which are those that are used first, and puts
/// them in memory. For a thread that stays: `mlockall` does so with new stacks, but the C library
/// may have given it one of a thread that is over, and a [`LentStack`] is not locked any more.
pub fn lock_this_stack(bytes: usize) {
    let Some((low, all)) = stack() else { return };
    let bytes = bytes.min(all);
    let at = std::ptr::with_exposed_provenance(low + all - bytes);
    // SAFETY: mlock changes no contents of memory, and refuses what is not mapped.
    unsafe { libc::mlock(at, bytes) };
}

/// Where the stack of this thread begins, and its length.
fn stack() -> Option<(usize, usize)> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut low, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are initialised by the first call, read by the second, and destroyed
    // once; all pointers are to our own variables.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then(|| (low.expose_provenance(), bytes))
    }
}

/// The whole pages of this thread's stack from `low` to a little below where it is now.
#[inline(never)]
fn stack_below(low: usize) -> Option<(*mut libc::c_void, usize)> {
    let here = 0_u8;
    let low = low.next_multiple_of(4096);
    let end = std::ptr::from_ref(&here).expose_provenance().checked_sub(LAST_STACK_BYTES)? & !4095;
    let bytes = end.checked_sub(low).filter(|bytes| *bytes > 0)?;
    Some((std::ptr::with_exposed_provenance_mut(low), bytes))
}

/// Has an epoll descriptor watch another for reading, level-triggered, under a number.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
pub fn watch_level(epoll: RawFd, watched: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number };
    let (add, fd) = (libc::EPOLL_CTL_ADD, watched.as_raw_fd());
    // SAFETY: the kernel reads `event`, which outlives the call; both descriptors are open.
    check(unsafe { libc::epoll_ctl(epoll, add, fd, &mut event) }).map(drop)
}

/// Takes a descriptor out of an epoll descriptor, if it is in it.
pub fn unwatch(epoll: RawFd, watched: BorrowedFd<'_>) {
    let (del, fd) = (libc::EPOLL_CTL_DEL, watched.as_raw_fd());
    // SAFETY: no memory is passed; both descriptors are open.
    let _ = unsafe { libc::epoll_ctl(epoll, del, fd, std::ptr::null_mut()) };
}

/// Sends one netlink message and hands what comes back to `read`, packet by packet, until it has
/// enough.
///
/// # Errors
/// Those of `socket(2)`, `send(2)` and `recv(2)`; WouldBlock when nothing comes for 30 s.
pub fn netlink(
    protocol: i32,
    message: &[u8],
    mut read: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes numbers, and gives a descriptor that nobody else owns.
    let socket = unsafe {
        let fd = check(libc::socket(libc::AF_NETLINK, kind, protocol))?;
        OwnedFd::from_raw_fd(fd)
    };
    let limit = libc::timeval { tv_sec: 30, tv_usec: 0 };
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel reads `limit` and `message`, both with their own sizes, and both outlive
    // the calls.
    let sent = unsafe {
        let size = size_of::<libc::timeval>() as libc::socklen_t;
        let at = (&raw const limit).cast();
        check(libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, at, size))?;
        libc::send(fd, message.as_ptr().cast(), message.len(), 0)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut packet = vec![0u8; 16 << 10];
    loop {
        // SAFETY: the kernel writes at most the packet's length.
        let got = unsafe { libc::recv(fd, packet.as_mut_ptr().cast(), packet.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if read(&packet[..got]) {
            return Ok(());
        }
    }
}

/// Receives one message with at most one descriptor. What it carried is the caller's.
///
/// # Errors
/// Those of `recvmsg(2)`; WouldBlock when there is none yet.
pub fn receive_descriptor(
    socket: BorrowedFd<'_>,
    text: &mut [u8],
) -> io::Result<(usize, Option<std::os::fd::OwnedFd>)> {
    use std::os::fd::FromRawFd;
    let mut room = [0u64; 8];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: zeros are a valid msghdr.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = room.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&room) as _;
    // SAFETY: the header names `text` and `room`, which outlive the call, with their lengths.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, libc::MSG_CMSG_CLOEXEC) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let mut found = None;
    // SAFETY: the kernel filled `header` and `room`; the macros walk only what it says is there.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(&header) };
    while !control.is_null() {
        // SAFETY: not null, so it lies in `room`, which is aligned for it.
        let (level, kind, bytes) =
            unsafe { ((*control).cmsg_level, (*control).cmsg_type, (*control).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN computes a constant.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            for i in 0..(bytes - head) / size_of::<libc::c_int>() {
                // SAFETY: the kernel wrote that many descriptors there, now ours alone. All but the
                // last are dropped, that is closed.
                found = Some(unsafe {
                    let at = libc::CMSG_DATA(control).cast::<libc::c_int>().add(i);
                    std::os::fd::OwnedFd::from_raw_fd(at.read_unaligned())
                });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        control = unsafe { libc::CMSG_NXTHDR(&header, control) };
    }
    Ok((got, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_an_io_flusher_are_seen() {
        assert!(is_io_flusher("7 (a) b) S 1 7 7 0 -1 5767424 0 0"));
        assert!(!is_io_flusher("7 (a) S 1 7 7 0 -1 4194560 0 0"));
        assert!(!is_io_flusher("7 (a) S 1 7 7 0 -1 524288 0 0"), "half of them");
        assert!(!is_io_flusher(""));
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(device_bytes(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }

    /// Pages of the range that are in memory.
    fn resident(at: *mut libc::c_void, bytes: usize) -> usize {
        let mut pages = vec![0_u8; bytes / 4096];
        // SAFETY: one byte for each page of a mapped range.
        assert_eq!(unsafe { libc::mincore(at, bytes, pages.as_mut_ptr()) }, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[inline(never)]
    fn use_much_stack() {
        let mut stack = [0_u8; 128 << 10];
        stack.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        std::hint::black_box(&stack);
    }

    /// The C library gives the stack of a thread that is over to the next one.
    #[test]
    fn a_thread_that_stays_has_its_stack_locked_whoever_had_it_before() {
        const BYTES: usize = 64 << 10;
        let locked_kib = || {
            let here = 0_u8;
            let at = std::ptr::from_ref(&here).addr();
            let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut inside = false;
            for line in smaps.lines() {
                let range = line.split(' ').next().and_then(|range| range.split_once('-'));
                let ends = range.map(|(from, to)| {
                    (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
                });
                if let Some((Ok(from), Ok(to))) = ends {
                    inside = (from..to).contains(&at);
                }
                if let Some(kib) = line.strip_prefix("Locked:").filter(|_| inside) {
                    return kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
                }
            }
            0
        };
        let thread = |locks: bool| {
            let builder = std::thread::Builder::new().stack_size(BYTES);
            let run = move || {
                if locks {
                    lock_this_stack(BYTES);
                    return locked_kib();
                }
                drop(LentStack::of_this_thread());
                0
            };
            builder.spawn(run).unwrap().join().unwrap()
        };
        thread(false);
        // An ordinary user may lock 64 KiB at least.
        let locked = thread(true);
        assert!(locked >= 60, "{locked} KiB");
    }

    #[test]
    fn a_lent_stack_is_given_back() {
        let thread = std::thread::Builder::new().stack_size(512 << 10);
        let thread = thread.spawn(|| {
            let stack = LentStack::of_this_thread();
            use_much_stack();
            let (at, bytes) = stack.low.and_then(stack_below).expect("glibc and musl know it");
            let used = resident(at, bytes);
            drop(stack);
            (used, resident(at, bytes))
        });
        let (used, left) = thread.unwrap().join().unwrap();
        assert!(used >= 24, "{used} pages");
        assert_eq!(left, 0, "of {used} pages");
    }
}
