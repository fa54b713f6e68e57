//! The arena: one mapping that holds every byte a request may touch.
//!
//! It is mapped, populated and locked at open, page-aligned (fit for O_DIRECT and for io_uring's
//! registered buffers), and never grows. Pieces of it are named by [`Buf`], an offset and a length,
//! never by pointer: the kernel may be writing into a piece while the rest is in use, so a slice is
//! only made of a piece that is not in flight. Who owns which piece is decided by the engine: a
//! slot owns its buffer for life, a metadata block its unit.
#![allow(unsafe_code)]
use std::io;
use std::ptr::NonNull;

use crate::protection::{self, Protection};

/// A piece of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Buf {
    /// Offset in the arena.
    pub offset: u32,
    /// Length in bytes.
    pub bytes: u32,
}

impl Buf {
    /// No memory: for operations without data.
    pub const NONE: Buf = Buf { offset: 0, bytes: 0 };

    /// The piece that starts `skip` bytes in and has `bytes` bytes.
    pub fn part(self, skip: u32, bytes: u32) -> Buf {
        assert!(
            skip.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "a piece of a buffer lies inside it"
        );
        Buf { offset: self.offset + skip, bytes }
    }
}

/// How the arena's memory is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locked {
    /// In memory until unmapped.
    Yes,
    /// The kernel refused, with this errno; pages may be reclaimed.
    Refused(i32),
}

/// One locked mapping.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    locked: Locked,
}

// SAFETY: the mapping is owned by this value alone and has no thread affinity.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps, populates and tries to lock `bytes` (rounded up to pages) of zeros.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(bytes: usize) -> io::Result<Arena> {
        let bytes = bytes.next_multiple_of(4096);
        let base = map(bytes)?;
        let locked = match protection::has(Protection::Lock) {
            true => lock(base.as_ptr().cast(), bytes),
            false => Locked::Refused(0),
        };
        Ok(Arena { base, bytes, locked })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the memory is locked.
    pub fn locked(&self) -> Locked {
        self.locked
    }

    /// Address of the first byte, for registering with the kernel.
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Address of a piece, for an operation of the kernel's. Checked to lie inside.
    pub fn address(&self, buf: Buf) -> *mut u8 {
        let (offset, bytes) = (buf.offset as usize, buf.bytes as usize);
        assert!(
            offset <= self.bytes && bytes <= self.bytes - offset,
            "a buffer lies inside the arena"
        );
        // SAFETY: the offset was checked against the mapping's length just above.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// A piece that nothing is in flight on, to read.
    pub fn slice(&self, buf: Buf) -> &[u8] {
        // SAFETY: `address` checked the range; the engine hands out a `Buf` to one owner at a time
        // and gives it to the kernel only while that owner waits (the module's rule), and `&self`
        // keeps `slice_mut` away.
        unsafe { std::slice::from_raw_parts(self.address(buf), buf.bytes as usize) }
    }

    /// A piece that nothing is in flight on, to change.
    pub fn slice_mut(&mut self, buf: Buf) -> &mut [u8] {
        // SAFETY: as for `slice`; `&mut self` keeps every other slice away.
        unsafe { std::slice::from_raw_parts_mut(self.address(buf), buf.bytes as usize) }
    }

    /// The control of the tests gives a piece's pages back, so that whoever touches it next has to
    /// be given new ones. Nothing is in flight on it, and what it held is of no more use.
    #[cfg(feature = "unprotected")]
    pub fn give_back(&mut self, buf: Buf) {
        if protection::has(Protection::Reserve) {
            return;
        }
        let bytes = buf.bytes as usize / 4096 * 4096;
        // SAFETY: the range was checked by `address` and is page-aligned, as slots are; no slice of
        // it is alive (`&mut self`), the arena is not registered with a ring, and zeros are as good
        // as what was there.
        unsafe { libc::madvise(self.address(buf).cast(), bytes, libc::MADV_DONTNEED_LOCKED) };
    }

    /// Copies one piece to another; they may overlap. Neither is in flight.
    pub fn copy(&mut self, from: Buf, to: Buf) {
        assert!(from.bytes == to.bytes, "a copy keeps its length");
        let (src, dst) = (self.address(from), self.address(to));
        // SAFETY: both ranges were checked by `address`; `copy` allows overlap.
        unsafe { std::ptr::copy(src, dst, from.bytes as usize) }
    }

    /// A piece to look at, and one behind it to change.
    pub fn two(&mut self, from: Buf, to: Buf) -> (&[u8], &mut [u8]) {
        let apart = to.offset.checked_sub(from.offset).expect("the one to change lies behind");
        let both = self.slice_mut(Buf { offset: from.offset, bytes: apart + to.bytes });
        let (first, second) = both.split_at_mut(apart as usize);
        (&first[..from.bytes as usize], second)
    }
}

/// New pages of zeros, all there, that no core has: data of guests pass through them.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let (access, null) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(null, bytes, access, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping made just above; the advice changes no contents, and every Linux since
    // 3.4 takes it.
    unsafe { libc::madvise(at, bytes, libc::MADV_DONTDUMP) };
    Ok(NonNull::new(at.cast::<u8>()).expect("mmap gave an address"))
}

/// A buffer of one owner's, outside of an arena, for data of guests: in no core.
#[derive(Debug)]
pub struct Buffer {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: as of `Arena`.
unsafe impl Send for Buffer {}

impl Buffer {
    /// So many bytes, all zero. A process that gets none ends, as where the allocator gets none.
    pub fn new(bytes: usize) -> Buffer {
        Buffer { base: map(bytes).expect("memory for a buffer"), bytes }
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping of `new`, of that length; `&self` keeps changes away.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as of `deref`; `&mut self` keeps every other slice away.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; no slice of it is alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Locks a mapping.
fn lock(at: *mut libc::c_void, bytes: usize) -> Locked {
    // SAFETY: mlock changes no contents of memory, and refuses what is not mapped.
    match unsafe { libc::mlock(at, bytes) } {
        0 => Locked::Yes,
        _ => Locked::Refused(io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM)),
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; nothing is in flight when an engine is
        // dropped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
