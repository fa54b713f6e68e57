//! The mapping of the ring device, and its ioctls: everything of the frontend that needs unsafe
//! code.
#![allow(unsafe_code)]
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::Side;
use super::abi::{
    self, DeviceInfo, OldInfo, PAGE_BYTES, PAGE_WORDS, PAGES, SEGMENTS_MAX, ring_ioctl,
};

/// Bytes of the mapping, and of a request's data.
const BYTES: usize = PAGES * PAGE_BYTES;
const DATA_BYTES: usize = SEGMENTS_MAX * PAGE_BYTES;

/// The ring device, open and mapped. When it is dropped the kernel fails what is outstanding and
/// takes the disk away.
#[derive(Debug)]
pub struct Ring {
    base: NonNull<u8>,
    device: Handle,
}

/// The ring device, for a worker: calls that may wait.
#[derive(Clone, Debug)]
pub struct Handle(Arc<File>);

// SAFETY: the mapping belongs to the process, not to a thread, and the type has no other owner of
// it.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens and maps the ring device.
    ///
    /// # Errors
    /// Those of open, such as EBUSY while another process has it; EINVAL of mmap where the module's
    /// ring has another size.
    pub fn open(path: &Path) -> io::Result<Ring> {
        Ring::map(File::options().read(true).write(true).open(path)?)
    }

    /// Maps the ring device again that the program before this one had mapped, and kept.
    ///
    /// # Errors
    /// EIO where the ring has ended meanwhile.
    pub fn again(device: OwnedFd) -> io::Result<Ring> {
        Ring::map(device.into())
    }

    fn map(device: File) -> io::Result<Ring> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            let (null, access) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
            libc::mmap(null, BYTES, access, libc::MAP_SHARED, device.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the mapping made just above; the advice keeps what passes through it out of
        // cores.
        unsafe { libc::madvise(at, BYTES, libc::MADV_DONTDUMP) };
        let base = NonNull::new(at.cast()).expect("mmap gave an address");
        Ok(Ring { base, device: Handle(Arc::new(device)) })
    }

    /// For polling.
    pub fn raw_fd(&self) -> RawFd {
        self.device.0.as_raw_fd()
    }

    /// To carry it over an exec.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.0.as_fd()
    }

    /// KEEP: whether the ring, its block device and requests outlive the mapping, as long as its
    /// file is open, so that the next program of this process can map it again.
    ///
    /// # Errors
    /// ENOTTY of other modules than ours.
    pub fn keep(&self, keep: bool) -> io::Result<()> {
        let argument = std::ptr::without_provenance_mut(usize::from(keep));
        self.device.call(ring_ioctl::KEEP, argument)
    }

    /// For calls that may wait.
    pub fn handle(&self) -> Handle {
        self.device.clone()
    }

    /// Where data of a request are.
    fn data(&self, id: u8, at: usize, bytes: usize) -> *mut u8 {
        let inside = at.checked_add(bytes).is_some_and(|end| end <= DATA_BYTES);
        assert!(inside && u32::from(id) < abi::ENTRIES, "data lie in the pages of their request");
        let offset = PAGE_BYTES + usize::from(id) * DATA_BYTES + at;
        // SAFETY: checked just above: it lies in the mapping, whose length is BYTES.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, unmapped once; nobody has a reference into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), BYTES) };
    }
}

impl Side for Ring {
    fn page(&self) -> &[AtomicU32] {
        // SAFETY: the first page of the mapping, aligned as a page is, for as long as `self` is
        // borrowed; the kernel writes to it too, which atomic words allow.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), PAGE_WORDS) }
    }

    fn read(&self, id: u8, at: usize, into: &mut [u8]) {
        let from = self.data(id, at, into.len());
        // SAFETY: `data` checked the range, and the request is not answered, so the kernel has its
        // pages there. Whoever wrote them may still change them: then these are the bytes of before
        // or after, as with any disk, and nothing here looks at them.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
    }

    fn write(&mut self, id: u8, at: usize, from: &[u8]) {
        let to = self.data(id, at, from.len());
        // SAFETY: as for `read`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    fn respond(&mut self) -> io::Result<()> {
        self.device.call(ring_ioctl::RESPOND, std::ptr::null_mut())
    }

    fn push(&mut self) {
        let mut poll = libc::pollfd { fd: self.raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, alive during the call, which does not wait.
        unsafe { libc::poll(&mut poll, 1, 0) };
    }
}

impl Handle {
    /// CREATE_DEVICE; flags that were accepted come back, where the module tells.
    ///
    /// # Errors
    /// What the kernel answers: ENOTTY of the first modules, EEXIST if there is a disk.
    pub fn create(&self, info: &mut DeviceInfo) -> io::Result<()> {
        self.call(ring_ioctl::CREATE_DEVICE, std::ptr::from_mut(info).cast())
    }

    /// The same for the first modules.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn create_old(&self, info: &mut OldInfo) -> io::Result<()> {
        self.call(ring_ioctl::CREATE_DEVICE_OLD, std::ptr::from_mut(info).cast())
    }

    /// REMOVE_DEVICE.
    ///
    /// # Errors
    /// EBUSY while somebody has it open; ENOTTY of the first modules.
    pub fn remove(&self) -> io::Result<()> {
        self.call(ring_ioctl::REMOVE_DEVICE, std::ptr::null_mut())
    }

    fn call(&self, number: u32, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the argument is what the ioctl takes: nothing, a number, or a structure of ours that is
        // borrowed for the call and at least as long as any module of this interface reads and
        // writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number.into(), argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
