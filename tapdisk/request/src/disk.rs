//! What the engine asks of the files of a disk, and the trait of whoever does it.
//!
//! A disk engine queues operations, hands them to the kernel once a turn, and reaps results. It
//! knows nothing of formats or requests. There is always room for one more operation, because the
//! engine above never has more in flight than `depth` promised at open.
use std::io;
use std::os::fd::RawFd;

use host::arena::{Arena, Buf};

/// An open file of the chain, by position: 0 is the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub u8);

/// A file as it was opened.
#[derive(Clone, Copy, Debug)]
pub struct FileInfo {
    /// Its length in bytes.
    pub bytes: u64,
    /// A block device: its size is fixed.
    pub device: bool,
    /// A device that knows no zeros without writing them, but what it discards reads as zeros.
    pub thin: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads into the buffer.
    Read,
    /// Writes from the buffer.
    Write,
    /// fdatasync: everything that completed before it was pushed is on the disk when it completes.
    Sync,
    /// Takes space for `bytes` from `at` on; the file does not become longer (fallocate,
    /// KEEP_SIZE).
    Grow {
        /// Length in bytes.
        bytes: u64,
    },
    /// Makes `bytes` from `at` on read as zeros.
    Zero {
        /// Length in bytes.
        bytes: u64,
        /// Give the space back (punch a hole) rather than keep it.
        punch: bool,
    },
    /// Gives `bytes` from `at` on back; they may read as anything afterwards.
    Discard {
        /// Length in bytes.
        bytes: u64,
    },
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// On which file.
    pub file: FileId,
    /// What.
    pub kind: Kind,
    /// Byte offset in the file.
    pub at: u64,
    /// Memory of Read and Write; empty otherwise.
    pub buf: Buf,
}

/// Who an operation belongs to; comes back with its result. The engine's index into its own table.
pub type Tag = u32;

/// The engine under the requests.
pub trait Disk {
    /// Queues one operation. There is always room (see the module's text).
    fn push(&mut self, tag: Tag, op: Op);

    /// Hands what is queued to the kernel, in one call, and makes finished operations visible to
    /// `reap`. Never waits.
    ///
    /// # Errors
    /// When the kernel refuses the call itself; what is queued stays queued.
    fn submit(&mut self) -> io::Result<()>;

    /// The next finished operation. `Ok` is the number of bytes of Read and Write (0 for the other
    /// kinds), `Err` a positive errno.
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)>;

    /// Whether `reap` would give something. `wake_fd` tells only of what is not visible yet, and an
    /// operation may finish within `submit`: the caller does not sleep on `wake_fd` while this is
    /// true.
    fn has_finished(&self) -> bool {
        false
    }

    /// The memory that buffers name.
    fn arena(&mut self) -> &mut Arena;

    /// The memory that buffers name, to look at.
    fn arena_ref(&self) -> &Arena;

    /// Makes `fds[i]` the file `FileId(i)`; called while nothing is in flight. Descriptors stay the
    /// caller's.
    ///
    /// # Errors
    /// When the kernel refuses to register them.
    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()>;

    /// A descriptor that is readable when `submit` would make completions visible.
    fn wake_fd(&self) -> RawFd;

    /// Submits and then sleeps until a completion is there or `watch` (an epoll descriptor) is
    /// readable or the time is over, if the engine can do all that in one call. `None` if it can
    /// not: the caller polls `watch`, on which `wake_fd` is registered.
    fn submit_and_wait(
        &mut self,
        _watch: RawFd,
        _timeout: std::time::Duration,
    ) -> Option<io::Result<()>> {
        None
    }

    /// For people: "io_uring" or "linux-aio".
    fn name(&self) -> &'static str;
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn push(&mut self, tag: Tag, op: Op) {
        (**self).push(tag, op);
    }
    fn submit(&mut self) -> io::Result<()> {
        (**self).submit()
    }
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        (**self).reap()
    }
    fn has_finished(&self) -> bool {
        (**self).has_finished()
    }
    fn arena(&mut self) -> &mut Arena {
        (**self).arena()
    }
    fn arena_ref(&self) -> &Arena {
        (**self).arena_ref()
    }
    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        (**self).set_files(fds)
    }
    fn wake_fd(&self) -> RawFd {
        (**self).wake_fd()
    }
    fn submit_and_wait(
        &mut self,
        watch: RawFd,
        timeout: std::time::Duration,
    ) -> Option<io::Result<()>> {
        (**self).submit_and_wait(watch, timeout)
    }
    fn name(&self) -> &'static str {
        (**self).name()
    }
}
