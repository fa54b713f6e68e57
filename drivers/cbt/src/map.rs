//! A log's first bytes, mapped shared: the one module with unsafe code.
//!
//! The mapping is shared with every process that has the file open, so its bytes are only ever
//! touched through atomic operations, never through slices. Pages are read in, and locked where the
//! limit allows it, when the mapping is made; a store may still enter the kernel when the page was
//! clean (the file system learns that it will be written), as with every shared file mapping.
//!
//! **What remains**: if another process makes the file shorter than the mapping, a touch beyond its
//! new end raises SIGBUS. The length is checked when the mapping is made and space is reserved, so
//! that neither a short file nor a full file system can cause it; nothing can keep a process that
//! may write the file from cutting it. `cbt-util` never shortens a log below what its disk needs.
#![allow(unsafe_code)]
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

/// A shared, writable mapping of the first bytes of a file, which it keeps open.
#[derive(Debug)]
pub(crate) struct Map {
    base: NonNull<u8>,
    bytes: usize,
    locked: bool,
    file: File,
}

// SAFETY: the mapping is owned by this value alone, has no thread affinity, and its bytes are
// touched through atomics only.
unsafe impl Send for Map {}
// SAFETY: as for Send.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `bytes` of a file that has at least as many.
    ///
    /// # Errors
    /// EINVAL for no bytes; ENOSPC where the file has holes and the file system is full; those of
    /// mmap.
    pub(crate) fn new(file: File, bytes: usize) -> io::Result<Map> {
        reserve(&file, bytes)?;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(at.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range was mapped just above. Without the right to lock, pages may be
        // reclaimed.
        let locked = unsafe { libc::mlock(at, bytes) } == 0;
        Ok(Map { base, bytes, locked, file })
    }

    /// Whether the kernel keeps the pages in memory.
    pub(crate) fn locked(&self) -> bool {
        self.locked
    }

    /// The value of one byte.
    pub(crate) fn get(&self, at: usize) -> u8 {
        self.byte(at).load(Ordering::Acquire)
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.bytes, "byte {at} of a mapping of {} bytes", self.bytes);
        // SAFETY: `at` was checked against the mapping's length; it stays mapped as long as `self`
        // lives, which the returned reference borrows; other processes are allowed to change it,
        // which is what an atomic is for.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(at)) }
    }

    /// Sets bits of a byte. A byte that has them is not written, so its page stays clean.
    pub(crate) fn set(&self, at: usize, bits: u8) {
        let byte = self.byte(at);
        if byte.load(Ordering::Relaxed) & bits != bits {
            byte.fetch_or(bits, Ordering::Release);
        }
    }

    /// Writes changed pages to the disk and waits for them.
    ///
    /// # Errors
    /// EIO where the disk failed since the last call.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping of `new`, which lives as long as `self`.
        let done = unsafe { libc::msync(self.base.as_ptr().cast(), self.bytes, libc::MS_SYNC) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        self.file.sync_data()
    }
}

/// Space for holes, so that a full file system is an error now and not a SIGBUS later. File systems
/// and devices without the call are left as they are.
fn reserve(file: &File, bytes: usize) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: fallocate takes numbers only; the descriptor is borrowed for the call.
    if unsafe { libc::fallocate(file.as_raw_fd(), keep, 0, length) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EIO) => Err(error),
        _ => Ok(()),
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
